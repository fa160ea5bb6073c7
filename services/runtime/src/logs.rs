//! Logs: one JSON object per line in the cluster, text for people elsewhere. The level can change
//! at runtime.

use holdfast_config::{LogFormat, Logging};
use std::io::IsTerminal as _;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Registry, fmt, reload};

/// Why logging cannot be configured.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The level is neither a level nor a list of `target=level`.
    #[error("not a log level or filter: {0}")]
    Filter(String),
    /// Logging was initialized before.
    #[error("logging is initialized already")]
    Installed(#[from] tracing_subscriber::util::TryInitError),
    /// The subscriber was dropped.
    #[error("the log level can no longer be changed")]
    Gone(#[from] reload::Error),
}

/// The handle that changes the level, for `PUT /log-level`.
#[derive(Clone, Debug)]
pub struct Level {
    handle: reload::Handle<EnvFilter, Registry>,
}

impl Level {
    /// Sets the level: `info`, or a filter such as `warn,holdfast_registry=debug`.
    pub fn set(&self, filter: &str) -> Result<(), Error> {
        self.handle.reload(parse(filter)?)?;
        Ok(())
    }

    /// The current filter.
    pub fn get(&self) -> String {
        self.handle
            .with_current(ToString::to_string)
            .unwrap_or_default()
    }
}

/// Parses a level or a filter. A bare level applies to Holdfast; libraries, which log much at
/// `info`, stay at higher levels then.
fn parse(filter: &str) -> Result<EnvFilter, Error> {
    let filter = filter.trim();
    let invalid = || Error::Filter(filter.to_owned());
    if filter.is_empty() {
        return Err(invalid());
    }
    let bare = filter.parse::<tracing::Level>().is_ok();
    let directives = match filter {
        "trace" | "debug" | "info" if bare => {
            format!(
                "{filter},hyper=info,h2=info,rustls=info,tower=info,kube=info,kube_client=warn,kube_runtime=warn,warp=warn"
            )
        }
        _ => filter.to_owned(),
    };
    EnvFilter::try_new(directives).map_err(|_| invalid())
}

/// Installs the process's logger, which writes to standard error.
pub fn init(logging: &Logging) -> Result<Level, Error> {
    let (filter, handle) = reload::Layer::new(parse(logging.level.as_str())?);
    let registry = tracing_subscriber::registry().with(filter);
    match logging.format {
        LogFormat::Json => registry
            .with(
                fmt::layer()
                    .json()
                    .flatten_event(true)
                    .with_current_span(true)
                    .with_span_list(false)
                    .with_writer(std::io::stderr),
            )
            .try_init()?,
        LogFormat::Text => registry
            .with(
                fmt::layer()
                    .compact()
                    .with_ansi(std::io::stderr().is_terminal())
                    .with_writer(std::io::stderr),
            )
            .try_init()?,
    }
    Ok(Level { handle })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn invalid_levels_and_filters_are_refused() {
        for good in [
            "info",
            "trace",
            "warn",
            " debug\n",
            "warn,holdfast_registry=debug",
        ] {
            assert!(parse(good).is_ok(), "{good}");
        }
        for bad in ["", "loud=very", "a=b=c"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_bare_level_keeps_libraries_quiet() {
        let filter = parse("debug").unwrap().to_string();
        assert!(
            filter.contains("hyper=info") && filter.contains("debug"),
            "{filter}"
        );
    }
}
