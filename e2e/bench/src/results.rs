//! What was measured, case by case and round by round, and the bars that it is held against.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::{servers::Kind, stats::Series};

/// One figure of one case, for everybody who was measured.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Measure {
    /// The case.
    pub(crate) case: String,
    /// What is counted, and its unit.
    pub(crate) unit: &'static str,
    /// The rounds of each.
    pub(crate) values: BTreeMap<Kind, Series>,
}

/// All of a run.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Results {
    /// In the order of measuring.
    pub(crate) measures: Vec<Measure>,
}

impl Results {
    /// Adds the value of one round.
    pub(crate) fn add(&mut self, case: &str, unit: &'static str, kind: Kind, value: f64) {
        let known = self
            .measures
            .iter_mut()
            .find(|measure| measure.case == case && measure.unit == unit);
        let measure = if let Some(known) = known {
            known
        } else {
            self.measures.push(Measure {
                case: case.to_owned(),
                unit,
                values: BTreeMap::new(),
            });
            let last = self.measures.len() - 1;
            &mut self.measures[last]
        };
        measure.values.entry(kind).or_default().0.push(value);
    }

    fn series(&self, case: &str, unit: &str, kind: Kind) -> Option<&Series> {
        self.measures
            .iter()
            .find(|measure| measure.case == case && measure.unit == unit)?
            .values
            .get(&kind)
    }

    /// The bars whose cases were measured.
    pub(crate) fn bars(&self) -> Vec<Bar> {
        BARS.into_iter()
            .filter_map(|(text, case, unit, against, at_least, bound)| {
                let own = self.series(case, unit, Kind::Holdfast)?;
                let value = match against {
                    // The faster one is above in a ratio of rates, and below in a ratio of times.
                    Some(kind) if unit.starts_with("time") => {
                        self.series(case, unit, kind)?.over(own)
                    }
                    Some(kind) => own.over(self.series(case, unit, kind)?),
                    None => own.clone(),
                };
                let median = value.median();
                let met = if at_least {
                    median >= bound
                } else {
                    median <= bound
                };
                Some(Bar {
                    text,
                    at_least,
                    bound,
                    median,
                    spread: value.spread(),
                    met,
                })
            })
            .collect()
    }
}

/// A bar and what was reached.
#[derive(Debug, Serialize)]
pub(crate) struct Bar {
    /// What is asked for.
    pub(crate) text: &'static str,
    /// Whether the bound is the least that is asked for, or the most.
    pub(crate) at_least: bool,
    /// The bound.
    pub(crate) bound: f64,
    /// The median of all rounds.
    pub(crate) median: f64,
    /// Lowest and highest round.
    pub(crate) spread: (f64, f64),
    /// Whether the median keeps the bound.
    pub(crate) met: bool,
}

/// Unit of answers a second.
pub(crate) const RATE: &str = "answers/s";
/// Unit of bytes a second.
pub(crate) const BYTES: &str = "GB/s";
/// Unit of server CPU.
pub(crate) const CPU: &str = "server CPU s/GB";
/// Unit of memory.
pub(crate) const MEMORY: &str = "peak RSS, MiB";
/// Unit of times.
pub(crate) const TIME: &str = "time, ms";
/// Unit of ratios that a case itself makes.
pub(crate) const RATIO: &str = "ratio";

type Row = (
    &'static str,
    &'static str,
    &'static str,
    Option<Kind>,
    bool,
    f64,
);

/// The figures to reach: text, case, unit, against whom, least or most, bound.
const BARS: [Row; 19] = [
    (
        "manifest by tag, 16 connections: × distribution",
        "manifest by tag, 16",
        RATE,
        Some(Kind::Distribution),
        true,
        4.0,
    ),
    (
        "4 KiB blob, 16: × distribution",
        "blob 4 KiB, 16",
        RATE,
        Some(Kind::Distribution),
        true,
        20.0,
    ),
    (
        "4 KiB blob, 16: × nginx",
        "blob 4 KiB, 16",
        RATE,
        Some(Kind::Nginx),
        true,
        0.4,
    ),
    (
        "1 MiB blob, 16: × distribution",
        "blob 1 MiB, 16",
        BYTES,
        Some(Kind::Distribution),
        true,
        3.5,
    ),
    (
        "1 MiB blob, 16: × nginx",
        "blob 1 MiB, 16",
        BYTES,
        Some(Kind::Nginx),
        true,
        0.7,
    ),
    (
        "100 MiB blob, 16: × distribution",
        "blob 100 MiB, 16",
        BYTES,
        Some(Kind::Distribution),
        true,
        1.1,
    ),
    (
        "100 MiB blob, 16: × nginx",
        "blob 100 MiB, 16",
        BYTES,
        Some(Kind::Nginx),
        true,
        0.9,
    ),
    (
        "TLS, 1 MiB blob, 16: × distribution",
        "blob 1 MiB, 16, TLS",
        BYTES,
        Some(Kind::Distribution),
        true,
        2.0,
    ),
    (
        "push 1 MiB × 8, every 201 durable: × distribution",
        "push 1 MiB × 8",
        BYTES,
        Some(Kind::Distribution),
        true,
        1.5,
    ),
    (
        "push 100 MiB × 4 whole, every 201 durable: × distribution",
        "push 100 MiB × 4, whole",
        BYTES,
        Some(Kind::Distribution),
        true,
        1.15,
    ),
    (
        "push 100 MiB × 4 in one chunked stream, every 201 durable: × distribution",
        "push 100 MiB × 4, one chunked stream",
        BYTES,
        Some(Kind::Distribution),
        true,
        1.15,
    ),
    (
        "peak RSS at 8 × 100 MiB pushes, MiB",
        "push 100 MiB × 8, both ways",
        MEMORY,
        None,
        false,
        64.0,
    ),
    (
        "peak RSS at 128 × 100 MiB streams, MiB",
        "128 × 100 MiB, fast clients",
        MEMORY,
        None,
        false,
        64.0,
    ),
    (
        "peak RSS at 128 × 100 MiB streams to slow clients, MiB",
        "128 × 100 MiB, slow clients",
        MEMORY,
        None,
        false,
        64.0,
    ),
    (
        "server CPU per GB at 1 MiB: × distribution",
        "blob 1 MiB, 16",
        CPU,
        Some(Kind::Distribution),
        false,
        0.3,
    ),
    (
        "cold herd: bytes of the upstream × the image",
        "cold herd, upstream bytes",
        RATIO,
        None,
        false,
        1.01,
    ),
    (
        "cold herd: last client × the upstream's own time",
        "cold herd, last client",
        RATIO,
        None,
        false,
        1.2,
    ),
    (
        "delete a manifest among 20,000 tags: times faster than distribution",
        "delete a manifest among 20,000 tags",
        TIME,
        Some(Kind::Distribution),
        true,
        50.0,
    ),
    (
        "start with 100,000 blobs and no upstream, ms",
        "start with 100,000 blobs",
        TIME,
        None,
        false,
        1000.0,
    ),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bar_compares_rounds_and_keeps_its_direction() {
        let mut results = Results::default();
        for (kind, values) in [
            (Kind::Holdfast, [30.0, 40.0]),
            (Kind::Distribution, [10.0, 10.0]),
        ] {
            for value in values {
                results.add("manifest by tag, 16", RATE, kind, value);
                results.add(
                    "delete a manifest among 20,000 tags",
                    TIME,
                    kind,
                    1.0 / value,
                );
            }
        }
        let bars = results.bars();
        assert_eq!(bars.len(), 2);
        for bar in bars {
            assert!((bar.median - 3.5).abs() < 1e-9, "{}", bar.text);
            assert!(!bar.met, "{}", bar.text);
        }
    }
}
