//! Metrics of a listener's connections.

use crate::metrics::Group;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

/// Why a connection was refused or cut.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Why {
    reason: &'static str,
}

/// The metrics of a listener's connections. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct Counts {
    open: Gauge,
    refused: Family<Why, Counter>,
    cut: Family<Why, Counter>,
}

impl Counts {
    /// Registers the metrics as `holdfast_connections_…`.
    pub fn register(registry: &mut Registry) -> Self {
        let mut group = Group::own(registry, "connections");
        Self {
            open: group.add("open", "Open connections of clients", Gauge::default()),
            refused: group.add(
                "refused",
                "Connections that were closed at once: too many of one address, or no free slot",
                Family::default(),
            ),
            cut: group.add(
                "cut",
                "Connections that were cut: idle, slow headers, a TLS handshake that failed or \
                 took too long, an answer that was read too slowly or not at all, evicted for \
                 another client",
                Family::default(),
            ),
        }
    }

    pub(super) fn open(&self) -> Open {
        self.open.inc();
        Open(self.open.clone())
    }

    pub(super) fn refused(&self, reason: &'static str) {
        self.refused.get_or_create(&Why { reason }).inc();
    }

    pub(super) fn cut(&self, reason: &'static str) {
        self.cut.get_or_create(&Why { reason }).inc();
    }
}

/// An open connection.
#[derive(Debug)]
pub(super) struct Open(Gauge);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.dec();
    }
}
