//! One run: a volume, replicas, clients, an incident, a look at everything; some times over.

use std::sync::{Arc, Mutex};

use holdfast_core::digest::Digest;
use holdfast_simfs::{Faults, Rng, SimFs};
use holdfast_store::{Hasher, Options, Store};

use crate::{
    model::Model,
    program::{World, operation},
    user::Run,
};

/// A run that went wrong.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) seed: u64,
    pub(crate) violations: Vec<String>,
    pub(crate) trace: Vec<String>,
}

/// What a seed stands for.
#[derive(Debug)]
struct Plan {
    replicas: usize,
    users: usize,
    rounds: usize,
    switch_of_10_000: u32,
    faults: Faults,
    /// From the second round on the volume is full.
    fills_up: bool,
}

impl Plan {
    fn draw(rng: &mut Rng) -> Self {
        let replicas = 1 + rng.below(3);
        let faulty = rng.chance(5_000);
        let rate = |rng: &mut Rng, most: usize| {
            if faulty && rng.chance(6_000) {
                u32::try_from(rng.below(most)).unwrap()
            } else {
                0
            }
        };
        Self {
            replicas,
            users: 1 + rng.below(3),
            rounds: 1 + rng.below(3),
            switch_of_10_000: *rng.pick(&[0, 300, 3_000]),
            faults: Faults {
                io: rate(rng, 200),
                no_space: rate(rng, 200),
                short: rate(rng, 3_000),
                lost_reply: rate(rng, 1_000),
                stall: if rng.chance(3_000) {
                    u32::try_from(rng.below(150)).unwrap()
                } else {
                    0
                },
                stale_ms: if replicas > 1 && rng.chance(7_000) {
                    *rng.pick(&[100, 3_000, 60_000])
                } else {
                    0
                },
                ..Faults::default()
            },
            fills_up: faulty && rng.chance(2_000),
        }
    }

    fn is_calm(&self) -> bool {
        let Faults {
            io,
            no_space,
            lost_reply,
            ..
        } = self.faults;
        io + no_space + lost_reply == 0 && !self.fills_up
    }
}

pub(crate) fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .unwrap()
}

/// Runs one seed; `None` if nothing went wrong.
pub(crate) fn seed(seed: u64, breakage: Faults, trace: bool) -> Option<Failure> {
    let world = World::new();
    let mut rng = Rng::new(seed);
    let plan = Plan::draw(&mut rng);
    let fs = SimFs::new(
        rng.bits(),
        plan.replicas,
        Faults {
            stale_ms: plan.faults.stale_ms,
            ..breakage
        },
    );
    if trace {
        fs.start_trace();
        fs.note(|| format!("seed {seed}: {plan:?}"));
    }
    let stores = (0..plan.replicas)
        .map(|replica| open(&fs, replica))
        .collect();
    let mut run = Run {
        world: &world,
        fs,
        stores,
        model: Mutex::new(Model::default()),
        calm: plan.is_calm(),
        sessions: Mutex::default(),
    };
    for round in 0..plan.rounds {
        run.fs.note(|| format!("==== round {round}"));
        run.fs.set_faults(Faults {
            skip_dir_syncs: breakage.skip_dir_syncs,
            skip_file_syncs: breakage.skip_file_syncs,
            full: plan.fills_up && round > 0,
            ..plan.faults
        });
        match rng.below(10) {
            0..=4 => run.fs.cut_power_in(1 + rng.below(900) as u64),
            5..=6 => run
                .fs
                .kill_in(1 + rng.below(500) as u64, rng.below(plan.replicas)),
            _ => {}
        }
        work(&run, &plan, &mut rng);
        run.fs.set_faults(breakage);
        if rng.chance(3_000) {
            run.fs.cut_power();
        }
        let dead: Vec<_> = (0..plan.replicas)
            .filter(|replica| run.fs.is_dead(*replica))
            .collect();
        run.fs.restart();
        for replica in dead {
            run.stores[replica] = open(&run.fs, replica);
        }
        if rng.chance(5_000) {
            run.fs.advance_ms(90_000);
        }
        look(&run);
        if !run.model().violations.is_empty() {
            break;
        }
    }
    let violations = std::mem::take(&mut run.model().violations);
    (!violations.is_empty()).then(|| Failure {
        seed,
        violations,
        trace: run.fs.trace(),
    })
}

fn open(fs: &SimFs, replica: usize) -> Store {
    runtime()
        .block_on(Store::open_on(
            Arc::new(fs.client(replica)),
            "/r",
            Options::default(),
        ))
        .unwrap()
}

/// The clients work, until they are done or nothing answers any more.
fn work(run: &Run<'_>, plan: &Plan, rng: &mut Rng) {
    let programs: Vec<_> = (0..plan.users)
        .map(|_| {
            let operations: Vec<_> = (0..3 + rng.below(8))
                .map(|_| operation(run.world, rng))
                .collect();
            (operations, Rng::new(rng.bits()))
        })
        .collect();
    let user = |(operations, mut rng): (Vec<_>, Rng)| {
        runtime().block_on(async {
            for operation in &operations {
                if run.fs.is_down() {
                    break;
                }
                run.perform(operation, &mut rng).await;
            }
        });
    };
    if plan.users == 1 {
        programs.into_iter().for_each(user);
        return;
    }
    run.fs.schedule_threads(plan.users, plan.switch_of_10_000);
    std::thread::scope(|scope| {
        for (seat, program) in programs.into_iter().enumerate() {
            scope.spawn(move || {
                let _seat = run.fs.enter(seat);
                user(program);
            });
        }
    });
}

/// Nobody works: everything is read through every replica, and every file is looked at.
fn look(run: &Run<'_>) {
    runtime().block_on(async {
        for replica in 0..run.stores.len() {
            for repo in 0..run.world.repos.len() {
                for blob in 0..run.world.blobs.len() {
                    run.read_blob(replica, repo, blob).await;
                }
                for manifest in 0..run.world.manifests.len() {
                    run.read_manifest(replica, repo, manifest).await;
                }
                for tag in 0..run.world.tags.len() {
                    run.read_tag(replica, repo, tag).await;
                }
                run.list_tags(replica, repo).await;
            }
        }
    });
    for (path, bytes) in run.fs.files() {
        if let Some(problem) = damage(&path, &bytes) {
            run.model().violation(format!("{path}: {problem}"));
        }
    }
}

/// What is wrong with a file that readers would take for whole.
fn damage(path: &str, bytes: &[u8]) -> Option<String> {
    if path.ends_with("/link") {
        let digest = std::str::from_utf8(bytes).ok().map(str::parse::<Digest>);
        return (!matches!(digest, Some(Ok(_)))).then(|| format!("holds {bytes:?}"));
    }
    let (_, blob) = path.split_once("/v2/blobs/")?;
    let mut parts = blob.split('/');
    let (algorithm, _, hex) = (parts.next()?, parts.next()?, parts.next()?);
    if parts.next()? != "data" {
        return None;
    }
    let digest: Digest = format!("{algorithm}:{hex}").parse().ok()?;
    let actual = Hasher::digest(digest.algorithm(), bytes);
    (actual != digest).then(|| format!("{} bytes hash to {actual}", bytes.len()))
}
