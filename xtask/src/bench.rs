//! `cargo xtask bench`: builds what is measured and what measures, and hands over to the bench's own program.

use std::path::PathBuf;
use std::process::Command;

use anyhow::Context as _;

use crate::run;

/// What to measure.
#[derive(clap::Subcommand)]
pub(crate) enum Subject {
    /// The registry beside CNCF distribution and nginx; a whole run writes docs/BENCHMARKS.md
    Registry(Args),
}

/// Arguments of `bench registry`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Writes everything measured as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Only cases whose name contains this, "blob 4 KiB" for instance
    #[arg(long, value_name = "CASE")]
    only: Option<String>,
    /// Rounds of each case
    #[arg(long, value_name = "N", default_value_t = 3)]
    rounds: usize,
    /// A smoke run: small and short, its figures mean nothing
    #[arg(long)]
    quick: bool,
    /// Where the content lies while it runs, on the disk that is to be measured; the system's folder for temporary files by default
    #[arg(long, value_name = "DIR")]
    scratch: Option<PathBuf>,
}

/// Runs the measurements.
///
/// # Errors
/// When a program cannot be built, or a server fails or answers with something else than it should. A bar that is missed is no error.
pub(crate) fn run(subject: &Subject) -> anyhow::Result<()> {
    let Subject::Registry(args) = subject;
    // One by one: built together their dependencies would get other features, and be built once more.
    for package in ["holdfast", "holdfast-bench"] {
        let build = ["build", "--quiet", "--release", "--package", package];
        run::status(&format!("cargo build {package}"), run::cargo(&build))?;
    }
    let programs = run::target_folder()?.join("release");
    let mut command = Command::new(programs.join("holdfast-bench"));
    command
        .current_dir(run::root())
        .env("HOLDFAST_BINARY", programs.join("holdfast"))
        .arg("--rounds")
        .arg(args.rounds.to_string())
        .arg("--document")
        .arg(run::root().join("docs/BENCHMARKS.md"));
    if args.quick {
        command.arg("--quick");
    }
    if let Some(only) = &args.only {
        command.arg("--only").arg(only);
    }
    for (flag, path) in [("--json", &args.json), ("--scratch", &args.scratch)] {
        if let Some(path) = path {
            let path = std::path::absolute(path).with_context(|| format!("path of {flag}"))?;
            command.arg(flag).arg(path);
        }
    }
    run::status("bench", command)
}
