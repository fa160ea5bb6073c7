//! The operator's part of the command line: which command does what.

use std::future::Future;
use std::process::ExitCode;

use clap::Subcommand;
use holdfast_cli_kit::exit_status::{self, Interrupted};
use holdfast_cli_kit::terminal;

use crate::{
    config_check, doctor, export, fsck, import, ls, preload, restore, rm, status, uninstall,
    version,
};

/// The commands of an operator.
#[derive(Subcommand)]
pub enum Command {
    /// Shows whether Holdfast works and how many images are local
    Status(status::Args),
    /// Finds what keeps Holdfast from working, each problem with its fix
    Doctor(Box<doctor::Args>),
    /// Compares the cluster with another state
    #[command(subcommand)]
    Diff(DiffCommand),
    /// Copies images into the registry ahead of need
    Preload(preload::Args),
    /// Restores the original images of pods
    Restore(restore::Args),
    /// Deletes pushed and imported images that nothing uses
    Rm(rm::Args),
    /// Removes Holdfast from the cluster
    Uninstall(uninstall::Args),
    /// Lists the repositories and images of a volume
    Ls(ls::Args),
    /// Checks a volume, and with --repair repairs it
    Fsck(fsck::Args),
    /// Writes images of a volume as an OCI image layout
    Export(export::Args),
    /// Reads images from OCI image layouts into a volume
    Import(import::Args),
    /// Works with the configuration
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Prints the versions of this program and of the releases
    Version(version::Args),
}

/// The commands below `diff`.
#[derive(Subcommand)]
pub enum DiffCommand {
    /// Lists, by owner, what would not start without the uplink
    Offline(holdfast_offline::Args),
}

/// The commands below `config`.
#[derive(Subcommand)]
pub enum ConfigCommand {
    /// Checks a file of Helm values
    Check(config_check::Args),
}

/// Runs the command, and returns its exit status.
pub fn run(command: Command) -> ExitCode {
    match command {
        Command::Status(args) => until_interrupted(status::run(args)),
        Command::Doctor(args) => until_interrupted(doctor::run(*args)),
        Command::Diff(DiffCommand::Offline(args)) => until_interrupted(holdfast_offline::run(args)),
        Command::Preload(args) => until_interrupted(preload::run(args)),
        Command::Restore(args) => until_interrupted(restore::run(args)),
        Command::Rm(args) => until_interrupted(rm::run(args)),
        Command::Uninstall(args) => until_interrupted(uninstall::run(args)),
        Command::Ls(args) => ls::run(&args),
        Command::Fsck(args) => fsck::run(&args),
        Command::Export(args) => export::run(&args),
        Command::Import(args) => until_interrupted(import::run(args)),
        Command::Config(ConfigCommand::Check(args)) => config_check::run(&args),
        Command::Version(args) => until_interrupted(version::run(args)),
    }
}

/// Runs a command until it ends or the user presses Ctrl-C.
fn until_interrupted(work: impl Future<Output = ExitCode>) -> ExitCode {
    let result = block_on(async {
        tokio::select! {
            status = work => Ok(status),
            _ = tokio::signal::ctrl_c() => Err(Interrupted.into()),
        }
    });
    result.unwrap_or_else(|error| {
        terminal::error(&exit_status::message(&error));
        ExitCode::from(exit_status::of_error(&error))
    })
}

/// Runs asynchronous work to its end on a runtime of its own.
pub fn block_on<F: Future<Output = anyhow::Result<ExitCode>>>(work: F) -> anyhow::Result<ExitCode> {
    holdfast_runtime::descriptors::raise();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    let result = runtime.block_on(work);
    // A thread that hangs on a volume must not keep the process.
    runtime.shutdown_timeout(std::time::Duration::from_secs(2));
    result
}
