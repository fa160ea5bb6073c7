//! The report: answers by kind and status, violations, costs; as text and as JSON.

use std::{collections::BTreeMap, time::Instant};

use parking_lot::{Mutex, MutexGuard};
use serde::Serialize;

use crate::{replicas::Cost, windows::Kind};

/// Violations whose text is kept; further ones are only counted.
const KEPT: usize = 60;

/// The final document.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Document {
    /// The run's seed.
    pub(crate) seed: u64,
    /// Seconds under load.
    pub(crate) seconds: f64,
    /// Faults by kind.
    pub(crate) faults: BTreeMap<Kind, u64>,
    /// Answers by operation and status.
    pub(crate) answers: BTreeMap<String, BTreeMap<String, u64>>,
    /// Answers that no fault explains, with one example each.
    pub(crate) unexpected: BTreeMap<String, (u64, String)>,
    /// Promises that were broken, by rule.
    pub(crate) violations: BTreeMap<String, u64>,
    /// The texts of the first ones.
    pub(crate) examples: Vec<String>,
    /// Remarks.
    pub(crate) notes: Vec<String>,
    /// Figures by name.
    pub(crate) figures: BTreeMap<String, serde_json::Value>,
    /// Costs of each replica's processes.
    pub(crate) costs: Vec<Vec<Cost>>,
}

/// The report of a run in progress.
#[derive(Debug)]
pub(crate) struct Report {
    began: Instant,
    document: Mutex<Document>,
}

impl Report {
    /// An empty report.
    pub(crate) fn new(seed: u64, replicas: usize) -> Self {
        Self {
            began: Instant::now(),
            document: Mutex::new(Document {
                seed,
                costs: vec![Vec::new(); replicas],
                ..Document::default()
            }),
        }
    }

    /// When the run began.
    pub(crate) fn began(&self) -> Instant {
        self.began
    }

    /// An answer, or the kind of its absence.
    pub(crate) fn answer(&self, operation: &str, status: &str) {
        let mut document = self.lock();
        let answers = document.answers.entry(operation.to_owned()).or_default();
        *answers.entry(status.to_owned()).or_default() += 1;
    }

    /// An answer that nothing explains.
    pub(crate) fn unexpected(&self, what: String, example: String) {
        self.lock().unexpected.entry(what).or_insert((0, example)).0 += 1;
    }

    /// A broken promise.
    pub(crate) fn violation(&self, rule: &str, text: String) {
        let at = self.began.elapsed().as_secs_f64();
        let mut document = self.lock();
        *document.violations.entry(rule.to_owned()).or_default() += 1;
        if document.examples.len() < KEPT {
            document.examples.push(format!("{at:7.1} s {rule}: {text}"));
        }
    }

    /// Something worth knowing.
    pub(crate) fn note(&self, text: String) {
        let mut document = self.lock();
        if document.notes.len() < KEPT {
            document.notes.push(text);
        }
    }

    /// A figure.
    pub(crate) fn figure(&self, name: &str, value: impl Into<serde_json::Value>) {
        self.lock().figures.insert(name.to_owned(), value.into());
    }

    /// A fault was done.
    pub(crate) fn fault(&self, kind: Kind) {
        *self.lock().faults.entry(kind).or_default() += 1;
    }

    /// What a replica costs at the moment.
    pub(crate) fn cost(&self, replica: usize, cost: Cost) {
        if let Some(costs) = self.lock().costs.get_mut(replica) {
            costs.push(cost);
        }
    }

    /// How many promises were broken so far.
    pub(crate) fn broken(&self) -> u64 {
        self.lock().violations.values().sum()
    }

    /// The document.
    pub(crate) fn finish(self) -> Document {
        self.document.into_inner()
    }

    /// The document so far.
    pub(crate) fn lock(&self) -> MutexGuard<'_, Document> {
        self.document.lock()
    }
}

/// Growth per minute of a series by least squares, and its total over the time.
pub(crate) fn slope(series: &[(f64, f64)]) -> (f64, f64) {
    let count = series.len() as f64;
    let (Some(first), Some(last)) = (series.first(), series.last()) else {
        return (0.0, 0.0);
    };
    let (mean_x, mean_y) = series.iter().fold((0.0, 0.0), |(x, y), point| {
        (x + point.0 / count, y + point.1 / count)
    });
    let (over, under) = series.iter().fold((0.0, 0.0), |(over, under), (x, y)| {
        (
            over + (x - mean_x) * (y - mean_y),
            under + (x - mean_x).powi(2),
        )
    });
    if under <= f64::EPSILON {
        return (0.0, 0.0);
    }
    let each_second = over / under;
    (each_second * 60.0, each_second * (last.0 - first.0))
}

impl Document {
    /// The document for people.
    pub(crate) fn print(&self) {
        println!("\nanswers");
        for (operation, answers) in &self.answers {
            let answers: Vec<String> = answers
                .iter()
                .map(|(status, count)| format!("{status} × {count}"))
                .collect();
            println!("  {operation:<22} {}", answers.join(", "));
        }
        println!("faults");
        for (kind, count) in &self.faults {
            println!("  {kind:?} × {count}");
        }
        println!("figures");
        for (name, value) in &self.figures {
            println!("  {name}: {value}");
        }
        for note in &self.notes {
            println!("note: {note}");
        }
        for (what, (count, example)) in &self.unexpected {
            println!("unexpected: {what} × {count}, for instance {example}");
        }
        for example in &self.examples {
            println!("VIOLATION {example}");
        }
        let broken: u64 = self.violations.values().sum();
        println!(
            "{} after {:.0} s, seed {}: {broken} violations {:?}",
            if broken == 0 { "clean" } else { "NOT CLEAN" },
            self.seconds,
            self.seed,
            self.violations
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_has_its_slope_and_a_constant_none() {
        let line: Vec<(f64, f64)> = (0..10)
            .map(|n| (f64::from(n), f64::from(n) * 2.0))
            .collect();
        let (minute, total) = slope(&line);
        assert!((minute - 120.0).abs() < 1e-6 && (total - 18.0).abs() < 1e-6);
        let flat: Vec<(f64, f64)> = (0..10).map(|n| (f64::from(n), 5.0)).collect();
        assert!(slope(&flat).0.abs() < 1e-9);
        assert_eq!(slope(&[]), (0.0, 0.0));
    }
}
