//! Restricted Pod Security, but for what is listed here with its reason.

use serde_json::{Value, json};

use crate::helm::{Render, scenarios};

/// Workload, rule and why it cannot be kept.
const EXCEPTIONS: &[(&str, &str, &str)] = &[
    (
        "node-agent",
        "volumes",
        "writes the runtime's host configuration and talks to the runtime: two host paths",
    ),
    (
        "node-agent",
        "runAsNonRoot",
        "that configuration belongs to root on the host",
    ),
];

/// The rules of the restricted profile that a pod breaks.
fn broken(pod: &Value) -> Vec<&'static str> {
    let mut broken = Vec::new();
    let mut hold = |rule: &'static str, holds: bool| {
        if !holds && !broken.contains(&rule) {
            broken.push(rule);
        }
    };
    let spec = &pod["spec"];
    let on_pod = &spec["securityContext"];
    for field in ["hostNetwork", "hostPID", "hostIPC"] {
        hold(
            "hostNamespaces",
            spec.get(field).is_none_or(|value| value == false),
        );
    }
    let allowed = [
        "configMap",
        "secret",
        "persistentVolumeClaim",
        "emptyDir",
        "projected",
        "downwardAPI",
        "csi",
        "ephemeral",
    ];
    for volume in spec["volumes"].as_array().into_iter().flatten() {
        let kinds = volume
            .as_object()
            .unwrap()
            .keys()
            .filter(|key| *key != "name");
        kinds.for_each(|kind| hold("volumes", allowed.contains(&kind.as_str())));
    }
    hold(
        "seccompProfile",
        on_pod["seccompProfile"]["type"] == "RuntimeDefault",
    );
    for container in spec["containers"].as_array().unwrap() {
        let own = &container["securityContext"];
        hold(
            "runAsNonRoot",
            on_pod["runAsNonRoot"] == true && on_pod["runAsUser"] != 0,
        );
        hold(
            "allowPrivilegeEscalation",
            own["allowPrivilegeEscalation"] == false,
        );
        hold("privileged", own.get("privileged").is_none());
        hold(
            "capabilities",
            own["capabilities"] == json!({ "drop": ["ALL"] }),
        );
        hold(
            "hostPorts",
            container["ports"]
                .as_array()
                .into_iter()
                .flatten()
                .all(|port| port.get("hostPort").is_none()),
        );
        // Not of the profile, but of the house.
        hold(
            "readOnlyRootFilesystem",
            own["readOnlyRootFilesystem"] == true,
        );
    }
    broken
}

// SPEC 34
#[test]
fn every_pod_is_restricted_but_for_the_listed_exceptions() {
    for (scenario, values) in scenarios() {
        for document in crate::helm::render(&values).unwrap() {
            let Some(pod) = document.pointer("/spec/template") else {
                continue;
            };
            let component = document
                .pointer("/metadata/labels/app.kubernetes.io~1component")
                .and_then(Value::as_str)
                .unwrap();
            let allowed: Vec<&str> = EXCEPTIONS
                .iter()
                .filter(|(part, _, _)| *part == component)
                .map(|(_, rule, _)| *rule)
                .collect();
            assert_eq!(broken(pod), allowed, "{scenario}: {component}");
        }
    }
}

#[test]
fn the_node_agent_writes_to_one_folder_of_the_host_and_reads_three() {
    let render = Render::scenario("ha");
    let pod = &render.get("DaemonSet", "node-agent")["spec"]["template"]["spec"];
    let host: Vec<&str> = pod["volumes"]
        .as_array()
        .unwrap()
        .iter()
        .filter_map(|volume| volume["hostPath"]["path"].as_str())
        .collect();
    assert_eq!(
        host,
        [
            "/etc/containerd",
            "/etc/containerd/certs.d",
            "/run/containerd",
            "/var/lib/kubelet/image_manager"
        ]
    );
    let mounts = pod["containers"][0]["volumeMounts"].as_array().unwrap();
    let writable: Vec<&str> = mounts
        .iter()
        .filter(|mount| mount.get("readOnly").is_none())
        .filter_map(|mount| mount["mountPath"].as_str())
        .collect();
    assert_eq!(writable, ["/host/certs.d"]);
    let folder = |mount: &&Value| mount["mountPath"].as_str().unwrap().starts_with("/host/");
    for mount in mounts.iter().filter(folder) {
        let expected = (mount["mountPath"] != "/host/certs.d").then_some("IfPossible");
        assert_eq!(mount["recursiveReadOnly"].as_str(), expected);
    }
    let everything = crate::helm::render(&scenarios()["everything"]).unwrap();
    let agent = everything
        .iter()
        .find(|document| document["kind"] == "DaemonSet");
    let volumes = &agent.unwrap()["spec"]["template"]["spec"]["volumes"];
    let hosts = volumes
        .as_array()
        .unwrap()
        .iter()
        .find(|volume| volume["name"] == "registry-hosts");
    assert_eq!(
        hosts.unwrap()["hostPath"]["path"],
        "/var/lib/rancher/k3s/agent/etc/containerd/certs.d",
        "the value names it"
    );
}

#[test]
fn own_pods_are_never_rewritten() {
    for (name, pod) in Render::scenario("ha").pods() {
        assert_eq!(
            pod["metadata"]["labels"]["holdfast.dev/rewrite"], "disabled",
            "{name}"
        );
    }
}

#[test]
fn secrets_are_required_and_the_key_of_the_authority_is_mounted_nowhere() {
    for scenario in ["ha", "upstreams"] {
        for (name, pod) in Render::scenario(scenario).pods() {
            for volume in pod["spec"]["volumes"].as_array().into_iter().flatten() {
                let secret = &volume["secret"];
                // Without its certificate an agent sends no reports. Its node must be prepared all
                // the same, so its pod does not wait for the Secret.
                let may_be_missing = secret["secretName"] == "edge-holdfast-node-agent-tls";
                let optional = may_be_missing.then_some(&Value::Bool(true));
                assert_eq!(secret.get("optional"), optional, "{name}");
                assert_ne!(secret["secretName"], "edge-holdfast-ca", "{name}");
            }
        }
    }
}

#[test]
fn each_secret_with_credentials_for_an_upstream_is_mounted_once() {
    let render = Render::scenario("upstreams");
    let container =
        &render.get("Deployment", "registry")["spec"]["template"]["spec"]["containers"][0];
    let mounts = container["volumeMounts"].as_array().unwrap();
    let paths: Vec<&str> = mounts
        .iter()
        .filter_map(|mount| mount["mountPath"].as_str())
        .filter(|path| path.contains("upstreams"))
        .collect();
    assert_eq!(paths, ["/etc/holdfast/upstreams/registry-example"]);
}
