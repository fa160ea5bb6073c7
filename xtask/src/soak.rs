//! `cargo xtask soak`: builds the product and the soak's own program, and hands over to it.

use std::path::PathBuf;

use crate::run;

/// What is kept under load.
#[derive(clap::Subcommand)]
pub(crate) enum Command {
    /// Several registry processes on one small volume: kills, stops, a full volume, and an account
    /// of every acknowledged write. Linux as root; loopback only; ends and cleans up by itself
    Replicas(Args),
}

/// Arguments of `soak replicas`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Minutes under load; fractions are fine
    #[arg(long, default_value_t = 10.0)]
    minutes: f64,
    /// Chooses what the clients and faults do; printed, random when absent
    #[arg(long)]
    seed: Option<u64>,
    /// Cargo's profile of the product; dev builds faster, runs slower and checks its own
    /// arithmetic
    #[arg(long, value_name = "PROFILE", default_value = "release")]
    profile: String,
    /// Writes answers, violations and figures as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Further arguments of the soak, behind `--`: `-- --help` lists them
    #[arg(last = true)]
    rest: Vec<String>,
}

/// Runs the command.
///
/// # Errors
/// When a program cannot be built, the run cannot begin, or a promise was broken.
pub(crate) fn run(command: &Command) -> anyhow::Result<()> {
    let Command::Replicas(args) = command;
    let product = product(&args.profile)?;
    let programs = run::build("building the soak", &["holdfast-soak"], "dev")?;
    let mut soak = std::process::Command::new(programs.join("holdfast-soak"));
    soak.arg("--binary")
        .arg(product)
        .args(["--minutes", &args.minutes.to_string()]);
    if let Some(seed) = args.seed {
        soak.args(["--seed", &seed.to_string()]);
    }
    if let Some(json) = &args.json {
        soak.arg("--json").arg(json);
    }
    run::status("soak replicas", {
        soak.args(&args.rest);
        soak
    })
}

/// The registry to be run: as tests build it, or as images and benchmarks do, so that its
/// dependencies are built once.
fn product(profile: &str) -> anyhow::Result<PathBuf> {
    let step = "building the registry";
    if profile == "dev" {
        return Ok(run::build(step, &["holdfast"], profile)?.join("holdfast"));
    }
    let build = [
        "build",
        "--quiet",
        "--profile",
        profile,
        "--package",
        "holdfast",
    ];
    run::quiet(step, run::cargo(&build))?;
    let folder = run::target_folder()?.join(run::folder_of(profile));
    Ok(folder.join("holdfast"))
}
