//! The body of a blob as it arrives: its limits, its pace, and how fast the upstream sends.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use holdfast_api::fill::Priority;

use super::{
    Inner, Result, SharedPriority, client, endpoint::Endpoint, flow::Flow, scheduler::Slot,
    settings::MIN_BYTES,
};
use holdfast_runtime::time_limit::TimeLimit;

/// The body of a blob as it arrives.
#[derive(Debug)]
pub struct Body {
    pub(super) response: reqwest::Response,
    pub(super) endpoint: Arc<Endpoint>,
    pub(super) shared: Arc<Inner>,
    pub(super) priority: SharedPriority,
    pub(super) skip: u64,
    pub(super) total: Option<u64>,
    pub(super) etag: Option<String>,
    /// Bytes since when, for the slowest pace that is put up with.
    pub(super) paced: (u64, Duration),
    pub(super) slot: Slot,
}

impl Body {
    /// The next bytes; `None` at the end that the upstream declared.
    ///
    /// # Errors
    /// [`Error::Unavailable`] when the body breaks, stalls or trickles.
    pub async fn chunk(&mut self) -> Result<Option<Bytes>> {
        loop {
            self.slot.yield_to_waiters(&self.priority).await;
            let mut limit = TimeLimit::new(self.endpoint.timeouts().stall);
            self.slot.flow().waits();
            let next = limit.run(self.response.chunk()).await;
            let came = match &next {
                Some(Ok(Some(bytes))) => bytes.len(),
                _ => 0,
            };
            self.slot.flow().came(came);
            let mut bytes = match next {
                Some(Ok(Some(bytes))) => bytes,
                Some(Ok(None)) => return Ok(None),
                Some(Err(error)) => {
                    return Err(self
                        .endpoint
                        .body_failed(&format!("the body broke off: {}", client::cause(&error))));
                }
                None => return Err(self.endpoint.body_failed("the body stalled")),
            };
            // Only time spent on waiting for the upstream counts, not our own caps or the volume.
            self.paced.0 += bytes.len() as u64;
            self.paced.1 += limit.used();
            if self.paced.1 > self.endpoint.timeouts().crawl {
                if self.paced.0 < MIN_BYTES {
                    return Err(self.endpoint.body_failed("the body only trickles"));
                }
                self.paced = (0, Duration::ZERO);
            }
            self.shared
                .metrics
                .took(self.endpoint.label(), "blob", bytes.len());
            let yields = || {
                self.priority.level() == Priority::Prefetch
                    && self.shared.scheduler.is_anybody_waiting()
            };
            self.shared.rate.take(bytes.len(), yields).await;
            if self.skip > 0 {
                let skipped = usize::try_from(self.skip)
                    .unwrap_or(usize::MAX)
                    .min(bytes.len());
                drop(bytes.split_to(skipped));
                self.skip -= skipped as u64;
                if bytes.is_empty() {
                    continue;
                }
            }
            return Ok(Some(bytes));
        }
    }

    /// Resolves when the copy has to give its slot up: it goes on later, from where it is.
    pub fn preempted(&self) -> impl Future<Output = ()> + Send + use<> {
        self.slot.preempted().clone().cancelled_owned()
    }

    /// The bytes that it brought so far.
    pub fn flow(&self) -> Arc<Flow> {
        Arc::clone(self.slot.flow())
    }

    /// The endpoint that sends it, for [`Upstreams::quarantine`].
    pub fn endpoint(&self) -> String {
        self.endpoint.url().to_string()
    }

    /// What the upstream says that the content is, if it says so strongly: size and validator.
    pub fn identity(&self) -> (Option<u64>, Option<&str>) {
        (self.total, self.etag.as_deref())
    }
}
