//! kind's configuration: what users get, plus what this machine needs.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use serde_json::{Value, json};

/// Where the folder that all nodes share lies inside each of them.
pub const SHARED_FOLDER: &str = "/var/holdfast-shared";
/// Where the API server of a cluster finds its audit policy, in the control plane's machine.
const AUDIT_FOLDER: &str = "/var/holdfast-audit";
/// Where it keeps its audit log there.
pub(crate) const AUDIT_LOG_FOLDER: &str = "/var/log/kubernetes/audit";

/// Who asked the API server for what: service accounts but the cluster's own, without contents.
pub(crate) const AUDIT_POLICY: &str = r#"apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules:
- level: None
  userGroups: ["system:serviceaccounts:kube-system", "system:serviceaccounts:local-path-storage"]
- level: Metadata
  userGroups: ["system:serviceaccounts"]
- level: None
"#;

/// The audit log has at most four files (three rotated ones) of 32 MiB.
const AUDIT_FILES: (&str, &str) = ("3", "32");

/// kind's published node image, for engines that can pull it.
pub(crate) const NODE_IMAGE: &str = "kindest/node:v1.37.0@\
    sha256:a1ed56cfb0e7b93589bdf97c8cd566405a265939e3620fc4f5de89adff580ae5";

/// The class of volumes that tests make themselves, where the node image brings none.
pub(crate) const SHARED_CLASS: &str = "{apiVersion: storage.k8s.io/v1, kind: StorageClass, \
    metadata: {name: nexus-shared}, provisioner: kubernetes.io/no-provisioner}";

/// Bit of `CAP_SYS_RESOURCE` in a capability mask.
const SYS_RESOURCE: u32 = 24;

/// The configuration that a cluster is created with.
///
/// `audit` is the folder with the policy.
pub(crate) fn merge(config: &str, shared: &Path, audit: &Path, own_engine: bool) -> Result<Value> {
    let machine = Machine {
        may_raise_limits: !own_engine || may_raise_limits(),
        has_cgroup_v2: Path::new("/sys/fs/cgroup/cgroup.controllers").exists(),
    };
    let value = serde_yaml::from_str(config).context("the kind configuration is no YAML")?;
    let mut merged = merge_for(value, shared, machine)?;
    add_audit(&mut merged, audit);
    Ok(merged)
}

/// Has the API server write an audit log.
fn add_audit(config: &mut Value, folder: &Path) {
    for node in config["nodes"].as_array_mut().into_iter().flatten() {
        if node["role"] == "control-plane" {
            push(
                node,
                "extraMounts",
                json!({"hostPath": folder.display().to_string(), "containerPath": AUDIT_FOLDER}),
            );
        }
    }
    let (files, mib) = AUDIT_FILES;
    let patch = json!({
        "kind": "ClusterConfiguration",
        "apiServer": {
            // kind makes a list of the map where kubeadm wants one.
            "extraArgs": {
                "audit-policy-file": format!("{AUDIT_FOLDER}/policy.yaml"),
                "audit-log-path": format!("{AUDIT_LOG_FOLDER}/audit.log"),
                "audit-log-maxbackup": files,
                "audit-log-maxsize": mib,
            },
            "extraVolumes": [
                {
                    "name": "audit-policy",
                    "hostPath": AUDIT_FOLDER,
                    "mountPath": AUDIT_FOLDER,
                    "readOnly": true,
                    "pathType": "Directory",
                },
                {
                    "name": "audit-log",
                    "hostPath": AUDIT_LOG_FOLDER,
                    "mountPath": AUDIT_LOG_FOLDER,
                    "pathType": "DirectoryOrCreate",
                },
            ],
        },
    });
    push(config, "kubeadmConfigPatches", json!(patch.to_string()));
}

#[derive(Clone, Copy)]
struct Machine {
    may_raise_limits: bool,
    has_cgroup_v2: bool,
}

fn merge_for(mut config: Value, shared: &Path, machine: Machine) -> Result<Value> {
    let nodes = config["nodes"]
        .as_array_mut()
        .context("the kind configuration has no nodes")?;
    for node in nodes {
        push(
            node,
            "extraMounts",
            json!({"hostPath": shared.display().to_string(), "containerPath": SHARED_FOLDER}),
        );
    }
    if !machine.may_raise_limits {
        push(
            &mut config,
            "containerdConfigPatches",
            json!("[plugins.\"io.containerd.grpc.v1.cri\"]\n  restrict_oom_score_adj = true\n"),
        );
    }
    if !machine.has_cgroup_v2 {
        push(
            &mut config,
            "kubeadmConfigPatches",
            json!("kind: KubeletConfiguration\nfailCgroupV1: false\n"),
        );
    }
    Ok(config)
}

fn push(object: &mut Value, list: &str, item: Value) {
    match &mut object[list] {
        Value::Array(items) => items.push(item),
        other => *other = json!([item]),
    }
}

fn may_raise_limits() -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .is_some_and(|mask| mask >> SYS_RESOURCE & 1 == 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_the_machine_lacks_is_patched() {
        let config = json!({"nodes": [{"role": "control-plane"}]});
        let capable = Machine {
            may_raise_limits: true,
            has_cgroup_v2: true,
        };
        let merged = merge_for(config.clone(), Path::new("/shared"), capable).unwrap();
        assert_eq!(merged.get("containerdConfigPatches"), None);
        assert_eq!(merged["nodes"][0]["extraMounts"][0]["hostPath"], "/shared");
        let mut audited = json!({"nodes": [{"role": "control-plane"}, {"role": "worker"}]});
        add_audit(&mut audited, Path::new("/audit"));
        let mount = &audited["nodes"][0]["extraMounts"][0];
        assert_eq!(mount["hostPath"], "/audit");
        assert_eq!(audited["nodes"][1].get("extraMounts"), None);
        let patches = audited["kubeadmConfigPatches"].as_array().unwrap();
        let patch: Value = serde_yaml::from_str(patches[0].as_str().unwrap()).unwrap();
        let volume = &patch["apiServer"]["extraVolumes"][0];
        assert_eq!(volume["hostPath"], mount["containerPath"]);
        let poor = Machine {
            may_raise_limits: false,
            has_cgroup_v2: false,
        };
        let merged = merge_for(config, Path::new("/shared"), poor).unwrap();
        assert_eq!(
            merged["containerdConfigPatches"].as_array().unwrap().len(),
            1
        );
        assert_eq!(merged["kubeadmConfigPatches"].as_array().unwrap().len(), 1);
    }
}
