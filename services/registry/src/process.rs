//! The process of the registry: opens the store, assembles the parts, and serves until it is
//! stopped.
//!
//! The volume may hang at any time: accepting connections and liveness do not depend on it, and
//! readiness asks it with a deadline.

use std::{future::Future, sync::Arc, time::Duration};

use holdfast_config::{AccessSettings, RegistrySettings};
use holdfast_core::Host;
use holdfast_runtime::{
    CancellationToken,
    admin::Admin,
    files,
    health::{Flag, Health},
    logs, metrics,
    reload::Reloads,
    server,
    tls::{ClientAuth, ClientTls, ServerTls, TlsFiles},
};
use holdfast_store::{
    LockHolder, Options, Store, WriteLimits,
    volume::{Disk, Volume},
};
use tokio::{net::TcpListener, task::JoinSet};

use crate::{
    access_control::{self, AccessControl},
    api::{Api, Observers, Parts},
    limits::{self, Limits},
    metrics::Metrics,
    notify::{self, Notifier},
    probe,
    scrub::{self, Scrubber},
    session::Secret,
    volume_watch::{self, MeasuredVolume, VolumeStatus, Watch, WatchIntervals},
};
use holdfast_fill::internal;
use holdfast_fill::pull_through::PullThrough;
use holdfast_fill::{self as fill, Fills, Peers};
use holdfast_upstream::{self as upstream, Upstreams};

/// Why the registry cannot start, or ended.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The store cannot be opened.
    #[error("the store cannot be opened")]
    Store(#[from] holdfast_store::Error),
    /// A listener's address cannot be bound.
    #[error("cannot listen on {address}")]
    Listen {
        /// The address.
        address: std::net::SocketAddr,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// The certificates cannot be used.
    #[error("the certificates cannot be used")]
    Tls(#[from] holdfast_runtime::tls::Error),
    /// The handlers of signals cannot be installed.
    #[error("signals cannot be handled")]
    Signals(#[source] std::io::Error),
    /// The file with the upload secret cannot be read.
    #[error("the upload secret cannot be read")]
    UploadSecret(#[source] std::io::Error),
    /// A file of `access` cannot be used.
    #[error("the files of access cannot be used")]
    Access(#[from] access_control::LoadError),
    /// The settings of notifications cannot be used.
    #[error("the settings of notifications cannot be used")]
    Notifications(#[from] notify::Error),
    /// The settings of an upstream cannot be used.
    #[error("the settings of the upstreams cannot be used")]
    Upstream(#[from] upstream::Error),
}

/// Runs the registry until SIGTERM or SIGINT, then finishes the requests in progress.
///
/// `level` is the switch of the log level for the admin endpoints.
///
/// # Errors
/// Why it cannot start; once started, it ends only by a signal.
pub async fn run(settings: RegistrySettings, level: Option<logs::Level>) -> Result<(), Error> {
    let shutdown = holdfast_runtime::shutdown::on_signals().map_err(Error::Signals)?;
    run_until(settings, level, shutdown).await
}

/// [`run`] until `shutdown`.
///
/// # Errors
/// Why it cannot start.
pub async fn run_until(
    settings: RegistrySettings,
    level: Option<logs::Level>,
    shutdown: CancellationToken,
) -> Result<(), Error> {
    let data = settings.data.clone();
    // Even finding out the kind of the volume may hang.
    let disk = async move {
        let disk = tokio::task::spawn_blocking(move || Disk::at(&data)).await;
        disk.map_or_else(
            |_| Err(holdfast_store::Error::Busy.into()),
            |disk| Ok(Arc::new(disk) as Arc<dyn Volume>),
        )
    };
    run_on(disk, WatchIntervals::default(), settings, level, shutdown).await
}

/// [`run_until`] on a volume that may take however long to answer: probes and metrics are answered
/// meanwhile, and the distribution API is served once the store is open.
///
/// # Errors
/// Why it cannot start.
pub async fn run_on(
    volume: impl Future<Output = Result<Arc<dyn Volume>, Error>>,
    intervals: WatchIntervals,
    settings: RegistrySettings,
    level: Option<logs::Level>,
    shutdown: CancellationToken,
) -> Result<(), Error> {
    let shell = Shell::start(&settings, level, &shutdown)?;
    // Errors of files and addresses are reported before the volume is waited for.
    let access = Access::load(&settings)?;
    let opening = async {
        let measured = Arc::new(MeasuredVolume::new(volume.await?, &shell.numbers));
        Ok::<_, Error>(Store::open_on(measured, &settings.data, options(&settings)).await?)
    };
    let opened = volume_watch::opened(opening, intervals, &shell.ready, &shutdown).await;
    let Some(store) = opened else {
        tracing::info!("the registry has ended before its volume answered");
        return Ok(());
    };
    let store = store?;
    let fills = fills(&settings, &store, &shell, &shutdown)?;
    let volume_status = VolumeStatus::default();
    let api = Api::observed(
        Parts {
            store: store.clone(),
            source: Some(Arc::new(fills.clone()) as Arc<dyn PullThrough>),
            access_control: access.control.clone(),
            secret: access.secret.clone(),
            limits: Limits::from(&settings),
            owner: shell.owner.clone(),
            draining: shutdown.clone(),
        },
        shell.numbers.clone(),
        Observers {
            access_log: Some(settings.access_log.clone()),
            notifier: shell.notifier.clone(),
            volume_status: Some(volume_status.clone()),
            writes: settings.writes,
            mirror_of: mirror_of(&settings),
        },
    );
    let listener = bind(settings.listen)?;
    let tls = access.tls.clone();
    let watch = Watch {
        store: store.clone(),
        ready: shell.ready.clone(),
        volume_status,
        metrics: shell.numbers.volume.clone(),
        intervals,
    };
    let mut tasks = access.follow(&fills, &shell.reloads, &shutdown)?;
    tasks.spawn(watch.run(shutdown.clone()));
    maintain(&mut tasks, &settings, &shell, &fills, &shutdown);

    let connections = server::Limits {
        drain: settings.drain,
        ..limits::connection(&settings.limits)
    };
    tracing::info!(address = %settings.listen, tls = tls.is_some(), data = %settings.data.display(), "the registry listens");
    api.serve(listener, tls, connections, shutdown).await;
    shell.end(tasks, &store).await;
    Ok(())
}

/// What starts before the volume answers and ends last: probes, metrics, notifications.
struct Shell {
    ready: Flag,
    owner: LockHolder,
    numbers: Metrics,
    reloads: Reloads,
    scrubbed: scrub::Metrics,
    copied: fill::Metrics,
    upstreams: Upstreams,
    notifier: Option<Notifier>,
    /// No further events come: the notifier sends what it has and ends.
    no_more_events: CancellationToken,
    admin_end: CancellationToken,
}

impl Shell {
    fn start(
        settings: &RegistrySettings,
        level: Option<logs::Level>,
        shutdown: &CancellationToken,
    ) -> Result<Self, Error> {
        let health = Health::default();
        let ready = health.ready_flag("volume", "not asked yet");
        let stopping = shutdown.clone();
        health.ready("shutdown", move || {
            if stopping.is_cancelled() {
                Err("ending".to_owned())
            } else {
                Ok("not asked to end".to_owned())
            }
        });
        let owner = LockHolder {
            address: internal_address(settings),
            id: uuid::Uuid::new_v4().to_string(),
        };
        let (no_more_events, admin_end) = (CancellationToken::new(), CancellationToken::new());
        let mut registry = metrics::registry("registry");
        let numbers = Metrics::register(&mut registry);
        let reloads = Reloads::register(&mut registry);
        let notifier = Notifier::start(
            &settings.notifications,
            &settings.listen.to_string(),
            &owner.id,
            settings.tls.is_some(),
            &mut registry,
            &reloads,
            &no_more_events,
        )?;
        let scrubbed = scrub::Metrics::register(&mut registry);
        let upstreams = Upstreams::new(
            &settings.upstreams,
            &settings.proxy,
            &settings.uplink,
            upstream::Timeouts {
                manifest_bytes: settings.limits.manifest_bytes.bytes(),
                ..upstream::Timeouts::default()
            },
        )?;
        let copied = fill::Metrics::of(&upstreams);
        copied.register(&mut registry);
        if let Some(address) = settings.admin_listen {
            let admin = Admin {
                health,
                registry: Arc::new(registry),
                level,
            };
            tokio::spawn(admin.serve(bind(address)?, admin_end.clone()));
        }
        Ok(Self {
            ready,
            owner,
            numbers,
            reloads,
            scrubbed,
            copied,
            upstreams,
            notifier,
            no_more_events,
            admin_end,
        })
    }

    /// Ends what outlives the listeners, once the background work has ended.
    async fn end(self, mut tasks: JoinSet<()>, store: &Store) {
        self.no_more_events.cancel();
        if let Some(notifier) = self.notifier {
            notifier.ended().await;
        }
        // A task that waits for a volume that hangs would never end.
        let rest = async {
            while tasks.join_next().await.is_some() {}
            // Another registry that takes the volume over knows nothing of tags that are still to
            // be removed.
            finish_deletes(store).await;
        };
        if tokio::time::timeout(SHUTDOWN_TIMEOUT, rest).await.is_err() {
            tracing::warn!("background work did not end in time and was aborted");
        }
        self.admin_end.cancel();
        tracing::info!("the registry has ended");
    }
}

/// Certificates, credentials and secrets, all of them from files that are read again.
struct Access {
    tls: Option<ServerTls>,
    control: AccessControl,
    secret: Secret,
    secret_file: Option<std::path::PathBuf>,
    internal: Option<(std::net::SocketAddr, ServerTls)>,
}

impl Access {
    fn load(settings: &RegistrySettings) -> Result<Self, Error> {
        let access = settings.access.as_ref();
        let tls = settings.tls.as_ref();
        let tls = tls.map(|files| client_tls(files, access)).transpose()?;
        let control = AccessControl::from_settings(settings.auth.as_ref(), access)?;
        let (secret, secret_file) = upload_secret(settings)?;
        let internal = match (settings.internal_listen, &settings.internal_tls) {
            (Some(address), Some(files)) => {
                Some((address, server_tls(files, ClientAuth::Required)?))
            }
            _ => None,
        };
        Ok(Self {
            tls,
            control,
            secret,
            secret_file,
            internal,
        })
    }

    /// Serves the internal API, and follows all files.
    fn follow(
        self,
        fills: &Fills,
        reloads: &Reloads,
        shutdown: &CancellationToken,
    ) -> Result<JoinSet<()>, Error> {
        let mut tasks = JoinSet::new();
        if let Some((address, tls)) = self.internal {
            let listener = bind(address)?;
            tasks.spawn(tls.clone().follow(files::POLL_INTERVAL, shutdown.clone()));
            let serve = internal::serve(listener, Some(tls), fills.clone(), shutdown.clone());
            tasks.spawn(serve);
        }
        let every = files::POLL_INTERVAL;
        if let Some(tls) = self.tls {
            tasks.spawn(tls.follow_counted(every, reloads.clone(), shutdown.clone()));
        }
        if let Some(path) = self.secret_file {
            let (reloads, shutdown) = (reloads.clone(), shutdown.clone());
            tasks.spawn(self.secret.follow(path, every, reloads, shutdown));
        }
        let (reloads, shutdown) = (reloads.clone(), shutdown.clone());
        tasks.spawn(self.control.follow(every, reloads, shutdown));
        Ok(tasks)
    }
}

/// Starts the maintenance of the store: removal of abandoned uploads, the scrubber, the probe
/// image.
fn maintain(
    tasks: &mut JoinSet<()>,
    settings: &RegistrySettings,
    shell: &Shell,
    fills: &Fills,
    shutdown: &CancellationToken,
) {
    let store = fills.store();
    let idle = Limits::from(settings).upload_idle;
    tasks.spawn(clean(store.clone(), idle, CLEAN_EVERY, shutdown.clone()));
    let rate = settings.scrub.bytes_per_second.bytes();
    if rate > 0 {
        let rhythm = scrub::Settings {
            rate,
            every: Duration::from_secs(u64::from(settings.scrub.every_hours) * 3600),
            look: SCRUB_LOOK,
        };
        let scrubber = Scrubber::new(
            store.clone(),
            Some(Arc::new(fills.clone()) as Arc<dyn PullThrough>),
            shell.owner.clone(),
            rhythm,
            shell.scrubbed.clone(),
            shell.numbers.clone(),
        );
        tasks.spawn(scrubber.run(shutdown.clone()));
    }
    tasks.spawn(keep_probe(store.clone(), PROBE_EVERY, shutdown.clone()));
}

/// The upstream of pulls that name none, as answers name it.
fn mirror_of(settings: &RegistrySettings) -> Option<(String, Host)> {
    let name = settings.mirror_of.clone()?;
    let host = Host::parse(&name).ok()?;
    Some((name, host))
}

/// How often the scrubber checks whether a pass is due. Not at the start, which has other work.
const SCRUB_LOOK: Duration = Duration::from_secs(60);

/// How long background work may take to end once the listeners are closed and all requests have
/// ended.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(10);

fn options(settings: &RegistrySettings) -> Options {
    Options {
        buffer_bytes: usize::try_from(settings.limits.stream_buffer_bytes.bytes())
            .unwrap_or(48 << 20),
        write_limits: WriteLimits {
            max_used_percent: 100 - settings.limits.reserve_percent.min(100),
            warn_used_percent: limits::warn_used_percent(settings.limits.warn_used_percent),
            ..WriteLimits::default()
        },
        ..Options::unlimited()
    }
}

/// Where other replicas read what this one fills: the pod's address, told by the downward API.
fn internal_address(settings: &RegistrySettings) -> String {
    let Some(listen) = settings.internal_listen else {
        return String::new();
    };
    let ip = std::env::var("POD_IP")
        .ok()
        .and_then(|ip| ip.parse().ok())
        .unwrap_or_else(|| listen.ip());
    if ip.is_unspecified() {
        String::new()
    } else {
        std::net::SocketAddr::new(ip, listen.port()).to_string()
    }
}

fn server_tls(
    files: &holdfast_config::TlsFiles,
    client_auth: ClientAuth,
) -> Result<ServerTls, Error> {
    let files = TlsFiles {
        certificate: files.certificate.clone(),
        key: files.key.clone(),
        client_ca: files.ca.clone().unwrap_or_default(),
        client_auth,
    };
    Ok(ServerTls::from_files(files)?)
}

/// TLS towards clients; certificates are requested if a CA for them is configured, and are
/// optional.
fn client_tls(
    files: &holdfast_config::TlsFiles,
    access: Option<&AccessSettings>,
) -> Result<ServerTls, Error> {
    let ca = access.and_then(|access| access.client_ca.clone());
    let auth = if ca.is_some() {
        ClientAuth::Optional
    } else {
        ClientAuth::None
    };
    let files = holdfast_config::TlsFiles {
        ca,
        ..files.clone()
    };
    server_tls(&files, auth)
}

/// What signs upload sessions, and the file it comes from.
fn upload_secret(
    settings: &RegistrySettings,
) -> Result<(Secret, Option<std::path::PathBuf>), Error> {
    let of_release = settings.auth.as_ref().map(|files| &files.upload_secret);
    if let Some(path) = settings.upload_secret.as_ref().or(of_release) {
        let secret = Secret::from_file(path).map_err(Error::UploadSecret)?;
        return Ok((secret, Some(path.clone())));
    }
    if let Some(text) = &settings.upload_secret_text {
        return Ok((Secret::new(text.expose()), None));
    }
    // One process signs and reads its own sessions; after a restart clients begin again.
    let random = [uuid::Uuid::new_v4(), uuid::Uuid::new_v4()].map(uuid::Uuid::into_bytes);
    Ok((Secret::new(random.concat()), None))
}

fn fills(
    settings: &RegistrySettings,
    store: &Store,
    shell: &Shell,
    shutdown: &CancellationToken,
) -> Result<Fills, Error> {
    let peers = match (&settings.internal_service, &settings.internal_tls) {
        (Some(name), Some(files)) => {
            let folder = files
                .certificate
                .parent()
                .unwrap_or_else(|| std::path::Path::new("/"));
            let client = ClientTls::from_folder(folder)?;
            let (follower, folder, shutdown) =
                (client.clone(), folder.to_owned(), shutdown.clone());
            tokio::spawn(async move {
                follower
                    .follow(&folder, files::POLL_INTERVAL, shutdown)
                    .await;
            });
            Peers::mutual(name, client)
        }
        _ => Peers::none(),
    };
    let configured = settings.upstreams.iter();
    let configured = configured.filter_map(|upstream| Host::parse(&upstream.host).ok());
    let permitted = holdfast_core::UpstreamFilter::new(&settings.sources, configured.collect())
        .only_configured(settings.only_listed_upstreams);
    let fills = fill::Settings {
        permitted: permitted.is_restricted().then_some(permitted),
        hold: Duration::from_secs(settings.limits.hold_seconds.into()),
        revalidate_pulls: settings.uplink.revalidate_pulls,
        has_controller: settings.has_controller,
        tag_fresh: Duration::from_secs(settings.uplink.tag_fresh_seconds.into()),
        metrics: shell.copied.clone(),
        ..fill::Settings::default()
    };
    Ok(Fills::new(
        store.clone(),
        shell.upstreams.clone(),
        shell.owner.clone(),
        peers,
        fills,
    ))
}

fn bind(address: std::net::SocketAddr) -> Result<TcpListener, Error> {
    server::bind(address).map_err(|source| Error::Listen { address, source })
}

/// Removes the tags of deleted manifests that an earlier process left.
async fn finish_deletes(store: &Store) {
    match store.finish_deletes().await {
        Ok(0) => {}
        Ok(count) => tracing::info!(
            count,
            "repositories had tags of deleted manifests, which are removed now"
        ),
        Err(error) => {
            tracing::warn!(%error, "tags of deleted manifests cannot be removed; they answer \"unknown\" nevertheless");
        }
    }
}

/// How often abandoned uploads are removed.
const CLEAN_EVERY: Duration = Duration::from_secs(3600);

/// Removes abandoned uploads, and the rest of interrupted deletes.
async fn clean(store: Store, idle: Duration, every: Duration, shutdown: CancellationToken) {
    loop {
        finish_deletes(&store).await;
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = tokio::time::sleep(every) => {}
        }
        match store.purge_idle(idle).await {
            Ok(0) => {}
            Ok(count) => tracing::info!(count, "abandoned uploads were removed"),
            Err(error) => tracing::warn!(%error, "cannot remove abandoned uploads"),
        }
    }
}

/// How often the probe image is looked at: nodes whose probe fails count as not prepared, so a
/// volume that was lost under a running registry must not take it away for good.
const PROBE_EVERY: Duration = Duration::from_secs(60);

/// Stores the probe image again if it is missing.
async fn keep_probe(store: Store, every: Duration, shutdown: CancellationToken) {
    loop {
        let outcome = tokio::select! {
            () = shutdown.cancelled() => return,
            outcome = probe::ensure(&store) => outcome,
        };
        let pause = match outcome {
            Ok(digest) => {
                tracing::debug!(image.digest = %digest, "the probe image is in place");
                every
            }
            Err(error) => {
                tracing::warn!(%error, "the probe image cannot be stored");
                every.min(Duration::from_secs(10))
            }
        };
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = tokio::time::sleep(pause) => {}
        }
    }
}

#[cfg(test)]
mod tests;
