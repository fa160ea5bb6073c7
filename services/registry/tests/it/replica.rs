//! Registry replicas in this process: each with its API, its fills and its internal listener with
//! mutual TLS.

use std::{path::Path, sync::Arc, time::Duration};

use holdfast_config::{Proxy, Uplink, UpstreamSettings};
use holdfast_fill::internal;
use holdfast_fill::pull_through::PullThrough;
use holdfast_fill::{Fills, Peers, Settings};
use holdfast_registry::{
    Api, Parts, access_control::AccessControl, limits::Limits, session::Secret,
};
use holdfast_runtime::{
    CancellationToken, metrics, server,
    tls::{ClientAuth, ClientTls, ServerTls, TlsFiles},
};
use holdfast_store::{LockHolder, Options, Store};
use holdfast_testkit::{Fault, Image, Upstream, faults::Kind, tls::Authority};
use holdfast_upstream::{Timeouts, Upstreams};

/// A running replica; it ends with [`Replica::stop`] or with its runtime.
pub(crate) struct Replica {
    pub(crate) url: String,
    pub(crate) fills: Fills,
    stop: CancellationToken,
}

/// An upstream with an image whose blobs come at 2,000 bytes a second.
pub(crate) async fn trickling(name: &str, image: &Image) -> Upstream {
    let upstream = Upstream::start().await;
    upstream.push(name, "1", image);
    let kind = Kind::Slow {
        bytes_per_second: 2000,
    };
    upstream.faults().set(Fault::new(kind).on("/blobs/"));
    upstream
}

/// What replicas share.
pub(crate) struct Site {
    folder: tempfile::TempDir,
    pub(crate) settings: Settings,
}

impl Site {
    pub(crate) fn new() -> Self {
        holdfast_runtime::tls::install_crypto_provider();
        let folder = tempfile::tempdir().unwrap();
        Authority::new()
            .unwrap()
            .write(
                &folder.path().join("tls"),
                "holdfast-registry",
                &["internal.test"],
            )
            .unwrap();
        let settings = Settings {
            platforms: vec!["linux/amd64".to_owned()],
            hold: Duration::from_secs(30),
            retry: Duration::from_millis(20),
            ..Settings::default()
        };
        Self { folder, settings }
    }

    pub(crate) fn data(&self) -> std::path::PathBuf {
        self.folder.path().join("data")
    }

    fn tls(&self) -> std::path::PathBuf {
        self.folder.path().join("tls")
    }

    pub(crate) async fn replica(&self, upstream: &Upstream, id: &str) -> Replica {
        self.replica_of(&[upstream], id).await
    }

    /// A replica for several upstreams, all of them listed.
    pub(crate) async fn replica_of(&self, upstreams: &[&Upstream], id: &str) -> Replica {
        let listed: Vec<_> = upstreams.iter().map(|upstream| listed(upstream)).collect();
        let settings = self.settings.clone();
        start(&self.data(), &self.tls(), settings, &listed, id).await
    }

    /// A replica in a runtime of its own, which can be killed: no task goes on.
    pub(crate) async fn doomed(&self, upstream: &Upstream, id: &str) -> (Replica, Doom) {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let (data, tls, settings, id) = (
            self.data(),
            self.tls(),
            self.settings.clone(),
            id.to_owned(),
        );
        let of = vec![listed(upstream)];
        let started = runtime.spawn(async move { start(&data, &tls, settings, &of, &id).await });
        let replica = started.await.unwrap();
        (replica, Doom(Some(runtime)))
    }
}

/// The end of a replica.
pub(crate) struct Doom(Option<tokio::runtime::Runtime>);

impl Doom {
    pub(crate) fn kill(mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

impl Drop for Doom {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

fn listed(upstream: &Upstream) -> UpstreamSettings {
    UpstreamSettings::anonymous(&upstream.host(), &[upstream.url()])
}

async fn start(
    data: &Path,
    tls: &Path,
    settings: Settings,
    upstreams: &[UpstreamSettings],
    id: &str,
) -> Replica {
    let options = Options::unlimited();
    let store = Store::open(data, options).await.unwrap();
    let timeouts = Timeouts {
        headers: Duration::from_secs(2),
        stall: Duration::from_secs(5),
        quarantine: Duration::from_millis(100),
        ..Timeouts::default()
    };
    let uplink = Uplink {
        negative_seconds: 0,
        ..Uplink::default()
    };
    let upstreams = Upstreams::new(upstreams, &Proxy::default(), &uplink, timeouts).unwrap();
    let listener = server::bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let owner = LockHolder {
        address: listener.local_addr().unwrap().to_string(),
        id: id.to_owned(),
    };
    let peers = Peers::mutual("internal.test", ClientTls::from_folder(tls).unwrap());
    let fills = Fills::new(store.clone(), upstreams, owner.clone(), peers, settings);
    let stop = CancellationToken::new();
    let server_tls = ServerTls::from_files(TlsFiles::in_folder(tls, ClientAuth::Required)).unwrap();
    tokio::spawn(internal::serve(
        listener,
        Some(server_tls),
        fills.clone(),
        stop.clone(),
    ));
    let api = Api::new(
        Parts {
            store,
            source: Some(Arc::new(fills.clone()) as Arc<dyn PullThrough>),
            access_control: AccessControl::open(),
            secret: Secret::new("upload-secret"),
            limits: Limits {
                hold: Duration::from_secs(30),
                ..Limits::default()
            },
            owner,
            draining: stop.clone(),
        },
        &mut metrics::registry("registry"),
    );
    let listener = server::bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(api.serve(listener, None, server::Limits::default(), stop.clone()));
    Replica { url, fills, stop }
}

impl Replica {
    pub(crate) fn stop(&self) {
        self.stop.cancel();
    }
}

impl Drop for Replica {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}
