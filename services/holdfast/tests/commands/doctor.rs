//! `holdfast doctor`, with a real policy.

use super::*;

/// A policy that lets pods of namespace shop have images of one registry only.
async fn only_from(site: &Site, registry: &str) {
    let admission = "/apis/admissionregistration.k8s.io/v1";
    let policy = json!({
        "metadata": {"name": "only-ours"},
        "spec": {
            "failurePolicy": "Fail",
            "matchConstraints": {
                "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "shop"}},
                "resourceRules": [{"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE", "UPDATE"], "resources": ["pods"]}],
            },
            "validations": [{"expression": format!("object.spec.containers.all(c, c.image.startsWith('{registry}/'))"), "message": "not ours"}],
        },
    });
    site.post(&format!("{admission}/validatingadmissionpolicies"), &policy)
        .await;
    let binding = json!({"metadata": {"name": "only-ours"}, "spec": {"policyName": "only-ours", "validationActions": ["Deny"]}});
    site.post(
        &format!("{admission}/validatingadmissionpolicybindings"),
        &binding,
    )
    .await;
}

#[tokio::test]
async fn doctor_names_the_policy_that_refuses_the_registry() {
    let site = Site::start().await;
    site.namespace("other").await;
    let accounts = |namespace: &str| format!("/api/v1/namespaces/{namespace}/serviceaccounts");
    for namespace in ["shop", "other"] {
        // No controller makes them here.
        site.post(
            &accounts(namespace),
            &json!({"metadata": {"name": "default"}}),
        )
        .await;
        site.stands(namespace, "registry.example/web:1", "Copied")
            .await;
    }
    let file = site.folder.path().join("doctor.json");
    let doctor = ["doctor", "--json", file.to_str().unwrap()];
    let findings = || -> Vec<String> {
        let report = site.json("doctor.json");
        let findings = report["findings"].as_array().unwrap().iter();
        findings
            .map(|finding| finding["what"].as_str().unwrap().to_owned())
            .collect()
    };
    // Nothing of a release runs here; no policy is at fault.
    site.run(&doctor).await.check(
        1,
        &[
            "PROBLEM  the volume's claim does not exist; fix: helm upgrade",
            "the webhook's configuration does not exist",
        ],
    );
    assert!(
        !findings().iter().any(|what| what.contains("refuses pods")),
        "{:?}",
        findings()
    );

    only_from(&site, "registry.example").await;
    let end = Instant::now() + Duration::from_secs(20);
    loop {
        let ended = site.run(&doctor).await;
        if findings().iter().any(|what| what.contains("refuses pods")) {
            ended.check(1, &["ValidatingAdmissionPolicy only-ours refuses pods with the registry's references in shop (", "not ours"]);
            break;
        }
        assert!(Instant::now() < end, "{}", ended.text);
    }
    assert!(
        site.items("/api/v1/pods").await.is_empty(),
        "nothing is created"
    );

    let limited = site.limited_user().await;
    site.run_as(&limited, &["doctor"])
        .await
        .check(1, &["unknown", "cannot create resource"]);
}

#[tokio::test]
async fn doctor_names_autoscalers_without_metrics_and_upstreams_that_are_away() {
    let site = Site::start().await;
    let autoscaler = json!({
        "metadata": {"name": "holdfast-registry", "labels": {"app.kubernetes.io/instance": "holdfast"}},
        "spec": {
            "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "holdfast-registry"},
            "minReplicas": 3, "maxReplicas": 5,
        },
    });
    let namespace = "/apis/autoscaling/v2/namespaces/holdfast-system";
    site.post(
        &format!("{namespace}/horizontalpodautoscalers"),
        &autoscaler,
    )
    .await;
    site.stands("shop", "away.example/web:1", "UpstreamUnavailable")
        .await;
    site.run(&["doctor"]).await.check(
        1,
        &[
            "PROBLEM  holdfast-registry cannot scale by load: the API server has no \
             v1beta1.metrics.k8s.io; fix: install",
            "PROBLEM  away.example cannot be reached: 1 wanted image is not local, since",
        ],
    );
}

/// A kind of policies that the cluster serves in this version alone, with a policy of that kind.
async fn verifies(
    site: &Site,
    version: &str,
    kind: &str,
    (plural, scope): (&str, &str),
    spec: Value,
) {
    let (group, version) = version.split_once('/').unwrap();
    let schema = json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true});
    let definition = json!({
        "metadata": {"name": format!("{plural}.{group}")},
        "spec": {
            "group": group, "scope": scope, "names": {"kind": kind, "plural": plural},
            "versions": [{
                "name": version, "served": true, "storage": true,
                "schema": {"openAPIV3Schema": schema},
            }],
        },
    });
    site.post(
        "/apis/apiextensions.k8s.io/v1/customresourcedefinitions",
        &definition,
    )
    .await;
    let path = match scope {
        "Cluster" => format!("/apis/{group}/{version}/{plural}"),
        _ => format!("/apis/{group}/{version}/namespaces/shop/{plural}"),
    };
    let end = Instant::now() + Duration::from_secs(20);
    while site.get(&path).await.is_none() {
        assert!(Instant::now() < end, "{kind} is not served");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let policy = json!({
        "apiVersion": format!("{group}/{version}"), "kind": kind,
        "metadata": {"name": "signed"}, "spec": spec,
    });
    site.post(&path, &policy).await;
}

#[tokio::test]
async fn doctor_finds_policies_that_verify_in_the_version_that_is_served() {
    let site = Site::start().await;
    let references = json!({"matchImageReferences": [{"glob": "registry.example/*"}]});
    let cluster = ("imagevalidatingpolicies", "Cluster");
    let version = "policies.kyverno.io/v1beta1";
    verifies(&site, version, "ImageValidatingPolicy", cluster, references).await;
    let rules = json!({"rules": [{"verifyImages": [{"imageReferences": ["registry.example/*"]}]}]});
    let namespaced = ("policies", "Namespaced");
    verifies(&site, "kyverno.io/v1", "Policy", namespaced, rules).await;
    let images = json!({"images": [{"regex": "registry\\.example/.*"}]});
    let cluster = ("clusterimagepolicies", "Cluster");
    let version = "policy.sigstore.dev/v1alpha1";
    verifies(&site, version, "ClusterImagePolicy", cluster, images).await;
    site.stands("shop", "registry.example/web:1", "Copied")
        .await;
    let missed = "verifies registry.example/* and does not match the names";
    site.run(&["doctor"]).await.check(
        1,
        &[
            &format!("PROBLEM  Kyverno ImageValidatingPolicy signed {missed}"),
            &format!("PROBLEM  Kyverno Policy shop/signed {missed}"),
            "unknown  whether sigstore ClusterImagePolicy signed matches the names",
            "regex",
        ],
    );
}
