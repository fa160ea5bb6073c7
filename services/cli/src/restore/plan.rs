//! Which pods hold rewritten references, and the remedy for each: pure. Owners are never edited,
//! and a pod without an owner is never deleted.

use holdfast_api::history::ImageHistory;
use holdfast_api::labels;
use holdfast_cli_kit::cluster::Resource;
use holdfast_core::workload::{
    self, condition_is_true, controller_of, may_start, pod_template, text,
};
use holdfast_core::{meaning, pod};
use serde::Serialize;
use serde_json::{Value, json};

/// Owners that recreate a pod as soon as it is gone.
const RECREATING_KINDS: [&str; 4] = [
    "ReplicaSet",
    "StatefulSet",
    "DaemonSet",
    "ReplicationController",
];

/// A pod with rewritten references.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct RewrittenPod {
    pub(crate) namespace: String,
    pub(crate) name: String,
    pub(crate) uid: String,
    pub(crate) owner: Option<Owner>,
    /// The node that it is bound to; empty before that.
    pub(crate) node: String,
    pub(crate) pull_secrets: Vec<String>,
    pub(crate) service_account: String,
    pub(crate) images: Vec<Rewritten>,
    pub(crate) remedy: Remedy,
}

/// What controls a pod.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Owner {
    pub(crate) kind: String,
    pub(crate) name: String,
    pub(crate) uid: String,
}

/// One reference and what it was.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Rewritten {
    /// `containers/NAME`
    pub(crate) key: String,
    pub(crate) now: String,
    pub(crate) original: String,
    /// Whether the kubelet pulls it at each start.
    #[serde(skip)]
    pub(crate) always: bool,
}

/// How the original images of a pod are restored.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Remedy {
    /// It is evicted, and its owner recreates it.
    Recreate,
    /// A patch with these operations. The texts are what it cannot change.
    Patch(Vec<Value>, Vec<String>),
    /// Nothing, for this reason.
    Leave(String),
}

impl RewrittenPod {
    /// `Pod/name`, or `Kind/name` of its owner.
    pub(crate) fn owned_by(&self) -> String {
        self.owner.as_ref().map_or_else(
            || format!("Pod/{}", self.name),
            |owner| format!("{}/{}", owner.kind, owner.name),
        )
    }
}

/// The path of an owner that recreates its pods; nothing for other kinds.
pub(super) fn path_of_owner(namespace: &str, owner: &Owner) -> Option<String> {
    let kind =
        workload::by_name(&owner.kind).filter(|kind| RECREATING_KINDS.contains(&kind.kind))?;
    let list = Resource::from(kind).path(Some(namespace));
    Some(format!("{list}/{}", owner.name))
}

/// Judges one pod; nothing where no reference of it is rewritten, or where it has ended. While a
/// webhook may exist (`rewriting`), a patch says in the pod's history what it restores: otherwise
/// the webhook keeps the stored references.
pub(crate) fn find(pod: &Value, addresses: &[String], rewriting: bool) -> Option<RewrittenPod> {
    if pod::is_mirror(pod) || !may_start("Pod", pod) {
        return None;
    }
    let annotated = pod::annotated_originals(pod);
    let mut history = ImageHistory::of(pod);
    let images: Vec<(pod::PodImage, String)> = meaning::of_pod(pod, addresses)
        .into_iter()
        .filter(|found| found.meaning.is_rewritten())
        .filter_map(|found| {
            let original = found.original_text()?;
            if can_change(&found.image) {
                history.restored.insert(found.meaning.source()?.to_string());
            }
            Some((found.image, original))
        })
        .collect();
    if images.is_empty() {
        return None;
    }
    let owner = controller_of(pod).map(|(kind, name, uid)| Owner {
        kind: kind.to_owned(),
        name: name.to_owned(),
        uid: uid.to_owned(),
    });
    let remedy = match &owner {
        None => patch(
            pod,
            &images,
            annotated.as_ref(),
            rewriting.then_some(&history),
        ),
        Some(owner) if RECREATING_KINDS.contains(&owner.kind.as_str()) => Remedy::Recreate,
        Some(owner) if owner.kind == "Job" => Remedy::Leave(
            "its Job runs to its end; the next one starts with the originals".to_owned(),
        ),
        Some(owner) => Remedy::Leave(format!(
            "it belongs to {}/{}, which may not recreate it; restart it with the tools of that \
             owner",
            owner.kind, owner.name
        )),
    };
    Some(RewrittenPod {
        namespace: text(pod, "/metadata/namespace").to_owned(),
        name: text(pod, "/metadata/name").to_owned(),
        uid: text(pod, "/metadata/uid").to_owned(),
        owner,
        node: text(pod, "/spec/nodeName").to_owned(),
        pull_secrets: pod::pull_secret_names(pod),
        service_account: pod::service_account_name(pod).to_owned(),
        images: images
            .into_iter()
            .map(|(image, original)| Rewritten {
                key: image.key(),
                always: image.pull_policy.as_deref() == Some("Always"),
                now: image.image,
                original,
            })
            .collect(),
        remedy,
    })
}

/// The operations on a pod that nothing would recreate. Each one first tests the value that it
/// changes.
fn patch(
    pod: &Value,
    images: &[(pod::PodImage, String)],
    annotated: Option<&Value>,
    history: Option<&ImageHistory>,
) -> Remedy {
    let fixed: Vec<String> = images
        .iter()
        .filter(|(image, _)| !can_change(image))
        .map(|(image, _)| format!("{} cannot be changed in a living pod", image.key()))
        .collect();
    if fixed.len() == images.len() {
        return Remedy::Leave(format!(
            "{}; delete the pod and create it again",
            fixed.join(", ")
        ));
    }
    let mut operations =
        vec![json!({"op": "test", "path": "/metadata/uid", "value": text(pod, "/metadata/uid")})];
    let mut left = annotated
        .and_then(Value::as_object)
        .cloned()
        .unwrap_or_default();
    for (image, original) in images.iter().filter(|(image, _)| can_change(image)) {
        operations.push(json!({"op": "test", "path": image.pointer, "value": image.image}));
        operations.push(json!({"op": "replace", "path": image.pointer, "value": original}));
        left.shift_remove(&image.key());
    }
    if annotated.is_some() {
        let path = format!(
            "/metadata/annotations/{}",
            labels::ORIGINAL_IMAGES.replace('/', "~1")
        );
        operations.push(if left.is_empty() {
            json!({"op": "remove", "path": path})
        } else {
            json!({"op": "replace", "path": path, "value": Value::Object(left).to_string()})
        });
    }
    if let Some(history) = history {
        operations.extend(record(pod, history));
    }
    Remedy::Patch(operations, fixed)
}

/// Whether the API server lets the reference be changed.
fn can_change(image: &pod::PodImage) -> bool {
    matches!(image.kind, pod::Kind::Container | pod::Kind::Init)
}

/// The operations that write the history of a pod's images.
fn record(pod: &Value, history: &ImageHistory) -> Vec<Value> {
    let path = "/metadata/annotations";
    if pod.pointer(path).is_some_and(Value::is_object) {
        let path = format!("{path}/{}", labels::IMAGE_HISTORY.replace('/', "~1"));
        return vec![json!({"op": "add", "path": path, "value": history.text()})];
    }
    // The patch writes the whole map, so the pod must not have got one meanwhile.
    let version = "/metadata/resourceVersion";
    vec![
        json!({"op": "test", "path": version, "value": text(pod, version)}),
        json!({"op": "add", "path": path, "value": {labels::IMAGE_HISTORY: history.text()}}),
    ]
}

/// Why new pods of an owner would not have their original images; `None` where they would.
pub(super) fn objection(
    owner: &Owner,
    object: Option<&Value>,
    addresses: &[String],
) -> Option<String> {
    let name = format!("{}/{}", owner.kind, owner.name);
    let Some(object) = object.filter(|object| text(object, "/metadata/uid") == owner.uid) else {
        return Some(format!("{name} does not exist any more"));
    };
    if !may_start(&owner.kind, object) {
        return Some(format!("{name} is being deleted"));
    }
    let names_registry = pod_template(&owner.kind, object)
        .into_iter()
        .flat_map(|template| meaning::of_pod(template, addresses))
        .any(|image| image.meaning.is_at_registry());
    names_registry.then(|| {
        format!("the template of {name} names the registry itself; change it where it comes from")
    })
}

/// Whether a pod is ready and stays.
pub(super) fn is_ready(pod: &Value) -> bool {
    may_start("Pod", pod) && condition_is_true(pod, &["Ready"])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addresses() -> Vec<String> {
        vec!["10.96.0.50".to_owned()]
    }

    fn pod(owner: Option<&str>, images: &Value, annotation: &str) -> Value {
        let owners: Vec<_> = owner
            .into_iter()
            .map(|kind| json!({"kind": kind, "name": "o", "uid": "u", "controller": true}))
            .collect();
        let mut pod = json!({
            "metadata": {"namespace": "shop", "name": "p", "uid": "uid-p", "ownerReferences": owners},
            "spec": images,
        });
        if !annotation.is_empty() {
            pod["metadata"]["annotations"] = json!({labels::ORIGINAL_IMAGES: annotation});
        }
        pod
    }

    fn local() -> Value {
        json!({"containers": [{"name": "c", "image": "10.96.0.50/docker.io/library/nginx:1"}]})
    }

    fn remedy(owner: Option<&str>) -> Remedy {
        find(&pod(owner, &local(), ""), &addresses(), false)
            .unwrap()
            .remedy
    }

    #[test]
    fn only_pods_that_an_owner_recreates_are_evicted() {
        for kind in [
            "ReplicaSet",
            "StatefulSet",
            "DaemonSet",
            "ReplicationController",
        ] {
            assert_eq!(remedy(Some(kind)), Remedy::Recreate, "{kind}");
        }
        for (kind, why) in [("Job", "to its end"), ("PodSet", "PodSet/o")] {
            assert!(
                matches!(remedy(Some(kind)), Remedy::Leave(text) if text.contains(why)),
                "{kind}"
            );
        }
        assert!(matches!(remedy(None), Remedy::Patch(_, left) if left.is_empty()));
    }

    #[test]
    fn pods_that_hold_their_originals_or_have_ended_are_no_concern() {
        let original = json!({"containers": [{"name": "c", "image": "nginx:1"}]});
        assert_eq!(find(&pod(None, &original, ""), &addresses(), false), None);
        let pushed = json!({"containers": [{"name": "c", "image": "10.96.0.50/team/app:1"}]});
        assert_eq!(find(&pod(None, &pushed, ""), &addresses(), false), None);
        let mut ended = pod(None, &local(), "");
        ended["status"] = json!({"phase": "Succeeded"});
        assert_eq!(find(&ended, &addresses(), false), None);
        let mut mirror = pod(None, &local(), "");
        mirror["metadata"]["annotations"] = json!({"kubernetes.io/config.mirror": "x"});
        assert_eq!(find(&mirror, &addresses(), false), None);
    }

    #[test]
    fn a_bare_pod_gets_back_what_its_author_wrote() {
        let annotation = r#"{"containers/c":"nginx:1","volumes/v":"data:1"}"#;
        let spec = json!({
            "initContainers": [{"name": "i", "image": "10.96.0.50/r.io/init:1"}],
            "containers": [{"name": "c", "image": "10.96.0.50/docker.io/library/nginx:1"}, {"name": "own", "image": "r.io/x:1"}],
            "volumes": [{"name": "v", "image": {"reference": "10.96.0.50/docker.io/library/data:1"}}],
        });
        let found = find(&pod(None, &spec, annotation), &addresses(), false).unwrap();
        let Remedy::Patch(operations, left) = &found.remedy else {
            panic!("{found:?}");
        };
        assert_eq!(left, &["volumes/v cannot be changed in a living pod"]);
        let mut patched = pod(None, &spec, annotation);
        let patch: json_patch::Patch = serde_json::from_value(json!(operations)).unwrap();
        json_patch::patch(&mut patched, &patch).unwrap();
        assert_eq!(patched["spec"]["containers"][0]["image"], "nginx:1");
        assert_eq!(patched["spec"]["containers"][1]["image"], "r.io/x:1");
        assert_eq!(patched["spec"]["initContainers"][0]["image"], "r.io/init:1");
        assert_eq!(patched["spec"]["volumes"], spec["volumes"]);
        assert_eq!(
            patched["metadata"]["annotations"][labels::ORIGINAL_IMAGES],
            r#"{"volumes/v":"data:1"}"#
        );
        // Another pod of that name, or images that changed meanwhile, stay unchanged.
        let mut other = pod(None, &spec, annotation);
        other["metadata"]["uid"] = json!("uid-of-another");
        assert!(json_patch::patch(&mut other, &patch).is_err());
    }

    #[test]
    fn while_a_webhook_exists_the_patch_says_what_it_restores() {
        for annotation in ["", r#"{"containers/c":"nginx:1"}"#] {
            let mut bare = pod(None, &local(), annotation);
            bare["metadata"]["resourceVersion"] = json!("7");
            let found = find(&bare, &addresses(), true).unwrap();
            let Remedy::Patch(operations, _) = found.remedy else {
                panic!("{found:?}");
            };
            let patch: json_patch::Patch = serde_json::from_value(json!(operations)).unwrap();
            let mut patched = bare.clone();
            json_patch::patch(&mut patched, &patch).unwrap();
            let history = ImageHistory::of(&patched);
            let restored: Vec<_> = history.restored.iter().map(String::as_str).collect();
            assert_eq!(restored, ["docker.io/library/nginx:1"], "{annotation}");
        }
    }

    #[test]
    fn an_annotation_that_lies_is_not_believed() {
        let annotation = r#"{"containers/c":"evil.example/x:1"}"#;
        let found = find(&pod(None, &local(), annotation), &addresses(), false).unwrap();
        assert_eq!(found.images[0].original, "docker.io/library/nginx:1");
    }

    #[test]
    fn what_cannot_be_changed_is_left_with_the_way_out() {
        let spec = json!({"containers": [], "volumes": [{"name": "v", "image": {"reference": "10.96.0.50/r.io/data:1"}}]});
        let found = find(&pod(None, &spec, ""), &addresses(), false).unwrap();
        assert!(
            matches!(&found.remedy, Remedy::Leave(why) if why.contains("volumes/v") && why.contains("create it again")),
            "{found:?}"
        );
    }

    #[test]
    fn an_owner_must_live_and_know_the_originals() {
        let owner = Owner {
            kind: "ReplicaSet".to_owned(),
            name: "web".to_owned(),
            uid: "u".to_owned(),
        };
        let object = |uid: &str, image: &str, deleted: Value| {
            json!({
                "metadata": {"uid": uid, "deletionTimestamp": deleted},
                "spec": {"template": {"spec": {"containers": [{"name": "c", "image": image}]}}},
            })
        };
        let check = |object: Option<&Value>, expect: &str| {
            let found = objection(&owner, object, &addresses()).unwrap_or_default();
            assert!(
                found.contains(expect) && found.is_empty() == expect.is_empty(),
                "{found}"
            );
        };
        check(Some(&object("u", "nginx:1", Value::Null)), "");
        check(None, "does not exist");
        check(
            Some(&object("other", "nginx:1", Value::Null)),
            "does not exist",
        );
        check(
            Some(&object("u", "nginx:1", json!("2026-01-01T00:00:00Z"))),
            "being deleted",
        );
        check(
            Some(&object("u", "10.96.0.50/r.io/a:1", Value::Null)),
            "names the registry itself",
        );
    }
}
