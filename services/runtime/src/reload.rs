//! Logs and metrics of files that are reloaded while the process runs. If a new file is invalid,
//! the last valid one stays in effect: a warning is logged, and a gauge is 1 until a valid file
//! comes.

use crate::metrics::Group;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

/// The file.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct What {
    what: &'static str,
}

/// The file and the outcome of a reload.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Outcome {
    what: &'static str,
    outcome: &'static str,
}

/// The metrics of reloads. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct Reloads {
    outcomes: Family<Outcome, Counter>,
    failing: Family<What, Gauge>,
}

impl Reloads {
    /// Registers the metrics `file_reloads` and `file_reload_failing`.
    pub fn register(registry: &mut Registry) -> Self {
        let mut group = Group::own(registry, "");
        Self {
            outcomes: group.add(
                "file_reloads",
                "Reloads of changed files, by outcome",
                Family::default(),
            ),
            failing: group.add(
                "file_reload_failing",
                "1 while a changed file is invalid and the last valid one stays in effect",
                Family::default(),
            ),
        }
    }

    /// Counts and logs a reload of `what`, a short fixed name such as `htpasswd`.
    pub fn record<T, E: std::fmt::Display>(&self, what: &'static str, outcome: &Result<T, E>) {
        match outcome {
            Ok(_) => tracing::info!(what, "a changed file was reloaded"),
            Err(error) => {
                tracing::warn!(
                    what, %error,
                    "a changed file is invalid; the last valid one stays in effect"
                );
            }
        }
        let name = if outcome.is_ok() { "ok" } else { "failed" };
        let label = Outcome {
            what,
            outcome: name,
        };
        self.outcomes.get_or_create(&label).inc();
        self.failing
            .get_or_create(&What { what })
            .set(outcome.is_err().into());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bad_file_shows_until_a_good_one_comes() {
        let mut registry = Registry::default();
        let reloads = Reloads::register(&mut registry);
        reloads.record("htpasswd", &Err::<(), _>("line 1"));
        let text = crate::metrics::encode(&registry);
        assert!(
            text.contains(r#"file_reload_failing{what="htpasswd"} 1"#),
            "{text}"
        );
        reloads.record("htpasswd", &Ok::<_, String>(()));
        let text = crate::metrics::encode(&registry);
        assert!(
            text.contains(r#"file_reload_failing{what="htpasswd"} 0"#),
            "{text}"
        );
        assert!(
            text.contains(r#"file_reloads_total{what="htpasswd",outcome="failed"} 1"#),
            "{text}"
        );
    }
}
