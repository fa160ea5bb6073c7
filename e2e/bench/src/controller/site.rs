//! A large site, as objects: what stands in the cluster before Holdfast comes, and what a kubelet
//! would say of it. Pure.

use serde_json::{Value, json};

/// The upstream that all images are of.
pub(super) const HOST: &str = "registry.example";
/// Namespaces of workloads.
const NAMESPACES: usize = 10;
/// Nodes; none of them is real.
pub(super) const NODES: usize = 50;

/// How large.
#[derive(Clone, Copy)]
pub(super) struct Site {
    /// Pods.
    pub(super) pods: usize,
    /// Images; each is a Deployment's with one ReplicaSet.
    pub(super) images: usize,
}

/// A pod's place in the site; `age` counts how often it was replaced.
#[derive(Clone, Copy)]
pub(super) struct Place {
    /// Its number.
    pub(super) number: usize,
    /// How often its place was filled before.
    pub(super) age: usize,
}

/// A namespace.
pub(super) fn namespace(image: usize) -> String {
    format!("apps-{}", image % NAMESPACES)
}

/// The repository of an image.
pub(super) fn repository(image: usize) -> String {
    format!("team/app-{image}")
}

/// The reference that people write.
pub(super) fn source(image: usize) -> String {
    format!("{HOST}/{}:1", repository(image))
}

/// Namespaces with the service account that Kubernetes makes in each: path and object.
pub(super) fn namespaces() -> Vec<(String, Value)> {
    (0..NAMESPACES)
        .flat_map(|number| {
            let name = namespace(number);
            [
                (
                    "/api/v1/namespaces".to_owned(),
                    json!({"metadata": {"name": name}}),
                ),
                (
                    format!("/api/v1/namespaces/{name}/serviceaccounts"),
                    json!({"metadata": {"name": "default"}}),
                ),
            ]
        })
        .collect()
}

/// A Ready node.
pub(super) fn node(number: usize) -> Value {
    json!({
        "metadata": {"name": format!("node-{number}"), "labels": {"kubernetes.io/os": "linux", "kubernetes.io/arch": "amd64"}},
        "status": {
            "conditions": [{"type": "Ready", "status": "True", "reason": "KubeletReady", "message": ""}],
            "nodeInfo": {
                "architecture": "amd64", "operatingSystem": "linux", "bootID": "", "containerRuntimeVersion": "", "kernelVersion": "",
                "kubeProxyVersion": "", "kubeletVersion": "", "machineID": "", "osImage": "", "systemUUID": "",
            },
        },
    })
}

/// The reference as it stands in a pod: people's, or with the registry's `address` the webhook's.
pub(super) fn reference(image: usize, address: Option<&str>) -> String {
    let source = source(image);
    address.map_or_else(|| source.clone(), |address| format!("{address}/{source}"))
}

impl Site {
    /// Pods of an image.
    pub(super) const fn replicas(self, image: usize) -> usize {
        self.pods / self.images + (image < self.pods % self.images) as usize
    }

    /// The image of a pod.
    pub(super) const fn image(self, place: Place) -> usize {
        place.number % self.images
    }

    /// Where the pods of a pod's namespace are.
    pub(super) fn pods_path(self, place: Place) -> String {
        let namespace = namespace(self.image(place));
        format!("/api/v1/namespaces/{namespace}/pods")
    }

    /// A pod's name.
    pub(super) fn pod_name(self, place: Place) -> String {
        let Place { number, age } = place;
        format!("app-{}-{}-{age}", self.image(place), number / self.images)
    }

    /// A pod below its ReplicaSet. With the registry's `address`, as the webhook would have made
    /// it.
    pub(super) fn pod(self, place: Place, replica_set: &str, address: Option<&str>) -> Value {
        let image = self.image(place);
        let mut spec = spec(image);
        spec["nodeName"] = json!(format!("node-{}", place.number % NODES));
        let mut metadata = json!({
            "name": self.pod_name(place),
            "labels": {"app": app(image)},
            "ownerReferences": [{
                "apiVersion": "apps/v1", "kind": "ReplicaSet", "name": set(image), "uid": replica_set, "controller": true,
                "blockOwnerDeletion": true,
            }],
        });
        spec["containers"][0]["image"] = json!(reference(image, address));
        if address.is_some() {
            let originals = json!({"containers/app": source(image)}).to_string();
            metadata["annotations"] = json!({"holdfast.dev/original-images": originals});
        }
        json!({"metadata": metadata, "spec": spec})
    }
}

/// The name of an image's Deployment.
pub(super) fn app(image: usize) -> String {
    format!("app-{image}")
}

/// The name of an image's ReplicaSet.
pub(super) fn set(image: usize) -> String {
    format!("app-{image}-1")
}

/// The specification of a pod, about as large as those of real workloads.
fn spec(image: usize) -> Value {
    let settings =
        (0..20).map(|number| json!({"name": format!("SETTING_{number}"), "value": "x".repeat(60)}));
    json!({"containers": [{
        "name": "app",
        "image": source(image),
        "env": settings.collect::<Vec<_>>(),
        "ports": [{"containerPort": 8080}],
        "readinessProbe": {"httpGet": {"path": "/ready", "port": 8080}},
        "resources": {"requests": {"cpu": "10m", "memory": "32Mi"}},
    }]})
}

fn workload(image: usize, replicas: usize) -> Value {
    let labels = json!({"app": app(image)});
    json!({
        "replicas": replicas,
        "selector": {"matchLabels": labels},
        "template": {"metadata": {"labels": labels}, "spec": spec(image)},
    })
}

/// An image's Deployment.
pub(super) fn deployment(image: usize, replicas: usize) -> Value {
    json!({"metadata": {"name": app(image)}, "spec": workload(image, replicas)})
}

/// The Deployment's ReplicaSet.
pub(super) fn replica_set(image: usize, replicas: usize, deployment: &str) -> Value {
    let above = json!({"apiVersion": "apps/v1", "kind": "Deployment", "name": app(image), "uid": deployment, "controller": true});
    json!({
        "metadata": {"name": set(image), "ownerReferences": [above]},
        "spec": workload(image, replicas),
    })
}

/// What a kubelet says of a pod that runs.
pub(super) fn running(container: &str, image: &str) -> Value {
    let at = "2026-01-01T00:00:00Z";
    let conditions = ["PodScheduled", "Initialized", "ContainersReady", "Ready"]
        .map(|kind| json!({"type": kind, "status": "True", "lastTransitionTime": at}));
    json!({"status": {
        "phase": "Running", "startTime": at, "podIP": "10.244.1.1", "hostIP": "10.0.0.1", "conditions": conditions,
        "containerStatuses": [{
            "name": container, "image": image, "imageID": "", "ready": true, "started": true, "restartCount": 0,
            "state": {"running": {"startedAt": at}},
        }],
    }})
}

/// What the ReplicaSet's controller says while one of its pods is replaced, and after.
pub(super) fn ready(replicas: usize, ready: usize) -> Value {
    json!({"status": {"replicas": replicas, "fullyLabeledReplicas": replicas, "readyReplicas": ready, "availableReplicas": ready}})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_replaced_pod_has_another_name_and_the_image_of_its_place() {
        let site = Site {
            pods: 18,
            images: 4,
        };
        let mut names = std::collections::BTreeSet::new();
        for number in 0..site.pods {
            for age in 0..2 {
                let place = Place { number, age };
                assert_eq!(site.image(place), number % 4);
                names.insert((site.pods_path(place), site.pod_name(place)));
            }
        }
        assert_eq!(names.len(), 36);
        assert_eq!((0..4).map(|image| site.replicas(image)).sum::<usize>(), 18);
    }

    #[test]
    fn a_pod_of_the_webhook_names_the_registry_and_remembers_its_source() {
        let site = Site { pods: 2, images: 2 };
        let place = Place { number: 1, age: 0 };
        let pod = site.pod(place, "uid", Some("10.96.0.50"));
        assert_eq!(
            pod["spec"]["containers"][0]["image"],
            "10.96.0.50/registry.example/team/app-1:1"
        );
        assert_eq!(
            pod["metadata"]["annotations"]["holdfast.dev/original-images"],
            r#"{"containers/app":"registry.example/team/app-1:1"}"#
        );
    }
}
