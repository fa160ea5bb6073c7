//! Whether an endpoint works: its circuit breaker, and what requests report to it.

use std::{
    sync::Arc,
    time::{Instant, SystemTime},
};

use http::header;
use parking_lot::{Mutex, MutexGuard};
use reqwest::{Client, Response};

use super::{call::Call, config::EndpointConfig, disclosure::Disclosure, headers::text};
use crate::{
    Error, Result,
    breaker::{Breaker, Failure, Rejection},
    client::Prober,
    metrics::{Metrics, UpstreamLabel},
    settings::{retry_after, told_pause},
};

/// The repository for failures that no request of one repository causes: bodies that break off.
const BODIES: &str = "";

/// Records outcomes of requests, and rejects requests while the endpoint fails.
pub(super) struct Health {
    config: Arc<EndpointConfig>,
    disclosure: Arc<Disclosure>,
    breaker: Arc<Mutex<Breaker>>,
    /// The client that probes the API.
    client: Client,
    metrics: Metrics,
}

impl Health {
    pub(super) fn new(
        config: Arc<EndpointConfig>,
        disclosure: Arc<Disclosure>,
        client: Client,
        metrics: Metrics,
    ) -> Self {
        let timeouts = config.timeouts;
        let breaker = Breaker::new(timeouts.breaker_min, timeouts.breaker_max);
        Self {
            config,
            disclosure,
            breaker: Arc::new(Mutex::new(breaker)),
            client,
            metrics,
        }
    }

    fn breaker(&self) -> MutexGuard<'_, Breaker> {
        self.breaker.lock()
    }

    /// Whether the endpoint is not asked for anything now.
    pub(super) fn rejects_all(&self) -> bool {
        self.breaker().rejection_of_all(Instant::now()).is_some()
    }

    /// Allows a request, or says why it is not sent.
    pub(super) fn check_open(&self, call: &Call<'_>) -> Result<()> {
        let now = Instant::now();
        let rejection = self.breaker().rejection(call.repository(), now);
        let (what, asked) = match rejection {
            None => return Ok(()),
            Some(Rejection::Pause(left)) => return Err(Error::TooMany(left)),
            Some(Rejection::Endpoint(cause, left)) => (
                format!("{cause}, next probe in {} s", left.as_secs() + 1),
                cause.asked(now),
            ),
            Some(Rejection::Repository(cause, left)) => (
                format!(
                    "{cause} for this repository, asked again in {} s",
                    left.as_secs() + 1
                ),
                cause.asked(now),
            ),
        };
        Err(match asked {
            Some(pause) => Error::Later(what, pause),
            None => Error::Unavailable(what),
        })
    }

    /// Records that a request was answered.
    pub(super) fn succeeded(&self, call: &Call<'_>) {
        self.breaker().succeeded(call.repository());
    }

    /// Records that the endpoint was reached and failed for a repository.
    pub(super) fn failed(&self, call: &Call<'_>, what: &str) -> Error {
        self.record(Failure::Repository(call.repository()), what)
    }

    /// Records that there was no connection to the endpoint.
    pub(super) fn unreachable(&self, what: &str) -> Error {
        self.record(Failure::Connection, what)
    }

    /// Records that a body broke off.
    pub(super) fn body_failed(&self, what: &str) -> Error {
        self.record(Failure::Repository(BODIES), what)
    }

    /// Records an answer of 5xx, and when it says that it may be asked again.
    pub(super) fn server_failed(&self, call: &Call<'_>, response: &Response, what: &str) -> Error {
        let error = self.failed(call, what);
        let told = text(response, header::RETRY_AFTER);
        let pause = told_pause(told.as_deref(), SystemTime::now());
        match (error, pause) {
            (Error::Unavailable(what), Some(pause)) => {
                let until = Instant::now() + pause;
                self.breaker().asks_for(call.repository(), until);
                Error::Later(what, pause)
            }
            (error, _) => error,
        }
    }

    /// Pauses requests to the endpoint for the time that it asks for.
    pub(super) fn pause(&self, response: &Response) -> Error {
        let told = text(response, header::RETRY_AFTER);
        let pause = retry_after(told.as_deref(), SystemTime::now());
        self.breaker().pause(Instant::now(), pause);
        let pauses = &self.metrics.pauses;
        pauses.get_or_create(&self.upstream_label()).inc();
        Error::TooMany(pause)
    }

    /// Records a failure and logs it. A probe of the API runs in the background where more than one
    /// request may be concerned.
    fn record(&self, failure: Failure<'_>, what: &str) -> Error {
        let (wait, is_open) = {
            let mut breaker = self.breaker();
            let wait = breaker.failed(failure, what, Instant::now(), SystemTime::now());
            (wait, breaker.is_open())
        };
        if let Some(wait) = wait {
            if is_open {
                tracing::warn!(
                    upstream.url = %self.config.url, cause = what, seconds = wait.as_secs(),
                    "upstream keeps failing, circuit open until a probe answers"
                );
            }
            let open = &self.metrics.open;
            let prober = Prober {
                breaker: Arc::downgrade(&self.breaker),
                client: self.client.clone(),
                url: self.config.root.clone(),
                timeout: self.config.timeouts.headers,
                open: open.get_or_create_owned(&self.upstream_label()),
            };
            tokio::spawn(prober.run(wait, is_open));
        }
        Error::Unavailable(self.disclosure.tellable(what))
    }

    fn upstream_label(&self) -> UpstreamLabel {
        UpstreamLabel {
            upstream: self.config.label.clone(),
        }
    }
}
