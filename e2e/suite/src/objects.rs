//! Builders of the objects that tests create.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

/// A pod under construction.
#[derive(Clone)]
pub(crate) struct Pod {
    name: String,
    labels: Value,
    spec: Value,
}

impl Pod {
    /// A pod with one container `app` that sleeps.
    pub(crate) fn new(name: &str, image: &str) -> Self {
        Self {
            name: name.to_owned(),
            labels: json!({"app": name}),
            spec: json!({
                "terminationGracePeriodSeconds": 1,
                "automountServiceAccountToken": false,
                "containers": [container("app", image, &["-sleep"])],
            }),
        }
    }

    /// Replaces the arguments of the container.
    pub(crate) fn arguments(mut self, arguments: &[&str]) -> Self {
        self.spec["containers"][0]["args"] = json!(arguments);
        self
    }

    /// Adds an init container that ends at once.
    pub(crate) fn init(mut self, image: &str) -> Self {
        self.spec["initContainers"] = json!([container("prepare", image, &["-once"])]);
        self
    }

    /// Mounts an image as volume at `/data`.
    pub(crate) fn image_volume(mut self, reference: &str) -> Self {
        self.spec["volumes"] = json!([{"name": "data", "image": {"reference": reference, "pullPolicy": "IfNotPresent"}}]);
        self.spec["containers"][0]["volumeMounts"] =
            json!([{"name": "data", "mountPath": "/data", "readOnly": true}]);
        self
    }

    /// Has the image of the volume asked for at every start.
    pub(crate) fn volume_always(mut self) -> Self {
        self.spec["volumes"][0]["image"]["pullPolicy"] = json!("Always");
        self
    }

    /// Adds an init container that stays (a sidecar).
    pub(crate) fn sidecar(mut self, image: &str) -> Self {
        let mut sidecar = container("sidecar", image, &["-sleep"]);
        sidecar["restartPolicy"] = json!("Always");
        self.spec["initContainers"] = json!([sidecar]);
        self
    }

    /// Adds a second container `other`.
    pub(crate) fn and(mut self, image: &str) -> Self {
        if let Some(containers) = self.spec["containers"].as_array_mut() {
            containers.push(container("other", image, &["-sleep"]));
        }
        self
    }

    /// Names the service account.
    pub(crate) fn account(self, name: &str) -> Self {
        self.set("serviceAccountName", json!(name))
    }

    /// Names pull secrets.
    pub(crate) fn pull_secrets(mut self, names: &[&str]) -> Self {
        self.spec["imagePullSecrets"] = names.iter().map(|name| json!({"name": name})).collect();
        self
    }

    /// Binds to a node by its host name.
    pub(crate) fn on(mut self, node: &str) -> Self {
        self.spec["nodeSelector"] = json!({"kubernetes.io/hostname": node});
        self
    }

    /// Always asks the registry.
    pub(crate) fn always(mut self) -> Self {
        self.spec["containers"][0]["imagePullPolicy"] = json!("Always");
        self
    }

    /// Sets a field of the pod's spec.
    pub(crate) fn set(mut self, field: &str, value: Value) -> Self {
        self.spec[field] = value;
        self
    }

    /// Adds a label.
    pub(crate) fn label(mut self, key: &str, value: &str) -> Self {
        self.labels[key] = json!(value);
        self
    }

    /// Runs to its end once.
    pub(crate) fn once(self) -> Self {
        self.arguments(&["-once"])
            .set("restartPolicy", json!("Never"))
    }

    /// The pod in a namespace.
    pub(crate) fn build(&self, namespace: &str) -> Value {
        json!({
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": self.name, "namespace": namespace, "labels": self.labels},
            "spec": self.spec,
        })
    }

    /// The template of this pod, for what makes pods of it.
    pub(crate) fn template(&self) -> Value {
        json!({"metadata": {"labels": self.labels}, "spec": self.spec})
    }

    /// A Deployment of this pod.
    pub(crate) fn deployment(&self, namespace: &str, replicas: u32) -> Value {
        self.apps("Deployment", namespace, json!({"replicas": replicas}))
    }

    /// A `ReplicaSet` of this pod.
    pub(crate) fn replica_set(&self, namespace: &str, replicas: u32) -> Value {
        self.apps("ReplicaSet", namespace, json!({"replicas": replicas}))
    }

    /// A `StatefulSet` of this pod.
    pub(crate) fn stateful_set(&self, namespace: &str, replicas: u32) -> Value {
        let spec = json!({"replicas": replicas, "serviceName": self.name, "podManagementPolicy": "Parallel"});
        self.apps("StatefulSet", namespace, spec)
    }

    /// A `DaemonSet` of this pod.
    pub(crate) fn daemon_set(&self, namespace: &str) -> Value {
        self.apps("DaemonSet", namespace, json!({}))
    }

    /// A `ReplicationController` of this pod.
    pub(crate) fn replication_controller(&self, namespace: &str, replicas: u32) -> Value {
        let spec = json!({"replicas": replicas, "selector": {"app": self.name}, "template": self.template()});
        self.owner("v1", "ReplicationController", namespace, spec)
    }

    /// A Job of this pod; its containers are started again where they end early.
    pub(crate) fn job(&self, namespace: &str, suspend: bool) -> Value {
        let spec = json!({"suspend": suspend, "template": self.clone().retried().template()});
        self.owner("batch/v1", "Job", namespace, spec)
    }

    /// A `CronJob` of this pod.
    pub(crate) fn cron_job(&self, namespace: &str, schedule: &str, suspend: bool) -> Value {
        let template = self.clone().retried().template();
        let spec = json!({"schedule": schedule, "suspend": suspend, "jobTemplate": {"spec": {"template": template}}});
        self.owner("batch/v1", "CronJob", namespace, spec)
    }

    fn retried(self) -> Self {
        self.set("restartPolicy", json!("OnFailure"))
    }

    fn apps(&self, kind: &str, namespace: &str, mut spec: Value) -> Value {
        spec["selector"] = json!({"matchLabels": {"app": self.name}});
        spec["template"] = self.template();
        self.owner("apps/v1", kind, namespace, spec)
    }

    fn owner(&self, version: &str, kind: &str, namespace: &str, spec: Value) -> Value {
        json!({
            "apiVersion": version,
            "kind": kind,
            "metadata": {"name": self.name, "namespace": namespace},
            "spec": spec,
        })
    }
}

fn container(name: &str, image: &str, arguments: &[&str]) -> Value {
    json!({"name": name, "image": image, "imagePullPolicy": "IfNotPresent", "args": arguments})
}

/// A namespace with labels.
pub(crate) fn namespace(name: &str, labels: &Value) -> Value {
    json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}})
}

/// A pull secret for one registry host.
pub(crate) fn pull_secret(
    namespace: &str,
    name: &str,
    host: &str,
    user: &str,
    password: &str,
) -> Value {
    let auth = STANDARD.encode(format!("{user}:{password}"));
    let config = json!({"auths": {host: {"username": user, "password": password, "auth": auth}}});
    json!({
        "apiVersion": "v1",
        "kind": "Secret",
        "type": "kubernetes.io/dockerconfigjson",
        "metadata": {"name": name, "namespace": namespace},
        "data": {".dockerconfigjson": STANDARD.encode(config.to_string())},
    })
}

/// A service account that brings pull secrets of its own.
pub(crate) fn service_account(namespace: &str, name: &str, secrets: &[&str]) -> Value {
    let secrets: Vec<_> = secrets.iter().map(|name| json!({"name": name})).collect();
    json!({
        "apiVersion": "v1",
        "kind": "ServiceAccount",
        "metadata": {"name": name, "namespace": namespace},
        "imagePullSecrets": secrets,
    })
}

/// Tolerations that let a pod leave a dead node after `seconds`.
pub(crate) fn leave_after(seconds: u32) -> Value {
    let toleration = |key: &str| json!({"key": format!("node.kubernetes.io/{key}"), "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": seconds});
    json!([toleration("not-ready"), toleration("unreachable")])
}
