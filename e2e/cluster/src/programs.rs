//! The programs of a cluster, built from the pinned Go modules under `e2e/programs`.
//!
//! Each upstream is a module of its own. A program is built the first time something asks for it
//! and lies in the cache folder from then on, keyed by the module's `go.mod` and `go.sum`.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::cache::{self, Lock};
use crate::command::run;
use crate::progress::Step;

/// The version of Kubernetes that the cluster runs.
pub const KUBERNETES_VERSION: &str = "v1.36.3";

macro_rules! programs {
    ($($variant:ident = $module:literal, $package:literal, $name:literal;)+) => {
        /// A program that can be built; its name is what upstream calls it.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Program {
            $(#[doc = concat!("`", $name, "` of `", $package, "`.")] $variant,)+
        }

        impl Program {
            const fn recipe(self) -> Recipe {
                match self {
                    $(Self::$variant => Recipe { module: $module, package: $package, name: $name },)+
                }
            }
        }
    };
}

programs! {
    KubeApiserver = "kubernetes", "k8s.io/kubernetes/cmd/kube-apiserver", "kube-apiserver";
    KubeControllerManager = "kubernetes", "k8s.io/kubernetes/cmd/kube-controller-manager", "kube-controller-manager";
    KubeScheduler = "kubernetes", "k8s.io/kubernetes/cmd/kube-scheduler", "kube-scheduler";
    Kubelet = "kubernetes", "k8s.io/kubernetes/cmd/kubelet", "kubelet";
    KubeProxy = "kubernetes", "k8s.io/kubernetes/cmd/kube-proxy", "kube-proxy";
    Kubectl = "kubernetes", "k8s.io/kubernetes/cmd/kubectl", "kubectl";
    Kubeadm = "kubernetes", "k8s.io/kubernetes/cmd/kubeadm", "kubeadm";
    Containerd = "containerd", "github.com/containerd/containerd/v2/cmd/containerd", "containerd";
    ContainerdShim = "containerd", "github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2", "containerd-shim-runc-v2";
    Ctr = "containerd", "github.com/containerd/containerd/v2/cmd/ctr", "ctr";
    Runc = "runc", "github.com/opencontainers/runc", "runc";
    CniPtp = "cni", "github.com/containernetworking/plugins/plugins/main/ptp", "ptp";
    CniBridge = "cni", "github.com/containernetworking/plugins/plugins/main/bridge", "bridge";
    CniLoopback = "cni", "github.com/containernetworking/plugins/plugins/main/loopback", "loopback";
    CniHostLocal = "cni", "github.com/containernetworking/plugins/plugins/ipam/host-local", "host-local";
    CniPortmap = "cni", "github.com/containernetworking/plugins/plugins/meta/portmap", "portmap";
    Etcd = "etcd", "go.etcd.io/etcd/server/v3", "etcd";
    Dockerd = "moby", "github.com/moby/moby/v2/cmd/dockerd", "dockerd";
    DockerProxy = "moby", "github.com/moby/moby/v2/cmd/docker-proxy", "docker-proxy";
    Kind = "kind", "sigs.k8s.io/kind", "kind";
    Crictl = "cri-tools", "sigs.k8s.io/cri-tools/cmd/crictl", "crictl";
    Helm = "helm", "helm.sh/helm/v4/cmd/helm", "helm";
    Helm3 = "helm3", "helm.sh/helm/v3/cmd/helm", "helm";
    Crane = "crane", "github.com/google/go-containerregistry/cmd/crane", "crane";
    Registry = "distribution", "github.com/distribution/distribution/v3/cmd/registry", "registry";
    Coredns = "coredns", "github.com/coredns/coredns", "coredns";
    LocalPathProvisioner = "local-path-provisioner", "github.com/rancher/local-path-provisioner", "local-path-provisioner";
    MetricsServer = "metrics-server", "sigs.k8s.io/metrics-server/cmd/metrics-server", "metrics-server";
    Pause = "pause", ".", "pause";
    Nodenet = "nodenet", ".", "nodenet";
    Workload = "workload", ".", "workload";
}

struct Recipe {
    module: &'static str,
    package: &'static str,
    name: &'static str,
}

impl Recipe {
    fn source(&self) -> PathBuf {
        cache::repository().join("e2e/programs").join(self.module)
    }

    /// Hash of what the module is made from: its requirements, and its own code where it has any.
    fn key(&self) -> Result<String> {
        let source = self.source();
        let mut files = vec![source.join("go.mod"), source.join("go.sum")];
        let mut code: Vec<PathBuf> = fs::read_dir(&source)
            .with_context(|| format!("cannot read {}", source.display()))?
            .filter_map(|entry| entry.ok().map(|entry| entry.path()))
            .filter(|path| path.extension().is_some_and(|extension| extension == "go"))
            .collect();
        code.sort();
        files.append(&mut code);
        let contents = files
            .iter()
            .filter(|path| path.exists())
            .map(fs::read)
            .collect::<std::io::Result<Vec<_>>>()?;
        Ok(cache::key(contents))
    }

    fn tags(&self) -> &'static str {
        match self.module {
            "containerd" => "no_btrfs,no_zfs,no_devmapper",
            "runc" => "seccomp",
            _ => "",
        }
    }

    /// Only runc needs C: libseccomp has no other interface.
    fn cgo(&self) -> &'static str {
        if self.module == "runc" { "1" } else { "0" }
    }

    fn linker_flags(&self) -> String {
        let mut flags = "-s -w".to_owned();
        if self.module == "kubernetes" {
            let mut parts = KUBERNETES_VERSION.trim_start_matches('v').split('.');
            let (major, minor) = (parts.next().unwrap_or("1"), parts.next().unwrap_or("0"));
            for (name, value) in [
                ("gitVersion", KUBERNETES_VERSION),
                ("gitMajor", major),
                ("gitMinor", minor),
                ("gitTreeState", "clean"),
            ] {
                flags.push_str(" -X k8s.io/component-base/version.");
                flags.push_str(name);
                flags.push('=');
                flags.push_str(value);
            }
        }
        flags
    }
}

/// Programs that have been built, and where they lie.
#[derive(Clone, Debug, Default)]
pub struct Programs {
    paths: BTreeMap<Program, PathBuf>,
}

impl Programs {
    /// The path of a program that was asked for.
    pub fn path(&self, program: Program) -> Result<&Path> {
        self.paths
            .get(&program)
            .map(PathBuf::as_path)
            .with_context(|| format!("{} was not asked for", program.recipe().name))
    }

    /// The folders of all these programs, for a `PATH`.
    pub(crate) fn folders(&self) -> Vec<PathBuf> {
        let mut folders: Vec<PathBuf> = self
            .paths
            .values()
            .filter_map(|path| path.parent().map(Path::to_path_buf))
            .collect();
        folders.sort();
        folders.dedup();
        folders
    }
}

/// Builds those of the programs that are not in the cache yet.
pub fn ensure(programs: &[Program]) -> Result<Programs> {
    let mut paths = BTreeMap::new();
    for &program in programs {
        paths.insert(program, ensure_one(&program.recipe())?);
    }
    Ok(Programs { paths })
}

fn ensure_one(recipe: &Recipe) -> Result<PathBuf> {
    let folder_name = format!("{}-{}", recipe.module, recipe.key()?);
    let folder = cache::directory()?.join("programs").join(&folder_name);
    let path = folder.join(recipe.name);
    if path.is_file() {
        return Ok(path);
    }
    let _lock = Lock::take(&format!("program-{folder_name}-{}", recipe.name))?;
    if path.is_file() {
        return Ok(path);
    }
    fs::create_dir_all(&folder)?;
    build(recipe, &path).with_context(|| {
        format!(
            "cannot build {} ({}); Go 1.26 is needed",
            recipe.name, recipe.package
        )
    })?;
    Ok(path)
}

fn build(recipe: &Recipe, path: &Path) -> Result<()> {
    let _step = Step::start(format!("building {}", recipe.name));
    // `direct` would make a missing module fail only after a long wait for its origin.
    let proxies = run(Command::new("go").args(["env", "GOPROXY"]))?;
    let proxies = proxies.trim().replace(",direct", "").replace("|direct", "");
    let draft = path.with_file_name(format!(".{}.{}", recipe.name, std::process::id()));
    run(Command::new("go")
        .current_dir(recipe.source())
        .env("GOPROXY", proxies)
        .env("GOFLAGS", "")
        .env("GOWORK", "off")
        .env("CGO_ENABLED", recipe.cgo())
        .args([
            "build",
            "-buildvcs=false",
            "-trimpath",
            "-tags",
            recipe.tags(),
        ])
        .args(["-ldflags", &recipe.linker_flags(), "-o"])
        .arg(&draft)
        .arg(recipe.package))?;
    fs::rename(&draft, path)?;
    Ok(())
}
