//! The command line: which subcommand does what, and how it ends. Exit status 0: done; 1: failed;
//! 64: the configuration or the command line is wrong. Commands that answer a question say no by 1
//! and cannot tell by 2.
#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "what a command prints is its result"
)]

use std::future::Future;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::{
    config_check, diff, doctor, export, fsck, import, ls, preload, restore, serve, status,
    uninstall,
};

/// The exit status of a wrong configuration (`EX_USAGE` of `sysexits.h`).
pub(crate) const WRONG_CONFIGURATION: u8 = 64;

/// Keeps a Kubernetes cluster running when its uplink is gone.
#[derive(Parser)]
#[command(name = "holdfast", version)]
pub(crate) struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// The registry; with --data it runs alone, without Kubernetes
    Registry(serve::RegistryArgs),
    /// The webhook that rewrites the images of pods
    Webhook(serve::WebhookArgs),
    /// The controller of Artifacts, certificates and the shared state
    Controller(serve::ControllerArgs),
    /// The agent that prepares a node's container runtime
    NodeAgent(ConfigArgs),
    /// Undoes a release in the cluster before Helm deletes it: webhook first, then nodes, then what
    /// the controller made
    Uninstall(uninstall::Args),
    /// What keeps Holdfast from working: parts, claim, CA, nodes, policies; each with the way out
    Doctor(doctor::Args),
    /// Whether Holdfast works in the cluster, and how far the copies are
    Status(status::Args),
    /// Copies images before anybody needs them: from a list, from manifests, or everything of a
    /// namespace
    Preload(preload::Args),
    /// What would be different
    #[command(subcommand)]
    Diff(DiffCommand),
    /// Gives pods that hold rewritten references their original images back, owners untouched
    Restore(restore::Args),
    /// Checks a volume: what is damaged, what it means, and with --repair mends what has one
    /// certain answer
    Fsck(fsck::Args),
    /// Lists a volume's repositories, and with a name or --tags its images with digest, size and
    /// platforms
    Ls(ls::Args),
    /// Writes images of a volume as an OCI image layout, a tar file or a folder
    Export(export::Args),
    /// Puts images from OCI image layouts into a volume
    Import(import::Args),
    /// The configuration
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Prints the version
    Version,
}

#[derive(Subcommand)]
enum DiffCommand {
    /// What would not start if the uplink went now, by owner
    Offline(diff::Args),
}

#[derive(Subcommand)]
enum ConfigCommand {
    /// Checks a file of Helm values; problems name the key, and the exit status is 64
    Check(config_check::Args),
}

/// Where the configuration is.
#[derive(clap::Args)]
pub(crate) struct ConfigArgs {
    /// The release's configuration
    #[arg(long, value_name = "FILE", default_value = "/etc/holdfast/config.yaml")]
    pub(crate) config: PathBuf,
}

impl ConfigArgs {
    /// Reads and checks the configuration.
    pub(crate) fn load(&self) -> anyhow::Result<holdfast_config::Config> {
        Ok(holdfast_config::Config::from_file(&self.config)?)
    }
}

/// Runs the command.
pub(crate) fn run(cli: Cli) -> ExitCode {
    let result = match cli.command {
        Command::Registry(args) => block_on(serve::registry(args)),
        Command::Webhook(args) => block_on(serve::webhook(args)),
        Command::Controller(args) => block_on(serve::controller(args)),
        Command::NodeAgent(args) => block_on(serve::node_agent(args)),
        Command::Uninstall(args) => block_on(uninstall::run(args)),
        Command::Doctor(args) => block_on(doctor::run(args)),
        Command::Status(args) => block_on(async { Ok(status::run(args).await) }),
        Command::Preload(args) => block_on(async { Ok(preload::run(args).await) }),
        Command::Diff(DiffCommand::Offline(args)) => {
            block_on(async { Ok(diff::offline(args).await) })
        }
        Command::Restore(args) => block_on(async { Ok(restore::run(args).await) }),
        Command::Fsck(args) => Ok(fsck::run(&args)),
        Command::Ls(args) => ls::run(&args),
        Command::Export(args) => export::run(&args),
        Command::Import(args) => block_on(import::run(args)),
        Command::Config(ConfigCommand::Check(args)) => Ok(config_check::run(&args)),
        Command::Version => {
            println!("holdfast {}", env!("CARGO_PKG_VERSION"));
            Ok(ExitCode::SUCCESS)
        }
    };
    result.unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        let configuration = error
            .chain()
            .any(<dyn std::error::Error>::is::<holdfast_config::Error>);
        if configuration {
            ExitCode::from(WRONG_CONFIGURATION)
        } else {
            ExitCode::FAILURE
        }
    })
}

fn block_on<F: Future<Output = anyhow::Result<ExitCode>>>(work: F) -> anyhow::Result<ExitCode> {
    holdfast_runtime::descriptors::raise();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    let result = runtime.block_on(work);
    // A thread that hangs on a volume must not keep the process.
    runtime.shutdown_timeout(std::time::Duration::from_secs(2));
    result
}
