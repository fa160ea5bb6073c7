//! The node agent: makes the container runtime of its node trust and reach the registry, proves it
//! by a real pull, and takes all of it away again when told to.
//!
//! It writes host files below the runtime's registry folder (`certs.d`) and labels of the images
//! that Holdfast starts from, nothing else on the host, and knows nothing of the registry's store
//! nor of Artifacts. What it wrote stays when the API server, the registry or the agent itself is
//! gone.

pub mod agent;
pub mod certs_d;
pub mod cri;
pub mod host;
pub mod journal;
pub mod metrics;
pub mod node_events;
pub mod pins;
pub mod plan;
pub mod readiness;
pub mod runtime_config;
pub mod state_watch;
pub mod status;

use std::net::{Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use holdfast_api::names::Names;
use holdfast_api::state::NodeState;
use holdfast_config::Config;
use holdfast_runtime::admin::{self, Admin};
use holdfast_runtime::health::Health;
use holdfast_runtime::supervise::{Heartbeat, Supervisor};
use holdfast_runtime::{CancellationToken, logs, server, shutdown};
use tokio::net::TcpListener;
use tokio::sync::{Mutex, watch};

use agent::{Agent, AgentConfig, Folders};
use host::Disk;
use node_events::NodeEvents;
use pins::Own;
use status::Status;

/// Why the agent cannot start.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The admin port is taken.
    #[error("cannot listen on port {0}")]
    Listen(u16, #[source] std::io::Error),
    /// Signals cannot be waited for.
    #[error("cannot wait for signals")]
    Signals(#[source] std::io::Error),
}

/// Runs the node agent until SIGTERM. Nothing on the host is undone then: a restart is no
/// uninstall.
pub async fn run(config: Config, level: Option<logs::Level>) -> Result<(), Error> {
    let values = &config.values.node_agent;
    let folders = Folders {
        etc: PathBuf::from("/host/etc/containerd"),
        hosts: PathBuf::from("/host/certs.d"),
        run: PathBuf::from("/host/run/containerd"),
        etc_on_host: PathBuf::from(&values.host_folders.config),
        hosts_on_host: PathBuf::from(values.hosts_folder()),
        hosts_are_given: !values.containerd_config_path.is_empty(),
    };
    let release = config.release;
    let names = Names {
        release: release.name,
        fullname: release.fullname,
        namespace: release.namespace,
    };
    let variable = |name| std::env::var(name).unwrap_or_default();
    let config = AgentConfig {
        pin: values.pin_images,
        own: Own {
            namespace: variable("POD_NAMESPACE"),
            pod: variable("POD_NAME"),
            release: format!("{}.{}", names.namespace, names.fullname),
        },
    };
    let stop = shutdown::on_signals().map_err(Error::Signals)?;
    let listener = server::bind(SocketAddr::from((Ipv6Addr::UNSPECIFIED, admin::PORT)))
        .map_err(|e| Error::Listen(admin::PORT, e))?;
    let env = Env {
        folders,
        names,
        node: variable("NODE_NAME"),
    };
    serve(env, config, level, listener, stop).await;
    Ok(())
}

/// Where the agent is.
#[derive(Debug)]
pub struct Env {
    /// The host's folders.
    pub folders: Folders,
    /// Names of the release's objects.
    pub names: Names,
    /// The node's name; empty: no events are written.
    pub node: String,
}

/// The agent in a given env and on a given listener.
pub async fn serve(
    env: Env,
    config: AgentConfig,
    level: Option<logs::Level>,
    listener: TcpListener,
    shutdown: CancellationToken,
) {
    let Env {
        folders,
        names,
        node,
    } = env;
    let health = Health::default();
    let mut registry = holdfast_runtime::metrics::registry("node_agent");
    let metrics = Arc::new(metrics::Metrics::register(&mut registry));
    let supervisor = Supervisor::new(health.clone(), &mut registry, shutdown.clone());
    let ready = health.ready_flag("node", "no pull has been tried yet");
    let status = Status::default();

    let disk = Disk::new(&folders, &config.own.release);
    let kept = disk.load::<NodeState>("state.json").unwrap_or_else(|error| {
        tracing::warn!(error = %error, "the state kept on the host cannot be read; waiting for the API server");
        None
    });
    let (sender, states) = watch::channel(kept);
    let (events, told) = NodeEvents::new();
    let agent = Arc::new(Mutex::new(Agent::new(
        folders,
        disk,
        config,
        status.clone(),
        ready,
        metrics,
        events,
    )));
    if !node.is_empty() {
        let told = Arc::new(Mutex::new(told));
        supervisor.spawn("events", Duration::from_secs(300), move |heartbeat| {
            node_events::publish(node.clone(), Arc::clone(&told), heartbeat)
        });
    }
    supervisor.spawn("host", Duration::from_secs(600), move |heartbeat| {
        work(Arc::clone(&agent), states.clone(), heartbeat)
    });
    let name = names.node();
    supervisor.spawn("state", Duration::from_secs(300), move |heartbeat| {
        state_watch::follow(
            names.namespace.clone(),
            name.clone(),
            sender.clone(),
            heartbeat,
        )
    });

    let document: Arc<dyn Fn() -> String + Send + Sync> = Arc::new(move || status.json());
    let admin = Admin {
        health,
        registry: Arc::new(registry),
        level,
    };
    admin
        .serve_with(vec![("state", document)], listener, shutdown)
        .await;
}

/// Rounds, one after the other: at each new state, and by the clock.
async fn work(
    agent: Arc<Mutex<Agent>>,
    mut states: watch::Receiver<Option<NodeState>>,
    heartbeat: Heartbeat,
) -> Result<(), watch::error::RecvError> {
    let mut agent = agent.lock().await;
    loop {
        heartbeat.beat();
        let state = states.borrow_and_update().clone();
        let pause = match state {
            Some(state) => agent.round(&state).await,
            None => agent::RESYNC_INTERVAL,
        };
        heartbeat.success();
        tokio::select! {
            changed = states.changed() => changed?,
            () = tokio::time::sleep(pause) => {}
        }
    }
}
