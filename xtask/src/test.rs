//! `cargo xtask test`: everything that needs no cluster, in one profile, with one closing line.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, bail};
use serde::Serialize;

use crate::{contract, lint, programs, report, run};

/// Arguments of `test`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Runs only this step
    #[arg(long, value_enum)]
    only: Option<Step>,
    /// Runs every test N times, to find flaky ones
    #[arg(long, value_name = "N", default_value = "1")]
    again: std::num::NonZeroU32,
    /// Writes steps, seconds and counts as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

#[derive(Clone, Copy, PartialEq, Eq, Serialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
enum Step {
    /// cargo fmt --check
    Format,
    /// cargo clippy, warnings are errors
    Clippy,
    /// docs/CONTRACT.md equals what the code would generate; the other generated files have a test
    Generate,
    /// cargo xtask lint
    Lint,
    /// cargo test: unit, in process, schema tables, chart renders
    Tests,
}

const STEPS: [Step; 5] = [
    Step::Format,
    Step::Clippy,
    Step::Generate,
    Step::Lint,
    Step::Tests,
];

#[derive(Serialize)]
struct Outcome {
    step: Step,
    seconds: f64,
    error: Option<String>,
}

/// Sums of cargo's `test result:` lines, and how often each test failed.
#[derive(Debug, Default, PartialEq, Eq, Serialize)]
struct Counts {
    passed: u64,
    failed: u64,
    ignored: u64,
    failures: BTreeMap<String, u32>,
}

#[derive(Serialize)]
struct Report<'a> {
    steps: &'a [Outcome],
    counts: &'a Counts,
}

/// Runs all steps, also after one failed, and prints `N passed, N failed` last.
///
/// # Errors
/// When any step failed.
pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let mut counts = Counts::default();
    let mut outcomes = Vec::new();
    for step in STEPS
        .into_iter()
        .filter(|step| args.only.is_none_or(|only| only == *step))
    {
        let started = Instant::now();
        let result = perform(step, args.again.get(), &mut counts);
        let seconds = started.elapsed().as_secs_f64();
        match &result {
            Ok(()) => println!("step {} ... ok ({seconds:.1}s)", name(step)),
            Err(error) => println!(
                "step {} ... FAILED ({seconds:.1}s)\n  {error:#}",
                name(step)
            ),
        }
        outcomes.push(Outcome {
            step,
            seconds,
            error: result.err().map(|error| format!("{error:#}")),
        });
    }
    report::write(
        args.json.as_deref(),
        &Report {
            steps: &outcomes,
            counts: &counts,
        },
    )?;
    let broken: Vec<_> = outcomes
        .iter()
        .filter(|outcome| outcome.error.is_some())
        .map(|outcome| name(outcome.step))
        .collect();
    if !broken.is_empty() {
        println!("steps that failed: {}", broken.join(", "));
    }
    for (test, failed) in &counts.failures {
        println!("{test} failed {failed} of {} times", args.again);
    }
    println!("{} passed, {} failed", counts.passed, counts.failed);
    if !broken.is_empty() || counts.failed > 0 {
        bail!("not green");
    }
    Ok(())
}

fn name(step: Step) -> &'static str {
    match step {
        Step::Format => "format",
        Step::Clippy => "clippy",
        Step::Generate => "generate --check",
        Step::Lint => "lint",
        Step::Tests => "tests",
    }
}

fn perform(step: Step, again: u32, counts: &mut Counts) -> anyhow::Result<()> {
    match step {
        Step::Format => run::status(
            "cargo fmt (repair with `cargo fmt --all`)",
            run::cargo(&["fmt", "--all", "--check"]),
        ),
        Step::Clippy => run::status(
            "cargo clippy",
            run::cargo(&[
                "clippy",
                "--quiet",
                "--workspace",
                "--all-targets",
                "--features",
                API_SERVER,
                "--",
                "-D",
                "warnings",
            ]),
        ),
        // The schema's and the chart's files are compared by a test of theirs; running their
        // generator would build it a second time.
        Step::Generate => contract::generate(&run::root(), true),
        Step::Lint => lint::run(None),
        Step::Tests => tests(again, counts),
    }
}

/// Turns on the tests that talk to a real API server without nodes, and those on a real containerd.
const API_SERVER: &str =
    "holdfast-controller/apiserver,holdfast/apiserver,holdfast-node-agent/containerd";

/// Runs every test of the workspace. The chart's tests render with the real helms of both
/// generations, and those of the registry trade volumes with other registries; like etcd and the
/// API server these programs are built or fetched when they are not there yet.
fn tests(again: u32, counts: &mut Counts) -> anyhow::Result<()> {
    let helms = std::env::join_paths(crate::cluster::helms()?).context("a path of helm")?;
    let others = programs::others()?;
    let mut outcome = Ok(());
    for _ in 0..again {
        let mut command = run::cargo(&[
            "test",
            "--workspace",
            "--no-fail-fast",
            "--features",
            API_SERVER,
        ]);
        command
            .env("HOLDFAST_HELM", &helms)
            .envs(others.iter().cloned());
        // Also after one failed: how often it fails is what is asked for.
        let ended = count(command, counts);
        outcome = outcome.and(ended);
    }
    outcome
}

/// Runs `command`, shows its output as it comes, and adds up its `test result:` lines.
fn count(mut command: Command, counts: &mut Counts) -> anyhow::Result<()> {
    let mut child = command
        .stdout(Stdio::piped())
        .spawn()
        .context("start cargo test")?;
    let stdout = child.stdout.take().context("cargo test has no output")?;
    for line in BufReader::new(stdout).lines() {
        let line = line.context("read the output of cargo test")?;
        add(counts, &line);
        println!("{line}");
    }
    let status = child.wait().context("wait for cargo test")?;
    if !status.success() {
        bail!("cargo test failed ({status})");
    }
    Ok(())
}

/// Adds one line of output to the sums; other lines change nothing.
fn add(counts: &mut Counts, line: &str) {
    let test = line.strip_prefix("test ");
    if let Some(test) = test.and_then(|rest| rest.strip_suffix(" ... FAILED")) {
        *counts.failures.entry(test.to_owned()).or_default() += 1;
    }
    let Some(rest) = line.strip_prefix("test result: ") else {
        return;
    };
    for part in rest.split(['.', ';']) {
        let mut words = part.split_whitespace();
        let (Some(number), Some(what)) = (
            words.next().and_then(|word| word.parse::<u64>().ok()),
            words.next(),
        ) else {
            continue;
        };
        match what {
            "passed" => counts.passed += number,
            "failed" => counts.failed += number,
            "ignored" => counts.ignored += number,
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn result_lines_are_summed_and_others_ignored() {
        let mut counts = Counts::default();
        for line in [
            "running 3 tests",
            "test result: ok. 12 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.03s",
            "test result: FAILED. 2 passed; 3 failed; 0 ignored; 0 measured; 0 filtered out; finished in 1.10s",
            "9 passed; 9 failed",
            "test a::b ... ok",
            "test a::c ... FAILED",
            "test a::c ... FAILED",
        ] {
            add(&mut counts, line);
        }
        assert_eq!(
            counts,
            Counts {
                passed: 14,
                failed: 3,
                ignored: 1,
                failures: BTreeMap::from([("a::c".to_owned(), 2)]),
            }
        );
    }
}
