//! What an engine that was killed leaves on the machine: processes, mounts, cgroups.
//!
//! Everything is found by a name that only this engine uses: its cgroup and its run folder.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use crate::command::run;
use crate::process::Process;

/// Ends the processes inside the engine's cgroups, and the shims and the containerd that name its
/// run folder.
pub(super) fn end_processes(cgroup: &str, run_folder: &Path) -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        let mut left = Vec::new();
        for folder in cgroups(cgroup) {
            collect_members(&folder, &mut left);
        }
        collect_helpers(run_folder, &mut left);
        let alive: Vec<Process> = left
            .into_iter()
            .filter_map(Process::of)
            .filter(|process| process.is_alive())
            .collect();
        if alive.is_empty() {
            return Ok(());
        }
        if Instant::now() > deadline {
            bail!("{} processes of a former engine do not end", alive.len());
        }
        for process in alive {
            process.kill();
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// Unmounts everything below the folders, the innermost first.
pub(super) fn unmount(folders: &[&Path]) -> Result<()> {
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    let mut targets: Vec<&str> = mounts
        .lines()
        .filter_map(|line| line.split_whitespace().nth(4))
        .filter(|target| {
            folders
                .iter()
                .any(|folder| Path::new(target).starts_with(folder))
        })
        .collect();
    targets.sort_by_key(|target| std::cmp::Reverse(target.len()));
    for target in targets {
        run(Command::new("umount").args(["--lazy", target]))?;
    }
    Ok(())
}

/// Removes the engine's cgroups; the kernel refuses those in use, which is right.
pub(super) fn remove_cgroups(name: &str) {
    for folder in cgroups(name) {
        remove_cgroup(&folder);
    }
}

fn remove_cgroup(folder: &Path) {
    for child in children(folder) {
        remove_cgroup(&child);
    }
    fs::remove_dir(folder).ok();
}

/// One folder on cgroup v2, one for every controller on v1.
fn cgroups(name: &str) -> Vec<PathBuf> {
    let root = Path::new("/sys/fs/cgroup");
    let mut folders = vec![root.join(name)];
    folders.extend(
        children(root)
            .into_iter()
            .map(|controller| controller.join(name)),
    );
    folders.retain(|folder| folder.is_dir());
    folders
}

fn collect_members(folder: &Path, members: &mut Vec<i32>) {
    let listed = fs::read_to_string(folder.join("cgroup.procs")).unwrap_or_default();
    members.extend(listed.lines().filter_map(|line| line.parse::<i32>().ok()));
    for child in children(folder) {
        collect_members(&child, members);
    }
}

fn collect_helpers(run_folder: &Path, helpers: &mut Vec<i32>) {
    let prefix = format!("{}/", run_folder.display());
    for entry in children(Path::new("/proc")) {
        let id = entry
            .file_name()
            .and_then(|name| name.to_str()?.parse::<i32>().ok());
        let Some(id) = id else { continue };
        let line = fs::read(entry.join("cmdline")).unwrap_or_default();
        let mut arguments = line
            .split(|byte| *byte == 0)
            .map(|part| String::from_utf8_lossy(part).into_owned());
        let program = arguments.next().unwrap_or_default();
        let is_helper = ["containerd", "containerd-shim-runc-v2", "dockerd"]
            .iter()
            .any(|name| {
                Path::new(&program)
                    .file_name()
                    .is_some_and(|file| file == *name)
            });
        if is_helper && arguments.any(|argument| argument.starts_with(&prefix)) {
            helpers.push(id);
        }
    }
}

fn children(folder: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(folder) else {
        return Vec::new();
    };
    entries
        .filter_map(|entry| entry.ok().map(|entry| entry.path()))
        .filter(|path| path.is_dir() && !path.is_symlink())
        .collect()
}
