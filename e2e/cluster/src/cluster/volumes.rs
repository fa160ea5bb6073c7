//! Volumes that all nodes share: a folder of this machine, or a file system of a given size.

use std::fs;
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::Cluster;
use crate::command::run;
use crate::engine::Engine;
use crate::kind::SHARED_FOLDER;

impl Cluster {
    /// Applies a ReadWriteMany volume over the folder that all nodes share, for one claim of
    /// storage class `nexus-shared`. `size` is a quantity such as `10Gi`.
    pub fn create_shared_volume(&self, name: &str, size: &str) -> Result<()> {
        let path = self.shared_folder().join(name);
        fs::create_dir_all(&path)?;
        run(Command::new("chmod").arg("0777").arg(&path))?;
        self.apply_volume(name, size)
    }

    /// As [`Self::create_shared_volume`], with no room for more than `mib` MiB: one ext4 file
    /// system that every node has mounted, until the node ends.
    pub fn create_small_shared_volume(&self, name: &str, size: &str, mib: usize) -> Result<()> {
        if matches!(self.engine, Engine::Existing) {
            bail!("a volume of a given size needs an engine of this cluster's own");
        }
        let file = self.folder.join(format!("{name}.ext4"));
        fs::File::create(&file)?.set_len((mib as u64) << 20)?;
        run(Command::new("mkfs.ext4").args(["-q", "-m", "0"]).arg(&file))
            .context("a file system in a file: is e2fsprogs installed?")?;
        let device = run(Command::new("losetup")
            .args(["--find", "--show"])
            .arg(&file))?;
        let device = device.trim();
        // One device for all: its file system is one and the same wherever it is mounted.
        let mounted = self.mount_everywhere(device, name);
        // It ends with the last node that has it mounted.
        run(Command::new("losetup").args(["--detach", device]))?;
        fs::remove_file(&file)?;
        mounted?;
        self.apply_volume(name, size)
    }

    fn mount_everywhere(&self, device: &str, name: &str) -> Result<()> {
        let path = format!("{SHARED_FOLDER}/{name}");
        let number = device.trim_start_matches("/dev/loop");
        let script = format!(
            "set -e; [ -e {device} ] || mknod {device} b 7 {number}; mkdir -p {path}; \
             mount {device} {path}; chmod 0777 {path}; rm -rf {path}/lost+found"
        );
        for node in self.nodes()? {
            self.node_exec(&node, &["sh", "-c", &script])?;
        }
        Ok(())
    }

    fn apply_volume(&self, name: &str, size: &str) -> Result<()> {
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
        self.kubectl_with_input(&["apply", "--filename=-"], &volume.to_string())?;
        Ok(())
    }
}
