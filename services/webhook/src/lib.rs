//! The pod mutating webhook: rewrites the images of new pods to the cluster's registry, and
//! announces them as Artifacts.
//!
//! - `routes` receives reviews; `bodies` bounds their memory, `review` parses them.
//! - `mutate` decides (pure), by the `rules` that `state` keeps up to date.
//! - `announce` creates the Artifacts, after the answer.
//!
//! Between a review and its answer there is no I/O except reading the body. The crate knows nothing
//! of upstreams and of the store. `docs/design/admission.md` describes the protocol.

pub mod announce;
pub mod bodies;
mod choice;
pub mod metrics;
pub mod mutate;
pub mod review;
pub mod routes;
pub mod rules;
pub mod state;

use std::net::{Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use holdfast_api::names::Names;
use holdfast_config::Config;
use holdfast_runtime::admin::{self, Admin};
use holdfast_runtime::health::{Flag, Health};
use holdfast_runtime::reload::Reloads;
use holdfast_runtime::supervise::Supervisor;
use holdfast_runtime::tls::{ClientAuth, ServerTls, TlsFiles};
use holdfast_runtime::{CancellationToken, files, logs, server, shutdown};
use kube::api::Api;
use tokio::net::TcpListener;
use tokio::sync::watch;

/// The port behind the Service `F-webhook`.
pub const PORT: u16 = 8443;
/// Where the Secret `F-webhook-tls` is mounted.
pub const TLS_FOLDER: &str = "/etc/holdfast/tls";
/// The folder beside [`TLS_FOLDER`] where the Secret `webhook.clientCaSecret` is mounted.
const CLIENT_CA_FOLDER: &str = "client-ca";
/// Time without a heartbeat after which a background loop counts as stuck.
const STUCK_AFTER: Duration = Duration::from_secs(120);
/// Time between two attempts to load a serving certificate that does not exist yet.
const TLS_RETRY_INTERVAL: Duration = Duration::from_secs(1);

/// Why the webhook cannot run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A port cannot be bound.
    #[error("cannot listen on port {port}")]
    Bind {
        /// The port.
        port: u16,
        /// Why.
        source: std::io::Error,
    },
    /// Signal handlers cannot be installed.
    #[error("cannot install signal handlers")]
    Signals(#[source] std::io::Error),
    /// The environment does not configure an API server.
    #[error("no API server is configured")]
    Client(#[from] kube::Error),
}

/// Where a webhook outside of its cluster listens and finds its certificate. The defaults are those
/// of its pod.
#[derive(Clone, Debug, Default)]
pub struct Outside {
    /// Listener of reviews, instead of [`PORT`] of all addresses.
    pub listen: Option<SocketAddr>,
    /// Listener of probes and metrics, instead of [`admin::PORT`] of all addresses.
    pub admin: Option<SocketAddr>,
    /// Folder of `tls.crt` and `tls.key`, instead of [`TLS_FOLDER`].
    pub tls_folder: Option<PathBuf>,
}

/// Runs the webhook until SIGTERM. `level` lets the admin port change the log level.
pub async fn run(
    config: Config,
    level: Option<logs::Level>,
    outside: Outside,
) -> Result<(), Error> {
    let client = kube::Client::try_default().await?;
    let stop = shutdown::on_signals().map_err(Error::Signals)?;
    let listener = bind(outside.listen, PORT)?;
    let admin_listener = bind(outside.admin, admin::PORT)?;
    let tls_folder = outside
        .tls_folder
        .unwrap_or_else(|| PathBuf::from(TLS_FOLDER));
    serve(
        config,
        level,
        client,
        &tls_folder,
        listener,
        admin_listener,
        stop,
    )
    .await;
    Ok(())
}

/// Serves reviews on `listener` and the admin endpoints on `admin_listener` until `stop`.
pub async fn serve(
    config: Config,
    level: Option<logs::Level>,
    client: kube::Client,
    tls_folder: &Path,
    listener: TcpListener,
    admin_listener: TcpListener,
    stop: CancellationToken,
) {
    let health = Health::default();
    let mut registry = holdfast_runtime::metrics::registry("webhook");
    let metrics = metrics::Metrics::register(&mut registry);
    let connections = server::Counts::register(&mut registry);
    let reloads = Reloads::register(&mut registry);
    let supervisor = Supervisor::new(health.clone(), &mut registry, stop.clone());
    let tls_loaded = health.ready_flag("tls", "no serving certificate yet");
    let state_seen = health.ready_flag("state", "the shared state has not been read yet");
    let delivery_seen = health.ready_flag("delivery", "what is known of images is not read yet");
    let admin = Admin {
        health,
        registry: Arc::new(registry),
        level,
    };
    let admin = tokio::spawn(admin.serve(admin_listener, stop.clone()));

    let asks_for_certificate = !config.values.webhook.client_ca_secret.is_empty();
    let configured = rules::Configured::of(&config.values);
    let names = Names {
        release: config.release.name.clone(),
        fullname: config.release.fullname.clone(),
        namespace: config.release.namespace.clone(),
    };
    let (rules_sender, rules) = watch::channel(rules::Rules::new(configured.clone(), None));
    let api = Api::namespaced(client.clone(), &names.namespace);
    let (state, delivery) = (names.state(), names.delivery());
    let (state_api, state_rules) = (api.clone(), rules_sender.clone());
    supervisor.spawn("state", STUCK_AFTER, move |heartbeat| {
        let (rules, configured) = (state_rules.clone(), configured.clone());
        let publish = move |object: Option<&_>| state::publish(object, &configured, &rules);
        let seen = state_seen.clone();
        state::follow(state_api.clone(), state.clone(), publish, seen, heartbeat)
    });
    supervisor.spawn("delivery", STUCK_AFTER, move |heartbeat| {
        let rules = rules_sender.clone();
        let publish = move |object: Option<&_>| {
            let now = jiff::Timestamp::now().as_second();
            state::publish_delivery(object, now, &rules);
        };
        let seen = delivery_seen.clone();
        state::follow(api.clone(), delivery.clone(), publish, seen, heartbeat)
    });

    let (announcer, announcements) = announce::queue(metrics.clone());
    let announcements = Arc::new(announcements);
    supervisor.spawn("announcements", STUCK_AFTER, move |heartbeat| {
        let (announcements, client) = (Arc::clone(&announcements), client.clone());
        async move {
            announcements
                .work(client, move || heartbeat.success())
                .await;
            Ok::<(), std::convert::Infallible>(())
        }
    });

    let context = routes::Context {
        rules,
        controller: names.controller_user().into(),
        announcer,
        metrics,
    };
    let mut files = TlsFiles::in_folder(tls_folder, ClientAuth::None);
    if asks_for_certificate {
        tracing::info!("webhook.clientCaSecret is set: clients need a certificate of its CA");
        files.client_auth = ClientAuth::Required;
        files.client_ca = tls_folder.with_file_name(CLIENT_CA_FOLDER).join("ca.crt");
    }
    if let Some(tls) = load_tls(&files, &tls_loaded, &stop).await {
        let follow = tls
            .clone()
            .follow_counted(files::POLL_INTERVAL, reloads, stop.clone());
        tokio::spawn(follow);
        let service = server::tower(warp::service(routes::routes(context)));
        let (tls, stop) = (Some(tls), stop.clone());
        server::serve_counted(listener, tls, service, limits(), connections, stop).await;
    }
    stop.cancel();
    if let Err(error) = admin.await {
        tracing::debug!(%error, "the admin endpoints were aborted");
    }
}

/// Connections at a time.
const MAX_CONNECTIONS: usize = 1024;
/// Connections of one address at a time.
const MAX_CONNECTIONS_PER_ADDRESS: usize = 512;

/// The limits of connections. API servers open one connection per review under way, and keep some.
fn limits() -> server::Limits {
    server::Limits {
        connections: MAX_CONNECTIONS,
        connections_per_address: MAX_CONNECTIONS_PER_ADDRESS,
        header_bytes: 16 * 1024,
        streams: 32,
        http2_window: 64 * 1024,
        http2_large_windows: 0,
        ..server::Limits::default()
    }
}

/// Waits for a valid serving certificate, which the controller creates. `None` if `stop` comes
/// first.
async fn load_tls(files: &TlsFiles, loaded: &Flag, stop: &CancellationToken) -> Option<ServerTls> {
    loop {
        match ServerTls::from_files(files.clone()) {
            Ok(tls) => {
                loaded.ok("loaded");
                return Some(tls);
            }
            Err(error) => {
                tracing::info!(%error, "waiting for the serving certificate");
                loaded.failed(&error.to_string());
            }
        }
        tokio::select! {
            () = stop.cancelled() => return None,
            () = tokio::time::sleep(TLS_RETRY_INTERVAL) => {}
        }
    }
}

fn bind(address: Option<SocketAddr>, port: u16) -> Result<TcpListener, Error> {
    let address = address.unwrap_or_else(|| SocketAddr::from((Ipv6Addr::UNSPECIFIED, port)));
    server::bind(address).map_err(|source| Error::Bind {
        port: address.port(),
        source,
    })
}
