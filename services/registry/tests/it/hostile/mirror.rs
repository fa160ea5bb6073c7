//! A registry that copies from another one.

use std::sync::Arc;

use holdfast_config::{Proxy, Uplink, UpstreamSettings};
use holdfast_fill::{Fills, Peers, Settings};
use holdfast_store::{LockHolder, Store};
use holdfast_upstream::{Timeouts, Upstreams};

use crate::harness::{Registry, Setup};

/// A registry with its fills.
pub(crate) struct Mirror {
    pub(crate) registry: Registry,
    pub(crate) fills: Fills,
}

/// A registry that copies what `host` has from `url`.
pub(crate) async fn mirror(host: &str, url: &str, uplink: &Uplink) -> Mirror {
    holdfast_runtime::tls::install_crypto_provider();
    let setup = Setup::default();
    let store = Store::open(setup.dir.path(), setup.options).await.unwrap();
    let settings = UpstreamSettings::anonymous(host, &[url.to_owned()]);
    let upstreams =
        Upstreams::new(&[settings], &Proxy::default(), uplink, Timeouts::default()).unwrap();
    let owner = LockHolder {
        address: String::new(),
        id: "mirror".to_owned(),
    };
    let fills = Fills::new(store, upstreams, owner, Peers::none(), Settings::default());
    let registry = Setup {
        source: Some(Arc::new(fills.clone())),
        ..setup
    };
    Mirror {
        registry: registry.start().await,
        fills,
    }
}

/// No waits between requests.
pub(crate) fn uplink() -> Uplink {
    Uplink {
        requests_per_second_per_host: 0,
        negative_seconds: 0,
        ..Uplink::default()
    }
}
