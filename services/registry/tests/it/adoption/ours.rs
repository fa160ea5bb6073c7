//! Holdfast's API over a volume, on 127.0.0.1.

use std::{path::Path, time::Duration};

use holdfast_registry::{
    Api, Parts, access_control::AccessControl, limits::Limits, session::Secret,
};
use holdfast_runtime::{CancellationToken, metrics, server};
use holdfast_store::{LockHolder, Options, Store};

use super::theirs::SECRET;

/// A running registry; it ends with the value.
pub(crate) struct Ours {
    pub(crate) url: String,
    store: Store,
    stop: CancellationToken,
}

impl Ours {
    /// Does what the registry does when it ends: what deletes left is finished.
    pub(crate) async fn finish(&self) {
        self.store.finish_deletes().await.unwrap();
    }
}

impl Drop for Ours {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// Serves the volume, with sessions signed by `secret`.
pub(crate) async fn serve_with(root: &Path, secret: &str) -> Ours {
    holdfast_runtime::tls::install_crypto_provider();
    let options = Options::unlimited();
    let stop = CancellationToken::new();
    let store = Store::open(root, options).await.unwrap();
    let parts = Parts {
        store: store.clone(),
        source: None,
        access_control: AccessControl::open(),
        secret: Secret::new(secret),
        limits: Limits {
            hold: Duration::from_millis(100),
            ..Limits::default()
        },
        owner: LockHolder {
            address: String::new(),
            id: "adoption".to_owned(),
        },
        draining: stop.clone(),
    };
    let api = Api::new(parts, &mut metrics::registry("registry"));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(api.serve(listener, None, server::Limits::default(), stop.clone()));
    Ours { url, store, stop }
}

/// Serves the volume.
pub(crate) async fn serve(root: &Path) -> Ours {
    serve_with(root, SECRET).await
}
