//! The handle of a cluster: bringing it up and down, and running programs against it.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::cache::{self, Lock};
use crate::command::{on_path, run, run_with_input};
use crate::engine::{Engine, Pool};
use crate::programs::{self, Program};
use crate::progress::Step;
use crate::{kind, node_image, packages};

mod faults;
mod inspection;
pub mod joining;
mod volumes;

pub use volumes::SharedVolume;

/// How a cluster is made.
#[derive(Clone, Debug)]
pub struct Options {
    /// The kind configuration; the repository's `kind-config.yaml` by default.
    pub config: PathBuf,
    /// Make an engine even where one answers.
    pub own_engine: bool,
    /// How long nodes and pods may take to become ready.
    pub ready_within: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            config: cache::repository().join("kind-config.yaml"),
            own_engine: false,
            ready_within: Duration::from_secs(300),
        }
    }
}

/// A cluster that runs, or did.
#[derive(Clone, Debug)]
pub struct Cluster {
    name: String,
    engine: Engine,
    folder: PathBuf,
    state: State,
}

/// What is remembered of a cluster between two programs.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct State {
    /// Addresses of its own engine; none where it uses the machine's.
    pool: Option<Pool>,
    /// Nodes and the addresses that they keep.
    addresses: BTreeMap<String, String>,
}

/// What `cargo xtask cluster status` shows.
#[derive(Clone, Debug, Serialize)]
pub struct Status {
    /// The cluster's name.
    pub name: String,
    /// Whether its container engine answers.
    pub engine: bool,
    /// Whether its API server answers.
    pub api_server: bool,
    /// Nodes: name, and whether it is Ready.
    pub nodes: BTreeMap<String, bool>,
    /// Pods that are not ready, as `namespace/name`.
    pub unready_pods: Vec<String>,
    /// The kubeconfig file.
    pub kubeconfig: PathBuf,
    /// What has to stand before a command that talks to the cluster; empty if nothing.
    pub prefix: Vec<String>,
}

impl Cluster {
    /// Makes the cluster, or brings up again what there is of it.
    pub fn up(name: &str, options: &Options) -> Result<Self> {
        check_name(name)?;
        let _lock = Lock::take(&format!("cluster-{name}"))?;
        let folder = folder(name)?;
        fs::create_dir_all(folder.join("shared"))?;
        let known = State::read(&folder);
        let own = options.own_engine || known.as_ref().is_some_and(|state| state.pool.is_some());
        let existing = (!own).then(|| Engine::existing(kind::NODE_IMAGE)).flatten();
        let (engine, image, state) = if let Some(engine) = existing {
            let addresses = known.map(|state| state.addresses).unwrap_or_default();
            (
                engine,
                kind::NODE_IMAGE.to_owned(),
                State {
                    pool: None,
                    addresses,
                },
            )
        } else {
            packages::ensure()?;
            let image = node_image::ensure()?;
            let pool = match known.as_ref().and_then(|state| state.pool) {
                Some(pool) => pool,
                None => claim_pool(name, &folder)?,
            };
            let engine = Engine::own(name, pool)?;
            if let Engine::Own(own) = &engine {
                own.start()?;
                own.import(&image)?;
            }
            let addresses = known.map(|state| state.addresses).unwrap_or_default();
            (
                engine,
                image.tag,
                State {
                    pool: Some(pool),
                    addresses,
                },
            )
        };
        let mut cluster = Self {
            name: name.to_owned(),
            engine,
            folder,
            state,
        };
        // Addresses are written once a cluster is complete: nodes without any are what a killed
        // run left.
        if cluster.nodes()?.is_empty() || cluster.state.addresses.is_empty() {
            let _step = Step::start(format!("creating cluster {name}"));
            cluster.delete()?;
            cluster.create(&options.config, &image)?;
            cluster.state.addresses = cluster.current_addresses()?;
            cluster.state.write(&cluster.folder)?;
        } else {
            cluster.power_on_all()?;
            cluster.mend()?;
        }
        cluster.wait_ready(options.ready_within)?;
        Ok(cluster)
    }

    /// A cluster that [`Self::up`] made earlier, perhaps in another process.
    pub fn open(name: &str) -> Result<Self> {
        let folder = folder(name)?;
        let state = State::read(&folder)
            .with_context(|| format!("no cluster {name}: make it with `cargo xtask cluster up`"))?;
        let engine = match state.pool {
            Some(pool) => Engine::own(name, pool)?,
            None => Engine::Existing,
        };
        Ok(Self {
            name: name.to_owned(),
            engine,
            folder,
            state,
        })
    }

    /// A cluster that exists: the one of this context of the user's kubeconfig.
    ///
    /// Faults can be injected where it is a kind cluster of the machine's engine.
    pub fn attach(context: &str) -> Result<Self> {
        let name = context.strip_prefix("kind-").unwrap_or(context).to_owned();
        let folder = cache::directory()?.join("attached").join(&name);
        fs::create_dir_all(&folder)?;
        let state = State {
            pool: None,
            addresses: BTreeMap::new(),
        };
        let cluster = Self {
            name,
            engine: Engine::Existing,
            folder,
            state,
        };
        let configuration = run(
            Command::new(cluster.tool(Program::Kubectl, "kubectl")?).args([
                "config",
                "view",
                "--minify",
                "--flatten",
                "--raw",
                "--context",
                context,
            ]),
        )?;
        fs::write(cluster.kubeconfig(), configuration)?;
        Ok(cluster)
    }

    /// Deletes the cluster and ends its engine; the engine keeps the node image for the next time.
    pub fn down(self) -> Result<()> {
        let _lock = Lock::take(&format!("cluster-{}", self.name))?;
        let _step = Step::start(format!("deleting cluster {}", self.name));
        if self.engine.answers() {
            self.delete()?;
        }
        if let Engine::Own(engine) = &self.engine {
            engine.stop()?;
        }
        if self.folder.exists() {
            fs::remove_dir_all(&self.folder)?;
        }
        Ok(())
    }

    /// [`Self::down`], and removes the engine's data too.
    pub fn purge(self) -> Result<()> {
        let engine = self.engine.clone();
        self.down()?;
        match engine {
            Engine::Own(engine) => engine.purge(),
            Engine::Existing => Ok(()),
        }
    }

    /// The cluster's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The kubeconfig file; its server is reached from [`Self::command`].
    pub fn kubeconfig(&self) -> PathBuf {
        self.folder.join("kubeconfig")
    }

    /// The folder on this machine that every node sees at [`crate::SHARED_FOLDER`].
    pub fn shared_folder(&self) -> PathBuf {
        self.folder.join("shared")
    }

    /// A command that runs where the cluster's networks can be reached, with `KUBECONFIG` set.
    ///
    /// Sockets it opens are inside that network: nodes and pods reach them at
    /// [`Self::gateway`].
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = self.engine.command(program);
        command.env("KUBECONFIG", self.kubeconfig());
        command
    }

    /// What has to stand before a command line that talks to the cluster, for people.
    pub fn prefix(&self) -> Vec<String> {
        let command = self.engine.command("");
        let words = std::iter::once(command.get_program()).chain(command.get_args());
        words
            .map(|word| word.to_string_lossy().into_owned())
            .filter(|w| !w.is_empty())
            .collect()
    }

    /// Runs kubectl and returns what it printed.
    pub fn kubectl(&self, arguments: &[&str]) -> Result<String> {
        run(self
            .command(self.tool(Program::Kubectl, "kubectl")?)
            .args(arguments))
    }

    /// Runs kubectl with text, for example a manifest, as its input.
    pub fn kubectl_with_input(&self, arguments: &[&str], input: &str) -> Result<String> {
        run_with_input(
            self.command(self.tool(Program::Kubectl, "kubectl")?)
                .args(arguments),
            input.as_bytes(),
        )
    }

    /// Runs helm and returns what it printed.
    pub fn helm(&self, arguments: &[&str]) -> Result<String> {
        run(self
            .command(self.tool(Program::Helm, "helm")?)
            .args(arguments))
    }

    /// The names of all nodes, control plane first, whether they run or not.
    pub fn nodes(&self) -> Result<Vec<String>> {
        let listed = self.engine.docker([
            "ps",
            "--all",
            &format!("--filter=label=io.x-k8s.kind.cluster={}", self.name),
            "--format={{.Names}}",
        ])?;
        let mut nodes: Vec<String> = listed.lines().map(str::to_owned).collect();
        nodes.sort_by_key(|node| (!node.contains("control-plane"), node.clone()));
        Ok(nodes)
    }

    /// The names of the nodes outside of the control plane.
    pub fn workers(&self) -> Result<Vec<String>> {
        let mut nodes = self.nodes()?;
        nodes.retain(|node| !node.contains("control-plane"));
        Ok(nodes)
    }

    /// Puts the images of an archive on all nodes.
    pub fn load_archive(&self, path: &Path) -> Result<()> {
        self.load_archive_on(path, &[])
    }

    /// Puts the images of an archive on some nodes; none named means all.
    pub fn load_archive_on(&self, path: &Path, nodes: &[&str]) -> Result<()> {
        let mut command = self.command(self.tool(Program::Kind, "kind")?);
        command
            .args(["load", "image-archive", "--name", &self.name])
            .arg(path);
        if !nodes.is_empty() {
            command.args(["--nodes", &nodes.join(",")]);
        }
        run(&mut command)?;
        Ok(())
    }

    /// The address at which nodes and pods reach what [`Self::command`] started.
    pub fn gateway(&self) -> Result<String> {
        if let Some(pool) = self.state.pool {
            return Ok(pool.gateway());
        }
        let format = "{{range .IPAM.Config}}{{.Gateway}} {{end}}";
        self.engine
            .docker(["network", "inspect", "kind", "--format", format])?
            .split_whitespace()
            .find(|address| address.contains('.'))
            .map(str::to_owned)
            .context("kind's network has no gateway")
    }

    /// The path of a program: the machine's own with its own engine, else built.
    fn tool(&self, program: Program, name: &str) -> Result<PathBuf> {
        if matches!(self.engine, Engine::Existing) && on_path(name) {
            return Ok(PathBuf::from(name));
        }
        Ok(programs::ensure(&[program])?.path(program)?.to_path_buf())
    }

    fn create(&self, config: &Path, image: &str) -> Result<()> {
        let merged = self.folder.join("kind.json");
        let audit = self.folder.join("audit");
        fs::create_dir_all(&audit)?;
        fs::write(audit.join("policy.yaml"), kind::AUDIT_POLICY)?;
        let text = fs::read_to_string(config)
            .with_context(|| format!("cannot read {}", config.display()))?;
        let value = kind::merge(
            &text,
            &self.shared_folder(),
            &audit,
            matches!(self.engine, Engine::Own(_)),
        )?;
        fs::write(&merged, serde_json::to_vec_pretty(&value)?)?;
        run(self
            .command(self.tool(Program::Kind, "kind")?)
            .args([
                "create", "cluster", "--name", &self.name, "--image", image, "--config",
            ])
            .arg(&merged)
            .arg("--kubeconfig")
            .arg(self.kubeconfig()))?;
        if self
            .kubectl(&["get", "storageclass", "nexus-shared"])
            .is_err()
        {
            self.kubectl_with_input(&["apply", "--filename=-"], kind::SHARED_CLASS)?;
        }
        Ok(())
    }

    fn delete(&self) -> Result<()> {
        run(self
            .command(self.tool(Program::Kind, "kind")?)
            .args(["delete", "cluster", "--name", &self.name, "--kubeconfig"])
            .arg(self.kubeconfig()))?;
        Ok(())
    }

    fn current_addresses(&self) -> Result<BTreeMap<String, String>> {
        let format = "{{with index .NetworkSettings.Networks \"kind\"}}{{.IPAddress}}{{end}}";
        let nodes = self.nodes()?.into_iter();
        nodes
            .map(|node| {
                let address = self.engine.docker(["inspect", "--format", format, &node])?;
                Ok((node, address.trim().to_owned()))
            })
            .collect()
    }

    fn get(&self, arguments: &[&str]) -> Result<Vec<Value>> {
        let mut all = vec!["get", "--output=json", "--request-timeout=5s"];
        all.extend(arguments);
        let mut list: Value = serde_json::from_str(&self.kubectl(&all)?)?;
        Ok(match list["items"].take() {
            Value::Array(items) => items,
            _ => Vec::new(),
        })
    }
}

impl State {
    fn read(folder: &Path) -> Option<Self> {
        serde_json::from_slice(&fs::read(folder.join("state.json")).ok()?).ok()
    }

    fn write(&self, folder: &Path) -> Result<()> {
        let draft = folder.join("state.json.new");
        fs::write(&draft, serde_json::to_vec_pretty(self)?)?;
        fs::rename(draft, folder.join("state.json"))?;
        Ok(())
    }
}

fn folder(name: &str) -> Result<PathBuf> {
    Ok(cache::directory()?.join("clusters").join(name))
}

/// Names become parts of paths, cgroups and container names.
fn check_name(name: &str) -> Result<()> {
    let is_plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    if name.is_empty() || name.len() > 30 || !name.chars().all(is_plain) {
        bail!("a cluster's name is 1 to 30 of a–z, 0–9 and -, not {name:?}");
    }
    Ok(())
}

/// Takes addresses that no other cluster of this machine has, and writes that down.
fn claim_pool(name: &str, folder: &Path) -> Result<Pool> {
    let _lock = Lock::take("pools")?;
    let mut taken = Vec::new();
    for entry in fs::read_dir(cache::directory()?.join("clusters"))? {
        taken.extend(State::read(&entry?.path()).and_then(|state| state.pool));
    }
    let start = name.bytes().fold(0_u8, u8::wrapping_add) % Pool::COUNT;
    let pool = (0..Pool::COUNT)
        .map(|step| Pool((start + step) % Pool::COUNT))
        .find(|pool| !taken.contains(pool))
        .context("all address pools are taken: take a cluster down first")?;
    State {
        pool: Some(pool),
        addresses: BTreeMap::new(),
    }
    .write(folder)?;
    Ok(pool)
}
