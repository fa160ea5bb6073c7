//! The images inside the node image: one static program each, with the names kubeadm looks for.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};

use crate::command::run;
use crate::oci::{Image, ImageBuilder, Layer, write_archive};
use crate::programs::{KUBERNETES_VERSION, Program, Programs};

/// Manifest of the network plug-in; kind fills in the pod subnet.
pub(super) const NETWORK: &str = include_str!("network.yaml");

/// Manifest of the default storage class.
pub(super) const STORAGE: &str = include_str!("storage.yaml");

/// Programs that images are made of.
pub(super) const PROGRAMS: [Program; 11] = [
    Program::KubeApiserver,
    Program::KubeControllerManager,
    Program::KubeScheduler,
    Program::KubeProxy,
    Program::Etcd,
    Program::Coredns,
    Program::Pause,
    Program::Nodenet,
    Program::LocalPathProvisioner,
    Program::Workload,
    Program::Kubeadm,
];

/// Programs of the node that kube-proxy runs.
const PROXY_TOOLS: [&str; 4] = [
    "/usr/sbin/xtables-nft-multi",
    "/usr/sbin/nft",
    "/usr/sbin/conntrack",
    "/usr/sbin/ip",
];

/// Names under which the first of them is called.
const PROXY_LINKS: [&str; 6] = [
    "iptables",
    "iptables-save",
    "iptables-restore",
    "ip6tables",
    "ip6tables-save",
    "ip6tables-restore",
];

/// Writes all images into one archive. `root` is the node's root, for kube-proxy's tools.
pub(super) fn write(archive: &Path, root: &Path, programs: &Programs) -> Result<()> {
    let listed = run(Command::new(programs.path(Program::Kubeadm)?).args([
        "config",
        "images",
        "list",
        "--kubernetes-version",
        KUBERNETES_VERSION,
    ]))?;
    let name = |part: &str| {
        listed
            .lines()
            .find(|line| line.contains(part))
            .map(str::to_owned)
            .with_context(|| format!("kubeadm lists no image of {part}"))
    };
    let program = |program: Program, path: &str| -> Result<ImageBuilder> {
        Ok(ImageBuilder::of_program(
            path,
            fs::read(programs.path(program)?)?,
        ))
    };
    let mut images: Vec<Image> = Vec::new();
    for (part, what) in [
        ("kube-apiserver", Program::KubeApiserver),
        ("kube-controller-manager", Program::KubeControllerManager),
        ("kube-scheduler", Program::KubeScheduler),
        ("etcd", Program::Etcd),
    ] {
        let path = format!("usr/local/bin/{part}");
        images.push(program(what, &path)?.tag(&name(part)?).build()?);
    }
    images.push(
        program(Program::KubeProxy, "usr/local/bin/kube-proxy")?
            .layer(proxy_tools(root)?)
            .tag(&name("kube-proxy")?)
            .build()?,
    );
    images.push(
        program(Program::Coredns, "coredns")?
            .tag(&name("coredns")?)
            .build()?,
    );
    // kubeadm and kind's containerd configuration name different tags.
    images.push(
        program(Program::Pause, "pause")?
            .user("65535:65535")
            .tag(&name("pause")?)
            .tag("registry.k8s.io/pause:3.10")
            .build()?,
    );
    images.push(
        program(Program::Nodenet, "nodenet")?
            .tag("holdfast.test/nodenet:1")
            .build()?,
    );
    images.push(
        program(
            Program::LocalPathProvisioner,
            "usr/local/bin/local-path-provisioner",
        )?
        .tag("holdfast.test/local-path-provisioner:1")
        .build()?,
    );
    let workload = fs::read(programs.path(Program::Workload)?)?;
    let helper = Layer::new()
        .file("setup", 0o755, workload)
        .link("teardown", "setup");
    images.push(
        ImageBuilder::new()
            .layer(helper)
            .tag("holdfast.test/volume-helper:1")
            .build()?,
    );
    write_archive(archive, &images)
}

/// iptables, nft and conntrack with the libraries that they load.
fn proxy_tools(root: &Path) -> Result<Layer> {
    let plugins = "/usr/lib/x86_64-linux-gnu/xtables";
    let mut files: BTreeSet<String> = PROXY_TOOLS.map(str::to_owned).into();
    for entry in fs::read_dir(inside(root, plugins))? {
        files.insert(format!(
            "{plugins}/{}",
            entry?.file_name().to_string_lossy()
        ));
    }
    // The plug-ins' libraries too: without libm, a Service with two endpoints is no Service.
    let libraries = run(Command::new("chroot").arg(root).arg("ldd").args(&files))?;
    let paths = libraries
        .split_whitespace()
        .filter(|word| word.starts_with('/'));
    files.extend(paths.map(|path| path.trim_end_matches(':').to_owned()));
    files.insert("/etc/protocols".to_owned());
    let mut layer = Layer::new()
        .directory("run", 0o755)
        .directory("tmp", 0o1777);
    for path in files {
        let source = inside(root, &path);
        if !source.exists() {
            continue;
        }
        let bytes = fs::read(&source).with_context(|| format!("cannot read {path}"))?;
        layer = layer.file(&path, 0o755, bytes);
    }
    for link in PROXY_LINKS {
        layer = layer.link(&format!("usr/sbin/{link}"), "xtables-nft-multi");
    }
    Ok(layer)
}

fn inside(root: &Path, path: &str) -> std::path::PathBuf {
    root.join(path.trim_start_matches('/'))
}
