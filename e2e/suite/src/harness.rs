//! The test runner: a table of cases, run one after another against one [`World`], with one line
//! each and a closing line.

use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use crate::diagnostics;
use crate::world::World;

/// Which run a case belongs to; the full one holds both.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
pub(crate) enum Suite {
    /// What every change must pass: short
    Ci,
    /// The acceptance: everything
    Full,
}

/// One test.
pub(crate) struct Case {
    /// A sentence with underscores.
    pub(crate) name: &'static str,
    pub(crate) suite: Suite,
    pub(crate) run: fn(&mut World) -> Result<()>,
}

/// A case of the ci suite, named after its module and function.
macro_rules! ci {
    ($group:ident::$name:ident) => {
        $crate::harness::Case {
            name: concat!(stringify!($group), "::", stringify!($name)),
            suite: $crate::harness::Suite::Ci,
            run: $group::$name,
        }
    };
}
/// A case of the full suite only.
macro_rules! full {
    ($group:ident::$name:ident) => {
        $crate::harness::Case {
            suite: $crate::harness::Suite::Full,
            ..ci!($group::$name)
        }
    };
}
pub(crate) use {ci, full};

/// What to run and where to report.
pub(crate) struct Plan {
    pub(crate) suite: Suite,
    pub(crate) filter: Option<String>,
    pub(crate) json: Option<PathBuf>,
}

/// Why a case cannot be run against this cluster. It is neither passed nor failed.
#[derive(Debug)]
pub(crate) struct Skipped(pub(crate) &'static str);

impl std::fmt::Display for Skipped {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.0)
    }
}

impl std::error::Error for Skipped {}

/// Runs the cases that `plan` selects and prints `N passed, N failed` last.
///
/// # Errors
/// When a case failed, or the report cannot be written.
pub(crate) fn run(world: &mut World, cases: &[Case], plan: &Plan) -> Result<()> {
    let mut results = Vec::new();
    let (mut failed, mut skipped) = (0_usize, 0_usize);
    world.complete = plan.suite == Suite::Full && plan.filter.is_none();
    for case in cases.iter().filter(|case| selects(plan, case)) {
        let started = Instant::now();
        let result = (case.run)(world);
        let seconds = started.elapsed().as_secs_f64();
        match &result {
            Ok(()) => println!("test {} ... ok ({seconds:.1}s)", case.name),
            Err(error) if error.is::<Skipped>() => {
                skipped += 1;
                println!("test {} ... skipped: {error}", case.name);
            }
            Err(error) => {
                failed += 1;
                println!("test {} ... FAILED ({seconds:.1}s)\n  {error:#}", case.name);
                diagnostics::dump(world, case.name);
                world.recover();
            }
        }
        results.push(json!({"name": case.name, "seconds": seconds, "error": result.err().map(|error| format!("{error:#}"))}));
    }
    let passed = results.len() - failed - skipped;
    if let Some(file) = &plan.json {
        let report: Value =
            json!({"tests": results, "passed": passed, "failed": failed, "skipped": skipped});
        std::fs::write(file, format!("{report:#}\n"))
            .with_context(|| format!("write {}", file.display()))?;
    }
    if skipped == 0 {
        println!("{passed} passed, {failed} failed");
    } else {
        println!("{passed} passed, {failed} failed, {skipped} skipped");
    }
    if failed > 0 {
        bail!("{failed} of {} tests failed", results.len());
    }
    if passed == 0 {
        bail!("no test was run");
    }
    Ok(())
}

/// Whether the plan runs the case. A filter by name overrides the suite.
pub(crate) fn selects(plan: &Plan, case: &Case) -> bool {
    match &plan.filter {
        Some(filter) => filter.split(',').any(|part| case.name.contains(part)),
        None => case.suite <= plan.suite,
    }
}

/// Tries `attempt` until it succeeds.
///
/// # Errors
/// The last error, when `limit` has passed.
pub(crate) fn eventually<T>(limit: Duration, mut attempt: impl FnMut() -> Result<T>) -> Result<T> {
    let deadline = Instant::now() + limit;
    loop {
        match attempt() {
            Ok(value) => return Ok(value),
            Err(error) if Instant::now() > deadline => {
                return Err(error.context(format!("still not so after {} s", limit.as_secs())));
            }
            Err(_) => thread::sleep(Duration::from_millis(300)),
        }
    }
}

/// Checks over `time` that `check` holds at each look.
///
/// # Errors
/// The first error.
pub(crate) fn throughout(time: Duration, mut check: impl FnMut() -> Result<()>) -> Result<()> {
    let deadline = Instant::now() + time;
    while Instant::now() < deadline {
        check()?;
        thread::sleep(Duration::from_millis(500));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_full_suite_holds_the_short_one_and_a_filter_overrides() {
        let case = |suite| Case {
            name: "pods::start",
            suite,
            run: |_| Ok(()),
        };
        let plan = |suite, filter: Option<&str>| Plan {
            suite,
            filter: filter.map(str::to_owned),
            json: None,
        };
        assert!(selects(&plan(Suite::Full, None), &case(Suite::Ci)));
        assert!(!selects(&plan(Suite::Ci, None), &case(Suite::Full)));
        assert!(selects(&plan(Suite::Ci, Some("start")), &case(Suite::Full)));
        assert!(!selects(&plan(Suite::Full, Some("stop")), &case(Suite::Ci)));
    }

    #[test]
    fn eventually_returns_the_last_error() {
        let mut tries = 0;
        assert_eq!(
            eventually(Duration::from_secs(5), || {
                tries += 1;
                if tries == 3 {
                    Ok(tries)
                } else {
                    bail!("not yet")
                }
            })
            .expect("third"),
            3
        );
        assert!(eventually(Duration::ZERO, || -> Result<()> { bail!("never") }).is_err());
    }
}
