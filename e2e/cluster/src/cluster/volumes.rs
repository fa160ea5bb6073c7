//! Volumes that all nodes share: a folder of this machine, or a file system of a given size.

use std::fs;
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::Cluster;
use crate::command::run;
use crate::engine::Engine;
use crate::kind::SHARED_FOLDER;

/// A ReadWriteMany volume of all nodes, for one claim of storage class `nexus-shared`.
#[derive(Clone, Copy, Debug)]
pub struct SharedVolume<'a> {
    /// The cluster.
    pub cluster: &'a Cluster,
    /// The volume's name.
    pub name: &'a str,
    /// Its declared capacity, a quantity such as `10Gi`.
    pub size: &'a str,
}

impl SharedVolume<'_> {
    /// Applies the volume over the folder that all nodes share.
    pub fn create(&self) -> Result<()> {
        let path = self.cluster.shared_folder().join(self.name);
        fs::create_dir_all(&path)?;
        run(Command::new("chmod").arg("0777").arg(&path))?;
        self.apply()
    }

    /// Applies the volume with no room for more than `mib` MiB: one ext4 file system that every
    /// node has mounted, until the node ends.
    pub fn create_small(&self, mib: usize) -> Result<()> {
        let (cluster, name) = (self.cluster, self.name);
        if matches!(cluster.engine, Engine::Existing) {
            bail!("a volume of a given size needs an engine of this cluster's own");
        }
        let file = cluster.folder.join(format!("{name}.ext4"));
        fs::File::create(&file)?.set_len((mib as u64) << 20)?;
        run(Command::new("mkfs.ext4").args(["-q", "-m", "0"]).arg(&file))
            .context("a file system in a file: is e2fsprogs installed?")?;
        let device = run(Command::new("losetup")
            .args(["--find", "--show"])
            .arg(&file))?;
        let device = device.trim();
        // One device for all: its file system is one and the same wherever it is mounted.
        let mounted = self.mount_everywhere(device);
        // It ends with the last node that has it mounted.
        run(Command::new("losetup").args(["--detach", device]))?;
        fs::remove_file(&file)?;
        mounted?;
        self.apply()
    }

    fn mount_everywhere(&self, device: &str) -> Result<()> {
        let path = format!("{SHARED_FOLDER}/{}", self.name);
        let number = device.trim_start_matches("/dev/loop");
        let script = format!(
            "set -e; [ -e {device} ] || mknod {device} b 7 {number}; mkdir -p {path}; \
             mount {device} {path}; chmod 0777 {path}; rm -rf {path}/lost+found"
        );
        for node in self.cluster.nodes()? {
            self.cluster.node_exec(&node, &["sh", "-c", &script])?;
        }
        Ok(())
    }

    fn apply(&self) -> Result<()> {
        let (name, size) = (self.name, self.size);
        let volume = serde_json::json!({
            "apiVersion": "v1",
            "kind": "PersistentVolume",
            "metadata": {"name": name},
            "spec": {
                "capacity": {"storage": size},
                "accessModes": ["ReadWriteMany", "ReadWriteOnce"],
                "persistentVolumeReclaimPolicy": "Retain",
                "storageClassName": "nexus-shared",
                "hostPath": {"path": format!("{SHARED_FOLDER}/{name}"), "type": "Directory"},
            },
        });
        self.cluster
            .kubectl_with_input(&["apply", "--filename=-"], &volume.to_string())?;
        Ok(())
    }
}
