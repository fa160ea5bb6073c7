//! The listening socket.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

use tokio::net::{TcpListener, TcpSocket};

/// Connections that the kernel holds until they are accepted; it has its own bound
/// (`net.core.somaxconn`). Beyond it, clients wait for seconds before they retry, so there must be
/// room for a burst of one client beside others.
pub const BACKLOG: u32 = 4096;

/// Listens on `address`. If it is the unspecified IPv6 address and the kernel has no IPv6, listens
/// on all IPv4 addresses.
///
/// # Errors
/// The address is in use, or does not belong to this machine.
pub fn bind(address: SocketAddr) -> std::io::Result<TcpListener> {
    match listen(address) {
        Err(error) if no_such_family(&error) && address.ip() == Ipv6Addr::UNSPECIFIED => {
            listen((Ipv4Addr::UNSPECIFIED, address.port()).into())
        }
        outcome => outcome,
    }
}

fn listen(address: SocketAddr) -> std::io::Result<TcpListener> {
    let socket = match address {
        SocketAddr::V4(_) => TcpSocket::new_v4(),
        SocketAddr::V6(_) => TcpSocket::new_v6(),
    }?;
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// Whether the error is `EAFNOSUPPORT` (no IPv6 in the kernel) or `EADDRNOTAVAIL` (disabled by
/// sysctl).
fn no_such_family(error: &std::io::Error) -> bool {
    const EAFNOSUPPORT: i32 = 97;
    error.kind() == std::io::ErrorKind::AddrNotAvailable
        || error.raw_os_error() == Some(EAFNOSUPPORT)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn a_burst_of_connections_waits_in_the_kernel() {
        let kernel = std::fs::read_to_string("/proc/sys/net/core/somaxconn").unwrap();
        let count = BACKLOG.min(kernel.trim().parse().unwrap()) - 1;
        let listener = bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let address = listener.local_addr().unwrap();
        let mut open = Vec::new();
        for number in 0..count.min(1000) {
            let connect = tokio::net::TcpStream::connect(address);
            // A client whose connection found no room tries again after a second.
            let connected = tokio::time::timeout(Duration::from_millis(900), connect).await;
            let connected = connected.unwrap_or_else(|_| panic!("{number} found no room"));
            open.push(connected.unwrap());
        }
    }

    #[test]
    fn the_document_lists_the_backlog() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/LIMITS.md");
        let document = std::fs::read_to_string(path).unwrap();
        let cells = format!("| `BACKLOG` | {BACKLOG} |");
        assert!(document.contains(&cells), "docs/LIMITS.md lacks {cells}");
    }
}
