//! `cargo xtask bench`: builds what is measured and what measures, and hands over to the bench's
//! own program.

use std::path::PathBuf;
use std::process::Command;

use anyhow::Context as _;

use crate::run;

/// What to measure.
#[derive(clap::Subcommand)]
pub(crate) enum Subject {
    /// The registry beside CNCF distribution and nginx; a whole run writes its section of
    /// docs/BENCHMARKS.md
    Registry(RegistryArgs),
    /// The controller when it comes to thousands of pods, and while pods come and go: time, memory,
    /// requests to the API server. A run of at least the default size writes its section of
    /// docs/BENCHMARKS.md. A bar that is missed is an error
    Controller(ControllerArgs),
    /// The registry and the webhook under attack: memory, and what honest clients notice. A whole
    /// run writes its section of docs/BENCHMARKS.md. A bar that is missed is an error
    Hostile(HostileArgs),
    /// The webhook with and without what it knows of 10,000 images: time and memory. A run of at
    /// least the default length writes its section of docs/BENCHMARKS.md. A bar that is missed is
    /// an error
    Admission(AdmissionArgs),
}

/// Arguments of `bench registry`.
#[derive(clap::Args)]
pub(crate) struct RegistryArgs {
    /// Only cases whose name contains this, "blob 4 KiB" for instance
    #[arg(long, value_name = "CASE")]
    only: Option<String>,
    /// Rounds of each case
    #[arg(long, value_name = "N", default_value_t = 3)]
    rounds: usize,
    /// A smoke run: small and short, its figures mean nothing
    #[arg(long)]
    quick: bool,
    #[command(flatten)]
    files: Files,
}

/// Arguments of `bench controller`.
#[derive(clap::Args)]
pub(crate) struct ControllerArgs {
    /// Pods that are there before the controller comes
    #[arg(long, value_name = "N", default_value_t = 5000)]
    pods: usize,
    /// Images of these pods
    #[arg(long, value_name = "N", default_value_t = 500)]
    images: usize,
    /// Minutes in which pods are replaced, a thousand a minute; fractions are fine
    #[arg(long, value_name = "MINUTES", default_value_t = 1.0)]
    minutes: f64,
    #[command(flatten)]
    files: Files,
}

/// Arguments of `bench hostile`.
#[derive(clap::Args)]
pub(crate) struct HostileArgs {
    /// Only this case: registry or webhook
    #[arg(long, value_name = "CASE")]
    only: Option<String>,
    /// Rounds of each case, each with a new process
    #[arg(long, value_name = "N", default_value_t = 3)]
    rounds: usize,
    /// Seconds of all attacks together, in each round
    #[arg(long, value_name = "SECONDS", default_value_t = 30)]
    seconds: u64,
    /// A smoke run: short, its figures mean nothing
    #[arg(long)]
    quick: bool,
    #[command(flatten)]
    files: Files,
}

/// Arguments of `bench admission`.
#[derive(clap::Args)]
pub(crate) struct AdmissionArgs {
    /// Rounds, each with and without the inputs
    #[arg(long, value_name = "N", default_value_t = 7)]
    rounds: usize,
    #[command(flatten)]
    files: Files,
}

/// Where a run writes.
#[derive(clap::Args)]
struct Files {
    /// Writes everything measured as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Where content lies while it runs, on the disk that is to be measured; the system's folder
    /// for temporary files by default
    #[arg(long, value_name = "DIR")]
    scratch: Option<PathBuf>,
}

/// Runs the measurements.
///
/// # Errors
/// When a program cannot be built, or a server fails or answers with something else than it should.
/// A bar of the registry that is missed is not an error, for it depends on the machine; one of the
/// controller is, and so is one of the hostile cases.
pub(crate) fn run(subject: &Subject) -> anyhow::Result<()> {
    // One by one: built together their dependencies would get other features, and be built once
    // more.
    for package in ["holdfast", "holdfast-bench"] {
        let build = ["build", "--quiet", "--release", "--package", package];
        run::quiet(&format!("cargo build {package}"), run::cargo(&build))?;
    }
    let programs = run::target_folder()?.join("release");
    let mut command = Command::new(programs.join("holdfast-bench"));
    command
        .current_dir(run::root())
        .env("HOLDFAST_BINARY", programs.join("holdfast"));
    let files = match subject {
        Subject::Registry(args) => {
            command
                .arg("registry")
                .args(["--rounds", &args.rounds.to_string()]);
            if args.quick {
                command.arg("--quick");
            }
            if let Some(only) = &args.only {
                command.arg("--only").arg(only);
            }
            &args.files
        }
        Subject::Controller(args) => {
            command
                .arg("controller")
                .args(["--pods", &args.pods.to_string()])
                .args(["--images", &args.images.to_string()])
                .args(["--minutes", &args.minutes.to_string()]);
            &args.files
        }
        Subject::Hostile(args) => {
            command
                .arg("hostile")
                .args(["--rounds", &args.rounds.to_string()])
                .args(["--seconds", &args.seconds.to_string()]);
            if args.quick {
                command.arg("--quick");
            }
            if let Some(only) = &args.only {
                command.arg("--only").arg(only);
            }
            &args.files
        }
        Subject::Admission(args) => {
            command
                .arg("admission")
                .args(["--rounds", &args.rounds.to_string()]);
            &args.files
        }
    };
    command
        .arg("--document")
        .arg(run::root().join("docs/BENCHMARKS.md"));
    for (flag, path) in [("--json", &files.json), ("--scratch", &files.scratch)] {
        if let Some(path) = path {
            let path = std::path::absolute(path).with_context(|| format!("path of {flag}"))?;
            command.arg(flag).arg(path);
        }
    }
    run::status("bench", command)
}
