//! The cases, and what they share: the servers' programs, how long to measure, which were asked
//! for.

mod herd;
mod lists;
mod memory;
mod push;
mod read;
mod startup;

use std::time::Duration;

use anyhow::Result;

use crate::{results::Results, servers::TestBed};

/// A run: what it may use and what it found.
pub(crate) struct Bench {
    /// Programs and scratch folder.
    pub(crate) stand: TestBed,
    /// What was found.
    pub(crate) results: Results,
    /// Rounds of each case.
    pub(crate) rounds: usize,
    /// How long a window of load is measured.
    pub(crate) window: Duration,
    /// A smoke run: small numbers, whose figures mean nothing.
    pub(crate) quick: bool,
    /// Only cases whose name contains this.
    pub(crate) only: Option<String>,
}

impl Bench {
    /// Whether a case was asked for.
    pub(crate) fn wants(&self, case: &str) -> bool {
        self.only.as_ref().is_none_or(|text| case.contains(text))
    }

    /// A number of a full run, or of a smoke run.
    pub(crate) fn scale(&self, full: usize, quick: usize) -> usize {
        if self.quick { quick } else { full }
    }

    /// All cases. One that fails (a server does, or answers with something else than it should)
    /// does not keep the others from being measured; what failed comes back.
    pub(crate) async fn run(&mut self) -> Vec<String> {
        let mut failed = Vec::new();
        failed.extend(failure("pulls", read::run(self).await));
        failed.extend(failure("memory", memory::run(self).await));
        failed.extend(failure("pushes", push::run(self).await));
        failed.extend(failure("lists", lists::run(self).await));
        failed.extend(failure("start", startup::run(self).await));
        failed.extend(failure("cold herd", herd::run(self).await));
        failed
    }
}

fn failure(group: &str, outcome: Result<()>) -> Option<String> {
    let error = outcome.err()?;
    let text = format!("{group}: {error:#}");
    say(&format!("failed: {text}"));
    Some(text)
}

/// A line of progress.
pub(crate) fn say(text: &str) {
    eprintln!("{text}");
}
