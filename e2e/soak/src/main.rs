//! Replicas of the registry on one small volume under load and faults, with a ledger of every
//! write. Started by `cargo xtask soak replicas`.
#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a program for a terminal"
)]

mod client;
mod content;
mod faults;
mod ledger;
mod lists;
mod pull_through;
mod reader;
mod replicas;
mod report;
mod run;
mod uploads;
mod verdict;
mod volume;
mod windows;
mod writer;

use std::{path::PathBuf, process::ExitCode};

use clap::Parser;

/// Replicas under load and faults.
#[derive(Parser)]
pub(crate) struct Cli {
    /// The program `holdfast`
    #[arg(long, value_name = "FILE")]
    pub(crate) binary: PathBuf,
    /// Minutes under load
    #[arg(long, default_value_t = 10.0)]
    pub(crate) minutes: f64,
    /// Chooses what the clients and faults do; random when absent
    #[arg(long)]
    pub(crate) seed: Option<u64>,
    /// Clients that write
    #[arg(long, default_value_t = 4)]
    pub(crate) writers: u64,
    /// Clients that read
    #[arg(long, default_value_t = 2)]
    pub(crate) readers: u64,
    /// Processes
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(2..=9))]
    pub(crate) replicas: u8,
    /// Size of the volume in MiB
    #[arg(long, default_value_t = 600, value_parser = clap::value_parser!(u64).range(300..=20_000))]
    pub(crate) volume_mib: u64,
    /// Faults; all when absent
    #[arg(long, value_enum, value_delimiter = ',')]
    pub(crate) faults: Option<Vec<windows::Kind>>,
    /// Writes everything as JSON
    #[arg(long, value_name = "FILE")]
    pub(crate) json: Option<PathBuf>,
    /// Copies the replicas' logs and configurations to this folder at the end
    #[arg(long, value_name = "DIR")]
    pub(crate) logs: Option<PathBuf>,
}

fn main() -> ExitCode {
    holdfast_testkit::tls::install_crypto_provider();
    let cli = Cli::parse();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build();
    let outcome = runtime
        .map_err(anyhow::Error::from)
        .and_then(|runtime| runtime.block_on(run::run(&cli)));
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
