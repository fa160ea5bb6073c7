//! The controller: certificates, the shared state, and Artifacts from announcement to copy.
//!
//! One leader at a time runs all loops, by the Lease `F-controller`; the other replicas wait. It
//! does not handle blobs: the registry copies. Pure functions decide (`certificates::plan`,
//! `state::build`, `cluster_model::demand`, `artifacts::status`, `healing::decide`) from what the
//! loops fetch.

pub mod artifacts;
pub mod certificates;
pub mod delivery;
#[cfg(test)]
pub(crate) mod fixtures;
pub mod held;
mod metrics;
pub mod nodes;
pub mod questions;
pub mod report_server;
pub mod state;

use holdfast_api::access::AccessList;
use holdfast_api::names::Names;
use holdfast_api::questions::PORT;
use holdfast_cluster_index::events::Publisher;
use holdfast_cluster_index::reports::Reports;
use holdfast_cluster_index::{self as index, ClusterIndex, Watches};
use holdfast_cluster_model::{Scope, ScopeError};
use holdfast_config::Config;
use holdfast_healing::{self as healing, comparing_owners};
use holdfast_runtime::admin::{self, Admin};
use holdfast_runtime::health::Health;
use holdfast_runtime::lease::Candidate;
use holdfast_runtime::supervise::{Heartbeat, Supervisor};
use holdfast_runtime::{CancellationToken, logs, server, shutdown};
use prometheus_client::registry::Registry;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;
use tokio::net::TcpListener;

pub use metrics::Metrics;

/// Time without a heartbeat after which a background loop counts as stuck: longer than any single
/// call.
const STUCK_AFTER: Duration = Duration::from_secs(180);

/// Why the controller ends.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The admin port, or the port for questions, cannot be bound.
    #[error("cannot listen on {address}")]
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
    /// The certificates that were issued last, which the fill client uses.
    pub issued: Arc<certificates::Issued>,
    /// Counters and gauges.
    pub metrics: Metrics,
    /// Which pods and images are in scope, by the configuration.
    pub scope: Arc<Scope>,
    /// Whether this process has written or confirmed the node state once.
    pub settled: Arc<AtomicBool>,
    /// What healing shares with the other loops.
    pub healing: Arc<healing::Healing>,
    /// The access list of the Artifacts. `None` until they are known, and with
    /// `access.privateImages: node`.
    pub access: tokio::sync::watch::Sender<Option<AccessList>>,
    /// The address of the registry's internal API, if the name of its Service does not resolve.
    pub registry: Option<SocketAddr>,
    /// Where node agents report their nodes; `None`: nowhere.
    pub agents: Option<SocketAddr>,
    /// What node agents reported.
    pub reports: Arc<Reports>,
    /// Publishes the events of all loops.
    pub events: Publisher,
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
    /// A context with an empty index.
    pub fn new(client: kube::Client, config: Config, metrics: Metrics) -> Result<Self, Error> {
        let names = Names {
            release: config.release.name.clone(),
            fullname: config.release.fullname.clone(),
            namespace: config.release.namespace.clone(),
        };
        let scope = Scope::new(&config)?;
        let policy = healing::Policy::of(config.values.controller.healing);
        Ok(Self {
            events: Publisher::new(client.clone()),
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
            agents: None,
            reports: Arc::default(),
        })
    }

    /// The part that the watches need.
    pub fn watches(&self) -> Watches {
        Watches {
            client: self.client.clone(),
            index: Arc::clone(&self.index),
            scope: Arc::clone(&self.scope),
            names: self.names.clone(),
            metrics: self.metrics.index.clone(),
        }
    }

    /// The part that healing needs.
    fn healing(&self) -> healing::Context {
        healing::Context {
            client: self.client.clone(),
            namespace: self.names.namespace.clone(),
            by_namespace: self.config.values.access.is_by_namespace(),
            index: Arc::clone(&self.index),
            scope: Arc::clone(&self.scope),
            healing: Arc::clone(&self.healing),
            reports: Arc::clone(&self.reports),
            events: self.events.clone(),
            metrics: self.metrics.healing.clone(),
        }
    }

    /// Starts every loop of the leader. Copies are requested from the release's registry, or by
    /// `fills`.
    pub fn start(&self, supervisor: &Supervisor, fills: Option<artifacts::fill::Client>) {
        self.spawn(supervisor, "certificates", certificates::run);
        self.spawn(
            supervisor,
            "webhook_configuration",
            certificates::watch_webhook,
        );
        self.watch(supervisor, "pods", index::watch_pods);
        self.watch(supervisor, "namespaces", index::watch_namespaces);
        self.watch(supervisor, "nodes", index::watch_nodes);
        for kind in index::Owners::kinds() {
            self.watch(supervisor, kind.plural, move |watches, heart| {
                index::watch_owners(watches, kind, heart)
            });
        }
        self.watch(supervisor, "artifact_objects", index::watch_artifacts);
        self.watch(supervisor, "denials", index::watch_denials);
        self.spawn(supervisor, "state", state::run);
        self.spawn(supervisor, "delivery", delivery::run);
        self.spawn(supervisor, "node_taints", nodes::run);
        self.spawn(supervisor, "reports", report_server::run);
        self.spawn(supervisor, "preload", artifacts::preload::run);
        self.spawn(supervisor, "healing", |context, heart| {
            healing::run(context.healing(), heart)
        });
        self.spawn(supervisor, "comparing_owners", |context, heart| {
            comparing_owners::run(context.healing(), heart)
        });
        let client = fills.clone();
        self.spawn(supervisor, "held", move |context, heart| {
            held::run(context, client.clone(), heart)
        });
        self.spawn(supervisor, "artifacts", move |context, heart| {
            artifacts::run(context, fills.clone(), heart)
        });
    }

    fn spawn<F, E>(
        &self,
        supervisor: &Supervisor,
        name: &'static str,
        mut run: impl FnMut(Self, Heartbeat) -> F + Send + 'static,
    ) where
        F: Future<Output = Result<(), E>> + Send + 'static,
        E: std::fmt::Display + Send,
    {
        let context = self.clone();
        supervisor.spawn(name, STUCK_AFTER, move |heart| run(context.clone(), heart));
    }

    fn watch<F, E>(
        &self,
        supervisor: &Supervisor,
        name: &'static str,
        mut run: impl FnMut(Watches, Heartbeat) -> F + Send + 'static,
    ) where
        F: Future<Output = Result<(), E>> + Send + 'static,
        E: std::fmt::Display + Send,
    {
        self.spawn(supervisor, name, move |context, heart| {
            run(context.watches(), heart)
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
    // Agents find the controller by its Service only, and commands by its pod.
    let is_inside = outside.admin.is_none();
    context.agents = is_inside.then(report_server::listen_address);
    if is_inside {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, PORT));
        let listener = server::bind(address).map_err(|source| Error::Bind { address, source })?;
        let serve = questions::serve(listener, context.clone(), None, stop.child_token());
        tokio::spawn(serve);
    }
    serve(context, registry, level, &identity, admin_listener, stop).await
}

/// Waits for the lease and runs the leader's loops.
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
        // Loops first: nothing may be written after another replica became the leader.
        loops.cancel();
        leadership.release().await;
    }
    stop.cancel();
    if let Err(error) = admin.await {
        tracing::debug!(%error, "the admin endpoints did not stop in time");
    }
    outcome
}
