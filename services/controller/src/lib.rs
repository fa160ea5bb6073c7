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
mod metrics;
pub mod nodes;
pub mod state;
pub mod world;

use holdfast_api::access::AccessList;
use holdfast_api::names::Names;
use holdfast_config::Config;
use holdfast_runtime::admin::{self, Admin};
use holdfast_runtime::health::Health;
use holdfast_runtime::lease::Candidate;
use holdfast_runtime::supervise::{Heartbeat, Supervisor};
use holdfast_runtime::{CancellationToken, logs, server, shutdown};
use prometheus_client::registry::Registry;
use std::net::{Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;
use tokio::net::TcpListener;

pub use metrics::Metrics;

/// The name under which the controller's server-side applies are recorded.
pub const FIELD_MANAGER: &str = "holdfast-controller";

/// Silence after which a background loop counts as stuck: longer than any single call waits.
const PATIENCE: Duration = Duration::from_secs(180);

/// Pause between looks whether everything is known.
const UNTIL_KNOWN: Duration = Duration::from_millis(200);

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
    /// The namespace selector of the scope is malformed.
    #[error("webhook.scope.namespaceSelector is invalid: {0}")]
    Selector(String),
    /// Leadership was lost; the process is to be started again.
    #[error("lost leadership")]
    Lost,
}

/// What all loops share.
#[derive(Clone)]
pub struct Context {
    /// The way to the API server.
    pub client: kube::Client,
    /// The release's configuration.
    pub config: Arc<Config>,
    /// Names of the release's objects.
    pub names: Names,
    /// What is known of the cluster.
    pub world: Arc<world::World>,
    /// Certificates as they were issued last; the fill client follows them.
    pub issued: Arc<certificates::Issued>,
    /// Counters and gauges.
    pub metrics: Metrics,
    /// What is rewritten, by the configuration.
    pub scope: Arc<world::Scope>,
    /// Whether this process has written, or agreed with, the nodes' state once.
    pub settled: Arc<AtomicBool>,
    /// What healing shares with the other loops.
    pub healing: Arc<healing::Healing>,
    /// Whose pods may have which images, as the Artifacts say it; nothing until they are known, or
    /// where nobody asks.
    pub access: tokio::sync::watch::Sender<Option<AccessList>>,
    /// The registry's internal API, where its Service's name does not lead to it.
    pub registry: Option<SocketAddr>,
    /// Events on nodes and on the shared state.
    pub events: nodes::events::Events,
    /// Former addresses of the registry, and since when no pod names them.
    pub former: Arc<state::Former>,
}

/// What a controller is told that runs outside of its cluster, where the names of Services do not
/// resolve.
#[derive(Clone, Copy, Debug, Default)]
pub struct Outside {
    /// Where the registry's internal API is reached; its certificate is checked for the Service's
    /// name all the same.
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
        let scope = world::Scope::new(&config)?;
        let policy = healing::Policy::of(config.values.controller.healing);
        Ok(Self {
            events: nodes::events::Events::new(client.clone()),
            former: Arc::default(),
            client,
            config: Arc::new(config),
            names,
            world: Arc::default(),
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
        while !self.world.synced() || self.healing.state.borrow().is_none() {
            heart.beat();
            tokio::time::sleep(UNTIL_KNOWN).await;
        }
    }

    /// Starts every loop of the leader. Copies are asked of the release's registry, or of the one
    /// that `fills` leads to.
    pub fn start(&self, supervisor: &Supervisor, fills: Option<artifacts::fill::Client>) {
        let context = self.clone();
        supervisor.spawn("certificates", PATIENCE, move |heart| {
            certificates::run(context.clone(), heart)
        });
        let context = self.clone();
        supervisor.spawn("webhook_configuration", PATIENCE, move |heart| {
            certificates::watch_webhook(context.clone(), heart)
        });
        let context = self.clone();
        supervisor.spawn("pods", PATIENCE, move |heart| {
            world::watch_pods(context.clone(), heart)
        });
        let context = self.clone();
        supervisor.spawn("namespaces", PATIENCE, move |heart| {
            world::watch_namespaces(context.clone(), heart)
        });
        let context = self.clone();
        supervisor.spawn("nodes", PATIENCE, move |heart| {
            world::watch_nodes(context.clone(), heart)
        });
        for kind in world::Owners::kinds() {
            let context = self.clone();
            supervisor.spawn(kind.plural, PATIENCE, move |heart| {
                world::watch_owners(context.clone(), kind, heart)
            });
        }
        let context = self.clone();
        supervisor.spawn("artifact_objects", PATIENCE, move |heart| {
            world::watch_artifacts(context.clone(), heart)
        });
        let context = self.clone();
        supervisor.spawn("denials", PATIENCE, move |heart| {
            world::watch_denials(context.clone(), heart)
        });
        let context = self.clone();
        supervisor.spawn("state", PATIENCE, move |heart| {
            state::run(context.clone(), heart)
        });
        let context = self.clone();
        supervisor.spawn("node_taints", PATIENCE, move |heart| {
            nodes::run(context.clone(), heart)
        });
        let context = self.clone();
        supervisor.spawn("preload", PATIENCE, move |heart| {
            artifacts::preload::run(context.clone(), heart)
        });
        let context = self.clone();
        supervisor.spawn("healing", PATIENCE, move |heart| {
            healing::run(context.clone(), heart)
        });
        let context = self.clone();
        supervisor.spawn("artifacts", PATIENCE, move |heart| {
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
