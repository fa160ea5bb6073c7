//! Who may depend on whom, and which crate may name which library: `core ← {config, api} ←
//! {runtime, store, cluster-model} ← {upstream, volume-tools, cluster-index} ← {fill, healing} ←
//! services ← cli-kit ← offline ← cli ← holdfast`.

use serde_json::Value;

use super::Finding;

/// Crates of the product from the ground up. A crate may use lower layers only, so crates of one
/// layer never see each other.
const LAYERS: [&[&str]; 10] = [
    &["holdfast-core", "holdfast-conditions"],
    &["holdfast-config", "holdfast-api"],
    &[
        "holdfast-runtime",
        "holdfast-store",
        "holdfast-cluster-model",
    ],
    &[
        "holdfast-upstream",
        "holdfast-volume-tools",
        "holdfast-cluster-index",
    ],
    &["holdfast-fill", "holdfast-healing"],
    &[
        "holdfast-registry",
        "holdfast-webhook",
        "holdfast-controller",
        "holdfast-node-agent",
    ],
    &["holdfast-cli-kit"],
    &["holdfast-offline"],
    &["holdfast-cli"],
    &["holdfast"],
];

/// Crates of lower layers that a crate must not use all the same.
const REFUSED: [(&str, &[&str]); 12] = [
    ("holdfast-upstream", &["holdfast-store"]),
    (
        "holdfast-registry",
        &["holdfast-cluster-index", "holdfast-healing"],
    ),
    ("holdfast-cluster-index", &SERVING),
    ("holdfast-healing", &SERVING),
    ("holdfast-webhook", &SERVING_AND_LEADING),
    ("holdfast-controller", &SERVING),
    ("holdfast-node-agent", &SERVING_AND_LEADING),
    ("holdfast-store", &["holdfast-api", "holdfast-config"]),
    (
        "holdfast-volume-tools",
        &["holdfast-api", "holdfast-config", "holdfast-runtime"],
    ),
    // The operator's commands read what the API server and a volume say, and start no service. The
    // facts about a cluster that they share with the controller are `holdfast-cluster-model`.
    ("holdfast-cli-kit", &COPYING_AND_PARTS),
    ("holdfast-offline", &COPYING_AND_PARTS),
    ("holdfast-cli", &COPYING_AND_PARTS),
];

/// What copies images, and the parts.
const COPYING_AND_PARTS: [&str; 8] = [
    "holdfast-upstream",
    "holdfast-fill",
    "holdfast-cluster-index",
    "holdfast-healing",
    "holdfast-registry",
    "holdfast-webhook",
    "holdfast-controller",
    "holdfast-node-agent",
];

/// What serves and copies images.
const SERVING: [&str; 4] = [
    "holdfast-store",
    "holdfast-volume-tools",
    "holdfast-upstream",
    "holdfast-fill",
];

/// What serves and copies images, and what only the leader does.
const SERVING_AND_LEADING: [&str; 6] = [
    "holdfast-store",
    "holdfast-volume-tools",
    "holdfast-upstream",
    "holdfast-fill",
    "holdfast-cluster-index",
    "holdfast-healing",
];

/// Crates beside the product, and all of ours that they may use (outside tests).
const BESIDE: [(&str, &[&str]); 9] = [
    ("holdfast-simfs", &["holdfast-store"]),
    (
        "holdfast-codegen",
        &["holdfast-core", "holdfast-config", "holdfast-api"],
    ),
    (
        "holdfast-testkit",
        &[
            "holdfast-core",
            "holdfast-config",
            "holdfast-api",
            "holdfast-runtime",
        ],
    ),
    ("holdfast-cluster", &[]),
    ("holdfast-e2e", &["holdfast-cluster"]),
    ("holdfast-soak", &["holdfast-testkit"]),
    (
        "holdfast-fuzz",
        &[
            "holdfast-core",
            "holdfast-conditions",
            "holdfast-config",
            "holdfast-api",
            "holdfast-store",
            "holdfast-upstream",
            "holdfast-fill",
            "holdfast-registry",
            "holdfast-webhook",
            "holdfast-node-agent",
            "holdfast-simfs",
        ],
    ),
    ("holdfast-bench", &["holdfast-cluster", "holdfast-testkit"]),
    ("xtask", &["holdfast-cluster"]),
];

/// Libraries that only some crates may name outside tests.
const ONLY: [(&str, &[&str]); 4] = [
    ("rustls", &["holdfast-runtime", "holdfast-testkit"]),
    (
        "tokio-rustls",
        // The bench's client of TLS servers is not in a release.
        &["holdfast-runtime", "holdfast-testkit", "holdfast-bench"],
    ),
    (
        "serde_yaml",
        // The cluster reads kind-config.yaml; it is not in a release.
        &["holdfast-config", "holdfast-codegen", "holdfast-cluster"],
    ),
    (
        "warp",
        &[
            "holdfast-runtime",
            "holdfast-registry",
            "holdfast-webhook",
            "holdfast-testkit",
        ],
    ),
];

/// Libraries that the facts about a cluster must not know: they are computed, not fetched.
const NOT_IN_CLUSTER_MODEL: [&str; 3] = ["tokio", "futures", "reqwest"];

/// Libraries that the pure domain must not know.
const NOT_IN_CORE: [&str; 8] = [
    "tokio",
    "kube",
    "k8s-openapi",
    "warp",
    "hyper",
    "reqwest",
    "serde_yaml",
    "rustls",
];

/// Checks the output of `cargo metadata --no-deps`.
pub(super) fn check(metadata: &Value) -> Vec<Finding> {
    let mut findings = Vec::new();
    for package in metadata["packages"].as_array().into_iter().flatten() {
        let name = package["name"].as_str().unwrap_or_default();
        for dependency in package["dependencies"].as_array().into_iter().flatten() {
            let kind = dependency["kind"].as_str().unwrap_or("normal");
            let on = dependency["name"].as_str().unwrap_or_default();
            if let Some(message) = refusal(name, on, kind == "dev") {
                findings.push(Finding::new(name, message));
            }
        }
    }
    findings
}

/// Why crate `name` may not depend on `on`, or nothing.
fn refusal(name: &str, on: &str, dev: bool) -> Option<String> {
    if name == "holdfast-core" && NOT_IN_CORE.contains(&on) {
        return Some(format!("the pure domain must not know {on}"));
    }
    if name == "holdfast-cluster-model" && NOT_IN_CLUSTER_MODEL.contains(&on) {
        return Some(format!("facts about a cluster are pure, {on} is not"));
    }
    if dev {
        return None;
    }
    if let Some((_, allowed)) = ONLY.iter().find(|(library, _)| *library == on)
        && !allowed.contains(&name)
    {
        return Some(format!("{on} may be named only by {}", allowed.join(", ")));
    }
    if !on.starts_with("holdfast") {
        return None;
    }
    // Programs that are never shipped: they test or measure, and attack as the tests do.
    let is_test = ["holdfast-soak", "holdfast-fuzz", "holdfast-bench"].contains(&name);
    if ["holdfast-simfs", "holdfast-testkit"].contains(&on) && !is_test {
        return Some(format!("{on} is for tests: make it a dev-dependency"));
    }
    if let Some((_, allowed)) = BESIDE.iter().find(|(package, _)| *package == name) {
        return (!allowed.contains(&on)).then(|| format!("may not depend on {on}"));
    }
    if let Some((_, refused)) = REFUSED.iter().find(|(package, _)| *package == name)
        && refused.contains(&on)
    {
        return Some(format!("must know nothing of {on}"));
    }
    match (layer(name), layer(on)) {
        (Some(own), Some(other)) if other < own => None,
        (Some(_), Some(_)) => Some(format!(
            "may not depend on {on}: it is not in a lower layer"
        )),
        (None, _) => Some("is in no layer: add it to xtask/src/lint/directions.rs".to_owned()),
        (_, None) => Some(format!(
            "may not depend on {on}, which is beside the product"
        )),
    }
}

fn layer(name: &str) -> Option<usize> {
    LAYERS.iter().position(|crates| crates.contains(&name))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(name: &str, on: &str, dev: bool, expect: bool) {
        assert_eq!(
            refusal(name, on, dev).is_none(),
            expect,
            "{name} → {on} (dev: {dev})"
        );
    }

    #[test]
    fn directions_point_downwards_only() {
        check("holdfast-registry", "holdfast-store", false, true);
        check("holdfast", "holdfast-registry", false, true);
        check("holdfast", "holdfast-cli", false, true);
        check("holdfast-cli", "holdfast-store", false, true);
        check("holdfast-cli", "holdfast-volume-tools", false, true);
        check("holdfast-volume-tools", "holdfast-store", false, true);
        check("holdfast-volume-tools", "holdfast-upstream", false, false);
        check("holdfast-store", "holdfast-volume-tools", false, false);
        check("holdfast-webhook", "holdfast-volume-tools", false, false);
        check("holdfast-cli", "holdfast-registry", false, false);
        check("holdfast-cli", "holdfast-controller", false, false);
        check("holdfast-cli", "holdfast-cluster-model", false, true);
        check("holdfast-cli", "holdfast-offline", false, true);
        check("holdfast-offline", "holdfast-cli-kit", false, true);
        check("holdfast-offline", "holdfast-cli", false, false);
        check("holdfast-offline", "holdfast-controller", false, false);
        check("holdfast-cli-kit", "holdfast-offline", false, false);
        check("holdfast-cli-kit", "holdfast-registry", false, false);
        check("holdfast-cluster-model", "holdfast-runtime", false, false);
        check("holdfast-registry", "holdfast-cli", false, false);
        check("holdfast-core", "holdfast-config", false, false);
        check("holdfast-store", "holdfast-runtime", false, false);
        check("holdfast-webhook", "holdfast-controller", false, false);
        check("holdfast-fill", "holdfast-upstream", false, true);
        check("holdfast-fill", "holdfast-registry", false, false);
        check("holdfast-upstream", "holdfast-fill", false, false);
        check("holdfast-upstream", "holdfast-store", false, false);
        check("holdfast-webhook", "holdfast-fill", false, false);
        check("holdfast-controller", "holdfast-healing", false, true);
        check("holdfast-healing", "holdfast-cluster-index", false, true);
        check("holdfast-healing", "holdfast-controller", false, false);
        check("holdfast-healing", "holdfast-fill", false, false);
        check("holdfast-registry", "holdfast-healing", false, false);
        check("holdfast-webhook", "holdfast-cluster-index", false, false);
        check("holdfast-e2e", "holdfast-core", false, false);
    }

    #[test]
    fn libraries_stay_where_they_belong() {
        check("holdfast-core", "tokio", true, false);
        check("holdfast-core", "serde", false, true);
        check("holdfast-cluster-model", "tokio", false, false);
        check("holdfast-controller", "rustls", false, false);
        check("holdfast-webhook", "rustls", true, true);
        check("holdfast-node-agent", "serde_yaml", false, false);
        check("holdfast-config", "serde_yaml", false, true);
        check("holdfast-registry", "holdfast-testkit", false, false);
        check("holdfast-registry", "holdfast-testkit", true, true);
        check("holdfast-store", "holdfast-simfs", true, true);
        check("holdfast-testkit", "holdfast-store", false, false);
    }
}
