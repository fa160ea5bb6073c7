//! For whom an upstream is asked. Requests of one client share what there is of an upstream's pace, so
//! that the number of them, or of repositories that they name, takes nothing from other clients.

use std::net::IpAddr;

tokio::task_local! {
    static CURRENT: Requester;
}

/// For whom an upstream is asked.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Requester {
    /// The controller, and the registry's own background work.
    #[default]
    Internal,
    /// A client that pulls, by its address (IPv6: its /64).
    Client(IpAddr),
}

impl Requester {
    /// Runs a client's request: what it asks of upstreams is asked for this client.
    pub(crate) async fn scope<T>(client: IpAddr, request: impl Future<Output = T>) -> T {
        CURRENT.scope(Self::Client(client), request).await
    }

    /// For whom the current task works. A task that is spawned works for nobody in particular: what it
    /// does for a client has to be told before.
    pub(crate) fn current() -> Self {
        CURRENT.try_with(|current| *current).unwrap_or_default()
    }
}
