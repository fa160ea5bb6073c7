//! What is remembered between looks, and single looks with every call that they make.

use super::*;
use holdfast_api::fill::Priority;
use holdfast_api::{ArtifactSpec, labels};
use holdfast_cluster_model::Owner;
use http::{Method, Request, Response};
use k8s_openapi::ByteString;
use kube::client::Body;
use serde_json::{Value, json};
use std::sync::{Arc, Mutex};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

fn artifact(uid: &str, generation: i64) -> Artifact {
    let spec = ArtifactSpec {
        source_artifact: "registry.example/team/app:1".to_owned(),
        ..ArtifactSpec::default()
    };
    let mut artifact = Artifact::new("app", spec);
    artifact.metadata.namespace = Some("apps".to_owned());
    artifact.metadata.uid = Some(uid.to_owned());
    artifact.metadata.generation = Some(generation);
    artifact
}

fn on(platforms: &[&str]) -> Platforms {
    let named = platforms.iter().map(|&name| name.to_owned());
    Arc::new(named.collect())
}

/// An index that the registry holds for some platforms.
fn held(until: Instant, platforms: &[&str]) -> Confirmed {
    Confirmed {
        generation: 1,
        until,
        platforms: platforms.iter().map(|&name| name.to_owned()).collect(),
        is_index: true,
    }
}

fn demand(secret: &str) -> Demand {
    Demand {
        source: "registry.example/team/app:1".to_owned(),
        pod: Some(("pod".to_owned(), "uid".to_owned())),
        pull_secrets: [secret.to_owned()].into(),
        ..Demand::default()
    }
}

fn owned_by(names: &[&str]) -> Demand {
    let owner = |name: &&str| holdfast_api::artifact::Reference {
        kind: "Pod".to_owned(),
        name: (*name).to_owned(),
    };
    Demand {
        owners: names.iter().map(owner).collect(),
        ..Demand::default()
    }
}

#[test]
fn what_a_pod_waits_for_is_urgent_and_so_is_what_was_announced_just_now() {
    let now = jiff::Timestamp::now();
    let created = |seconds: i64| {
        let mut artifact = artifact("u", 1);
        let at = now - jiff::SignedDuration::from_secs(seconds);
        artifact.metadata.creation_timestamp =
            Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(at));
        artifact
    };
    let waits = Demand {
        waiting: true,
        ..demand("s")
    };
    let ahead = Demand {
        pod: None,
        ahead: Some(Owner::default()),
        ..demand("s")
    };
    for (age, demand, expect) in [
        (1, Some(&ahead), Priority::Prefetch),
        (9999, Some(&ahead), Priority::Prefetch),
        (9999, Some(&waits), Priority::Blocking),
        (1, Some(&demand("s")), Priority::Running),
        (1, None, Priority::Blocking),
        (9999, None, Priority::Prefetch),
        (9999, Some(&owned_by(&["done"])), Priority::Prefetch),
    ] {
        assert_eq!(
            priority(&created(age), demand, now),
            expect,
            "{age} s, {demand:?}"
        );
    }
}

#[test]
fn a_new_announcement_is_blocking_while_only_its_template_is_seen() {
    let now = jiff::Timestamp::now();
    let ahead = Demand {
        pod: None,
        ahead: Some(Owner::default()),
        ..demand("s")
    };
    let mut object = announced();
    for (age, expect) in [(1, Priority::Blocking), (9999, Priority::Prefetch)] {
        let at = now - jiff::SignedDuration::from_secs(age);
        object.metadata.creation_timestamp =
            Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(at));
        assert_eq!(priority(&object, Some(&ahead), now), expect, "{age} s");
    }
}

#[test]
fn a_new_platform_is_wanted_of_indexes_only() {
    let now = Instant::now();
    let until = now + Duration::from_secs(600);
    let both = ["linux/amd64", "linux/arm64"];
    for (asked, is_index, wanted, believed) in [
        (&both[..1], true, &both[..1], true),
        (&both[..1], true, &both[..], false),
        (&both[..1], false, &both[..], true),
        (&both[..], true, &both[..1], true),
        (&both[..0], true, &both[..], true),
        (&both[..], true, &both[..0], false),
    ] {
        let memory = Memory {
            confirmed: Some(Confirmed {
                is_index,
                ..held(until, asked)
            }),
            ..Memory::default()
        };
        let wanted: Vec<String> = wanted.iter().map(|&one| one.to_owned()).collect();
        let found = memory.confirmed_for(&artifact("u", 1), &wanted, now);
        assert_eq!(found.is_some(), believed, "{asked:?} {is_index} {wanted:?}");
    }
}

#[tokio::test]
async fn a_new_architecture_is_requested_once_and_reports_what_is_missing() {
    let mut looks = Looks::new().await;
    looks.registry.lock().unwrap().1["mediaType"] =
        json!("application/vnd.oci.image.index.v1+json");
    looks.platforms = on(&["linux/amd64"]);
    let mut object = artifact("u", 1);
    looks.look(&object, None).await;
    assert_eq!(looks.asked(), 1);
    object.status = looks.memory.status.clone();
    looks.platforms = on(&["linux/amd64", "linux/arm64"]);
    assert!(looks.memory.needs_run(&object, None, &looks.platforms));
    looks.answer(502, "UPSTREAM_UNAVAILABLE");
    looks.look(&object, None).await;
    assert_eq!(looks.asked(), 2);
    let message = looks.memory.status.as_ref().unwrap().conditions[0]
        .message
        .clone();
    assert!(
        message.ends_with("held for linux/amd64, wanted for linux/amd64, linux/arm64"),
        "{message}"
    );
    looks.look(&object, None).await;
    assert_eq!(looks.asked(), 2, "not before the pause is over");
}

// SPEC 14
#[test]
fn only_changes_are_looked_at() {
    let mut memory = Memory::default();
    assert!(
        memory.needs_run(&artifact("u", 1), None, &on(&[])),
        "after a start everything is looked at once"
    );
    memory.observe(&artifact("u", 1), None, &on(&[]));
    assert!(!memory.needs_run(&artifact("u", 1), None, &on(&[])));
    assert!(memory.needs_run(&artifact("u", 2), None, &on(&[])));
    assert!(memory.needs_run(&artifact("u", 1), Some(&demand("s")), &on(&[])));
}

// SPEC 35
#[test]
fn other_pull_secrets_end_a_pause() {
    let mut memory = Memory::default();
    memory.observe(&artifact("u", 1), Some(&demand("one")), &on(&[]));
    memory.not_before = Some(Instant::now() + Duration::from_secs(600));
    memory.observe(&artifact("u", 1), Some(&demand("one")), &on(&[]));
    assert!(memory.not_before.is_some());
    memory.observe(&artifact("u", 1), Some(&demand("two")), &on(&[]));
    assert!(memory.not_before.is_none());
}

#[test]
fn a_recreated_object_is_requested_again() {
    let now = Instant::now();
    let mut memory = Memory {
        confirmed: Some(held(now + Duration::from_secs(1), &[])),
        ..Memory::default()
    };
    memory.observe(&artifact("u", 1), None, &on(&[]));
    assert!(memory.confirmed_for(&artifact("u", 1), &[], now).is_some());
    assert!(memory.confirmed_for(&artifact("u", 2), &[], now).is_none());
    memory.observe(&artifact("other", 1), None, &on(&[]));
    assert!(
        memory
            .confirmed_for(&artifact("other", 1), &[], now)
            .is_none()
    );
}

#[test]
fn what_a_look_found_is_of_no_use_when_everything_changed_meanwhile() {
    let mut memory = Memory::default();
    memory.observe(&artifact("u", 1), Some(&demand("one")), &on(&[]));
    let mut found = memory.clone();
    found.confirmed = Some(held(Instant::now() + Duration::from_secs(600), &[]));
    found.not_before = Some(Instant::now() + Duration::from_secs(600));
    let mut current = memory.clone();
    current.observe(&artifact("u", 1), Some(&demand("two")), &on(&[]));
    current.merge(found.clone());
    assert_eq!(
        current.not_before, None,
        "the right pull secret came while it ran"
    );
    let mut current = memory;
    current.observe(&artifact("again", 1), None, &on(&[]));
    current.merge(found);
    assert_eq!(current.confirmed, None, "that was another object");
}

/// One look at an Artifact after the other, with what the API server was sent.
struct Looks {
    reconciler: Reconciler,
    memory: Memory,
    /// Of the cluster's nodes.
    platforms: Platforms,
    /// Statuses as they were written.
    statuses: Arc<Mutex<Vec<Value>>>,
    /// How many further writes fail.
    failing: Arc<Mutex<usize>>,
    /// Reasons of events.
    events: Arc<Mutex<Vec<String>>>,
    /// Methods and paths that were asked for.
    calls: Arc<Mutex<Vec<String>>>,
    /// Status and body that the registry answers with, and how often it was asked.
    registry: Arc<Mutex<(u16, Value, usize)>>,
    /// What it answers who may have the image, and how often it was asked that.
    access: Arc<Mutex<(&'static str, usize)>>,
}

/// A registry with this status never answers.
const HANGS: u16 = 0;

impl Looks {
    async fn new() -> Self {
        Self::with(&json!({})).await
    }

    async fn with(values: &Value) -> Self {
        holdfast_runtime::tls::install_crypto_provider();
        let (service, mut handle) = tower_test::mock::pair::<Request<Body>, Response<Body>>();
        let (statuses, failing) = (
            Arc::<Mutex<Vec<Value>>>::default(),
            Arc::<Mutex<usize>>::default(),
        );
        let (seen, fails) = (Arc::clone(&statuses), Arc::clone(&failing));
        let (events, calls) = (
            Arc::<Mutex<Vec<String>>>::default(),
            Arc::<Mutex<Vec<String>>>::default(),
        );
        let (told_events, asked) = (Arc::clone(&events), Arc::clone(&calls));
        tokio::spawn(async move {
            while let Some((request, reply)) = handle.next_request().await {
                let method = request.method().clone();
                let call = format!("{method} {}", request.uri().path());
                let bytes = request.into_body().collect_bytes().await.unwrap();
                let body: Value = serde_json::from_slice(&bytes).unwrap_or_default();
                let mut answer = (200, body.clone());
                if method == Method::GET && call.ends_with("/secrets/pull") {
                    let login = r#"{"auths":{"registry.example":{"username":"u","password":"p"}}}"#;
                    answer.1 = json!({"data": {".dockerconfigjson": ByteString(login.into())}});
                }
                asked.lock().unwrap().push(call);
                if body.get("regarding").is_some() {
                    let reason = body["reason"].as_str().unwrap_or_default();
                    told_events.lock().unwrap().push(reason.to_owned());
                }
                if method == Method::PATCH && body.get("status").is_some() {
                    let mut fails = fails.lock().unwrap();
                    if *fails > 0 {
                        *fails -= 1;
                        answer = (
                            403,
                            json!({"kind": "Status", "status": "Failure", "code": 403, "message": "", "reason": ""}),
                        );
                    } else {
                        seen.lock().unwrap().push(body["status"].clone());
                        answer.1["spec"] = json!({"sourceArtifact": "registry.example/team/app:1"});
                    }
                }
                let response = Response::builder().status(answer.0);
                reply.send_response(
                    response
                        .body(Body::from(answer.1.to_string().into_bytes()))
                        .unwrap(),
                );
            }
        });
        let held = json!({"digest": "sha256:aa", "mediaType": "m", "sizeBytes": 1, "blobs": 1, "alreadyLocal": true});
        let registry = Arc::new(Mutex::new((200, held, 0)));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let access = Arc::new(Mutex::new(("unknown", 0)));
        let (told, told_access) = (Arc::clone(&registry), Arc::clone(&access));
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut request = vec![0; 64 * 1024];
                let length = stream.read(&mut request).await.unwrap();
                let is_access = request[..length].starts_with(b"POST /internal/v1/access ");
                let (status, body) = if is_access {
                    let mut told = told_access.lock().unwrap();
                    told.1 += 1;
                    (200, json!({"access": told.0}).to_string())
                } else {
                    let mut told = told.lock().unwrap();
                    told.2 += 1;
                    (told.0, told.1.to_string())
                };
                if status == HANGS {
                    tokio::spawn(async move { stream.read(&mut request).await });
                    continue;
                }
                let answer = format!(
                    "HTTP/1.1 {status} X\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
                    body.len()
                );
                stream.write_all(answer.as_bytes()).await.unwrap();
            }
        });
        let document = json!({
            "release": {"name": "holdfast", "namespace": "n", "fullname": "holdfast", "version": "0.1.0"},
            "values": values,
        });
        let config = holdfast_config::Config::parse(&document.to_string()).unwrap();
        let metrics =
            crate::Metrics::register(&mut holdfast_runtime::metrics::registry("controller"));
        let context = Context::new(kube::Client::new(service, "default"), config, metrics).unwrap();
        Self {
            reconciler: Reconciler::new(context, Client::new(reqwest::Client::new(), &url)),
            memory: Memory::default(),
            platforms: Platforms::default(),
            statuses,
            failing,
            events,
            calls,
            registry,
            access,
        }
    }

    /// Looks at the object as the watch shows it.
    async fn look(&mut self, artifact: &Artifact, demand: Option<&Demand>) -> Outcome {
        self.memory.observe(artifact, demand, &self.platforms);
        self.reconciler
            .reconcile(artifact, demand, &self.platforms, &mut self.memory)
            .await
    }

    fn asked(&self) -> usize {
        self.registry.lock().unwrap().2
    }

    fn answer(&self, status: u16, code: &str) {
        let mut registry = self.registry.lock().unwrap();
        (registry.0, registry.1) = (status, json!({"code": code, "message": "m"}));
    }

    /// Reason of the condition and count of references, as written last.
    fn last(&self) -> (String, u64) {
        let statuses = self.statuses.lock().unwrap();
        let status = statuses.last().unwrap();
        let reason = status["conditions"][0]["reason"].as_str().unwrap_or("none");
        (
            reason.to_owned(),
            status["referenceCount"].as_u64().unwrap(),
        )
    }

    /// Secrets and service accounts that were read, by path.
    fn read(&self) -> Vec<String> {
        let calls = self.calls.lock().unwrap();
        calls
            .iter()
            .filter(|call| call.starts_with("GET"))
            .cloned()
            .collect()
    }

    fn patience_ends(&mut self) {
        self.memory.known_since = Instant::now().checked_sub(credentials::POD_WAIT);
        assert!(self.memory.known_since.is_some());
    }

    fn time_passes(&mut self) {
        self.memory.confirmed.as_mut().unwrap().until = Instant::now();
    }
}

#[tokio::test(start_paused = true)]
async fn a_fill_that_does_not_end_gives_its_place_up_to_others() {
    let wanted = Demand {
        pull_secrets: std::collections::BTreeSet::new(),
        ..demand("none")
    };
    for (others_wait, seconds) in [(true, 10), (false, 120)] {
        let mut looks = Looks::new().await;
        looks.registry.lock().unwrap().0 = HANGS;
        looks.reconciler.preemption.set_others_wait(others_wait);
        let begun = tokio::time::Instant::now();
        let outcome = looks.look(&artifact("u", 1), Some(&wanted)).await;
        assert_eq!(begun.elapsed().as_secs(), seconds);
        assert_eq!(looks.last().0, "Copying");
        assert!(outcome.again.unwrap() < Duration::from_secs(3));
    }
}

// SPEC 36
#[tokio::test]
async fn a_watch_that_lags_behind_takes_nothing_back() {
    let mut looks = Looks::new().await;
    let stale = artifact("u", 1);
    looks.look(&stale, Some(&owned_by(&["a"]))).await;
    assert_eq!(looks.last(), ("Copied".to_owned(), 1));
    // A second pod came while the first look ran, and the watch does not show the status yet.
    looks.look(&stale, Some(&owned_by(&["a", "b"]))).await;
    assert_eq!(looks.last(), ("Copied".to_owned(), 2));
    assert_eq!(looks.asked(), 1, "the registry's word holds");
}

// SPEC 36
#[tokio::test]
async fn a_status_that_could_not_be_written_is_written_later() {
    let mut looks = Looks::new().await;
    *looks.failing.lock().unwrap() = 1;
    let outcome = looks.look(&artifact("u", 1), None).await;
    assert_eq!(outcome.again, Some(STATUS_RETRY));
    assert!(looks.statuses.lock().unwrap().is_empty());
    looks.look(&artifact("u", 1), None).await;
    assert_eq!(looks.last(), ("Copied".to_owned(), 0));
    assert_eq!(looks.asked(), 1);
    looks.look(&artifact("u", 1), None).await;
    assert_eq!(looks.statuses.lock().unwrap().len(), 1, "once is enough");
}

// SPEC 14
#[tokio::test]
async fn the_registry_is_asked_again_slowly_and_a_lost_volume_shows() {
    let mut looks = Looks::new().await;
    let mut object = artifact("u", 1);
    let outcome = looks.look(&object, None).await;
    let again = outcome.again.unwrap().as_secs();
    assert!((600..=900).contains(&again), "{again} s");
    object.status = looks.memory.status.clone();
    let outcome = looks.look(&object, None).await;
    assert!(
        outcome.again.unwrap().as_secs() > 590,
        "the same appointment"
    );
    assert_eq!(looks.asked(), 1);

    looks.time_passes();
    looks.look(&object, None).await;
    assert_eq!(looks.asked(), 2);
    assert_eq!(looks.statuses.lock().unwrap().len(), 1, "no news, no write");

    looks.time_passes();
    looks.answer(500, "");
    let outcome = looks.look(&object, None).await;
    assert!(outcome.again.unwrap().as_secs() < 60);
    assert_eq!(
        looks.last().0,
        "Copied",
        "a registry that restarts says nothing about the image"
    );

    looks.memory.not_before = None;
    looks.answer(502, "UPSTREAM_UNAVAILABLE");
    looks.look(&object, None).await;
    assert_eq!(
        looks.last().0,
        "UpstreamUnavailable",
        "the volume was lost and the uplink is gone"
    );
}

fn announced() -> Artifact {
    let mut object = artifact("u", 1);
    object.spec.pull_secrets = Some(vec!["theirs".to_owned()]);
    object.spec.service_account_name = Some("robot".to_owned());
    object
}

#[tokio::test]
async fn an_announcement_waits_for_its_pod_and_never_opens_a_pull_secret() {
    let mut looks = Looks::new().await;
    looks.answer(403, "UNAUTHORIZED");
    let outcome = looks.look(&announced(), None).await;
    let again = outcome.again.unwrap();
    assert!(
        Duration::from_secs(8) < again && again <= credentials::POD_WAIT,
        "{again:?}"
    );
    assert_eq!(looks.asked(), 0);
    assert!(
        looks.calls.lock().unwrap().is_empty(),
        "nothing is told while it waits"
    );

    looks.patience_ends();
    looks.look(&announced(), None).await;
    assert_eq!((looks.asked(), looks.read()), (1, Vec::new()));
    assert_eq!(looks.last().0, "Unauthorized");
    let statuses = looks.statuses.lock().unwrap().clone();
    let message = statuses[0]["conditions"][0]["message"].as_str().unwrap();
    assert!(
        message.contains("no running pod and no workload uses it"),
        "{message}"
    );
    assert!(
        looks.events.lock().unwrap().is_empty(),
        "no credentials were refused"
    );

    // The pod comes late: the pause after the attempt without credentials is over.
    assert!(looks.memory.not_before.is_some());
    looks
        .memory
        .observe(&announced(), Some(&demand("own")), &on(&[]));
    assert_eq!(looks.memory.not_before, None);
}

#[tokio::test]
async fn what_people_make_by_hand_is_asked_for_at_once_by_nobody() {
    let mut looks = Looks::new().await;
    looks.answer(403, "UNAUTHORIZED");
    looks.look(&artifact("u", 1), None).await;
    assert_eq!((looks.asked(), looks.read()), (1, Vec::new()));
    assert_eq!(*looks.events.lock().unwrap(), ["Unauthorized"]);
}

#[tokio::test]
async fn an_unreadable_pull_secret_is_not_reported_as_a_registry_failure() {
    let mut looks = Looks::new().await;
    // This API server answers with nothing that is a Secret.
    let outcome = looks.look(&announced(), Some(&demand("own"))).await;
    assert_eq!(
        looks.read(),
        ["GET /api/v1/namespaces/apps/secrets/own"],
        "the pod's, not the announced one"
    );
    assert_eq!(looks.asked(), 0);
    assert_eq!(looks.last().0, "PullSecretUnreadable");
    assert!(outcome.again.unwrap().as_secs() < 15);
}

mod access;

mod undemanded;
