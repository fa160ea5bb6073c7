//! Notifications of pushes, pulls, mounts and deletes in distribution's format, posted to the
//! endpoints of the settings.
//!
//! Every endpoint has a bounded queue and one sender, so its events keep their order; events that
//! find the queue full are dropped and counted. A request never waits for an endpoint.

mod event;
mod queue;

use std::sync::Arc;

use holdfast_config::{NotificationAction, NotificationSettings};
use holdfast_core::{ManifestRef, digest::Digest, reference::RepositoryName};
use holdfast_runtime::{CancellationToken, metrics::Group, reload::Reloads, server::PeerAddr};
use holdfast_store::Store;
use http::{HeaderMap, Method, StatusCode, header, request::Parts};
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};

use crate::route::Endpoint;
use event::{Actor, Event, Origin, PullThrough, Target};
use queue::Queue;

/// Why notifications cannot be sent at all.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A header of the settings is not valid.
    #[error("notifications.{endpoint}: the header {name} is not valid")]
    Header {
        /// Name of the endpoint.
        endpoint: String,
        /// Name of the header.
        name: String,
    },
    /// The folder with headers cannot be read.
    #[error("notifications.{endpoint}: the headers cannot be read")]
    Folder {
        /// Name of the endpoint.
        endpoint: String,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// There is no HTTP client for the endpoint.
    #[error("notifications.{endpoint}: {reason}")]
    Client {
        /// Name of the endpoint.
        endpoint: String,
        /// What is wrong.
        reason: String,
    },
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct EventLabel {
    r#type: &'static str,
    endpoint: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct EndpointLabel {
    endpoint: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StatusLabel {
    code: String,
    endpoint: String,
}

/// Distribution's numbers of notifications. `type` is `Events` (taken), `Successes`, `Failures`
/// (answers that refuse), `Errors` (no answer), and, beyond distribution's, `Dropped`.
#[derive(Clone, Debug)]
struct Metrics {
    events: Family<EventLabel, Counter>,
    pending: Family<EndpointLabel, Gauge>,
    status: Family<StatusLabel, Counter>,
}

impl Metrics {
    fn register(registry: &mut Registry) -> Self {
        let mut group = Group::of(registry, "registry_notifications");
        Self {
            events: group.add("events", "Events by what became of them", Family::default()),
            pending: group.add("pending_total", "Events that wait", Family::default()),
            status: group.add(
                "status",
                "Answers of endpoints by status",
                Family::default(),
            ),
        }
    }
}

/// Takes events and sends them. Clones share the queues.
#[derive(Clone, Debug)]
pub struct Notifier {
    queues: Arc<[Arc<Queue>]>,
    source: PullThrough,
    secure: bool,
}

/// What a request will have done if it succeeds.
#[derive(Debug)]
pub(crate) struct Draft {
    action: NotificationAction,
    repository: RepositoryName,
    from: Option<RepositoryName>,
    digest: Option<Digest>,
    tag: Option<String>,
    manifest: bool,
    origin: Origin,
    actor: String,
}

impl Notifier {
    /// Starts a sender for each endpoint; they end with `shutdown`, after a last attempt to send
    /// what waits. `None` without endpoints. `address` and `instance` say which process tells;
    /// `secure`: its URLs begin with `https`.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn start(
        settings: &[NotificationSettings],
        address: &str,
        instance: &str,
        secure: bool,
        registry: &mut Registry,
        reloads: &Reloads,
        shutdown: &CancellationToken,
    ) -> Result<Option<Self>, Error> {
        if settings.is_empty() {
            return Ok(None);
        }
        let metrics = Metrics::register(registry);
        let queues = settings
            .iter()
            .map(|settings| Queue::start(settings, &metrics, reloads, shutdown.clone()))
            .collect::<Result<Vec<_>, _>>()?;
        Ok(Some(Self {
            queues: queues.into(),
            source: PullThrough {
                addr: address.to_owned(),
                instance_id: instance.to_owned(),
            },
            secure,
        }))
    }

    /// Waits until every sender has ended, which is a few seconds after the shutdown.
    pub async fn ended(&self) {
        for queue in self.queues.iter() {
            queue.ended().await;
        }
    }

    /// The notification of the request; `None` if its action has none, or no endpoint wants it.
    pub(crate) fn draft(&self, head: &Parts, endpoint: &Endpoint, actor: &str) -> Option<Draft> {
        use NotificationAction::{Delete, Mount, Pull, Push};
        let reference = |reference: &ManifestRef| match reference {
            ManifestRef::Digest(digest) => (Some(digest.clone()), None),
            ManifestRef::Tag(tag) => (None, Some(tag.to_string())),
        };
        let blob = |digest: &Digest| (Some(digest.clone()), None);
        let (action, repository, from, (digest, tag), manifest) = match endpoint {
            Endpoint::GetManifest(repo, name) if head.method == Method::GET => {
                (Pull, repo, None, reference(name), true)
            }
            Endpoint::GetBlob(repo, digest) if head.method == Method::GET => {
                (Pull, repo, None, blob(digest), false)
            }
            Endpoint::PushBlob(repo, digest) | Endpoint::FinishUpload(repo, _, _, digest) => {
                (Push, repo, None, blob(digest), false)
            }
            Endpoint::MountBlob(repo, digest, from) => {
                (Mount, repo, from.clone(), blob(digest), false)
            }
            Endpoint::PutManifest(repo, name, _) => (Push, repo, None, reference(name), true),
            Endpoint::DeleteManifest(repo, name) => (Delete, repo, None, reference(name), true),
            Endpoint::DeleteBlob(repo, digest) => (Delete, repo, None, blob(digest), false),
            _ => return None,
        };
        if !self.queues.iter().any(|queue| queue.wants(action)) {
            return None;
        }
        let text = |name| text(&head.headers, name);
        Some(Draft {
            action,
            repository: repository.clone(),
            from,
            digest,
            tag,
            manifest,
            origin: Origin {
                id: uuid::Uuid::new_v4().to_string(),
                addr: head
                    .extensions
                    .get::<PeerAddr>()
                    .map(|peer| peer.0.to_string())
                    .unwrap_or_default(),
                host: text(header::HOST),
                method: head.method.to_string(),
                useragent: text(header::USER_AGENT),
            },
            actor: actor.to_owned(),
        })
    }

    /// Queues what was drafted if the answer says that it came true.
    pub(crate) async fn tell(
        &self,
        draft: Draft,
        status: StatusCode,
        headers: &HeaderMap,
        store: &Store,
    ) {
        if !happened(&draft, status, headers) {
            return;
        }
        let digest = draft
            .digest
            .or_else(|| Digest::parse(&text(headers, "docker-content-digest")).ok());
        let length = text(headers, header::CONTENT_LENGTH).parse().ok();
        let mut target = Target {
            media_type: "application/octet-stream".to_owned(),
            repository: draft.repository.to_string(),
            from_repository: draft.from.map(|from| from.to_string()).unwrap_or_default(),
            tag: draft.tag.unwrap_or_default(),
            url: String::new(),
            size: 0,
            length: 0,
            references: Vec::new(),
            digest: String::new(),
        };
        match draft.action {
            NotificationAction::Delete => target.media_type.clear(),
            NotificationAction::Pull => {
                if draft.manifest {
                    target.media_type = text(headers, header::CONTENT_TYPE);
                }
                target.size = length.unwrap_or(0);
            }
            NotificationAction::Push | NotificationAction::Mount => {
                if let Some(digest) = &digest {
                    if draft.manifest {
                        if let Ok(Some(bytes)) = store.manifest(&draft.repository, digest).await {
                            target.describe(&bytes);
                        }
                    } else if let Ok(Some(size)) = store.stat_blob(digest).await {
                        target.size = size;
                    }
                }
            }
        }
        target.length = target.size;
        if let Some(digest) = digest {
            let kind = if draft.manifest { "manifests" } else { "blobs" };
            let scheme = if self.secure { "https" } else { "http" };
            let host = &draft.origin.host;
            target.url = format!("{scheme}://{host}/v2/{}/{kind}/{digest}", target.repository);
            target.digest = digest.to_string();
        }
        let event = Arc::new(Event {
            id: uuid::Uuid::new_v4().to_string(),
            timestamp: jiff::Timestamp::now().to_string(),
            action: draft.action.as_str(),
            target,
            request: draft.origin,
            // Without the kind of credential.
            actor: Actor {
                name: match draft.actor.split_once(':') {
                    Some((_, name)) => name.to_owned(),
                    None => draft.actor,
                },
            },
            source: self.source.clone(),
        });
        for queue in self.queues.iter() {
            queue.push(draft.action, &event);
        }
    }
}

/// Whether the answer is that of the drafted action: a mount may have become a session; of the
/// parts of a blob that a client reads at once, only the first counts.
fn happened(draft: &Draft, status: StatusCode, headers: &HeaderMap) -> bool {
    match draft.action {
        NotificationAction::Pull => {
            status == StatusCode::OK
                || (status == StatusCode::PARTIAL_CONTENT
                    && text(headers, header::CONTENT_RANGE).starts_with("bytes 0-"))
        }
        NotificationAction::Push | NotificationAction::Mount => status == StatusCode::CREATED,
        NotificationAction::Delete => status == StatusCode::ACCEPTED,
    }
}

fn text(headers: &HeaderMap, name: impl header::AsHeaderName) -> String {
    headers
        .get(name)
        .and_then(|value| value.to_str().ok())
        .unwrap_or_default()
        .chars()
        .take(256)
        .collect()
}
