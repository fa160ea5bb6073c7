//! The report of `doctor`: findings with their fixes, and what could not be read.

use std::fmt;

use holdfast_cli_kit::exit_status::Answer;
use holdfast_cli_kit::finding::{Code, Finding};
use holdfast_cli_kit::terminal;
use serde::Serialize;

/// Everything that is wrong, and what could not be seen.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Report {
    pub(super) findings: Vec<Finding>,
    pub(super) unknown: Vec<String>,
    /// Checks that passed.
    pub(super) ok: Vec<String>,
    /// Facts that need no action.
    pub(super) notes: Vec<String>,
}

impl Report {
    /// Whether nothing is wrong.
    pub(super) fn answer(&self) -> Answer {
        if !self.findings.is_empty() {
            Answer::No
        } else if !self.unknown.is_empty() {
            Answer::Unknown
        } else {
            Answer::Yes
        }
    }

    /// Adds a finding and its fix.
    pub(super) fn find(&mut self, code: Code, what: impl Into<String>, fix: impl Into<String>) {
        self.findings.push(Finding::new(code, what, fix));
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let line = terminal::clean;
        let (good, bad) = (terminal::good(), terminal::bad());
        for ok in &self.ok {
            writeln!(f, "{good}ok{good:#}       {}", line(ok))?;
        }
        for note in &self.notes {
            writeln!(f, "note     {}", line(note))?;
        }
        for finding in &self.findings {
            writeln!(
                f,
                "{bad}PROBLEM{bad:#}  {}; fix: {}",
                line(&finding.what),
                line(&finding.fix)
            )?;
        }
        for unknown in &self.unknown {
            writeln!(f, "unknown  {}", line(unknown))?;
        }
        match self.findings.len() {
            0 if self.unknown.is_empty() => writeln!(f, "nothing is wrong"),
            0 => writeln!(
                f,
                "nothing wrong was found, but not everything could be read"
            ),
            many => writeln!(f, "{}", terminal::count(many as u64, "problem", "problems")),
        }
    }
}
