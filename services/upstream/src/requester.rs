//! For whom an upstream is asked, and which request gives way to others: the number of requests of
//! one client, or of repositories that they name, does not reduce what other clients get.

use std::{collections::HashMap, net::IpAddr};

use super::SharedPriority;

tokio::task_local! {
    static CURRENT: Requester;
}

/// Who causes a request to an upstream.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Requester {
    /// The controller, and the registry's own background work.
    #[default]
    Internal,
    /// A client that pulls, by its address (IPv6: its /64).
    Client(IpAddr),
}

impl Requester {
    /// Runs a client's request: what it asks of upstreams is asked for this client.
    pub async fn scope<T>(client: IpAddr, request: impl Future<Output = T>) -> T {
        CURRENT.scope(Self::Client(client), request).await
    }

    /// The requester of the current task. A spawned task has none of its own and counts as
    /// [`Requester::Internal`]: take the client's before, and set it explicitly.
    pub fn current() -> Self {
        CURRENT.try_with(|current| *current).unwrap_or_default()
    }
}

/// Which queue entry is dropped for a new one when the queue is full: the newest of the requester
/// that holds most, if that is more than the new entry's requester would hold then. Else, of the
/// new entry's own requester, the newest of the repository that holds most, under the same
/// condition. `None`: the new one is refused. An entry that several requesters share counts as that
/// of the one that holds least. Both are given by repository and priority.
pub(crate) fn greediest<'a>(
    held: impl Iterator<Item = (u64, &'a str, &'a SharedPriority)> + Clone,
    (repository, newcomer): (&str, &SharedPriority),
) -> Option<u64> {
    let mut all: HashMap<Requester, usize> = HashMap::new();
    let mut by_repository: HashMap<(Requester, &str), usize> = HashMap::new();
    for (_, repository, priority) in held.clone() {
        for requester in priority.requesters() {
            *all.entry(requester).or_default() += 1;
            *by_repository.entry((requester, repository)).or_default() += 1;
        }
    }
    let least = |repository: &str, priority: &SharedPriority| {
        let each = priority.requesters().into_iter().map(|requester| {
            let own = all.get(&requester).copied().unwrap_or(0);
            let of_repository = by_repository.get(&(requester, repository)).copied();
            ((own, of_repository.unwrap_or(0)), requester)
        });
        each.min()
    };
    let ((own, own_of_repository), requester) = least(repository, newcomer)?;
    let may_lose = held.filter_map(|(at, repository, priority)| {
        let ((has, has_of_repository), of) = least(repository, priority)?;
        let is_repositories_turn = of == requester && has_of_repository > own_of_repository + 1;
        (has > own + 1 || is_repositories_turn).then_some(((has, has_of_repository), at))
    });
    may_lose.max().map(|(_, at)| at)
}
