//! Announcements: creates the Artifacts of a review's images after the answer (SPEC 6).
//!
//! Artifacts are only created, never changed. Announcements that are dropped or fail are not lost:
//! the controller finds the images by its own watch of pods.

mod fair_queue;

use std::sync::Arc;
use std::time::{Duration, Instant};

use holdfast_api::artifact::MAX_SOURCE_BYTES;
use holdfast_api::{Artifact, labels};
use holdfast_core::{Reference, dns, pod};
use kube::api::{Api, PostParams};
use parking_lot::{Mutex, MutexGuard};
use serde_json::Value;
use tokio::sync::mpsc;
use tokio::time::timeout;

use self::fair_queue::{FairQueue, Offer};
use crate::metrics::{Announced, Metrics};

/// Attempts per announcement.
const MAX_ATTEMPTS: u32 = 4;
/// Pause after the first failed attempt; it doubles with each further one.
const FIRST_RETRY_PAUSE: Duration = Duration::from_millis(500);
/// Time between two heartbeats while the queue is empty.
const IDLE_BEAT_INTERVAL: Duration = Duration::from_secs(10);
/// Time for one attempt, so that an API server that hangs does not make the worker look stuck.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(10);
/// Pull secrets per Artifact, as in its schema.
const MAX_PULL_SECRETS: usize = 64;

/// One image that a namespace needs.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Announcement {
    /// The pod's namespace.
    pub namespace: Arc<str>,
    /// The upstream reference, canonical.
    pub source: String,
    /// Names of the pod's pull secrets, at most as many as an Artifact may name.
    pub pull_secrets: Arc<[String]>,
    /// Name of the pod's service account.
    pub service_account_name: Arc<str>,
}

impl Announcement {
    /// The announcements of a pod, one per image, created lazily. None if the namespace is unknown;
    /// references that are too long for an Artifact and invalid names are left out.
    pub fn of_pod<'a>(
        namespace: &str,
        pod: &Value,
        images: &'a [Reference],
    ) -> impl Iterator<Item = Self> + use<'a> {
        let mut pull_secrets = pod::pull_secret_names(pod);
        pull_secrets.retain(|name| dns::is_subdomain(name));
        pull_secrets.truncate(MAX_PULL_SECRETS);
        let pull_secrets: Arc<[String]> = pull_secrets.into();
        let account = pod::service_account_name(pod);
        let account = if dns::is_subdomain(account) {
            account
        } else {
            "default"
        };
        let (namespace, account): (Arc<str>, Arc<str>) = (namespace.into(), account.into());
        let images: &[Reference] = if namespace.is_empty() { &[] } else { images };
        images
            .iter()
            .map(ToString::to_string)
            .filter(|source| source.len() <= MAX_SOURCE_BYTES)
            .map(move |source| Self {
                namespace: Arc::clone(&namespace),
                source,
                pull_secrets: Arc::clone(&pull_secrets),
                service_account_name: Arc::clone(&account),
            })
    }

    /// Bytes of its texts, including those that it shares with others.
    fn bytes(&self) -> usize {
        let secrets: usize = self.pull_secrets.iter().map(String::len).sum();
        self.namespace.len() + self.source.len() + secrets + self.service_account_name.len()
    }

    /// The object to create.
    pub fn artifact(&self) -> Artifact {
        let mut artifact = Artifact::of_source(&self.source);
        artifact.spec.pull_secrets =
            (!self.pull_secrets.is_empty()).then(|| self.pull_secrets.to_vec());
        artifact.spec.service_account_name = Some(self.service_account_name.to_string());
        artifact.metadata.namespace = Some(self.namespace.to_string());
        artifact.metadata.labels = Some(
            [(
                labels::MANAGED_BY.to_owned(),
                labels::MANAGED_BY_WEBHOOK.to_owned(),
            )]
            .into(),
        );
        artifact
    }
}

/// The sending end of the queue.
#[derive(Debug, Clone)]
pub struct Announcer {
    queue: Arc<Mutex<FairQueue>>,
    /// Wakes the worker, which ends when all announcers are dropped.
    wake: mpsc::Sender<()>,
    metrics: Metrics,
}

/// The receiving end of the queue.
#[derive(Debug)]
pub struct Announcements {
    queue: Arc<Mutex<FairQueue>>,
    woken: tokio::sync::Mutex<mpsc::Receiver<()>>,
    metrics: Metrics,
}

/// Creates a bounded queue.
pub fn queue(metrics: Metrics) -> (Announcer, Announcements) {
    let queue = Arc::new(Mutex::new(FairQueue::new(Instant::now())));
    let (wake, woken) = mpsc::channel(1);
    let announcer = Announcer {
        queue: Arc::clone(&queue),
        wake,
        metrics: metrics.clone(),
    };
    let announcements = Announcements {
        queue,
        woken: tokio::sync::Mutex::new(woken),
        metrics,
    };
    (announcer, announcements)
}

fn lock(queue: &Mutex<FairQueue>) -> MutexGuard<'_, FairQueue> {
    queue.lock()
}

impl Announcer {
    /// Queues the announcements of one review without waiting. The first one that exceeds a limit
    /// and all after it are dropped and counted.
    pub fn announce(&self, mut announcements: impl Iterator<Item = Announcement>) {
        while let Some(announcement) = announcements.next() {
            let offer = lock(&self.queue).offer(announcement, Instant::now());
            let announced = match offer {
                // One pending wake-up is enough.
                Offer::Queued => {
                    let _pending = self.wake.try_send(());
                    continue;
                }
                Offer::Duplicate => continue,
                Offer::Full => Announced::Dropped,
                Offer::RateLimited => Announced::Limited,
            };
            self.metrics.announced(announced, 1 + announcements.count());
            return;
        }
    }
}

impl Announcements {
    /// Creates Artifacts until all [`Announcer`]s are dropped. Calls `beat` after each and while
    /// idle.
    pub async fn work(&self, client: kube::Client, beat: impl Fn()) {
        let mut woken = self.woken.lock().await;
        let mut over = false;
        loop {
            beat();
            let next = lock(&self.queue).next();
            if let Some(announcement) = next {
                let announced = create(&client, &announcement).await;
                lock(&self.queue).ended(&announcement, announced);
                self.metrics.announced(announced, 1);
            } else if over {
                return;
            } else {
                over = matches!(timeout(IDLE_BEAT_INTERVAL, woken.recv()).await, Ok(None));
            }
        }
    }
}

async fn create(client: &kube::Client, announcement: &Announcement) -> Announced {
    let api: Api<Artifact> = Api::namespaced(client.clone(), &announcement.namespace);
    let artifact = announcement.artifact();
    let mut pause = FIRST_RETRY_PAUSE;
    for attempt in 1..=MAX_ATTEMPTS {
        let parameters = PostParams::default();
        let (error, lasting) = match timeout(ATTEMPT_TIMEOUT, api.create(&parameters, &artifact))
            .await
        {
            Ok(Ok(_)) => return Announced::Created,
            Ok(Err(kube::Error::Api(status))) if status.code == 409 => return Announced::Present,
            Ok(Err(error)) => (error.to_string(), is_lasting(&error)),
            Err(elapsed) => (elapsed.to_string(), false),
        };
        if lasting || attempt == MAX_ATTEMPTS {
            tracing::warn!(
                artifact.namespace = %announcement.namespace,
                artifact.source = announcement.source,
                error,
                "cannot announce an image; the controller will find it"
            );
            break;
        }
        tokio::time::sleep(pause).await;
        pause *= 2;
    }
    Announced::Failed
}

/// Whether a retry would fail the same way.
fn is_lasting(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if (400..500).contains(&status.code) && status.code != 429)
}

#[cfg(test)]
mod tests {
    use super::*;
    use holdfast_runtime::metrics::encode;
    use kube::client::Body;
    use prometheus_client::registry::Registry;
    use warp::http::{Request, Response};

    pub(super) fn announcement(source: &str) -> Announcement {
        let secrets: Vec<Value> = (0..70)
            .map(|index| serde_json::json!({ "name": format!("s{index}") }))
            .collect();
        let pod = serde_json::json!({ "spec": { "imagePullSecrets": secrets } });
        let image = Reference::parse(source).unwrap();
        Announcement::of_pod("team", &pod, &[image]).next().unwrap()
    }

    /// Announces one image to an API server that answers with these statuses, and says what was
    /// counted.
    async fn check(statuses: &[u16], expect: &str) {
        let mut registry = Registry::default();
        let (announcer, announcements) = queue(Metrics::register(&mut registry));
        announcer.announce(std::iter::once(announcement("r.io/a:1")));
        drop(announcer);
        let (service, mut handle) = tower_test::mock::pair::<Request<Body>, Response<Body>>();
        let worker = announcements.work(kube::Client::new(service, "default"), || ());
        let server = async {
            for status in statuses {
                let (request, reply) = handle.next_request().await.unwrap();
                assert_eq!(
                    request.uri().path(),
                    "/apis/holdfast.dev/v1alpha1/namespaces/team/artifacts"
                );
                let body = request.into_body().collect_bytes().await.unwrap();
                let artifact: Value = serde_json::from_slice(&body).unwrap();
                assert_eq!(
                    artifact["spec"]["pullSecrets"].as_array().unwrap().len(),
                    MAX_PULL_SECRETS
                );
                let answer = if *status == 201 {
                    artifact
                } else {
                    serde_json::json!({ "kind": "Status", "status": "Failure", "code": status, "message": "", "reason": "" })
                };
                let answer = Response::builder()
                    .status(*status)
                    .body(Body::from(answer.to_string().into_bytes()));
                reply.send_response(answer.unwrap());
            }
        };
        tokio::join!(worker, server);
        let text = encode(&registry);
        let line = format!("webhook_announcements_total{{result=\"{expect}\"}} 1");
        assert!(text.contains(&line), "{statuses:?}: {text}");
    }

    // SPEC 6
    #[tokio::test(start_paused = true)]
    async fn an_artifact_is_created_once_and_what_passes_is_tried_again() {
        check(&[201], "created").await;
        check(&[409], "present").await;
        check(&[503, 429, 201], "created").await;
        check(&[500, 500, 500, 500], "failed").await;
        check(&[403], "failed").await;
        check(&[404], "failed").await;
    }

    #[test]
    fn announcements_of_a_pod_share_its_names_and_carry_no_others() {
        let long = "a".repeat(254);
        let pod = |account: &str| {
            serde_json::json!({ "spec": {
                "serviceAccountName": account,
                "imagePullSecrets": [{ "name": "own" }, { "name": long }, { "name": "a/../b" }],
            } })
        };
        let images = ["r.io/a:1", "r.io/b:1"].map(|image| Reference::parse(image).unwrap());
        for (account, expect) in [("robot", "robot"), (&long, "default"), ("a/b", "default")] {
            let all: Vec<_> = Announcement::of_pod("team", &pod(account), &images).collect();
            let [one, other] = all.as_slice() else {
                panic!("{all:?}");
            };
            assert_eq!(&*one.service_account_name, expect);
            assert_eq!(&*one.pull_secrets, ["own"]);
            assert!(Arc::ptr_eq(&one.namespace, &other.namespace));
            assert!(Arc::ptr_eq(
                &one.service_account_name,
                &other.service_account_name
            ));
            assert!(Arc::ptr_eq(&one.pull_secrets, &other.pull_secrets));
        }
        assert_eq!(Announcement::of_pod("", &pod("robot"), &images).count(), 0);
    }

    #[test]
    fn from_the_first_refused_image_on_a_review_announces_nothing() {
        let mut registry = Registry::default();
        let (announcer, announcements) = queue(Metrics::register(&mut registry));
        let images: Vec<_> = (0..2000)
            .map(|number| Reference::parse(&format!("r.io/a:{number}")).unwrap())
            .collect();
        announcer.announce(Announcement::of_pod("team", &Value::Null, &images));
        let waiting = std::iter::from_fn(|| lock(&announcements.queue).next()).count();
        let text = encode(&registry);
        let limited = format!(
            "announcements_total{{result=\"limited\"}} {}",
            2000 - waiting
        );
        assert!((200..250).contains(&waiting), "{waiting}");
        assert!(text.contains(&limited), "{waiting}: {text}");
    }

    #[tokio::test]
    async fn what_exceeds_the_limits_is_dropped_and_counted() {
        let mut registry = Registry::default();
        let (announcer, announcements) = queue(Metrics::register(&mut registry));
        let announce = |namespace: usize, number: usize| {
            announcer.announce(std::iter::once(Announcement {
                namespace: format!("n{namespace}").into(),
                ..announcement(&format!("r.io/a:{number}"))
            }));
        };
        for number in 0..250 {
            announce(0, number);
        }
        let text = encode(&registry);
        let limited = "holdfast_webhook_announcements_total{result=\"limited\"} ";
        let count = |text: &str, name: &str| -> usize {
            let line = text.lines().find_map(|line| line.strip_prefix(name));
            line.map_or(0, |count| count.parse().unwrap())
        };
        assert!((45..=50).contains(&count(&text, limited)), "{text}");
        announce(1, 1);
        for expect in ["n0", "n1"] {
            let next = lock(&announcements.queue).next().unwrap();
            assert_eq!(&*next.namespace, expect);
        }
    }
}
