//! The programs of a cluster, built from the pinned Go modules under `e2e/programs`.
//!
//! Each upstream is a module of its own. A program is built the first time something asks for it
//! and lies in the cache folder from then on, keyed by the module's `go.mod`, `go.sum` and own
//! code.

use std::collections::{BTreeMap, BTreeSet};
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
    Oras = "oras", "oras.land/oras/cmd/oras", "oras";
    Regctl = "regctl", "github.com/regclient/regclient/cmd/regctl", "regctl";
    Cosign = "cosign", "github.com/sigstore/cosign/v3/cmd/cosign", "cosign";
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

    fn folder_name(&self) -> Result<String> {
        Ok(format!("{}-{}", self.module, self.key()?))
    }

    fn folder(&self) -> Result<PathBuf> {
        Ok(cache::directory()?
            .join("programs")
            .join(self.folder_name()?))
    }

    fn path(&self) -> Result<PathBuf> {
        Ok(self.folder()?.join(self.name))
    }

    /// Whether Go itself gives the program this name.
    fn is_named_by_package(&self) -> bool {
        self.package.rsplit('/').next() == Some(self.name)
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

/// Builds those of the programs that are not in the cache yet; those of one module together, so
/// that one links while another compiles.
pub fn ensure(programs: &[Program]) -> Result<Programs> {
    for recipes in by_module(programs).values() {
        ensure_module(recipes)?;
    }
    let paths = programs
        .iter()
        .map(|program| Ok((*program, program.recipe().path()?)))
        .collect::<Result<_>>()?;
    Ok(Programs { paths })
}

/// Each program once, however often it is asked for.
fn by_module(programs: &[Program]) -> BTreeMap<&'static str, Vec<Recipe>> {
    let mut modules: BTreeMap<_, Vec<Recipe>> = BTreeMap::new();
    for program in BTreeSet::from_iter(programs) {
        let recipe = program.recipe();
        modules.entry(recipe.module).or_default().push(recipe);
    }
    modules
}

fn ensure_module(recipes: &[Recipe]) -> Result<()> {
    let missing = || -> Result<Vec<&Recipe>> {
        let mut missing = Vec::new();
        for recipe in recipes {
            if !recipe.path()?.is_file() {
                missing.push(recipe);
            }
        }
        Ok(missing)
    };
    let Some(first) = missing()?.first().copied() else {
        return Ok(());
    };
    let _lock = Lock::take(&format!("program-{}", first.folder_name()?))?;
    // Another process may have built them while this one waited.
    let missing = missing()?;
    let (together, alone): (Vec<&Recipe>, Vec<&Recipe>) = missing
        .into_iter()
        .partition(|recipe| recipe.is_named_by_package());
    let groups = alone
        .into_iter()
        .map(|recipe| vec![recipe])
        .chain([together]);
    for group in groups.filter(|group| !group.is_empty()) {
        let names: Vec<&str> = group.iter().map(|recipe| recipe.name).collect();
        let names = names.join(", ");
        build(&group, &names)
            .with_context(|| format!("cannot build {names}; Go 1.26 is needed"))?;
    }
    Ok(())
}

/// Builds programs of one module: several, each called like its package, or one of any name.
fn build(recipes: &[&Recipe], names: &str) -> Result<()> {
    let Some(first) = recipes.first() else {
        return Ok(());
    };
    let _step = Step::start(format!("building {names}"));
    // `direct` would make a missing module fail only after a long wait for its origin.
    let proxies = run(Command::new("go").args(["env", "GOPROXY"]))?;
    let proxies = proxies.trim().replace(",direct", "").replace("|direct", "");
    let folder = first.folder()?;
    let draft = folder.join(format!(".draft.{}", std::process::id()));
    fs::create_dir_all(&draft)?;
    let output = match recipes {
        [one] => draft.join(one.name),
        _ => draft.join(""),
    };
    run(Command::new("go")
        .current_dir(first.source())
        .env("GOPROXY", proxies)
        .env("GOFLAGS", "")
        .env("GOWORK", "off")
        .env("CGO_ENABLED", first.cgo())
        .args([
            "build",
            "-buildvcs=false",
            "-trimpath",
            "-tags",
            first.tags(),
        ])
        // Nobody debugs them, and the compiler is an eighth faster without.
        .arg("-gcflags=all=-dwarf=false")
        .args(["-ldflags", &first.linker_flags(), "-o"])
        .arg(&output)
        .args(recipes.iter().map(|recipe| recipe.package)))?;
    for recipe in recipes {
        fs::rename(draft.join(recipe.name), recipe.path()?)
            .with_context(|| format!("go made no {}", recipe.name))?;
    }
    fs::remove_dir(&draft)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_that_is_asked_for_twice_is_built_once() {
        let modules = by_module(&[
            Program::Kubeadm,
            Program::Kubelet,
            Program::Etcd,
            Program::Kubeadm,
        ]);
        let names: BTreeMap<_, Vec<_>> = modules
            .iter()
            .map(|(module, recipes)| (*module, recipes.iter().map(|one| one.name).collect()))
            .collect();
        let mut kubernetes = names["kubernetes"].clone();
        kubernetes.sort_unstable();
        assert_eq!(kubernetes, ["kubeadm", "kubelet"]);
        assert_eq!(names["etcd"], ["etcd"]);
    }
}
