//! Objects for the tests of what is known of images.

use crate::{Context, Metrics};
use holdfast_api::artifact::{ArtifactStatus, READY};
use holdfast_api::{Artifact, ArtifactSpec, artifact_name};
use holdfast_cluster_index::{Change, ClusterIndex, WatchCache};
use http::{Request, Response};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::client::Body;
use parking_lot::RwLock;
use serde_json::json;

/// A context that knows an empty cluster, with an API server that does not answer.
pub(crate) fn context() -> Context {
    holdfast_runtime::tls::install_crypto_provider();
    let (service, handle) = tower_test::mock::pair::<Request<Body>, Response<Body>>();
    std::mem::forget(handle);
    let document = json!({
        "release": {"name": "holdfast", "namespace": "n", "fullname": "holdfast", "version": "0.1.0"},
        "values": {},
    });
    let config = holdfast_config::Config::parse(&document.to_string()).unwrap();
    let mut registry = holdfast_runtime::metrics::registry("controller");
    let client = kube::Client::new(service, "default");
    Context::new(client, config, Metrics::register(&mut registry)).unwrap()
}

/// Completes the first lists of the index, which are empty.
pub(crate) fn sync(index: &ClusterIndex) {
    fn complete<V: PartialEq>(cache: &RwLock<WatchCache<V>>) {
        let mut cache = cache.write();
        cache.apply(Change::ListStarted);
        cache.apply(Change::ListCompleted);
    }
    complete(&index.pods);
    complete(&index.namespaces);
    complete(&index.nodes);
    complete(&index.artifacts);
}

/// An Artifact whose Ready condition has this reason after this many attempts.
pub(crate) fn artifact(source: &str, reason: &str, attempts: i64) -> Artifact {
    let mut artifact = Artifact::new(
        &artifact_name(source),
        ArtifactSpec {
            source_artifact: source.to_owned(),
            ..ArtifactSpec::default()
        },
    );
    artifact.metadata.uid = Some("artifact".to_owned());
    artifact.status = Some(ArtifactStatus {
        conditions: vec![Condition {
            type_: READY.to_owned(),
            status: if reason == "Copied" { "True" } else { "False" }.to_owned(),
            reason: reason.to_owned(),
            message: String::new(),
            observed_generation: None,
            last_transition_time: Time(jiff::Timestamp::UNIX_EPOCH),
        }],
        attempts: Some(attempts),
        ..ArtifactStatus::default()
    });
    artifact
}
