//! `--config`: the configuration of a release, as its pods read it.

use std::path::PathBuf;

/// Where a pod of a release has its configuration.
pub(crate) const CONFIG_FILE: &str = "/etc/holdfast/config.yaml";

/// Where the configuration is.
#[derive(clap::Args)]
pub struct ConfigArgs {
    /// The configuration of the release
    #[arg(long, value_name = "FILE", default_value = CONFIG_FILE)]
    pub(crate) config: PathBuf,
}

impl ConfigArgs {
    /// Reads and checks the configuration.
    pub fn load(&self) -> anyhow::Result<holdfast_config::Config> {
        Ok(holdfast_config::Config::from_file(&self.config)?)
    }
}
