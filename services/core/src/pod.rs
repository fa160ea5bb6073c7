//! Finds the images of a pod in its raw JSON; [`crate::meaning`] says what they mean. A typed pod
//! would lose fields of newer API versions.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::dns;

/// The annotation on rewritten pods: a JSON object from [`PodImage::key`] to the original
/// reference.
pub const ORIGINAL_IMAGES_ANNOTATION: &str = "holdfast.dev/original-images";

/// The annotation by which the kubelet marks a mirror pod, the API's copy of a static pod.
pub const MIRROR_ANNOTATION: &str = "kubernetes.io/config.mirror";

/// The label of nodes that names their operating system.
pub const OS_LABEL: &str = "kubernetes.io/os";

/// Where in a pod an image is declared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// `spec.containers`
    Container,
    /// `spec.initContainers`
    Init,
    /// `spec.ephemeralContainers`
    Ephemeral,
    /// `spec.volumes[].image`
    Volume,
}

impl Kind {
    /// All kinds, in the order in which a pod needs the images.
    pub const ALL: [Self; 4] = [Self::Volume, Self::Init, Self::Container, Self::Ephemeral];

    /// The field of the list in `spec`.
    pub fn field(self) -> &'static str {
        match self {
            Self::Container => "containers",
            Self::Init => "initContainers",
            Self::Ephemeral => "ephemeralContainers",
            Self::Volume => "volumes",
        }
    }
}

/// One image as a pod declares it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodImage {
    /// Where it is declared.
    pub kind: Kind,
    /// The container's or the volume's name.
    pub name: String,
    /// The reference as written.
    pub image: String,
    /// The pull policy as written; the API server has set the default.
    pub pull_policy: Option<String>,
    /// The JSON pointer to the reference, from the root of the pod.
    pub pointer: String,
}

impl PodImage {
    /// `containers/NAME`: the key of this image in the annotation of originals.
    pub fn key(&self) -> String {
        format!("{}/{}", self.kind.field(), self.name)
    }
}

/// All images that a pod (or any object with a pod's `spec`) declares. Entries of an unexpected
/// shape are skipped.
pub fn images(pod: &Value) -> Vec<PodImage> {
    Kind::ALL
        .into_iter()
        .flat_map(|kind| images_of_kind(pod, kind))
        .collect()
}

fn images_of_kind(pod: &Value, kind: Kind) -> Vec<PodImage> {
    let entries = pod
        .pointer(&format!("/spec/{}", kind.field()))
        .and_then(Value::as_array);
    let text = |value: Option<&Value>| value.and_then(Value::as_str).map(str::to_owned);
    entries
        .into_iter()
        .flatten()
        .enumerate()
        .filter_map(|(index, entry)| {
            let (image, pull_policy, tail) = match kind {
                Kind::Volume => {
                    let source = entry.get("image")?;
                    (
                        source.get("reference"),
                        source.get("pullPolicy"),
                        "image/reference",
                    )
                }
                _ => (entry.get("image"), entry.get("imagePullPolicy"), "image"),
            };
            let image = text(image).filter(|image| !image.is_empty())?;
            Some(PodImage {
                kind,
                name: text(entry.get("name")).unwrap_or_default(),
                image,
                pull_policy: text(pull_policy),
                pointer: format!("/spec/{}/{index}/{tail}", kind.field()),
            })
        })
        .collect()
}

/// The value of the annotation of originals, if it is valid JSON.
pub fn annotated_originals(pod: &Value) -> Option<Value> {
    let text = pod
        .pointer("/metadata/annotations")?
        .get(ORIGINAL_IMAGES_ANNOTATION)?
        .as_str()?;
    serde_json::from_str(text).ok().filter(Value::is_object)
}

/// Whether a pod is a mirror pod: the API's copy of a static pod, which the kubelet starts from a
/// file on the node.
pub fn is_mirror(pod: &Value) -> bool {
    pod.pointer("/metadata/annotations")
        .is_some_and(|annotations| annotations.get(MIRROR_ANNOTATION).is_some())
}

/// Whether a pod, or the pod of a template, runs on Windows nodes only. They have no node agent, so
/// that they cannot pull from the registry.
pub fn is_windows(pod: &Value) -> bool {
    let selected = |spec: &Value| spec.get("nodeSelector")?.get(OS_LABEL).cloned();
    let named = |spec: &Value| spec.pointer("/os/name").cloned();
    pod.get("spec").is_some_and(|spec| {
        [named(spec), selected(spec)]
            .into_iter()
            .flatten()
            .any(|os| os == "windows")
    })
}

/// The names of the pull secrets that a pod lists, in its order.
pub fn pull_secret_names(pod: &Value) -> Vec<String> {
    let secrets = pod
        .pointer("/spec/imagePullSecrets")
        .and_then(Value::as_array);
    let mut seen = BTreeSet::new();
    secrets
        .into_iter()
        .flatten()
        .filter_map(|secret| secret.get("name").and_then(Value::as_str))
        // The API server does not validate these names, but they become parts of paths.
        .filter(|name| dns::is_subdomain(name) && seen.insert(*name))
        .map(str::to_owned)
        .collect()
}

/// The name of the service account of a pod; `default` if it names none.
pub fn service_account_name(pod: &Value) -> &str {
    ["/spec/serviceAccountName", "/spec/serviceAccount"]
        .into_iter()
        .filter_map(|pointer| pod.pointer(pointer).and_then(Value::as_str))
        .find(|name| !name.is_empty())
        .unwrap_or("default")
}

/// The node on which a pod will run, if that is fixed: it is bound, or the required node affinity
/// names one node, as that of a `DaemonSet`'s pod.
pub fn bound_node(pod: &Value) -> Option<&str> {
    let bound = pod.pointer("/spec/nodeName").and_then(Value::as_str);
    if let Some(node) = bound.filter(|node| !node.is_empty()) {
        return Some(node);
    }
    let terms = pod
        .pointer("/spec/affinity/nodeAffinity/requiredDuringSchedulingIgnoredDuringExecution")?
        .get("nodeSelectorTerms")?
        .as_array()?;
    let [term] = terms.as_slice() else {
        return None;
    };
    let fields = term.get("matchFields")?.as_array()?;
    let field = fields.iter().find(|field| {
        let is = |key: &str, text: &str| field.get(key).and_then(Value::as_str) == Some(text);
        is("key", "metadata.name") && is("operator", "In")
    })?;
    match field.get("values")?.as_array()?.as_slice() {
        [node] => node.as_str(),
        _ => None,
    }
}

/// Whether a node may need a pod before it can run others: the pod uses the host's network, has a
/// critical priority class of the system, or tolerates nodes that are not ready.
pub fn precedes_nodes(pod: &Value) -> bool {
    let text = |value: &Value, key: &str| value.get(key).and_then(Value::as_str).map(str::to_owned);
    let Some(spec) = pod.get("spec") else {
        return false;
    };
    let is_critical = text(spec, "priorityClassName").is_some_and(|class| {
        matches!(
            class.as_str(),
            "system-node-critical" | "system-cluster-critical"
        )
    });
    let tolerations = spec.get("tolerations").and_then(Value::as_array);
    let tolerates_not_ready = tolerations.into_iter().flatten().any(|toleration| {
        let key = text(toleration, "key").unwrap_or_default();
        let effect = text(toleration, "effect").unwrap_or_default();
        // The API server gives all pods a toleration of `NoExecute`.
        matches!(effect.as_str(), "" | "NoSchedule")
            && (key == "node.kubernetes.io/not-ready"
                || key.is_empty() && text(toleration, "operator").as_deref() == Some("Exists"))
    });
    spec.get("hostNetwork").and_then(Value::as_bool) == Some(true)
        || is_critical
        || tolerates_not_ready
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn every_kind_of_image_is_found_with_its_path() {
        let pod = json!({ "spec": {
            "volumes": [{"name": "e", "emptyDir": {}}, {"name": "v", "image": {"reference": "r.io/v:1", "pullPolicy": "Never"}}],
            "initContainers": [{"name": "i", "image": "r.io/i:1"}],
            "containers": [{"name": "c", "image": "c", "imagePullPolicy": "Always"}, {"name": "none"}, {"name": "empty", "image": ""}, 7],
            "ephemeralContainers": [{"name": "d", "image": "busybox"}],
        }});
        let found: Vec<_> = images(&pod)
            .into_iter()
            .map(|image| {
                (
                    image.key(),
                    image.image,
                    image.pull_policy.unwrap_or_default(),
                    image.pointer,
                )
            })
            .collect();
        let expected = [
            (
                "volumes/v",
                "r.io/v:1",
                "Never",
                "/spec/volumes/1/image/reference",
            ),
            (
                "initContainers/i",
                "r.io/i:1",
                "",
                "/spec/initContainers/0/image",
            ),
            ("containers/c", "c", "Always", "/spec/containers/0/image"),
            (
                "ephemeralContainers/d",
                "busybox",
                "",
                "/spec/ephemeralContainers/0/image",
            ),
        ]
        .map(|(a, b, c, d)| (a.to_owned(), b.to_owned(), c.to_owned(), d.to_owned()));
        assert_eq!(found, expected);
    }

    #[test]
    fn shapes_that_are_no_pod_have_no_images() {
        for pod in [
            json!(null),
            json!({}),
            json!({"spec": 1}),
            json!({"spec": {"containers": {}}}),
        ] {
            assert!(images(&pod).is_empty(), "{pod}");
            assert!(pull_secret_names(&pod).is_empty());
            assert_eq!(service_account_name(&pod), "default");
            assert!(!is_mirror(&pod));
        }
        assert!(is_mirror(
            &json!({"metadata": {"annotations": {MIRROR_ANNOTATION: "hash"}}})
        ));
    }

    #[test]
    fn windows_pods_say_so_by_their_system_or_by_their_node_selector() {
        for (spec, expect) in [
            (json!({}), false),
            (json!({"os": {"name": "windows"}}), true),
            (json!({"os": {"name": "linux"}}), false),
            (json!({"nodeSelector": {OS_LABEL: "windows"}}), true),
            (json!({"nodeSelector": {OS_LABEL: "linux"}}), false),
            (json!({"nodeSelector": {"disk": "windows"}}), false),
            (json!({"os": "windows", "nodeSelector": [1]}), false),
        ] {
            assert_eq!(is_windows(&json!({ "spec": spec })), expect, "{spec}");
        }
        assert!(!is_windows(&json!(null)));
    }

    // SPEC 35
    #[test]
    fn pull_secrets_keep_their_order() {
        let pod = json!({ "spec": {
            "serviceAccountName": "builder",
            "imagePullSecrets": [{"name": "b"}, {"name": "a"}, {"name": "b"}, {"name": ""}, {}, {"name": "x y"}, {"name": "../b"}],
        }});
        assert_eq!(pull_secret_names(&pod), ["b", "a"]);
        assert_eq!(service_account_name(&pod), "builder");
    }

    #[test]
    fn a_daemon_sets_pod_is_bound_by_its_affinity() {
        let affinity = |terms: Value| {
            let required = json!({"nodeSelectorTerms": terms});
            json!({"spec": {"affinity": {"nodeAffinity": {
                "requiredDuringSchedulingIgnoredDuringExecution": required,
            }}}})
        };
        let field = |values: Value| json!({"matchFields": [{"key": "metadata.name", "operator": "In", "values": values}]});
        for (pod, expect) in [
            (json!({"spec": {"nodeName": "a"}}), Some("a")),
            (json!({"spec": {"nodeName": ""}}), None),
            (affinity(json!([field(json!(["b"]))])), Some("b")),
            (affinity(json!([field(json!(["b", "c"]))])), None),
            (
                affinity(json!([field(json!(["b"])), field(json!(["c"]))])),
                None,
            ),
            (affinity(json!([{"matchExpressions": []}])), None),
            (json!({}), None),
        ] {
            assert_eq!(bound_node(&pod), expect, "{pod}");
        }
    }

    #[test]
    fn plug_ins_of_nodes_are_recognised() {
        let tolerates = |toleration: Value| json!({"spec": {"tolerations": [toleration]}});
        let not_ready = "node.kubernetes.io/not-ready";
        for (pod, expect) in [
            (json!({}), false),
            (json!({"spec": {"hostNetwork": true}}), true),
            (
                json!({"spec": {"priorityClassName": "system-node-critical"}}),
                true,
            ),
            (json!({"spec": {"priorityClassName": "mine"}}), false),
            (tolerates(json!({"operator": "Exists"})), true),
            (
                tolerates(json!({"key": not_ready, "operator": "Exists"})),
                true,
            ),
            // What the API server gives each pod.
            (
                tolerates(json!({"key": not_ready, "operator": "Exists", "effect": "NoExecute"})),
                false,
            ),
            (
                tolerates(json!({"key": "dedicated", "operator": "Exists"})),
                false,
            ),
        ] {
            assert_eq!(precedes_nodes(&pod), expect, "{pod}");
        }
    }
}
