//! A small ext4 volume of its own in a file, and the filler that takes all its space.

use std::{
    fs::{self, File},
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, bail};
use tempfile::TempDir;

/// A mounted volume in a folder of its own; dropping it unmounts it and removes the folder.
#[derive(Debug)]
pub(crate) struct Volume {
    image: PathBuf,
    mount: PathBuf,
    _folder: TempDir,
}

impl Volume {
    /// Makes and mounts a volume in `folder`.
    ///
    /// # Errors
    /// When this machine cannot: not root, no loop devices, no mkfs.ext4.
    pub(crate) fn mount(folder: TempDir, megabytes: u64) -> anyhow::Result<Self> {
        let volume = Self {
            image: folder.path().join("volume.img"),
            mount: folder.path().join("volume"),
            _folder: folder,
        };
        File::create(&volume.image)
            .and_then(|file| file.set_len(megabytes << 20))
            .with_context(|| format!("make {}", volume.image.display()))?;
        fs::create_dir_all(&volume.mount)?;
        run(Command::new("mkfs.ext4")
            .args(["-q", "-F", "-m", "0", "-N", "65536"])
            .arg(&volume.image))?;
        run(Command::new("mount")
            .args(["-o", "loop"])
            .arg(&volume.image)
            .arg(&volume.mount))
        .context("this machine has no loop mounts: run as root, with the module `loop`, outside of an unprivileged container")?;
        Ok(volume)
    }

    /// Where it is mounted.
    pub(crate) fn path(&self) -> &Path {
        &self.mount
    }

    /// Free bytes.
    pub(crate) fn free(&self) -> u64 {
        rustix::fs::statvfs(&self.mount).map_or(0, |stat| stat.f_bavail * stat.f_frsize)
    }

    /// Fills the volume up to about `leave` bytes.
    pub(crate) fn fill(&self, leave: u64) -> std::io::Result<()> {
        let file = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(self.mount.join("filler"))?;
        let mut at = file.metadata()?.len();
        let block = vec![0xA5; 1 << 20];
        loop {
            let free = self.free();
            if free <= leave {
                return Ok(());
            }
            let want = usize::try_from((free - leave).min(block.len() as u64)).unwrap_or(0);
            match file.write_at(&block[..want.max(1)], at) {
                Ok(written) => at += written as u64,
                Err(error) if error.kind() == std::io::ErrorKind::StorageFull => return Ok(()),
                Err(error) => return Err(error),
            }
        }
    }

    /// Gives the room back.
    pub(crate) fn clear(&self) {
        drop(fs::remove_file(self.mount.join("filler")));
    }
}

impl Drop for Volume {
    fn drop(&mut self) {
        // A process that has just ended may hold the mount for a moment.
        for _ in 0..50 {
            let mounted = Command::new("mountpoint")
                .arg("-q")
                .arg(&self.mount)
                .status();
            if !mounted.is_ok_and(|status| status.success())
                || run(Command::new("umount").arg(&self.mount)).is_ok()
            {
                break;
            }
            std::thread::sleep(std::time::Duration::from_millis(100));
        }
    }
}

fn run(command: &mut Command) -> anyhow::Result<()> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command
        .output()
        .with_context(|| format!("cannot start {name}"))?;
    if !output.status.success() {
        bail!(
            "{name} failed: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    Ok(())
}
