//! Reads workloads from their raw JSON: the pod template of each kind, the controller of an object,
//! and whether more pods may be created from it.

use serde_json::{Value, json};

/// A kind of object that is a pod or has a pod template.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct WorkloadKind {
    /// The API group; empty for the core group.
    pub group: &'static str,
    /// The version that every supported API server has.
    pub version: &'static str,
    /// The kind in objects and owner references.
    pub kind: &'static str,
    /// The name of the resource in paths and roles.
    pub plural: &'static str,
}

impl WorkloadKind {
    /// `group/version`, or only the version for the core group: the `apiVersion` of its objects.
    pub fn api_version(&self) -> String {
        if self.group.is_empty() {
            self.version.to_owned()
        } else {
            format!("{}/{}", self.group, self.version)
        }
    }
}

/// Every kind whose images Holdfast keeps local.
pub const KINDS: &[WorkloadKind] = &[
    known("", "v1", "Pod", "pods"),
    known("", "v1", "ReplicationController", "replicationcontrollers"),
    known("apps", "v1", "ReplicaSet", "replicasets"),
    known("apps", "v1", "Deployment", "deployments"),
    known("apps", "v1", "StatefulSet", "statefulsets"),
    known("apps", "v1", "DaemonSet", "daemonsets"),
    known("batch", "v1", "Job", "jobs"),
    known("batch", "v1", "CronJob", "cronjobs"),
    known("apps", "v1", "ControllerRevision", "controllerrevisions"),
];

const fn known(
    group: &'static str,
    version: &'static str,
    kind: &'static str,
    plural: &'static str,
) -> WorkloadKind {
    WorkloadKind {
        group,
        version,
        kind,
        plural,
    }
}

/// The kind with this name; `None` for kinds that Holdfast does not read.
pub fn by_name(kind: &str) -> Option<&'static WorkloadKind> {
    KINDS.iter().find(|known| known.kind == kind)
}

/// The pod template of an object: an object with `metadata` and `spec` of a pod, for
/// [`crate::pod`]. A pod is its own template. A `ControllerRevision` holds a former template of its
/// StatefulSet or DaemonSet (`data.spec.template`). `None` for other kinds, and if there is none.
pub fn pod_template<'a>(kind: &str, object: &'a Value) -> Option<&'a Value> {
    let template = match kind {
        "Pod" => Some(object),
        "ReplicationController"
        | "ReplicaSet"
        | "Deployment"
        | "StatefulSet"
        | "DaemonSet"
        | "Job" => object.pointer("/spec/template"),
        "CronJob" => object.pointer("/spec/jobTemplate/spec/template"),
        "ControllerRevision" => object.pointer("/data/spec/template"),
        _ => None,
    };
    template.filter(|template| template.get("spec").is_some_and(Value::is_object))
}

/// The pod templates of an object of a custom kind that is known here: Volcano's Job, and the kinds
/// of Argo Workflows. `None` for other kinds.
pub fn custom_templates(api_version: &str, kind: &str, object: &Value) -> Option<Vec<Value>> {
    let (group, _) = api_version.split_once('/')?;
    let workflow = match (group, kind) {
        ("batch.volcano.sh", "Job") => {
            let tasks = items(object.pointer("/spec/tasks"));
            return Some(
                tasks
                    .filter_map(|task| task.get("template").cloned())
                    .collect(),
            );
        }
        ("argoproj.io", "Workflow" | "WorkflowTemplate" | "ClusterWorkflowTemplate") => {
            object.get("spec")
        }
        ("argoproj.io", "CronWorkflow") => object.pointer("/spec/workflowSpec"),
        _ => return None,
    };
    let mut found = Vec::new();
    let defaults = workflow.and_then(|spec| spec.get("templateDefaults"));
    let templates = items(workflow.and_then(|spec| spec.get("templates")));
    templates
        .chain(defaults)
        .for_each(|template| argo_pods(template, &mut found));
    Some(found)
}

/// The pods of one template of a workflow: its own, and those of templates in its steps.
fn argo_pods(template: &Value, found: &mut Vec<Value>) {
    let single = ["container", "script"]
        .into_iter()
        .filter_map(|key| template.get(key));
    let containers: Vec<&Value> = single
        .chain(items(template.get("sidecars")))
        .chain(items(template.pointer("/containerSet/containers")))
        .collect();
    let init: Vec<&Value> = items(template.get("initContainers")).collect();
    if !containers.is_empty() || !init.is_empty() {
        let spec = json!({ "containers": containers, "initContainers": init });
        let metadata = template.get("metadata").cloned().unwrap_or_default();
        found.push(json!({ "metadata": metadata, "spec": spec }));
    }
    let steps = items(template.get("steps")).flat_map(|group| items(Some(group)));
    let tasks = items(template.pointer("/dag/tasks"));
    steps
        .chain(tasks)
        .filter_map(|step| step.get("inline"))
        .for_each(|template| argo_pods(template, found));
}

fn items(list: Option<&Value>) -> impl Iterator<Item = &Value> {
    list.and_then(Value::as_array).into_iter().flatten()
}

/// Kind, name and UID of the controller of an object: its owner reference with `controller: true`.
/// The controller is in the namespace of the object, or is a Node.
pub fn controller_of(object: &Value) -> Option<(&str, &str, &str)> {
    let owners = object.pointer("/metadata/ownerReferences")?.as_array()?;
    let owner = owners
        .iter()
        .find(|owner| owner.get("controller").and_then(Value::as_bool) == Some(true))?;
    let text = |key: &str| owner.get(key).and_then(Value::as_str);
    Some((
        text("kind")?,
        text("name")?,
        text("uid").unwrap_or_default(),
    ))
}

/// Whether more pods or containers may be started from an object, so that its images must be local.
/// `false` if it is being deleted, or is a finished Job or pod. Zero replicas and `suspend: true`
/// do not matter, because both can end without uplink. Existing revisions count, because a rollback
/// could use them; their owners delete those beyond `revisionHistoryLimit`.
pub fn may_start(kind: &str, object: &Value) -> bool {
    if object
        .pointer("/metadata/deletionTimestamp")
        .is_some_and(|time| !time.is_null())
    {
        return false;
    }
    match kind {
        "Pod" => !matches!(
            object.pointer("/status/phase").and_then(Value::as_str),
            Some("Succeeded" | "Failed")
        ),
        "Job" => !condition_is_true(object, &["Complete", "Failed"]),
        _ => true,
    }
}

/// A text field of a raw object; empty where there is none.
pub fn text<'a>(object: &'a Value, pointer: &str) -> &'a str {
    object
        .pointer(pointer)
        .and_then(Value::as_str)
        .unwrap_or_default()
}

/// Whether one of these conditions in the status of an object is `True`.
pub fn condition_is_true(object: &Value, types: &[&str]) -> bool {
    object
        .pointer("/status/conditions")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .any(|condition| {
            let text = |key: &str| condition.get(key).and_then(Value::as_str);
            text("status") == Some("True") && text("type").is_some_and(|it| types.contains(&it))
        })
}

/// The pod that would be created from a template in `namespace`, as in an admission review: with
/// namespace and service account, without name and UID.
pub fn pod_of(template: &Value, namespace: &str) -> Value {
    let object = |value: Option<&Value>| {
        value
            .and_then(Value::as_object)
            .cloned()
            .unwrap_or_default()
    };
    let mut metadata = object(template.get("metadata"));
    metadata.insert("namespace".to_owned(), namespace.into());
    let account = crate::pod::service_account_name(template).to_owned();
    let mut spec = object(template.get("spec"));
    spec.insert("serviceAccountName".to_owned(), account.into());
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec})
}

#[cfg(test)]
#[path = "workload_tests.rs"]
mod tests;
