//! The image of a kind node, made from Debian packages and programs built from Go modules.
//!
//! It follows what kind's own base image and `kind build node-image` do, with the files of kind's
//! module. The result is a folder in the cache that any engine can import.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use crate::cache::{self, Lock};
use crate::command::{run, succeeds};
use crate::process::Process;
use crate::programs::{self, KUBERNETES_VERSION, Program, Programs};
use crate::progress::Step;

mod images;

const PACKAGES: &str = "systemd,systemd-sysv,dbus,libpam-systemd,conntrack,iptables,nftables,\
    iproute2,ethtool,util-linux,mount,kmod,libseccomp2,pigz,e2fsprogs,bash,ca-certificates,curl,\
    jq,procps,socat,findutils,iputils-ping";

/// Raise it when the way a node image is made changes.
const RECIPE: &str = "3";

/// Forwarding is on before the runtime makes a pod. The network plug-ins switch it on too, several
/// at once when a node boots, and Linux can lose such a race: `ip_forward` then reads 1 while every
/// interface still says 0, and all packets of the node's pods vanish. (A write that finds the
/// network lock taken puts the old value back and tries again; one that comes in between sees
/// nothing to change.) Nodes inherit the machine's setting, so only a machine without forwarding
/// meets this.
const FORWARDING: &str = "net.ipv4.ip_forward=1\n";

/// Programs and where they lie in a node.
const PROGRAMS: &[(Program, &str)] = &[
    (Program::Kubelet, "usr/bin/kubelet"),
    (Program::Kubeadm, "usr/bin/kubeadm"),
    (Program::Kubectl, "usr/bin/kubectl"),
    (Program::Containerd, "usr/local/bin/containerd"),
    (
        Program::ContainerdShim,
        "usr/local/bin/containerd-shim-runc-v2",
    ),
    (Program::Ctr, "usr/local/bin/ctr"),
    (Program::Crictl, "usr/local/bin/crictl"),
    (Program::Runc, "usr/local/sbin/runc"),
    (Program::CniPtp, "opt/cni/bin/ptp"),
    (Program::CniBridge, "opt/cni/bin/bridge"),
    (Program::CniLoopback, "opt/cni/bin/loopback"),
    (Program::CniHostLocal, "opt/cni/bin/host-local"),
    (Program::CniPortmap, "opt/cni/bin/portmap"),
];

/// A node's root file system.
#[derive(Clone, Debug)]
pub(crate) struct NodeImage {
    /// Where it lies.
    pub(crate) root: PathBuf,
    /// What engines call it; changes with its content.
    pub(crate) tag: String,
}

/// Makes the node image unless the cache has it.
pub(crate) fn ensure() -> Result<NodeImage> {
    let _lock = Lock::take("node-image")?;
    let mut wanted: Vec<Program> = PROGRAMS.iter().map(|(program, _)| *program).collect();
    wanted.extend(images::PROGRAMS);
    // The one waits for packages to come, the other for the compiler.
    let (programs, system) = std::thread::scope(|scope| {
        let system = scope.spawn(minimal_system);
        let programs = programs::ensure(&wanted);
        let system = system
            .join()
            .unwrap_or_else(|_| bail!("making the nodes' Debian panicked"));
        (programs, system)
    });
    let (programs, system) = (programs?, system?);
    let paths: Vec<String> = wanted
        .iter()
        .map(|program| Ok(programs.path(*program)?.display().to_string()))
        .collect::<Result<_>>()?;
    let contents = [RECIPE, PACKAGES, images::NETWORK, images::STORAGE].into_iter();
    let key = cache::key(contents.chain(paths.iter().map(String::as_str)));
    let folder = cache::directory()?.join("node-images");
    let root = folder.join(&key);
    let image = NodeImage {
        root: root.clone(),
        tag: format!("holdfast.test/node:{key}"),
    };
    if root.is_dir() {
        return Ok(image);
    }
    let draft = folder.join(format!("{key}.draft"));
    if draft.exists() {
        fs::remove_dir_all(&draft).context("cannot remove a draft left by a killed run")?;
    }
    fs::create_dir_all(&draft)?;
    run(Command::new("tar")
        .arg("-C")
        .arg(&draft)
        .arg("-xpf")
        .arg(&system))?;
    let step = Step::start("making the node image");
    step.note("kind's files");
    install_kind_files(&draft)?;
    step.note("programs");
    install_programs(&draft, &programs)?;
    step.note("control plane images");
    import_images(&draft, &programs)?;
    fs::rename(&draft, &root)?;
    Ok(image)
}

/// The archive of a Debian with what every node has, made unless the cache has it.
fn minimal_system() -> Result<PathBuf> {
    let release = fs::read_to_string("/etc/os-release").context("not a Debian system")?;
    let suite = release
        .lines()
        .find_map(|line| line.strip_prefix("VERSION_CODENAME="))
        .context("/etc/os-release names no Debian release")?
        .trim_matches('"')
        .to_owned();
    let archive = cache::directory()?.join(format!(
        "root-{suite}-{}.tar",
        cache::key([PACKAGES, suite.as_str()])
    ));
    if !archive.is_file() {
        let _step = Step::start("installing a minimal Debian for the nodes");
        let draft = archive.with_extension("draft.tar");
        let mut command = Command::new("mmdebstrap");
        command
            .args(["--mode=root", "--variant=minbase", "--format=tar"])
            .arg(format!("--include={PACKAGES}"))
            .arg(&suite)
            .arg(&draft);
        // The machine's own mirrors are the ones that it can reach.
        let sources = [
            "/etc/apt/sources.list.d/debian.sources",
            "/etc/apt/sources.list",
        ];
        command.args(sources.into_iter().filter(|path| Path::new(path).is_file()));
        run(&mut command)?;
        fs::rename(&draft, &archive)?;
    }
    Ok(archive)
}

fn install_kind_files(root: &Path) -> Result<()> {
    // Nothing else may have needed the module yet.
    let module = run(Command::new("go")
        .current_dir(cache::repository().join("e2e/programs/kind"))
        .env("GOFLAGS", "-mod=mod")
        .args(["mod", "download", "-json", "sigs.k8s.io/kind"]))?;
    let module: Value =
        serde_json::from_str(&module).context("go says nothing of kind's module")?;
    let folder = module["Dir"]
        .as_str()
        .context("go has no folder of kind's module")?;
    let files = Path::new(folder).join("images/base/files");
    copy_files(&files, root)?;
    for folder in [
        "etc/systemd/system/multi-user.target.wants",
        "lib/systemd/system/multi-user.target.wants",
        "lib/systemd/system/local-fs.target.wants",
    ] {
        remove_entries(&root.join(folder), "")?;
    }
    for (folder, part) in [
        ("lib/systemd/system/sockets.target.wants", "udev"),
        ("lib/systemd/system/sockets.target.wants", "initctl"),
        ("lib/systemd/system/basic.target.wants", ""),
        (
            "lib/systemd/system/sysinit.target.wants",
            "systemd-tmpfiles-setup.service",
        ),
    ] {
        remove_entries(&root.join(folder), part)?;
    }
    let journal = root.join("etc/systemd/journald.conf");
    let settings = fs::read_to_string(&journal)?;
    fs::write(&journal, format!("{settings}ReadKMsg=no\n"))?;
    run(Command::new("chroot").arg(root).args([
        "systemctl",
        "enable",
        "kubelet.service",
        "containerd.service",
        "undo-mount-hacks.service",
    ]))?;
    run(Command::new("chroot")
        .arg(root)
        .args(["systemctl", "mask", "systemd-binfmt.service"]))?;
    fs::write(root.join("etc/sysctl.d/20-forwarding.conf"), FORWARDING)?;
    fs::create_dir_all(root.join("etc/kubernetes/manifests"))?;
    fs::write(root.join("kind/version"), KUBERNETES_VERSION)?;
    fs::create_dir_all(root.join("kind/manifests"))?;
    fs::write(
        root.join("kind/manifests/default-cni.yaml"),
        images::NETWORK,
    )?;
    fs::write(
        root.join("kind/manifests/default-storage.yaml"),
        images::STORAGE,
    )?;
    if !root.join("sbin/init").exists() {
        symlink("/usr/lib/systemd/systemd", root.join("sbin/init"))?;
    }
    Ok(())
}

/// Copies a tree of the module: scripts get the execute bit, which modules do not keep.
fn copy_files(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from).with_context(|| format!("cannot read {}", from.display()))? {
        let path = entry?.path();
        let target = to.join(path.file_name().context("an entry without a name")?);
        if path.is_dir() {
            copy_files(&path, &target)?;
        } else {
            let is_script = to.ends_with("bin");
            install(&path, &target, if is_script { 0o755 } else { 0o644 })?;
        }
    }
    Ok(())
}

fn remove_entries(folder: &Path, part: &str) -> Result<()> {
    let Ok(entries) = fs::read_dir(folder) else {
        return Ok(());
    };
    for entry in entries {
        let path = entry?.path();
        if path
            .file_name()
            .is_some_and(|name| name.to_string_lossy().contains(part))
        {
            fs::remove_file(&path)?;
        }
    }
    Ok(())
}

fn install_programs(root: &Path, programs: &Programs) -> Result<()> {
    for (program, target) in PROGRAMS {
        let target = root.join(target);
        if let Some(folder) = target.parent() {
            fs::create_dir_all(folder)?;
        }
        install(programs.path(*program)?, &target, 0o755)?;
    }
    let specification = run(Command::new("chroot")
        .arg(root)
        .args(["ctr", "oci", "spec"]))?;
    let mut specification: Value = serde_json::from_str(&specification)?;
    specification["hooks"]["createContainer"] =
        json!([{"path": "/kind/bin/mount-product-files.sh"}]);
    if let Some(process) = specification["process"].as_object_mut() {
        process.remove("rlimits");
    }
    fs::write(
        root.join("etc/containerd/cri-base.json"),
        serde_json::to_vec(&specification)?,
    )?;
    Ok(())
}

fn install(from: &Path, to: &Path, mode: u32) -> Result<()> {
    fs::copy(from, to)
        .with_context(|| format!("cannot copy {} to {}", from.display(), to.display()))?;
    fs::set_permissions(to, fs::Permissions::from_mode(mode))?;
    Ok(())
}

/// Puts the images of the control plane where the node's containerd will look for them.
fn import_images(root: &Path, programs: &Programs) -> Result<()> {
    let scratch = root.with_extension("images");
    fs::create_dir_all(&scratch)?;
    let archive = scratch.join("images.tar");
    images::write(&archive, root, programs)?;
    let socket = scratch.join("containerd.sock");
    let configuration = scratch.join("config.toml");
    fs::write(
        &configuration,
        "version = 3\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\", \
         \"io.containerd.cri.v1.images\", \"io.containerd.cri.v1.runtime\"]\n",
    )?;
    let containerd = Process::spawn(
        Command::new(programs.path(Program::Containerd)?)
            .arg("--config")
            .arg(&configuration)
            .arg("--root")
            .arg(root.join("var/lib/containerd"))
            .arg("--state")
            .arg(scratch.join("state"))
            .arg("--address")
            .arg(&socket),
        &scratch.join("containerd.log"),
    )?;
    let imported = import(programs.path(Program::Ctr)?, &socket, &archive);
    containerd.stop(Duration::from_secs(10))?;
    imported
        .with_context(|| fs::read_to_string(scratch.join("containerd.log")).unwrap_or_default())?;
    fs::remove_dir_all(&scratch)?;
    Ok(())
}

fn import(ctr: &Path, socket: &Path, archive: &Path) -> Result<()> {
    let client = || {
        let mut command = Command::new(ctr);
        command
            .arg("--address")
            .arg(socket)
            .args(["--namespace", "k8s.io"]);
        command
    };
    let deadline = Instant::now() + Duration::from_secs(30);
    while !socket.exists() || !succeeds(client().arg("version")) {
        if Instant::now() > deadline {
            bail!("containerd does not answer");
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    run(client()
        .args([
            "images",
            "import",
            "--label=io.cri-containerd.pinned=pinned",
        ])
        .args(["--all-platforms", "--no-unpack", "--digests"])
        .arg(archive))?;
    Ok(())
}
