//! The registry beside its peers: arguments, all cases, and the report.

use std::{fs, path::PathBuf, time::Duration};

use anyhow::{Context as _, Result};
use clap::Args;

use crate::{
    cases::Bench,
    document::{self, Section},
    report::{self, Machine, Report},
    results::Results,
    scratch::Scratch,
    servers::TestBed,
};

/// Arguments of `registry`.
#[derive(Args)]
pub(crate) struct Arguments {
    /// Writes everything measured as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Only cases whose name contains this
    #[arg(long, value_name = "CASE")]
    only: Option<String>,
    /// Rounds of each case
    #[arg(long, value_name = "N", default_value_t = 3)]
    rounds: usize,
    /// A smoke run: small and short, its figures mean nothing
    #[arg(long)]
    quick: bool,
    /// Seconds of each window of load
    #[arg(long, value_name = "SECONDS", default_value_t = 1.5)]
    window: f64,
    /// Where the content lies while it runs; on the disk that is to be measured. Up to 3 GB,
    /// removed at the end
    #[arg(long, value_name = "DIR")]
    scratch: Option<PathBuf>,
    /// Writes the document here, after a whole run
    #[arg(long, value_name = "FILE")]
    document: Option<PathBuf>,
}

/// Measures Holdfast, CNCF distribution and nginx side by side.
pub(crate) async fn run(arguments: &Arguments) -> Result<()> {
    let scratch = Scratch::make(arguments.scratch.as_deref())?;
    let mut bench = Bench {
        stand: TestBed::prepare(scratch.0.clone())?,
        results: Results::default(),
        rounds: if arguments.quick {
            1
        } else {
            arguments.rounds.max(1)
        },
        window: Duration::from_secs_f64(if arguments.quick {
            0.3
        } else {
            arguments.window
        }),
        quick: arguments.quick,
        only: arguments.only.clone(),
    };
    let failed = bench.run().await;
    let report = Report {
        machine: Machine::this(&scratch.0),
        versions: bench.stand.versions(),
        rounds: bench.rounds,
        window_seconds: bench.window.as_secs_f64(),
        bars: bench.results.bars(),
        results: &bench.results,
        failed,
    };
    println!("{}", report.bars());
    if let Some(path) = &arguments.json {
        fs::write(path, serde_json::to_string_pretty(&report)? + "\n")
            .with_context(|| format!("write {}", path.display()))?;
    }
    let whole = arguments.only.is_none() && !arguments.quick;
    if let Some(path) = arguments.document.as_deref().filter(|_| whole) {
        document::rewrite(path, Section::Registry, |before| {
            let limits = before.and_then(report::limits);
            report.document(limits.unwrap_or("Nothing is noted yet."))
        })?;
    }
    anyhow::ensure!(report.failed.is_empty(), "{}", report.failed.join("; "));
    Ok(())
}
