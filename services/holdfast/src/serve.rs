//! Starting a part: its configuration, its logs, then its own entry point.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use holdfast_config::{Config, RegistrySettings, Standalone};
use holdfast_runtime::logs;

use crate::cli::ConfigArgs;

/// Arguments of `registry`.
#[derive(clap::Args)]
pub(crate) struct RegistryArgs {
    /// The release's configuration; with --data, the configuration of a registry that runs alone
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Runs alone, as a pull-through registry on one machine, with its content in DIR
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// Listener of a registry that runs alone, for instance 0.0.0.0:5000
    #[arg(long, value_name = "ADDRESS", requires = "data")]
    listen: Option<SocketAddr>,
}

impl RegistryArgs {
    fn settings(self) -> anyhow::Result<(RegistrySettings, holdfast_config::Logging)> {
        let Some(data) = self.data else {
            let path = self
                .config
                .unwrap_or_else(|| PathBuf::from("/etc/holdfast/config.yaml"));
            let config = Config::from_file(&path)?;
            return Ok((
                RegistrySettings::from_config(&config),
                config.values.logging,
            ));
        };
        let mut alone = match self.config {
            Some(path) => Standalone::from_file(&path)?,
            None => Standalone::default(),
        };
        alone.data = data;
        alone.listen = self.listen.unwrap_or(alone.listen);
        Ok((alone.settings(), alone.logging))
    }
}

/// Runs the registry until SIGTERM.
pub(crate) async fn registry(args: RegistryArgs) -> anyhow::Result<ExitCode> {
    let (settings, logging) = args.settings()?;
    let level = logs::init(&logging)?;
    holdfast_registry::run(settings, Some(level)).await?;
    Ok(ExitCode::SUCCESS)
}

/// Runs the webhook until SIGTERM.
pub(crate) async fn webhook(args: ConfigArgs) -> anyhow::Result<ExitCode> {
    let (config, level) = start(&args)?;
    holdfast_webhook::run(config, Some(level)).await?;
    Ok(ExitCode::SUCCESS)
}

/// Runs the controller until SIGTERM.
pub(crate) async fn controller(args: ConfigArgs) -> anyhow::Result<ExitCode> {
    let (config, level) = start(&args)?;
    holdfast_controller::run(config, Some(level)).await?;
    Ok(ExitCode::SUCCESS)
}

/// Runs the node agent until SIGTERM.
pub(crate) async fn node_agent(args: ConfigArgs) -> anyhow::Result<ExitCode> {
    let (config, level) = start(&args)?;
    holdfast_node_agent::run(config, Some(level)).await?;
    Ok(ExitCode::SUCCESS)
}

fn start(args: &ConfigArgs) -> anyhow::Result<(Config, logs::Level)> {
    let config = args.load()?;
    let level = logs::init(&config.values.logging)?;
    Ok((config, level))
}
