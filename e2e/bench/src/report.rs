//! The registry's section of `docs/BENCHMARKS.md`: the bars with what was measured, every case, the
//! machine and the commands. No host names, no paths.

use std::{fmt::Write as _, fs};

use serde::Serialize;

use crate::{
    results::{Bar, Measure, Results, TIME},
    servers::Kind,
};

/// What was measured on.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Machine {
    cores: usize,
    processor: String,
    memory_gib: u64,
    kernel: String,
    file_system: String,
}

impl Machine {
    /// This one; the file system is that of `scratch`.
    pub(crate) fn this(scratch: &std::path::Path) -> Self {
        let first = |path: &str, key: &str| {
            fs::read_to_string(path).ok().and_then(|text| {
                let line = text.lines().find(|line| line.starts_with(key))?;
                line.split_once(':')
                    .map(|(_, value)| value.trim().to_owned())
            })
        };
        let memory = first("/proc/meminfo", "MemTotal")
            .and_then(|text| text.split(' ').next()?.parse::<u64>().ok());
        let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        // The part behind the version names who built it.
        let kernel = kernel.trim().split('-').next().unwrap_or_default();
        Self {
            cores: std::thread::available_parallelism().map_or(0, usize::from),
            processor: first("/proc/cpuinfo", "model name").unwrap_or_default(),
            memory_gib: memory.unwrap_or(0).div_ceil(1 << 20),
            kernel: format!("Linux {kernel}"),
            file_system: file_system(scratch).unwrap_or_default(),
        }
    }
}

impl std::fmt::Display for Machine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            cores,
            processor,
            memory_gib,
            kernel,
            file_system,
        } = self;
        write!(
            f,
            "{cores} cores ({processor}), {memory_gib} GiB, {kernel}, {file_system}"
        )
    }
}

fn file_system(path: &std::path::Path) -> Option<String> {
    let path = fs::canonicalize(path).ok()?;
    let mounts = fs::read_to_string("/proc/mounts").ok()?;
    mounts
        .lines()
        .filter_map(|line| {
            let mut fields = line.split(' ');
            let (place, kind) = (fields.nth(1)?, fields.next()?);
            path.starts_with(place)
                .then(|| (place.len(), kind.to_owned()))
        })
        .max()
        .map(|(_, kind)| kind)
}

/// A whole run.
#[derive(Serialize)]
pub(crate) struct Report<'a> {
    /// The machine.
    pub(crate) machine: Machine,
    /// What the programs say of themselves.
    pub(crate) versions: Vec<String>,
    /// Rounds of each case.
    pub(crate) rounds: usize,
    /// Seconds of each window of load.
    pub(crate) window_seconds: f64,
    /// What was found.
    pub(crate) results: &'a Results,
    /// The bars.
    pub(crate) bars: Vec<Bar>,
    /// What could not be measured, and why.
    pub(crate) failed: Vec<String>,
}

impl Report<'_> {
    /// The table of bars, as text for a terminal and for the document.
    pub(crate) fn bars(&self) -> String {
        let mut text =
            "| figure | asked | measured | rounds | |\n|---|---|---|---|---|\n".to_owned();
        for bar in &self.bars {
            writeln!(
                text,
                "| {} | {} {} | **{}** | {} – {} | {} |",
                bar.text,
                if bar.at_least { "≥" } else { "≤" },
                bar.bound,
                number(bar.median),
                number(bar.spread.0),
                number(bar.spread.1),
                if bar.met { "reached" } else { "missed" }
            )
            .ok();
        }
        text
    }

    /// The section; `limits` is the part that people write and that a run keeps.
    pub(crate) fn document(&self, limits: &str) -> String {
        let mut text = String::new();
        writeln!(
            text,
            "## The registry beside its peers\n\nWritten by `cargo xtask bench registry`; only the part \"Where a bar is missed\" is written by hand and kept.\n\n\
             Holdfast, CNCF distribution and nginx run side by side on loopback, with the client on the same machine. They serve the same files from the same disk, in \
             turn: one window of {} s each, {} rounds, and everybody is first once. A ratio compares windows of one round; the table shows the median of the rounds, \
             and the lowest and highest. The client reads everything it asked for, checks every size, and hashes every blob once before the windows and a sample within \
             them.\n\nMachine: {}. Programs: {}.\n\n\
             Again: `cargo xtask bench registry` (all, about a quarter of an hour), `--only TEXT` (cases whose name contains the text), `--rounds N`, `--json FILE`, `--quick` \
             (a smoke run whose figures mean nothing).\n\n### Figures to reach\n\n{}",
            self.window_seconds,
            self.rounds,
            self.machine,
            self.versions.join("; "),
            self.bars()
        )
        .ok();
        for failed in &self.failed {
            // Causes may hold addresses and paths of this machine; the group is what readers need.
            let group = failed.split(':').next().unwrap_or_default();
            writeln!(text, "Not measured, because the case failed: {group}.\n").ok();
        }
        writeln!(text, "{BEGIN}\n{}\n{END}\n", limits.trim()).ok();
        text += "### All cases\n\nMedian (lowest – highest). nginx serves files with sendfile(2) and knows nothing of digests or permissions: it is the limit in practice, not a \
                 peer.\n\n| case | unit | Holdfast | distribution | nginx |\n|---|---|---|---|---|\n";
        for measure in &self.results.measures {
            text += &row(measure);
        }
        text += COMMANDS;
        text
    }
}

/// Around what people write.
const BEGIN: &str = "### Where a bar is missed\n";
const END: &str = "<!-- what follows is generated -->";

/// The part of an earlier document that people wrote.
pub(crate) fn limits(document: &str) -> Option<&str> {
    let (_, rest) = document.split_once(BEGIN)?;
    rest.split_once(END).map(|(kept, _)| kept.trim())
}

const COMMANDS: &str = "\n### How they run\n\n\
    - Holdfast: `holdfast registry --config FILE --data DIR --listen 127.0.0.1:PORT`, `upstreams: []`, release build; for the herd three of them on one folder (`replicas:`).\n\
    - distribution: `registry serve FILE`, file system driver, `blobdescriptor: inmemory`, deletes on, log level error, neither access log nor traces. Its writes are synced, as by default.\n\
    - nginx: `sendfile on; tcp_nopush on; worker_processes auto; access_log off`, root = the blobs' folder, no `open_file_cache`.\n\
    - TLS: 1.3 with AES-128-GCM for all three.\n\
    - Server CPU is user and system time of the server's processes by `/proc/PID/stat`; peak RSS is `VmHWM`, reset before the case, the program's own code included.\n\
    - The tags, repositories and the 100,000 blobs are laid out on the disk directly, and what is not read consists of hard links; the rest comes over the API or is read through it.\n";

fn row(measure: &Measure) -> String {
    let cell = |kind| {
        measure.values.get(&kind).map_or_else(
            || "–".to_owned(),
            |series| {
                let (low, high) = series.spread();
                format!(
                    "{} ({} – {})",
                    number(series.median()),
                    number(low),
                    number(high)
                )
            },
        )
    };
    format!(
        "| {} | {} | {} | {} | {} |\n",
        measure.case,
        if measure.unit == TIME {
            "ms"
        } else {
            measure.unit
        },
        cell(Kind::Holdfast),
        cell(Kind::Distribution),
        cell(Kind::Nginx)
    )
}

/// Three digits that count.
pub(crate) fn number(value: f64) -> String {
    match value.abs() {
        size if size >= 100.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        size if size >= 1.0 => format!("{value:.2}"),
        _ => format!("{value:.3}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_people_wrote_is_kept() {
        let results = Results::default();
        let report = Report {
            machine: Machine::this(std::path::Path::new("/")),
            versions: vec!["a".into(), "b".into()],
            rounds: 3,
            window_seconds: 1.5,
            results: &results,
            bars: results.bars(),
            failed: vec!["lists: no server".into()],
        };
        let first = report.document("The limit is the disk.");
        assert_eq!(limits(&first), Some("The limit is the disk."));
        assert!(first.contains("because the case failed: lists."), "{first}");
        assert_eq!(report.document(limits(&first).unwrap()), first);
    }

    #[test]
    fn numbers_have_the_digits_that_count() {
        for (value, expect) in [
            (12_345.6, "12346"),
            (45.67, "45.7"),
            (1.234, "1.23"),
            (0.1234, "0.123"),
        ] {
            assert_eq!(number(value), expect);
        }
    }
}
