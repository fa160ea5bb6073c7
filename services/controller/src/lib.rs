//! The controller: certificates, the shared state, and Artifacts from announcement to copy.
//!
//! One leader at a time does all of it, by the Lease `F-controller`; the others wait. It knows
//! nothing of blobs: copying is asked of the registry. Whatever it decides is computed by pure
//! functions (`certificates::plan`, `state::build`, `artifacts::demand`, `artifacts::status`,
//! `healing::decide`) from what the edges fetched.

pub mod apply;
pub mod artifacts;
pub mod certificates;
pub mod events;
pub mod healing;
pub mod index;
mod metrics;
pub mod nodes;
pub mod state;

use holdfast_api::access::AccessList;
use holdfast_api::names::Names;
use holdfast_cluster_model::{Scope, ScopeError};
use holdfast_config::Config;
use holdfast_runtime::admin::{self, Admin};
use holdfast_runtime::health::Health;
use holdfast_runtime::lease::Candidate;
use holdfast_runtime::supervise::{Heartbeat, Supervisor};
use holdfast_runtime::{CancellationToken, logs, server, shutdown};
use index::{ClusterIndex, Watches};
use prometheus_client::registry::Registry;
use std::net::{Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;
use tokio::net::TcpListener;

pub use metrics::Metrics;

/// The name under which the controller's server-side applies are recorded.
pub const FIELD_MANAGER: &str = "holdfast-controller";

/// Time without a heartbeat after which a background loop counts as stuck: longer than any single
/// call.
const STUCK_AFTER: Duration = Duration::from_secs(180);

/// Interval of checks whether the index is complete.
const SYNC_POLL_INTERVAL: Duration = Duration::from_millis(200);

/// Why the controller ends.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The admin port cannot be bound.
    #[error("cannot listen on the admin port, {address}")]
    Bind {
        /// The address.
        address: SocketAddr,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// The handlers of signals cannot be installed.
    #[error("cannot handle signals")]
    Signals(#[source] std::io::Error),
    /// The environment describes no API server.
    #[error("no connection to the API server is configured")]
    Client(#[from] kube::Error),
    /// The scope cannot be read from the configuration.
    #[error(transparent)]
    Scope(#[from] ScopeError),
    /// Leadership was lost; the process must restart.
    #[error("lost leadership")]
    Lost,
}

/// What the loops share.
#[derive(Clone)]
pub struct Context {
    /// The client of the API server.
    pub client: kube::Client,
    /// The release's configuration.
    pub config: Arc<Config>,
    /// Names of the release's objects.
    pub names: Names,
    /// What is known of the cluster.
    pub index: Arc<ClusterIndex>,
    /// Certificates as they were issued last; the fill client follows them.
    pub issued: Arc<certificates::Issued>,
    /// Counters and gauges.
    pub metrics: Metrics,
    /// Which pods and images are in scope, by the configuration.
    pub scope: Arc<Scope>,
    /// Whether this process has written or confirmed the node state once.
    pub settled: Arc<AtomicBool>,
    /// What healing shares with the other loops.
    pub healing: Arc<healing::Healing>,
    /// The access list, from the Artifacts; `None` until they are known, or where every pod may
    /// have every image.
    pub access: tokio::sync::watch::Sender<Option<AccessList>>,
    /// The registry's internal API, where its Service's name does not lead to it.
    pub registry: Option<SocketAddr>,
    /// Events on nodes and on the shared state.
    pub events: nodes::events::Events,
    /// Former addresses of the registry, and when pods last named them.
    pub address_history: Arc<state::AddressHistory>,
}

/// Settings of a controller that runs outside its cluster, where the names of Services do not
/// resolve.
#[derive(Clone, Copy, Debug, Default)]
pub struct Outside {
    /// Address of the registry's internal API. Its certificate must still name the Service.
    pub registry: Option<SocketAddr>,
    /// Listener of the admin endpoints; port 9090 of all addresses by default.
    pub admin: Option<SocketAddr>,
}

impl std::fmt::Debug for Context {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Context")
            .field("names", &self.names)
            .finish_non_exhaustive()
    }
}

impl Context {
    /// A context with nothing known yet.
    pub fn new(client: kube::Client, config: Config, metrics: Metrics) -> Result<Self, Error> {
        let names = Names {
            release: config.release.name.clone(),
            fullname: config.release.fullname.clone(),
            namespace: config.release.namespace.clone(),
        };
        let scope = Scope::new(&config)?;
        let policy = healing::Policy::of(config.values.controller.healing);
        Ok(Self {
            events: nodes::events::Events::new(client.clone()),
            address_history: Arc::default(),
            client,
            config: Arc::new(config),
            names,
            index: Arc::default(),
            issued: Arc::default(),
            metrics,
            scope: Arc::new(scope),
            settled: Arc::default(),
            healing: Arc::new(healing::Healing::new(policy)),
            access: tokio::sync::watch::Sender::new(None),
            registry: None,
        })
    }

    /// Returns when everything was seen once, and what the webhooks were told is known.
    pub(crate) async fn known(&self, heart: &Heartbeat) {
        while !self.index.synced() || self.healing.state.borrow().is_none() {
            heart.beat();
            tokio::time::sleep(SYNC_POLL_INTERVAL).await;
        }
    }

    /// What the watches need of it.
    pub fn watches(&self) -> Watches {
        Watches {
            client: self.client.clone(),
            index: Arc::clone(&self.index),
            scope: Arc::clone(&self.scope),
            names: self.names.clone(),
            metrics: self.metrics.clone(),
        }
    }

    /// Starts every loop of the leader. Copies are asked of the release's registry, or of the one
    /// that `fills` leads to.
    pub fn start(&self, supervisor: &Supervisor, fills: Option<artifacts::fill::Client>) {
        let context = self.clone();
        supervisor.spawn("certificates", STUCK_AFTER, move |heart| {
            certificates::run(context.clone(), heart)
        });
        let context = self.clone();
        supervisor.spawn("webhook_configuration", STUCK_AFTER, move |heart| {
            certificates::watch_webhook(context.clone(), heart)
        });
        let watches = self.watches();
        supervisor.spawn("pods", STUCK_AFTER, move |heart| {
            index::watch_pods(watches.clone(), heart)
        });
        let watches = self.watches();
        supervisor.spawn("namespaces", STUCK_AFTER, move |heart| {
            index::watch_namespaces(watches.clone(), heart)
        });
        let watches = self.watches();
        supervisor.spawn("nodes", STUCK_AFTER, move |heart| {
            index::watch_nodes(watches.clone(), heart)
        });
        for kind in index::Owners::kinds() {
            let watches = self.watches();
            supervisor.spawn(kind.plural, STUCK_AFTER, move |heart| {
                index::watch_owners(watches.clone(), kind, heart)
            });
        }
        let watches = self.watches();
        supervisor.spawn("artifact_objects", STUCK_AFTER, move |heart| {
            index::watch_artifacts(watches.clone(), heart)
        });
        let watches = self.watches();
        supervisor.spawn("denials", STUCK_AFTER, move |heart| {
            index::watch_denials(watches.clone(), heart)
        });
        let context = self.clone();
        supervisor.spawn("state", STUCK_AFTER, move |heart| {
            state::run(context.clone(), heart)
        });
        let context = self.clone();
        supervisor.spawn("node_taints", STUCK_AFTER, move |heart| {
            nodes::run(context.clone(), heart)
        });
        let context = self.clone();
        supervisor.spawn("preload", STUCK_AFTER, move |heart| {
            artifacts::preload::run(context.clone(), heart)
        });
        let context = self.clone();
        supervisor.spawn("healing", STUCK_AFTER, move |heart| {
            healing::run(context.clone(), heart)
        });
        let context = self.clone();
        supervisor.spawn("artifacts", STUCK_AFTER, move |heart| {
            artifacts::run(context.clone(), fills.clone(), heart)
        });
    }
}

/// Runs the controller until SIGTERM or until leadership is lost. `level` lets the admin port
/// change the log level.
pub async fn run(
    config: Config,
    level: Option<logs::Level>,
    outside: Outside,
) -> Result<(), Error> {
    let client = kube::Client::try_default().await?;
    let stop = shutdown::on_signals().map_err(Error::Signals)?;
    let address = outside
        .admin
        .unwrap_or_else(|| SocketAddr::from((Ipv6Addr::UNSPECIFIED, admin::PORT)));
    let admin_listener = server::bind(address).map_err(|source| Error::Bind { address, source })?;
    let identity =
        std::env::var("POD_NAME").unwrap_or_else(|_| format!("process-{}", std::process::id()));
    let mut registry = holdfast_runtime::metrics::registry("controller");
    let metrics = Metrics::register(&mut registry);
    let mut context = Context::new(client, config, metrics)?;
    context.registry = outside.registry;
    serve(context, registry, level, &identity, admin_listener, stop).await
}

/// Waits for the lease and does the leader's work, on a listener that the caller made.
async fn serve(
    context: Context,
    mut registry: Registry,
    level: Option<logs::Level>,
    identity: &str,
    admin_listener: TcpListener,
    stop: CancellationToken,
) -> Result<(), Error> {
    let health = Health::default();
    let loops = stop.child_token();
    let supervisor = Supervisor::new(health.clone(), &mut registry, loops.clone());
    let leading = health.ready_flag("leader", "not running yet");
    leading.ok("waiting for the lease");
    let admin = Admin {
        health,
        registry: Arc::new(registry),
        level,
    };
    let admin = tokio::spawn(admin.serve(admin_listener, stop.clone()));

    let names = &context.names;
    let candidate = Candidate::new(
        context.client.clone(),
        &names.namespace,
        &names.controller(),
        identity,
    );
    let mut outcome = Ok(());
    if let Some(leadership) = candidate.lead(&stop).await {
        leading.ok("leading");
        context.metrics.leading.set(1);
        context.start(&supervisor, None);
        tokio::select! {
            () = stop.cancelled() => {}
            () = leadership.lost() => outcome = Err(Error::Lost),
        }
        // Loops first: nothing may be written any more when another one begins.
        loops.cancel();
        leadership.release().await;
    }
    stop.cancel();
    if let Err(error) = admin.await {
        tracing::debug!(%error, "the admin endpoints did not stop in time");
    }
    outcome
}
