//! `cargo xtask e2e` and `cargo xtask demo`: builds what they need and hands over to the suite's
//! own program.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Context;

use crate::{image, run};

/// Arguments of `e2e`.
#[derive(clap::Args)]
pub(crate) struct E2eArgs {
    /// `ci`: the short part that every change must pass; `full`: the acceptance
    #[arg(long, value_enum, default_value = "full")]
    suite: Suite,
    /// Runs against this context of your kubeconfig instead of a cluster of its own
    #[arg(long, value_name = "NAME")]
    context: Option<String>,
    /// Runs the tests whose name contains this; several, separated by commas
    #[arg(long, value_name = "TEXT")]
    filter: Option<String>,
    /// Leaves cluster and upstreams running
    #[arg(long)]
    keep: bool,
    /// Writes names, seconds and errors as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// Arguments of `demo`.
#[derive(clap::Args)]
pub(crate) struct DemoArgs {
    /// Leaves cluster and upstream running to look around
    #[arg(long)]
    keep: bool,
    /// Writes steps, seconds and upstream requests as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum Suite {
    Ci,
    Full,
}

/// Runs the tests on a cluster.
///
/// # Errors
/// When a program cannot be built or a test fails.
pub(crate) fn e2e(args: &E2eArgs) -> anyhow::Result<()> {
    let mut command = prepare()?;
    command.arg("test").args([
        "--suite",
        match args.suite {
            Suite::Ci => "ci",
            Suite::Full => "full",
        },
    ]);
    pass(&mut command, "--context", args.context.as_deref());
    pass(&mut command, "--filter", args.filter.as_deref());
    finish(command, "e2e", args.keep, args.json.as_deref())
}

/// Runs the demo.
///
/// # Errors
/// When a program cannot be built or a step of the demo fails.
pub(crate) fn demo(args: &DemoArgs) -> anyhow::Result<()> {
    let mut command = prepare()?;
    command.arg("demo");
    finish(command, "demo", args.keep, args.json.as_deref())
}

fn pass(command: &mut Command, flag: &str, value: Option<&str>) {
    if let Some(value) = value {
        command.args([flag, value]);
    }
}

fn finish(mut command: Command, step: &str, keep: bool, json: Option<&Path>) -> anyhow::Result<()> {
    if keep {
        command.arg("--keep");
    }
    if let Some(json) = json {
        command
            .arg("--json")
            .arg(std::path::absolute(json).context("path of the report")?);
    }
    run::status(step, command)
}

/// Builds the image, the suite and the fault proxy; returns the call of the suite's program with
/// what it needs in the environment.
fn prepare() -> anyhow::Result<Command> {
    let image = image::build()?;
    let programs = ["holdfast-e2e", "holdfast-upstream"];
    let programs = run::build("building the tests' programs", &programs, "dev")?;
    let product = run::target_folder()?.join("release/holdfast");
    let mut command = Command::new(programs.join("holdfast-e2e"));
    command
        .current_dir(run::root())
        .env("HOLDFAST_UPSTREAM", programs.join("holdfast-upstream"))
        // The same that is in the image.
        .env("HOLDFAST_BINARY", product)
        .env("HOLDFAST_CHART", run::root().join("chart"))
        .env("HOLDFAST_IMAGE", &image.reference)
        .env("HOLDFAST_IMAGE_ARCHIVE", &image.archive);
    Ok(command)
}
