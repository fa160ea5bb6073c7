//! The operator's part of the command line: which command does what.

use std::future::Future;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Subcommand;

use crate::{
    config_check, diff, doctor, exit_status, export, fsck, import, ls, preload, restore, status,
    uninstall,
};

/// The commands of an operator.
#[derive(Subcommand)]
pub enum Command {
    /// Undoes a release in the cluster before Helm deletes it: webhook first, then nodes, then what
    /// the controller made
    Uninstall(uninstall::Args),
    /// What keeps Holdfast from working: parts, claim, CA, nodes, policies; each with the fix
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
}

/// The commands below `diff`.
#[derive(Subcommand)]
pub enum DiffCommand {
    /// What would not start if the uplink went now, by owner
    Offline(diff::Args),
}

/// The commands below `config`.
#[derive(Subcommand)]
pub enum ConfigCommand {
    /// Checks a file of Helm values; problems name the key, and the exit status is 64
    Check(config_check::Args),
}

/// Where the configuration is.
#[derive(clap::Args)]
pub struct ConfigArgs {
    /// The release's configuration
    #[arg(long, value_name = "FILE", default_value = "/etc/holdfast/config.yaml")]
    pub(crate) config: PathBuf,
}

impl ConfigArgs {
    /// Reads and checks the configuration.
    pub fn load(&self) -> anyhow::Result<holdfast_config::Config> {
        Ok(holdfast_config::Config::from_file(&self.config)?)
    }
}

/// Runs the command, and returns its exit status.
pub fn run(command: Command) -> ExitCode {
    let result = match command {
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
    };
    result.unwrap_or_else(|error| exit_status::failed(&error))
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
