//! Names that tests resolve without a resolver: `10-0-0-5.test` has the address 10.0.0.5, and
//! `10-0-0-5.203-0-113-5.test` has both (RFC 6761 keeps `.test` free). Connections to them go to
//! this machine: it has none of these addresses.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

/// The addresses of such a name; `None` for any other one.
pub(crate) fn addresses(name: &str) -> Option<Vec<SocketAddr>> {
    let address = |label: &str| {
        let address: IpAddr = label.replace('-', ".").parse().ok()?;
        Some(SocketAddr::new(address, 0))
    };
    let labels = name.strip_suffix(".test")?;
    labels.split('.').map(address).collect()
}

/// Where a connection to an address of such a name goes.
pub(crate) fn route(name: &str, address: SocketAddr) -> SocketAddr {
    match addresses(name) {
        Some(_) => SocketAddr::new(Ipv4Addr::LOCALHOST.into(), address.port()),
        None => address,
    }
}
