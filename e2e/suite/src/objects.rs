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

    /// A Deployment of this pod.
    pub(crate) fn deployment(&self, namespace: &str, replicas: u32) -> Value {
        json!({
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": {"name": self.name, "namespace": namespace},
            "spec": {
                "replicas": replicas,
                "selector": {"matchLabels": {"app": self.name}},
                "template": {"metadata": {"labels": self.labels}, "spec": self.spec},
            },
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

/// Tolerations that let a pod leave a dead node after `seconds`.
pub(crate) fn leave_after(seconds: u32) -> Value {
    let toleration = |key: &str| json!({"key": format!("node.kubernetes.io/{key}"), "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": seconds});
    json!([toleration("not-ready"), toleration("unreachable")])
}
