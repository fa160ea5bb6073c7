//! Starting a part: its configuration, its logs, then its own entry point.
#![allow(clippy::print_stdout, reason = "what a check prints is its result")]

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context as _;
use holdfast_cli::ConfigArgs;
use holdfast_config::{Config, Distribution, Problem, RegistrySettings, Standalone, Writes};
use holdfast_runtime::logs;

/// Arguments of `registry`.
#[derive(clap::Args)]
pub(crate) struct RegistryArgs {
    /// The release's configuration, told by its key release; or the configuration of a registry
    /// that runs alone; or one of distribution (the CNCF registry), told by its keys version
    /// and storage
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Runs alone, as a pull-through registry on one machine, with its content in DIR; the key
    /// data of a configuration file says the same
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// Listener of a registry that runs alone, for instance 0.0.0.0:5000
    #[arg(long, value_name = "ADDRESS")]
    listen: Option<SocketAddr>,
    /// Prints what the configuration means, and ends; a wrong one ends with status 64
    #[arg(long)]
    check: bool,
}

/// The configuration of the registry, and what kind of file it was read from.
struct ResolvedConfig {
    kind: &'static str,
    settings: RegistrySettings,
    logging: holdfast_config::Logging,
    notes: Vec<String>,
}

impl RegistryArgs {
    fn resolve(&self) -> anyhow::Result<ResolvedConfig> {
        // Read once: a pipe has nothing left for a second look, and nothing means all defaults.
        let text = match &self.config {
            Some(path) => Some(
                std::fs::read_to_string(path)
                    .with_context(|| format!("cannot read {}", path.display()))?,
            ),
            None => None,
        };
        if let Some(text) = text.as_deref().filter(|text| Distribution::is_one(text)) {
            let Distribution {
                mut settings,
                logging,
                notes,
            } = Distribution::of_process(text)?;
            settings.data = self.data.clone().unwrap_or(settings.data);
            settings.listen = self.listen.unwrap_or(settings.listen);
            return Ok(ResolvedConfig {
                kind: "the configuration of distribution, version 0.1",
                settings,
                logging,
                notes,
            });
        }
        let is_release = self.data.is_none() && text.as_deref().is_none_or(Config::is_one);
        if is_release {
            return self.of_release(text.as_deref());
        }
        let mut alone = match (&self.config, &text) {
            (Some(path), Some(text)) => Standalone::parse(text).with_context(|| {
                format!(
                    "{} is read as the configuration of a registry that runs alone, because it has no key release",
                    path.display()
                )
            })?,
            _ => Standalone::default(),
        };
        match &self.data {
            Some(data) => alone.data.clone_from(data),
            None if text.as_deref().is_some_and(Standalone::names_data) => {}
            None => {
                return Err(holdfast_config::Error::Invalid(vec![Problem {
                    path: "data".to_owned(),
                    message: "is missing: give the folder of the content here, or by --data DIR"
                        .to_owned(),
                }])
                .into());
            }
        }
        alone.listen = self.listen.unwrap_or(alone.listen);
        Ok(ResolvedConfig {
            kind: "the configuration of a registry that runs alone",
            settings: alone.settings(),
            logging: alone.logging,
            notes: Vec::new(),
        })
    }

    /// The configuration that the chart makes.
    fn of_release(&self, text: Option<&str>) -> anyhow::Result<ResolvedConfig> {
        anyhow::ensure!(
            self.listen.is_none(),
            "--listen is for a registry that runs alone, which --data DIR or the key data of --config FILE makes"
        );
        let config = match text {
            Some(text) => Config::parse(text)?,
            None => Config::from_file(Path::new("/etc/holdfast/config.yaml")).context(
                "without --config and --data the registry is part of a release; to run alone it needs --data DIR",
            )?,
        };
        Ok(ResolvedConfig {
            kind: "the configuration of a release",
            settings: RegistrySettings::from_config(&config),
            logging: config.values.logging,
            notes: Vec::new(),
        })
    }
}

impl ResolvedConfig {
    /// What was understood, one fact a line; secrets are named and not shown.
    fn lines(&self) -> Vec<String> {
        let RegistrySettings {
            listen,
            tls,
            admin_listen,
            data,
            access,
            auth,
            writes,
            mirror_of,
            upstreams,
            notifications,
            access_log,
            ..
        } = &self.settings;
        let mut who = Vec::new();
        if auth.is_some() {
            who.push("nodes".to_owned());
        }
        if let Some(access) = access {
            let file = |what: &str, path: &Option<PathBuf>| {
                path.as_ref()
                    .map(|path| format!("{what} {}", path.display()))
            };
            who.extend(file("users of", &access.htpasswd));
            who.extend(file("client certificates of", &access.client_ca));
            who.extend(
                access
                    .token
                    .as_ref()
                    .map(|token| format!("tokens of {}", token.issuer)),
            );
            who.extend(
                access
                    .anonymous_pull
                    .then(|| "everybody, to pull".to_owned()),
            );
        } else if auth.is_none() {
            who.push("everybody".to_owned());
        }
        let names = |names: Vec<&str>| {
            if names.is_empty() {
                "none".to_owned()
            } else {
                names.join(", ")
            }
        };
        let mut lines = vec![
            format!("read as: {}", self.kind),
            format!(
                "listens: {listen}, {}",
                if tls.is_some() { "TLS" } else { "plain HTTP" }
            ),
            format!(
                "probes and metrics: {}",
                admin_listen.map_or_else(|| "none".to_owned(), |address| address.to_string())
            ),
            format!("content: {}", data.display()),
            format!("access: {}", who.join("; ")),
            format!(
                "writes: {}",
                match writes {
                    Writes::All => "pushes and deletes",
                    Writes::NoDeletes => "pushes",
                    Writes::None => "none",
                }
            ),
            format!(
                "upstreams: {}",
                names(
                    upstreams
                        .iter()
                        .map(|upstream| upstream.host.as_str())
                        .collect()
                )
            ),
            format!(
                "notifications: {}",
                names(
                    notifications
                        .iter()
                        .map(|endpoint| endpoint.name.as_str())
                        .collect()
                )
            ),
            format!("access log: {:?}", access_log.mode).to_lowercase(),
            format!("log level: {}", self.logging.level.as_str()),
        ];
        lines.extend(mirror_of.iter().map(|host| format!("mirror of: {host}")));
        lines.extend(self.notes.iter().map(|note| format!("note: {note}")));
        lines
    }
}

/// Runs the registry until SIGTERM.
pub(crate) async fn registry(args: RegistryArgs) -> anyhow::Result<ExitCode> {
    let resolved = args.resolve()?;
    if args.check {
        for line in resolved.lines() {
            println!("{line}");
        }
        return Ok(ExitCode::SUCCESS);
    }
    let level = logs::init(&resolved.logging)?;
    for note in &resolved.notes {
        tracing::info!("configuration: {note}");
    }
    holdfast_registry::run(resolved.settings, Some(level)).await?;
    Ok(ExitCode::SUCCESS)
}

/// Arguments of `webhook`.
#[derive(clap::Args)]
pub(crate) struct WebhookArgs {
    #[command(flatten)]
    config: ConfigArgs,
    /// Listener of reviews, for a webhook outside of its cluster [default: port 8443 of all
    /// addresses]
    #[arg(long, value_name = "ADDRESS")]
    listen: Option<SocketAddr>,
    /// Listener of probes and metrics [default: port 9090 of all addresses]
    #[arg(long, value_name = "ADDRESS")]
    admin_listen: Option<SocketAddr>,
    /// Folder of tls.crt and tls.key [default: /etc/holdfast/tls]
    #[arg(long, value_name = "DIR")]
    tls_folder: Option<PathBuf>,
}

/// Runs the webhook until SIGTERM.
pub(crate) async fn webhook(args: WebhookArgs) -> anyhow::Result<ExitCode> {
    let (config, level) = start(&args.config)?;
    let outside = holdfast_webhook::Outside {
        listen: args.listen,
        admin: args.admin_listen,
        tls_folder: args.tls_folder,
    };
    holdfast_webhook::run(config, Some(level), outside).await?;
    Ok(ExitCode::SUCCESS)
}

/// Arguments of `controller`.
#[derive(clap::Args)]
pub(crate) struct ControllerArgs {
    #[command(flatten)]
    config: ConfigArgs,
    /// The registry's internal API, for a controller outside of its cluster, where the Service's
    /// name does not resolve: the near end of `kubectl port-forward`, 127.0.0.1:5001 for
    /// instance. The certificate is checked for that name all the same
    #[arg(long, value_name = "ADDRESS")]
    registry: Option<SocketAddr>,
    /// Listener of probes and metrics [default: port 9090 of all addresses]
    #[arg(long, value_name = "ADDRESS")]
    admin_listen: Option<SocketAddr>,
}

/// Runs the controller until SIGTERM.
pub(crate) async fn controller(args: ControllerArgs) -> anyhow::Result<ExitCode> {
    let (config, level) = start(&args.config)?;
    let outside = holdfast_controller::Outside {
        registry: args.registry,
        admin: args.admin_listen,
    };
    holdfast_controller::run(config, Some(level), outside).await?;
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
