//! Random programs on a simulated volume that loses power, fails and forgets, checked against a
//! model of what was acknowledged.
//!
//! Every seed is one run and can be repeated alone, with a line for each call on the volume:
//! `HOLDFAST_SEED=N cargo test --workspace --test simulator one_seed -- --nocapture`.
//! `HOLDFAST_SEEDS=N` runs more seeds than the default.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test, helpers included"
)]

mod full;
mod model;
mod program;
mod replaced;
mod replay;
mod run;
mod taken;
mod user;
mod worn;

use std::sync::{
    Mutex,
    atomic::{AtomicU64, Ordering},
};

use holdfast_simfs::Faults;
use run::Failure;

/// Seeds of a normal run; a few thousand find what there is to find, the rest is for what is rare.
const SEEDS: u64 = 10_000;

fn variable(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// Runs the seeds on all cores until one fails; returns the lowest that did.
fn first_failure(seeds: std::ops::Range<u64>, breakage: Faults) -> Option<Failure> {
    let next = AtomicU64::new(seeds.start);
    let found: Mutex<Option<Failure>> = Mutex::new(None);
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..cores {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= seeds.end || found.lock().unwrap().is_some() {
                        break;
                    }
                    if let Some(failure) = run::seed(seed, breakage, false) {
                        let mut found = found.lock().unwrap();
                        if found.as_ref().is_none_or(|other| failure.seed < other.seed) {
                            *found = Some(failure);
                        }
                    }
                }
            });
        }
    });
    found.into_inner().unwrap()
}

#[test]
fn what_is_acknowledged_survives_and_nothing_false_is_seen() {
    let seeds = variable("HOLDFAST_SEEDS").unwrap_or(SEEDS);
    let started = std::time::Instant::now();
    if let Some(failure) = first_failure(0..seeds, Faults::default()) {
        let again = run::seed(failure.seed, Faults::default(), true);
        let failure = again.unwrap_or(failure);
        for line in &failure.trace {
            println!("{line}");
        }
        panic!(
            "seed {}: {:#?}\nalone: HOLDFAST_SEED={} cargo test --workspace --test simulator one_seed -- --nocapture",
            failure.seed, failure.violations, failure.seed
        );
    }
    println!("{seeds} seeds in {:.1} s", started.elapsed().as_secs_f64());
}

/// For a person who looks into one seed; without `HOLDFAST_SEED` it runs the first.
#[test]
fn one_seed() {
    let seed = variable("HOLDFAST_SEED").unwrap_or(0);
    if let Some(failure) = run::seed(seed, Faults::default(), true) {
        for line in &failure.trace {
            println!("{line}");
        }
        panic!("seed {seed}: {:#?}", failure.violations);
    }
}

/// A simulator that cannot fail shows nothing.
#[test]
fn a_store_on_a_volume_that_syncs_nothing_is_found_out() {
    for (what, breakage) in [
        (
            "directories",
            Faults {
                skip_dir_syncs: true,
                ..Faults::default()
            },
        ),
        (
            "files",
            Faults {
                skip_file_syncs: true,
                ..Faults::default()
            },
        ),
    ] {
        assert!(
            first_failure(0..500, breakage).is_some(),
            "syncs of {what} do nothing and no seed sees it"
        );
    }
}
