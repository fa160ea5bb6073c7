//! `holdfast-bench`: the registry's figures beside its peers', the controller's at the size of a
//! large site, and those of registry and webhook under attack; each in one run on one machine.
//! Started by `cargo xtask bench`.
#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a program for a terminal"
)]

mod admission;
mod cases;
mod certificates;
mod content;
mod controller;
mod document;
mod hostile;
mod http;
mod load;
mod process;
mod registry;
mod report;
mod results;
mod scratch;
mod servers;
mod stats;
mod upstream;

use std::{path::PathBuf, process::ExitCode};

use anyhow::{Context as _, Result};
use clap::Parser;
use tokio::signal::unix::{SignalKind, signal};

/// Measures.
#[derive(Parser)]
enum Subject {
    /// Holdfast, CNCF distribution and nginx side by side
    Registry(registry::Arguments),
    /// The controller, when it comes to a large site and while pods come and go there
    Controller(controller::Arguments),
    /// The registry and the webhook under attack: memory, and what honest clients notice
    Hostile(hostile::Arguments),
    /// The webhook with and without what it knows of 10,000 images
    Admission(admission::Arguments),
}

fn main() -> ExitCode {
    let subject = Subject::parse();
    // One thread: the client shares the machine with what it measures.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let result = match runtime {
        Ok(runtime) => runtime.block_on(run(&subject)),
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

async fn run(subject: &Subject) -> Result<()> {
    let mut end = signal(SignalKind::terminate())?;
    let work = async {
        match subject {
            Subject::Registry(arguments) => registry::run(arguments).await,
            Subject::Controller(arguments) => controller::run(arguments).await,
            Subject::Hostile(arguments) => hostile::run(arguments).await,
            Subject::Admission(arguments) => admission::run(arguments).await,
        }
    };
    tokio::select! {
        outcome = work => outcome,
        _ = tokio::signal::ctrl_c() => anyhow::bail!("interrupted"),
        _ = end.recv() => anyhow::bail!("told to end"),
    }
}

/// The product's program.
fn holdfast() -> Result<PathBuf> {
    std::env::var_os("HOLDFAST_BINARY")
        .map(PathBuf::from)
        .context("HOLDFAST_BINARY names no program: run `cargo xtask bench`")
}
