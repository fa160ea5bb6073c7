//! What a requester may learn about an endpoint, and what of it is logged.
//!
//! Anybody can name a host in an image. Causes of failures would then show which hosts and ports of
//! this network answer, so a host that the settings do not list and that is inside this network
//! gets one message for all failures, until it answered as a registry.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Instant,
};

use super::config::EndpointConfig;
use crate::{Error, egress_policy::SeenAddresses, throttle::Throttle};

/// The cause that clients get about a host inside the network that is no registry.
const NO_REGISTRY: &str =
    "no registry answers there; hosts of this network tell more when they are listed in upstreams";

/// Decides what a requester may learn about an endpoint.
pub(super) struct Disclosure {
    config: Arc<EndpointConfig>,
    /// The addresses of the endpoint's own name, where only an image names it.
    seen: SeenAddresses,
    /// The addresses of the names that its redirects led to.
    seen_elsewhere: SeenAddresses,
    /// Whether it answered as a registry before.
    is_registry: AtomicBool,
    throttle: Arc<Throttle>,
}

impl Disclosure {
    pub(super) fn new(
        config: Arc<EndpointConfig>,
        (seen, seen_elsewhere): (SeenAddresses, SeenAddresses),
        throttle: Arc<Throttle>,
    ) -> Self {
        Self {
            config,
            seen,
            seen_elsewhere,
            is_registry: AtomicBool::new(false),
            throttle,
        }
    }

    /// Records that the endpoint itself answered as a registry.
    pub(super) fn answered_as_registry(&self) {
        self.is_registry.store(true, Ordering::Relaxed);
    }

    /// Which error details the requester of an image may see. For an unlisted host in this network:
    /// only that there is no registry. The causes are in the log.
    pub(super) fn tellable(&self, what: &str) -> String {
        if !self.hides_causes() {
            return what.to_owned();
        }
        if self.may_log("inside", what) {
            tracing::info!(
                upstream.url = %self.config.url, cause = what,
                "a host inside this network that is not listed in upstreams does not answer as a \
                 registry"
            );
        }
        NO_REGISTRY.to_owned()
    }

    /// Whether a message that a request can cause is logged.
    pub(super) fn may_log(&self, kind: &str, about: &str) -> bool {
        let about = format!("{} {about}", self.config.url);
        self.throttle.passes(kind, &about, Instant::now())
    }

    /// The error of all requests as the requester may see it. An endpoint decides nothing by what
    /// this returns.
    pub(super) fn discreet(&self, error: Error) -> Error {
        match error {
            Error::Unavailable(what) if what == NO_REGISTRY => Error::Unavailable(what),
            Error::Unavailable(what) => Error::Unavailable(self.tellable(&what)),
            Error::Later(what, pause) if !self.is_confidential() => {
                Error::Later(self.tellable(&what), pause)
            }
            error if self.is_confidential() => {
                Error::Unavailable(self.tellable(&error.to_string()))
            }
            error => error,
        }
    }

    /// Whether the cause of a failure is hidden from the requester. A name can lead to a registry
    /// first, and to any other host of this network later. An answer proves the certificate of the
    /// name; a lost connection can come from any host.
    fn hides_causes(&self) -> bool {
        let is_several =
            !self.config.is_listed() && self.seen.is_inside() && self.seen.is_several();
        is_several || self.is_confidential()
    }

    /// Whether clients learn nothing about the host: it is inside this network and never answered
    /// as a registry.
    pub(super) fn is_confidential(&self) -> bool {
        // A name that was outside as well may be inside for the next request only.
        let shown = self.is_registry.load(Ordering::Relaxed) && !self.seen.is_mixed();
        !self.config.is_listed()
            && ((self.seen.is_inside() && !shown) || self.seen_elsewhere.is_inside())
    }
}
