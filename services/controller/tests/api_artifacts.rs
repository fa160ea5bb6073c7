//! Artifacts from pod to status, against a real API server and a registry that answers as told.
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod bare;

use bare::{Bare, Registry, copied, eventually, run};
use holdfast_api::{Artifact, ArtifactSpec, artifact_name, labels};
use holdfast_runtime::CancellationToken;
use k8s_openapi::api::core::v1::{Pod, ResourceQuota, Secret, ServiceAccount};
use k8s_openapi::api::events::v1::Event;
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams, PostParams};
use serde_json::json;

const IMAGE: &str = "registry.example/team/app:1";

async fn pod(bare: &Bare, namespace: &str, name: &str, secrets: &[&str]) {
    let secrets: Vec<_> = secrets.iter().map(|name| json!({"name": name})).collect();
    let pod: Pod = serde_json::from_value(json!({
        "metadata": {"name": name},
        "spec": {"containers": [{"name": "c", "image": IMAGE}], "imagePullSecrets": secrets, "serviceAccountName": "robot"},
    }))
    .unwrap();
    Api::<Pod>::namespaced(bare.client.clone(), namespace)
        .create(&PostParams::default(), &pod)
        .await
        .unwrap();
}

async fn pull_secret(bare: &Bare, namespace: &str, name: &str, password: &str) {
    let document =
        json!({"auths": {"registry.example": {"username": "u", "password": password}}}).to_string();
    let secret: Secret = serde_json::from_value(json!({
        "metadata": {"name": name}, "type": "kubernetes.io/dockerconfigjson", "stringData": {".dockerconfigjson": document},
    }))
    .unwrap();
    Api::<Secret>::namespaced(bare.client.clone(), namespace)
        .create(&PostParams::default(), &secret)
        .await
        .unwrap();
}

fn artifacts(bare: &Bare) -> Api<Artifact> {
    Api::namespaced(bare.client.clone(), "apps")
}

async fn reason(bare: &Bare) -> Option<String> {
    let artifact = artifacts(bare)
        .get_opt(&artifact_name(IMAGE))
        .await
        .unwrap()?;
    Some(artifact.status?.conditions.first()?.reason.clone())
}

// SPEC 4, SPEC 6, SPEC 7, SPEC 14, SPEC 41
#[tokio::test]
async fn a_pod_from_before_gets_its_image_copied_once() {
    let (bare, registry) = (Bare::start().await, Registry::start().await);
    bare.namespace("apps").await;
    // Before the controller: as on a cluster that had workloads when Holdfast came.
    pod(&bare, "apps", "old", &[]).await;
    pod(&bare, bare::NAMESPACE, "own", &[]).await;
    {
        let _running = run(&bare.context(), &registry);
        eventually("the image is copied", async || {
            reason(&bare).await.as_deref() == Some("Copied")
        })
        .await;
        let artifact = artifacts(&bare).get(&artifact_name(IMAGE)).await.unwrap();
        assert_eq!(artifact.spec.source_artifact, IMAGE);
        let status = artifact.status.unwrap();
        assert_eq!(
            (status.size_bytes, status.reference_count),
            (Some(1234), Some(1))
        );
        assert_eq!(status.references[0].name, "old");
        assert_eq!(
            Api::<Artifact>::all(bare.client.clone())
                .list(&ListParams::default())
                .await
                .unwrap()
                .items
                .len(),
            1
        );

        pod(&bare, "apps", "second", &[]).await;
        eventually("the second reference counts", async || {
            let artifact = artifacts(&bare).get(&artifact_name(IMAGE)).await.unwrap();
            artifact.status.unwrap().reference_count == Some(2)
        })
        .await;
        assert_eq!(
            registry.sources(),
            [IMAGE],
            "a further pod causes no request"
        );
    }
    let _restarted = run(&bare.context(), &registry);
    eventually("the restarted controller sends one request", async || {
        registry.sources().len() == 2
    })
    .await;
    tokio::time::sleep(std::time::Duration::from_secs(2)).await;
    assert_eq!(registry.sources().len(), 2, "and then not again");
}

// SPEC 35
#[tokio::test]
async fn every_pull_secret_is_offered_and_a_new_one_ends_the_wait() {
    let (bare, registry) = (Bare::start().await, Registry::start().await);
    bare.namespace("apps").await;
    *registry.answer.lock().unwrap() = Box::new(|request| {
        if request
            .credentials
            .iter()
            .any(|credential| credential.password.expose() == "right")
        {
            copied()
        } else {
            (
                403,
                r#"{"code":"UNAUTHORIZED","message":"no credential was accepted"}"#.to_owned(),
            )
        }
    });
    pull_secret(&bare, "apps", "wrong", "wrong").await;
    pull_secret(&bare, "apps", "account", "account").await;
    let account: ServiceAccount = serde_json::from_value(
        json!({"metadata": {"name": "robot"}, "imagePullSecrets": [{"name": "account"}]}),
    )
    .unwrap();
    Api::<ServiceAccount>::namespaced(bare.client.clone(), "apps")
        .create(&PostParams::default(), &account)
        .await
        .unwrap();
    pod(&bare, "apps", "one", &["wrong", "missing"]).await;
    let _running = run(&bare.context(), &registry);
    eventually("refused", async || {
        reason(&bare).await.as_deref() == Some("Unauthorized")
    })
    .await;
    let offered: Vec<_> = registry.requests.lock().unwrap()[0]
        .credentials
        .iter()
        .map(|c| c.password.expose().to_owned())
        .collect();
    assert_eq!(offered.len(), 2, "{offered:?}");
    let events: Api<Event> = Api::namespaced(bare.client.clone(), "apps");
    eventually("events regard the Artifact and the pod", async || {
        let events = events.list(&ListParams::default()).await.unwrap().items;
        let kinds: Vec<_> = events
            .iter()
            .filter(|event| event.reason.as_deref() == Some("Unauthorized"))
            .filter_map(|event| event.regarding.as_ref()?.kind.clone())
            .collect();
        kinds.contains(&"Artifact".to_owned()) && kinds.contains(&"Pod".to_owned())
    })
    .await;
    let artifact = artifacts(&bare).get(&artifact_name(IMAGE)).await.unwrap();
    let message = &artifact.status.unwrap().conditions[0].message;
    assert!(
        message.contains("pull secret missing does not exist"),
        "{message}"
    );

    pull_secret(&bare, "apps", "good", "right").await;
    pod(&bare, "apps", "two", &["good"]).await;
    eventually("the new secret is tried at once", async || {
        reason(&bare).await.as_deref() == Some("Copied")
    })
    .await;
}

/// An Artifact as the webhook announces it, or as any client of the webhook has it announced.
async fn announce(bare: &Bare, source: &str, secrets: Option<&[&str]>) {
    let spec = ArtifactSpec {
        source_artifact: source.to_owned(),
        pull_secrets: secrets.map(|names| names.iter().map(|&name| name.to_owned()).collect()),
        service_account_name: secrets.map(|_| "robot".to_owned()),
        ..ArtifactSpec::default()
    };
    artifacts(bare)
        .create(
            &PostParams::default(),
            &Artifact::new(&artifact_name(source), spec),
        )
        .await
        .unwrap();
}

#[tokio::test]
async fn only_a_living_pod_opens_its_namespaces_pull_secrets() {
    const FORGED: &str = "registry.example/team/secret:1";
    const BY_HAND: &str = "registry.example/team/public:1";
    let (bare, registry) = (Bare::start().await, Registry::start().await);
    bare.namespace("apps").await;
    *registry.answer.lock().unwrap() = Box::new(|request| {
        if request.credentials.is_empty() && request.source != BY_HAND {
            let refused = r#"{"code":"UNAUTHORIZED","message":"no credential was accepted"}"#;
            (403, refused.to_owned())
        } else {
            copied()
        }
    });
    pull_secret(&bare, "apps", "theirs", "right").await;
    let account: ServiceAccount = serde_json::from_value(
        json!({"metadata": {"name": "robot"}, "imagePullSecrets": [{"name": "theirs"}]}),
    )
    .unwrap();
    Api::<ServiceAccount>::namespaced(bare.client.clone(), "apps")
        .create(&PostParams::default(), &account)
        .await
        .unwrap();
    let _running = run(&bare.context(), &registry);
    let started = std::time::Instant::now();
    announce(&bare, FORGED, Some(&["theirs"])).await;
    announce(&bare, IMAGE, Some(&["theirs"])).await;
    announce(&bare, BY_HAND, None).await;
    eventually("made by hand, asked for at once", async || {
        registry.sources() == [BY_HAND]
    })
    .await;
    pod(&bare, "apps", "one", &["theirs"]).await;
    eventually("the pod of an announcement ends its wait", async || {
        reason(&bare).await.as_deref() == Some("Copied")
    })
    .await;
    assert_eq!(
        registry.sources(),
        [BY_HAND, IMAGE],
        "asked once, with credentials"
    );
    assert!(started.elapsed().as_secs() < 8, "{:?}", started.elapsed());

    eventually("what no pod needs is asked for in the end", async || {
        registry.sources().len() == 3
    })
    .await;
    assert!(started.elapsed().as_secs() >= 10);
    let offered: Vec<_> = registry
        .requests
        .lock()
        .unwrap()
        .iter()
        .map(|request| (request.source.clone(), request.credentials.len()))
        .collect();
    let expect = [(BY_HAND, 0), (IMAGE, 1), (FORGED, 0)];
    assert_eq!(
        offered,
        expect.map(|(source, count)| (source.to_owned(), count))
    );
    eventually("the status says why", async || {
        let forged = artifacts(&bare).get(&artifact_name(FORGED)).await.unwrap();
        forged.status.is_some_and(|status| {
            let condition = status.conditions.first();
            condition.is_some_and(|it| {
                it.message
                    .contains("no running pod and no workload uses it")
            })
        })
    })
    .await;
    let events: Api<Event> = Api::namespaced(bare.client.clone(), "apps");
    let events = events.list(&ListParams::default()).await.unwrap().items;
    let noise: Vec<_> = events
        .iter()
        .filter(|event| event.reason.as_deref() == Some("Unauthorized"))
        .collect();
    assert!(noise.is_empty(), "{noise:?}");
}

/// An Artifact as the webhook makes it.
async fn announced(bare: &Bare, source: &str) {
    let mut artifact = Artifact::of_source(source);
    artifact.spec.service_account_name = Some("default".to_owned());
    let label = (
        labels::MANAGED_BY.to_owned(),
        labels::MANAGED_BY_WEBHOOK.to_owned(),
    );
    artifact.metadata.labels = Some([label].into());
    artifacts(bare)
        .create(&PostParams::default(), &artifact)
        .await
        .unwrap();
}

#[tokio::test]
async fn what_was_only_announced_is_not_copied_and_makes_room_for_pods() {
    let (bare, registry) = (Bare::start().await, Registry::start().await);
    bare.namespace("apps").await;
    for number in 0..9 {
        announced(&bare, &format!("registry.example/invented:{number}")).await;
    }
    let limits =
        json!({"controller": {"artifacts": {"perNamespace": 10, "undemandedMinutes": 60}}});
    let _running = run(&bare.context_with(&limits), &registry);
    let said = async |number: usize| {
        let name = artifact_name(&format!("registry.example/invented:{number}"));
        let artifact = artifacts(&bare).get_opt(&name).await.unwrap()?;
        Some(artifact.ready()?.reason.clone())
    };
    eventually("their status says why", async || {
        said(0).await.as_deref() == Some("NoDemand")
    })
    .await;
    assert!(registry.sources().is_empty(), "none is copied");
    // The limit is reached: what nothing needs goes, and the images of pods are copied.
    for number in 0..12 {
        let pod = json!({
            "metadata": {"name": format!("pod-{number}")},
            "spec": {"containers": [{"name": "c", "image": format!("registry.example/wanted:{number}")}]},
        });
        bare.create::<Pod>("apps", pod).await;
    }
    let count = async || {
        let all = artifacts(&bare).list(&ListParams::default()).await.unwrap();
        all.items.len()
    };
    eventually("what pods need is copied", async || {
        registry.sources().len() == 10
    })
    .await;
    assert!(
        registry
            .sources()
            .iter()
            .all(|source| source.contains("wanted"))
    );
    assert_eq!(count().await, 10);
    eventually("the namespace is told, once", async || {
        told_of_too_many(&bare).await.len() == 1
    })
    .await;
}

/// What the namespace was told of images that are not copied because of the limits.
async fn told_of_too_many(bare: &Bare) -> Vec<String> {
    told(bare, "TooManyArtifacts").await
}

/// The texts of a namespace's events with this reason.
async fn told(bare: &Bare, reason: &str) -> Vec<String> {
    let events: Api<Event> = Api::namespaced(bare.client.clone(), "apps");
    let events = events.list(&ListParams::default()).await.unwrap().items;
    let told = events.into_iter().filter(|event| {
        let regarding = event.regarding.as_ref().and_then(|it| it.kind.as_deref());
        event.reason.as_deref() == Some(reason) && regarding == Some("Namespace")
    });
    told.filter_map(|event| event.note).collect()
}

#[tokio::test]
async fn a_namespace_is_told_of_announced_images_beyond_the_limits() {
    let (bare, registry) = (Bare::start().await, Registry::start().await);
    bare.namespace("apps").await;
    // The webhook makes the Artifact before the controller sees the pod.
    for number in 0..12 {
        let image = format!("registry.example/wanted:{number}");
        announced(&bare, &image).await;
        let pod = json!({
            "metadata": {"name": format!("pod-{number}")},
            "spec": {"containers": [{"name": "c", "image": image}]},
        });
        bare.create::<Pod>("apps", pod).await;
    }
    let limits = json!({"controller": {"artifacts": {"perNamespace": 10}}});
    let _running = run(&bare.context_with(&limits), &registry);
    eventually("the namespace is told how many", async || {
        let told = told_of_too_many(&bare).await;
        told.len() == 1 && told[0].starts_with("2 images are not copied")
    })
    .await;
    assert!(registry.sources().len() <= 10);
}

#[tokio::test]
async fn a_namespace_is_told_of_artifacts_that_a_quota_refuses() {
    let (bare, registry) = (Bare::start().await, Registry::start().await);
    bare.namespace("apps").await;
    let none = json!({"count/artifacts.holdfast.dev": "0"});
    let quota = json!({"metadata": {"name": "team"}, "spec": {"hard": none}});
    bare.create::<ResourceQuota>("apps", quota).await;
    // No controller manager counts here.
    let counted = json!({"status": {"hard": none, "used": none}});
    let quotas: Api<ResourceQuota> = Api::namespaced(bare.client.clone(), "apps");
    quotas
        .patch_status("team", &PatchParams::default(), &Patch::Merge(counted))
        .await
        .unwrap();
    let pod = json!({
        "metadata": {"name": "pod"},
        "spec": {"containers": [{"name": "c", "image": IMAGE}]},
    });
    bare.create::<Pod>("apps", pod).await;
    let _running = run(&bare.context_with(&json!({})), &registry);
    eventually("the namespace is told of the quota", async || {
        told(&bare, "ArtifactsRefused")
            .await
            .iter()
            .any(|note| note.contains("exceeded quota: team"))
    })
    .await;
    assert!(registry.sources().is_empty());
}

#[tokio::test]
async fn namespaces_share_the_total_and_those_with_few_keep_theirs() {
    let (bare, registry) = (Bare::start().await, Registry::start().await);
    for (namespace, pods) in [("apps", 20), ("shop", 3)] {
        bare.namespace(namespace).await;
        for number in 0..pods {
            let pod = json!({
                "metadata": {"name": format!("pod-{number}")},
                "spec": {"containers": [{"name": "c", "image": format!("{namespace}.example/app:{number}")}]},
            });
            bare.create::<Pod>(namespace, pod).await;
        }
    }
    let limits = json!({"controller": {"artifacts": {"perNamespace": 15, "total": 10}}});
    let _running = run(&bare.context_with(&limits), &registry);
    let copied = || {
        let sources = registry.sources();
        let shops = sources.iter().filter(|source| source.starts_with("shop"));
        (sources.len(), shops.count())
    };
    eventually("what both may have is copied", async || copied() == (10, 3)).await;
    let events: Api<Event> = Api::namespaced(bare.client.clone(), "apps");
    eventually("the namespace with most is told", async || {
        let events = events.list(&ListParams::default()).await.unwrap().items;
        let mut reasons = events.iter().map(|event| event.reason.as_deref());
        reasons.any(|reason| reason == Some("TooManyArtifacts"))
    })
    .await;
    // The controller looks again and again.
    tokio::time::sleep(std::time::Duration::from_secs(3)).await;
    let all: Api<Artifact> = Api::all(bare.client.clone());
    let all = all.list(&ListParams::default()).await.unwrap().items;
    assert_eq!((all.len(), copied()), (10, (10, 3)));
}

// SPEC 36
#[tokio::test]
async fn a_status_survives_concurrent_writers_and_a_deleted_artifact_comes_back() {
    let (bare, registry) = (Bare::start().await, Registry::start().await);
    bare.namespace("apps").await;
    let artifact = Artifact::new(
        &artifact_name(IMAGE),
        ArtifactSpec {
            source_artifact: IMAGE.to_owned(),
            ..ArtifactSpec::default()
        },
    );
    artifacts(&bare)
        .create(&PostParams::default(), &artifact)
        .await
        .unwrap();
    let stop = CancellationToken::new();
    let (writer, end) = (artifacts(&bare), stop.clone());
    let writing = tokio::spawn(async move {
        let mut n = 0;
        while !end.is_cancelled() {
            n += 1;
            let patch = json!({"metadata": {"annotations": {"writer": n.to_string()}}});
            writer
                .patch(
                    &artifact_name(IMAGE),
                    &PatchParams::default(),
                    &Patch::Merge(patch),
                )
                .await
                .unwrap();
        }
    });
    let _running = run(&bare.context(), &registry);
    eventually("copied under fire", async || {
        reason(&bare).await.as_deref() == Some("Copied")
    })
    .await;
    stop.cancel();
    writing.await.unwrap();
    let artifact = artifacts(&bare).get(&artifact_name(IMAGE)).await.unwrap();
    assert!(
        artifact
            .metadata
            .annotations
            .unwrap()
            .contains_key("writer"),
        "the other writer's words stay"
    );

    pod(&bare, "apps", "one", &[]).await;
    eventually("counted", async || {
        artifacts(&bare)
            .get(&artifact_name(IMAGE))
            .await
            .unwrap()
            .status
            .unwrap()
            .reference_count
            == Some(1)
    })
    .await;
    artifacts(&bare)
        .delete(&artifact_name(IMAGE), &DeleteParams::default())
        .await
        .unwrap();
    eventually("recreated and copied", async || {
        reason(&bare).await.as_deref() == Some("Copied")
    })
    .await;
}

#[tokio::test]
async fn the_api_server_refuses_what_is_no_artifact() {
    let bare = Bare::start().await;
    bare.namespace("apps").await;
    let create = async |source: &str| {
        let artifact = Artifact::new(
            "x",
            ArtifactSpec {
                source_artifact: source.to_owned(),
                ..ArtifactSpec::default()
            },
        );
        artifacts(&bare)
            .create(&PostParams::default(), &artifact)
            .await
    };
    for bad in ["", "has blank", &"x".repeat(513)] {
        assert!(create(bad).await.is_err(), "{bad:?}");
    }
    create(IMAGE).await.unwrap();
    let other = json!({"spec": {"sourceArtifact": "registry.example/other:1"}});
    let error = artifacts(&bare)
        .patch("x", &PatchParams::default(), &Patch::Merge(other))
        .await
        .unwrap_err();
    assert!(error.to_string().contains("cannot be changed"), "{error}");
}
