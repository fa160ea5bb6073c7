//! The node agent: makes the container runtime of its node trust and use the registry, proves it by
//! real pulls, and undoes everything when told to.
//!
//! On the host it changes two things only: files in the runtime's folder of registry hosts
//! (`certs.d`), and labels of the images that Holdfast starts from. Both stay in effect without the
//! API server, the registry and the agent. The crate knows neither the registry's store nor
//! Artifacts. `docs/design/nodes.md` describes the protocol.
//!
//! - `agent` is one round: inspect, apply or undo, pull, report.
//! - `runtimes` holds what differs between container runtimes; `cri` is what they share.
//! - `plan` (pure), `journal` and `host` change files so that they can be restored.
//! - `readiness` (pure) judges the pulls; `node_events`, `status` and `metrics` report.
//! - `report` reads what the node holds, with the pull records of the kubelet (`records`), and
//!   `send` sends it to the controller.
//! - `state_watch` receives the wanted state.

pub mod agent;
pub mod cri;
pub mod host;
pub mod journal;
pub mod metrics;
pub mod node_events;
pub mod plan;
pub mod readiness;
pub mod records;
pub mod report;
pub mod runtimes;
pub mod send;
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

use agent::{Agent, AgentConfig};
use host::{Disk, Folders};
use node_events::NodeEvents;
use report::Reporter;
use runtimes::containerd::Containerd;
use runtimes::{AgentPod, HostRuntime};
use send::Sender;
use status::Status;

/// A round takes longer than this only if it is stuck: a pull may take two minutes.
const ROUND_STUCK_AFTER: Duration = Duration::from_secs(600);
/// The same for the loops that talk to the API server.
const API_STUCK_AFTER: Duration = Duration::from_secs(300);

/// Why the agent cannot start.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The admin port cannot be bound.
    #[error("cannot listen on port {0}")]
    Listen(u16, #[source] std::io::Error),
    /// Signal handlers cannot be installed.
    #[error("cannot install signal handlers")]
    Signals(#[source] std::io::Error),
}

/// Runs the node agent until SIGTERM. The host stays as it is then: a restart must not undo
/// anything.
pub async fn run(config: Config, level: Option<logs::Level>) -> Result<(), Error> {
    let values = &config.values.node_agent;
    let folders = Folders {
        etc: PathBuf::from("/host/etc/containerd"),
        hosts: PathBuf::from("/host/certs.d"),
        run: PathBuf::from("/host/run/containerd"),
        image_manager: PathBuf::from("/host/image_manager"),
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
    let agent_config = AgentConfig {
        pin: values.pin_images,
        pod: AgentPod {
            namespace: variable("POD_NAMESPACE"),
            name: variable("POD_NAME"),
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
        certificate: Some(PathBuf::from("/etc/holdfast/tls")),
    };
    serve(env, agent_config, level, listener, stop).await;
    Ok(())
}

/// The environment of the agent.
#[derive(Debug)]
pub struct Env {
    /// The host's folders.
    pub folders: Folders,
    /// Names of the release's objects.
    pub names: Names,
    /// The node's name. If it is empty, no events are written.
    pub node: String,
    /// The folder with the client certificate for the controller; `None`: nothing is sent.
    pub certificate: Option<PathBuf>,
}

/// Runs the agent in the given environment and serves the admin endpoints on `listener`, until
/// `shutdown`.
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
        certificate,
    } = env;
    let health = Health::default();
    let mut registry = holdfast_runtime::metrics::registry("node_agent");
    let metrics = Arc::new(metrics::Metrics::register(&mut registry));
    let supervisor = Supervisor::new(health.clone(), &mut registry, shutdown.clone());
    let ready = health.ready_flag("node", "no pull has been tried yet");
    let status = Status::default();

    let disk = Disk::new(&folders, &config.pod.release);
    let kept = disk
        .load::<NodeState>("state.json")
        .unwrap_or_else(|error| {
            tracing::warn!(
                %error,
                "cannot read the state stored on the host; waiting for the API server"
            );
            None
        });
    let (sender, states) = watch::channel(kept);
    let (events, queued) = NodeEvents::new();
    let (reports, reported_to) = watch::channel(None);
    let reporter = Arc::new(Mutex::new(Reporter::new(
        node.clone(),
        Containerd::new(folders.clone()),
        disk.clone(),
        folders.image_manager.clone(),
        reports,
    )));
    let agent = Arc::new(Mutex::new(Agent::new(
        Containerd::new(folders),
        disk,
        config,
        status.clone(),
        ready,
        metrics,
        events,
    )));
    if !node.is_empty() {
        let queued = Arc::new(Mutex::new(queued));
        supervisor.spawn("events", API_STUCK_AFTER, move |heartbeat| {
            node_events::publish(node.clone(), Arc::clone(&queued), heartbeat)
        });
    }
    let reported = status.clone();
    supervisor.spawn("report", API_STUCK_AFTER, move |heartbeat| {
        let (reporter, status) = (Arc::clone(&reporter), reported.clone());
        async move { reporter.lock().await.run(&status, &heartbeat).await }
    });
    if let Some(folder) = certificate {
        let names = names.clone();
        supervisor.spawn("send", API_STUCK_AFTER, move |heartbeat| {
            let (names, folder, reports) = (names.clone(), folder.clone(), reported_to.clone());
            async move { Sender::new(&names, &folder).run(reports, &heartbeat).await }
        });
    }
    supervisor.spawn("host", ROUND_STUCK_AFTER, move |heartbeat| {
        rounds(Arc::clone(&agent), states.clone(), heartbeat)
    });
    let name = names.node();
    supervisor.spawn("state", API_STUCK_AFTER, move |heartbeat| {
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

/// Runs one round after another: at each new state, and by the clock.
async fn rounds<R: HostRuntime>(
    agent: Arc<Mutex<Agent<R>>>,
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
