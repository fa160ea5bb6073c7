//! Reports what was removed and what was left, for the user who deletes the release.

use std::fmt;

use holdfast_cli_kit::terminal::{clean, count};
use serde::Serialize;

/// At most this many pods are named; the rest is counted.
const NAMED_PODS: usize = 20;

/// Longest text of an event that the API server takes.
const MAX_SUMMARY_CHARS: usize = 1000;

/// The report of an uninstallation.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Report {
    done: Vec<String>,
    left: Vec<String>,
    /// Which originals nodes pull again, by node.
    pub(crate) pulls: Vec<String>,
    /// Running pods whose images name the registry: `namespace/name`.
    pub(crate) rewritten: Vec<String>,
}

impl Report {
    /// Something was undone.
    pub(crate) fn done(&mut self, line: String) {
        self.done.push(line);
    }

    /// Something stays behind.
    pub(crate) fn left(&mut self, line: String) {
        self.left.push(line);
    }

    /// A step that is done or not.
    pub(crate) fn step(&mut self, what: &str, result: anyhow::Result<()>) {
        match result {
            Ok(()) => self.done(what.to_owned()),
            Err(error) => self.left(format!("not {what}: {error:#}")),
        }
    }

    /// A step that is done a number of times.
    pub(crate) fn count(&mut self, what: &str, result: anyhow::Result<usize>) {
        match result {
            Ok(count) => self.done(format!("{count} {what}")),
            Err(error) => self.left(format!("not all {what}: {error:#}")),
        }
    }

    /// Pods that keep their rewritten references although they were to be restored: harmless while
    /// they run.
    pub(crate) fn not_restored(&mut self, pods: Vec<String>) {
        let more = pods.len().saturating_sub(NAMED_PODS);
        for pod in pods.into_iter().take(NAMED_PODS) {
            self.left.push(format!("not restored: {pod}"));
        }
        if more > 0 {
            self.left.push(format!("not restored: {more} pods more"));
        }
    }

    /// The report on one line, with what stays behind: the text of an event.
    pub(crate) fn summary(&self) -> String {
        let done = count(self.done.len() as u64, "step", "steps");
        let mut text = format!("{done} done, {} left", self.left.len());
        if !self.rewritten.is_empty() {
            let pods = self.rewritten.len() as u64;
            let pods = count(pods, "running pod still names", "running pods still name");
            text = format!("{text}; {pods} the registry");
        }
        for left in &self.left {
            text = format!("{text}; LEFT {}", clean(left));
        }
        text.chars().take(MAX_SUMMARY_CHARS).collect()
    }

    /// Whether nothing stays behind.
    pub(crate) fn is_clean(&self) -> bool {
        self.left.is_empty()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for line in &self.done {
            writeln!(f, "done  {}", clean(line))?;
        }
        for line in &self.left {
            writeln!(f, "LEFT  {}", clean(line))?;
        }
        for line in &self.pulls {
            writeln!(f, "note  {}", clean(line))?;
        }
        if !self.rewritten.is_empty() {
            writeln!(
                f,
                "note  {} running pods still name the registry. They keep running and get their \
                 original images when their owners recreate them:",
                self.rewritten.len()
            )?;
            for pod in self.rewritten.iter().take(NAMED_PODS) {
                writeln!(f, "        {}", clean(pod))?;
            }
            let more = self.rewritten.len().saturating_sub(NAMED_PODS);
            if more > 0 {
                writeln!(f, "        and {more} more")?;
            }
        }
        Ok(())
    }
}
