//! The table of cases, and their run by `libtest-mimic`: one after another, in the table's order,
//! against one [`World`].

use std::io::Write as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result, anyhow, bail};
use libtest_mimic::{Arguments, Completion, Failed, Trial};
use parking_lot::Mutex;
use serde_json::{Value, json};

use crate::diagnostics;
use crate::wait::Skipped;
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
#[derive(Clone, Copy)]
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

/// What the cases share: the world, and the records of those that ran.
struct Run {
    world: World,
    records: Vec<Value>,
}

/// Runs the cases that `plan` selects, takes the world down and prints `N passed, N failed` last.
///
/// # Errors
/// When a case failed or none ran, the report cannot be written, or the world cannot be taken down.
pub(crate) fn run(mut world: World, cases: &[Case], plan: &Plan) -> Result<()> {
    world.complete = plan.suite == Suite::Full && plan.filter.is_none();
    let run = Arc::new(Mutex::new(Run {
        world,
        records: Vec::new(),
    }));
    let trials = cases
        .iter()
        .filter(|case| selects(plan, case))
        .map(|&case| {
            let run = run.clone();
            Trial::ignorable_test(case.name, move || run.lock().case(case))
        })
        .collect();
    // In this thread: the programs that a case starts die with the thread that started them.
    let arguments = Arguments {
        test_threads: Some(1),
        ..Arguments::default()
    };
    let conclusion = libtest_mimic::run(&arguments, trials);
    let run = Arc::into_inner(run).ok_or_else(|| anyhow!("a case still runs"))?;
    let Run { world, records } = run.into_inner();
    let ended = world.end();
    let (passed, failed) = (conclusion.num_passed, conclusion.num_failed);
    let (skipped, total) = (conclusion.num_ignored, records.len());
    if let Some(file) = &plan.json {
        let report =
            json!({"tests": records, "passed": passed, "failed": failed, "skipped": skipped});
        std::fs::write(file, format!("{report:#}\n"))
            .with_context(|| format!("write {}", file.display()))?;
    }
    if skipped == 0 {
        println!("{passed} passed, {failed} failed");
    } else {
        println!("{passed} passed, {failed} failed, {skipped} skipped");
    }
    if failed > 0 {
        bail!("{failed} of {total} tests failed");
    }
    if passed == 0 {
        bail!("no test was run");
    }
    ended
}

impl Run {
    /// Runs one case and records it. A failure is printed at once and again at the end; its
    /// diagnostics are kept, and faults are ended.
    fn case(&mut self, case: Case) -> Result<Completion, Failed> {
        let started = Instant::now();
        let run = AssertUnwindSafe(|| (case.run)(&mut self.world));
        // A panic is a failure like any other: recorded, and its faults are ended.
        let result = catch_unwind(run).unwrap_or_else(|_| Err(anyhow!("the test panicked")));
        let seconds = started.elapsed().as_secs_f64();
        let error = result.as_ref().err().map(|error| format!("{error:#}"));
        self.records
            .push(json!({"name": case.name, "seconds": seconds, "error": error}));
        print!("({seconds:.1}s) ");
        drop(std::io::stdout().flush());
        match result {
            Ok(()) => Ok(Completion::Completed),
            Err(error) if error.is::<Skipped>() => Ok(Completion::ignored_with(error)),
            Err(error) => {
                println!("\n  {error:#}");
                diagnostics::dump(&self.world, case.name);
                self.world.recover();
                Err(format!("{error:#}").into())
            }
        }
    }
}

/// Whether the plan runs the case. A filter by name overrides the suite.
pub(crate) fn selects(plan: &Plan, case: &Case) -> bool {
    match &plan.filter {
        Some(filter) => filter.split(',').any(|part| case.name.contains(part)),
        None => case.suite <= plan.suite,
    }
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
}
