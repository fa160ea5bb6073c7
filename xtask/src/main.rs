//! `cargo xtask`: every chore of the repository as one command. It is small on purpose: it compiles
//! in seconds and only starts other programs.
#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a program for a terminal"
)]

mod bench;
mod cluster;
mod contract;
mod fuzz;
mod generate;
mod generated;
mod image;
mod lint;
mod programs;
mod report;
mod run;
mod soak;
mod suite;
mod test;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Automation of the Holdfast repository.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Writes the generated files: schema, custom resources, chart values, references,
    /// docs/CONTRACT.md
    Generate(GenerateArgs),
    /// Checks crate directions, file sizes, module heads and names, and the dependency policy
    Lint(LintArgs),
    /// Everything that needs no cluster: format, clippy, generated files, lint, tests
    Test(test::Args),
    /// Builds the container image
    Image(image::Args),
    /// The test cluster on this machine
    #[command(subcommand)]
    Cluster(cluster::Command),
    /// From nothing to a pod that survives the loss of its upstream and of its node
    Demo(suite::DemoArgs),
    /// Tests against a real cluster
    E2e(suite::E2eArgs),
    /// Hostile inputs for everything that parses, on the stable toolchain
    Fuzz(fuzz::Args),
    /// Long runs under load and faults, without a cluster
    #[command(subcommand)]
    Soak(soak::Command),
    /// Measures: the registry beside its peers, the controller at the size of a large site
    #[command(subcommand)]
    Bench(bench::Subject),
}

/// Arguments of `generate`.
#[derive(clap::Args)]
struct GenerateArgs {
    /// Only compare; fails and names the files that are out of step
    #[arg(long)]
    check: bool,
}

/// Arguments of `lint`.
#[derive(clap::Args)]
struct LintArgs {
    /// Writes the findings as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

fn main() -> ExitCode {
    match dispatch(Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn dispatch(cli: Cli) -> anyhow::Result<()> {
    match cli.command {
        Command::Generate(args) => generate::run(args.check),
        Command::Lint(args) => lint::run(args.json.as_deref()),
        Command::Test(args) => test::run(&args),
        Command::Image(args) => image::run(&args),
        Command::Cluster(command) => cluster::run(&command),
        Command::Demo(args) => suite::demo(&args),
        Command::E2e(args) => suite::e2e(&args),
        Command::Fuzz(args) => fuzz::run(&args),
        Command::Soak(command) => soak::run(&command),
        Command::Bench(subject) => bench::run(&subject),
    }
}
