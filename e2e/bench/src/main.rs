//! `holdfast-bench`: the registry's figures beside its peers', in one run on one machine. Started by `cargo xtask bench registry`.
#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a program for a terminal"
)]

mod cases;
mod certificates;
mod content;
mod http;
mod load;
mod process;
mod report;
mod results;
mod servers;
mod stats;
mod upstream;

use std::{
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use anyhow::{Context as _, Result};
use clap::Parser;
use tokio::signal::unix::{SignalKind, signal};

use crate::{cases::Bench, report::Report, results::Results, servers::Stand};

/// Measures Holdfast, CNCF distribution and nginx side by side.
#[derive(Parser)]
struct Arguments {
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
    /// Where the content lies while it runs; on the disk that is to be measured. Up to 2 GB, removed at the end
    #[arg(long, value_name = "DIR")]
    scratch: Option<PathBuf>,
    /// Writes the document here, after a whole run
    #[arg(long, value_name = "FILE")]
    document: Option<PathBuf>,
}

/// A folder that is removed with its owner.
struct Scratch(PathBuf);

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.0) {
            eprintln!("{} cannot be removed: {error}", self.0.display());
        }
    }
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    // One thread: the client shares the machine with the servers.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let result = match runtime {
        Ok(runtime) => runtime.block_on(run(&arguments)),
        Err(error) => Err(error.into()),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(arguments: &Arguments) -> Result<()> {
    let folder = arguments
        .scratch
        .clone()
        .unwrap_or_else(std::env::temp_dir)
        .join(format!("holdfast-bench-{}", std::process::id()));
    fs::create_dir_all(&folder).context("make the scratch folder")?;
    let scratch = Scratch(folder);
    let mut bench = Bench {
        stand: Stand::prepare(scratch.0.clone())?,
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
    let mut end = signal(SignalKind::terminate())?;
    let failed = tokio::select! {
        failed = bench.run() => failed,
        _ = tokio::signal::ctrl_c() => anyhow::bail!("interrupted"),
        _ = end.recv() => anyhow::bail!("told to end"),
    };
    let report = Report {
        machine: report::Machine::this(&scratch.0),
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
        document(path, &report)?;
    }
    anyhow::ensure!(report.failed.is_empty(), "{}", report.failed.join("; "));
    Ok(())
}

fn document(path: &Path, report: &Report<'_>) -> Result<()> {
    let before = fs::read_to_string(path).unwrap_or_default();
    let limits = report::limits(&before).unwrap_or("Nothing is noted yet.");
    fs::write(path, report.document(limits)).with_context(|| format!("write {}", path.display()))
}
