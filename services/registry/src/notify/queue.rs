//! One endpoint: its bounded queue and the one task that sends its events.
//!
//! An event leaves the queue when the endpoint has accepted it, never before, so order is kept and
//! the number of pending events is exact.

use std::{
    collections::VecDeque,
    fs,
    sync::Arc,
    time::{Duration, Instant},
};

use holdfast_config::{NotificationAction, NotificationSettings};
use holdfast_runtime::{CancellationToken, reload::Reloads};
use http::{HeaderMap, HeaderName, HeaderValue, header};
use parking_lot::{Mutex, MutexGuard};
use prometheus_client::metrics::{counter::Counter, gauge::Gauge};
use tokio::sync::{Notify, watch};

use super::{
    EndpointLabel, Error, EventLabel, Metrics, StatusLabel,
    event::{Envelope, Event, MEDIA_TYPE},
};

/// Events of one request.
const BATCH: usize = 32;
/// First pause after a failure.
const PAUSE: Duration = Duration::from_millis(100);
/// Longest pause that the doubling reaches by itself.
const MAX_PAUSE: Duration = Duration::from_secs(60);
/// How often the folder of headers is read while there is something to send.
const HEADERS_EVERY: Duration = holdfast_runtime::files::POLL_INTERVAL;
/// How long pending events may still be sent after the process began to end.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(5);

/// The queue of one endpoint.
#[derive(Debug)]
pub(super) struct Queue {
    settings: NotificationSettings,
    events: Mutex<VecDeque<Arc<Event>>>,
    arrived: Notify,
    counts: Counts,
    ended: watch::Receiver<bool>,
}

#[derive(Debug)]
struct Counts {
    taken: Counter,
    dropped: Counter,
    successes: Counter,
    failures: Counter,
    errors: Counter,
    pending: Gauge,
    metrics: Metrics,
}

impl Counts {
    fn of(endpoint: &str, metrics: &Metrics) -> Self {
        let events = |r#type| {
            metrics.events.get_or_create_owned(&EventLabel {
                r#type,
                endpoint: endpoint.to_owned(),
            })
        };
        Self {
            taken: events("Events"),
            dropped: events("Dropped"),
            successes: events("Successes"),
            failures: events("Failures"),
            errors: events("Errors"),
            pending: metrics.pending.get_or_create_owned(&EndpointLabel {
                endpoint: endpoint.to_owned(),
            }),
            metrics: metrics.clone(),
        }
    }

    /// Counts an answer, labelled as distribution does: `200 OK`.
    fn answered(&self, endpoint: &str, status: http::StatusCode) {
        self.metrics
            .status
            .get_or_create_owned(&StatusLabel {
                code: status.to_string(),
                endpoint: endpoint.to_owned(),
            })
            .inc();
    }
}

impl Queue {
    /// Makes the queue and starts its sender.
    pub(super) fn start(
        settings: &NotificationSettings,
        metrics: &Metrics,
        reloads: &Reloads,
        shutdown: CancellationToken,
    ) -> Result<Arc<Self>, Error> {
        let headers = Headers {
            map: headers(settings)?,
            read_at: Instant::now(),
            failing: false,
        };
        let client = client(settings).map_err(|reason| Error::Client {
            endpoint: settings.name.clone(),
            reason,
        })?;
        let (end, ended) = watch::channel(false);
        let queue = Arc::new(Self {
            settings: settings.clone(),
            events: Mutex::default(),
            arrived: Notify::new(),
            counts: Counts::of(&settings.name, metrics),
            ended,
        });
        let sender = Sender {
            queue: Arc::clone(&queue),
            client,
            headers: Mutex::new(headers),
            reloads: reloads.clone(),
        };
        tokio::spawn(async move {
            sender.run(shutdown).await;
            end.send_replace(true);
        });
        Ok(queue)
    }

    /// Whether events of this action are sent at all.
    pub(super) fn wants(&self, action: NotificationAction) -> bool {
        !self.settings.ignore_actions.contains(&action)
    }

    /// Queues an event, or drops it when the queue is full.
    pub(super) fn push(&self, action: NotificationAction, event: &Arc<Event>) {
        let ignored = &self.settings.ignore_media_types;
        if !self.wants(action) || ignored.contains(&event.target.media_type) {
            return;
        }
        self.counts.taken.inc();
        let mut events = self.lock();
        if events.len() >= self.settings.queue {
            drop(events);
            if self.counts.dropped.inc() == 0 {
                tracing::warn!(
                    notification.endpoint = self.settings.name,
                    "the queue of notifications is full, events are dropped; see registry_notifications_events_total"
                );
            }
            return;
        }
        events.push_back(Arc::clone(event));
        self.counts.pending.set(length(&events));
        drop(events);
        self.arrived.notify_one();
    }

    /// Waits until the sender has ended.
    pub(super) async fn ended(&self) {
        let mut ended = self.ended.clone();
        drop(ended.wait_for(|ended| *ended).await);
    }

    fn first(&self) -> Vec<Arc<Event>> {
        self.lock().iter().take(BATCH).cloned().collect()
    }

    fn remove(&self, count: usize) {
        let mut events = self.lock();
        drop(events.drain(..count));
        self.counts.pending.set(length(&events));
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<Arc<Event>>> {
        self.events.lock()
    }
}

fn length(events: &VecDeque<Arc<Event>>) -> i64 {
    i64::try_from(events.len()).unwrap_or(i64::MAX)
}

struct Sender {
    queue: Arc<Queue>,
    client: reqwest::Client,
    headers: Mutex<Headers>,
    reloads: Reloads,
}

/// The headers of each request, as last read.
struct Headers {
    map: HeaderMap,
    read_at: Instant,
    failing: bool,
}

impl Sender {
    /// The headers of the next request. A Secret that changed is read again; one of no use leaves
    /// the last good headers.
    fn headers(&self) -> HeaderMap {
        let mut held = self.headers.lock();
        let settings = &self.queue.settings;
        if settings.headers_folders.is_empty() || held.read_at.elapsed() < HEADERS_EVERY {
            return held.map.clone();
        }
        held.read_at = Instant::now();
        let read = headers(settings);
        let (changed, failing) = match &read {
            Ok(map) => (*map != held.map, false),
            Err(_) => (false, true),
        };
        if changed || failing != held.failing {
            self.reloads.record("notification-headers", &read);
        }
        held.failing = failing;
        if let Ok(map) = read {
            held.map = map;
        }
        held.map.clone()
    }

    async fn run(self, shutdown: CancellationToken) {
        tokio::select! {
            () = self.send_all() => {}
            () = shutdown.cancelled() => {
                // Requests in progress may still add events.
                let last = async {
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    while !self.queue.lock().is_empty() {
                        if !self.send().await {
                            tokio::time::sleep(PAUSE).await;
                        }
                    }
                };
                drop(tokio::time::timeout(FLUSH_TIMEOUT, last).await);
            }
        }
        let left = self.queue.lock().len();
        if left > 0 {
            tracing::warn!(
                notification.endpoint = self.queue.settings.name,
                events = left,
                "notifications are lost: the endpoint did not accept them before the process ended"
            );
        }
    }

    async fn send_all(&self) {
        let mut failures = 0_u32;
        loop {
            if self.queue.lock().is_empty() {
                self.queue.arrived.notified().await;
                continue;
            }
            if self.send().await {
                if failures >= self.queue.settings.threshold {
                    tracing::info!(
                        notification.endpoint = self.queue.settings.name,
                        "the endpoint accepts notifications again"
                    );
                }
                failures = 0;
                continue;
            }
            failures = failures.saturating_add(1);
            let settings = &self.queue.settings;
            if failures == settings.threshold {
                tracing::warn!(
                    notification.endpoint = settings.name,
                    "the endpoint keeps failing; notifications wait"
                );
            }
            tokio::time::sleep(pause(failures, settings.threshold, settings.backoff)).await;
        }
    }

    /// Sends what is first in the queue; true when the endpoint took it.
    async fn send(&self) -> bool {
        let (queue, name) = (&self.queue, &self.queue.settings.name);
        let events = queue.first();
        let envelope = Envelope {
            events: events.iter().map(|event| &**event).collect(),
        };
        let Ok(body) = serde_json::to_vec(&envelope) else {
            queue.remove(events.len());
            return true;
        };
        let request = self
            .client
            .post(&queue.settings.url)
            .headers(self.headers())
            .header(header::CONTENT_TYPE, MEDIA_TYPE)
            .body(body);
        match request.send().await {
            Ok(answer) if answer.status().is_success() => {
                queue.counts.answered(name, answer.status());
                queue.counts.successes.inc_by(events.len() as u64);
                queue.remove(events.len());
                true
            }
            Ok(answer) => {
                queue.counts.answered(name, answer.status());
                queue.counts.failures.inc_by(events.len() as u64);
                tracing::debug!(notification.endpoint = name, status = %answer.status(), "notifications were refused");
                false
            }
            Err(error) => {
                queue.counts.errors.inc_by(events.len() as u64);
                tracing::debug!(notification.endpoint = name, error = %error.without_url(), "notifications could not be sent");
                false
            }
        }
    }
}

/// The pause after this many failures in a row: short ones below `threshold`, from there on
/// `backoff`, doubling.
fn pause(failures: u32, threshold: u32, backoff: Duration) -> Duration {
    if failures < threshold {
        return (PAUSE * 2_u32.saturating_pow(failures.saturating_sub(1).min(10))).min(backoff);
    }
    let doubled = backoff.saturating_mul(2_u32.saturating_pow((failures - threshold).min(16)));
    doubled.min(MAX_PAUSE.max(backoff))
}

fn headers(settings: &NotificationSettings) -> Result<HeaderMap, Error> {
    let mut headers = HeaderMap::new();
    let mut pairs = settings.headers.clone();
    for folder in &settings.headers_folders {
        let unreadable = |source| Error::Folder {
            endpoint: settings.name.clone(),
            source,
        };
        for entry in fs::read_dir(folder).map_err(unreadable)? {
            let entry = entry.map_err(unreadable)?;
            let name = entry.file_name().to_string_lossy().into_owned();
            // What Kubernetes keeps beside the keys of a Secret.
            if !name.starts_with('.') {
                let value = fs::read_to_string(entry.path()).map_err(unreadable)?;
                pairs.push((name, value.trim_end().to_owned()));
            }
        }
    }
    for (name, value) in pairs {
        let invalid = || Error::Header {
            endpoint: settings.name.clone(),
            name: name.clone(),
        };
        let key = HeaderName::try_from(&name).map_err(|_| invalid())?;
        let mut value = HeaderValue::try_from(value).map_err(|_| invalid())?;
        value.set_sensitive(true);
        headers.append(key, value);
    }
    Ok(headers)
}

fn client(settings: &NotificationSettings) -> Result<reqwest::Client, String> {
    let extra = match &settings.ca {
        Some(pem) => reqwest::Certificate::from_pem_bundle(pem.as_bytes())
            .map_err(|error| format!("ca: {error}"))?,
        None => Vec::new(),
    };
    let build = |only_extra: bool| {
        let builder = reqwest::Client::builder()
            .redirect(reqwest::redirect::Policy::none())
            .no_proxy()
            .timeout(settings.timeout)
            .user_agent(concat!("holdfast/", env!("CARGO_PKG_VERSION")));
        let builder = if only_extra {
            builder.tls_certs_only(extra.clone())
        } else {
            builder.tls_certs_merge(extra.clone())
        };
        builder.build().map_err(|error| error.to_string())
    };
    // Plain HTTP needs no roots; an image without a root store has only what the settings name.
    if settings.url.starts_with("http:") {
        return build(true);
    }
    build(false).or_else(|error| {
        if extra.is_empty() {
            Err(error)
        } else {
            build(true)
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_and_have_an_end() {
        let second = Duration::from_secs(1);
        for (failures, expect_ms) in [
            (1, 100),
            (2, 200),
            (4, 800),
            (5, 1000),
            (6, 2000),
            (10, 32_000),
            (11, 60_000),
            (4000, 60_000),
        ] {
            assert_eq!(
                pause(failures, 5, second).as_millis(),
                expect_ms,
                "{failures}"
            );
        }
        assert_eq!(pause(9000, 1, 300 * second), 300 * second);
    }
}
