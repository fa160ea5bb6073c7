//! Decides which connection of a full listener is evicted for a new one. Pure.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::net::IpAddr;

use super::watch::Activity;

/// What the decision needs to know about a connection.
#[derive(Clone, Copy, Debug)]
pub(super) struct Candidate {
    pub(super) id: u64,
    pub(super) key: IpAddr,
    pub(super) activity: Activity,
}

impl Candidate {
    /// Whether its claim to its slot is unchanged.
    pub(super) fn is_unchanged(&self, now: Activity) -> bool {
        self.claim() == (now.busy, now.authenticated)
    }

    /// Whether it may be evicted for a client with `others` connections, if its own client has
    /// `own`.
    pub(super) fn may_be_evicted_for(&self, others: usize, own: usize, recycles: bool) -> bool {
        // If its client had only one more, eviction would just swap the two clients.
        recycles || !self.activity.busy || others + 2 <= own
    }

    fn claim(&self) -> (bool, bool) {
        (self.activity.busy, self.activity.authenticated)
    }
}

/// The order in which connections are evicted: first those without a request, then those that are
/// not authenticated, then those of the address that has most at that point, then those that are in
/// their present state for longest. If the listener `recycles`, requests and authentication do not
/// matter.
pub(super) fn order(mut candidates: Vec<Candidate>, recycles: bool) -> Vec<Candidate> {
    let claim = |candidate: &Candidate| (!recycles).then(|| candidate.claim());
    let longest = |candidate: &Candidate| (Reverse(candidate.activity.lasts), candidate.id);
    candidates.sort_unstable_by_key(|candidate| (claim(candidate), longest(candidate)));
    let mut counts = counts(&candidates);
    let ranked = candidates.into_iter().map(|candidate| {
        // The connections that its address has left at that point.
        let left = counts.entry(candidate.key).or_default();
        let rank = (claim(&candidate), Reverse(*left), longest(&candidate));
        *left = left.saturating_sub(1);
        (rank, candidate)
    });
    let mut ranked: Vec<_> = ranked.collect();
    ranked.sort_unstable_by_key(|(rank, _)| *rank);
    ranked.into_iter().map(|(_, candidate)| candidate).collect()
}

fn counts(candidates: &[Candidate]) -> HashMap<IpAddr, usize> {
    let mut counts = HashMap::new();
    for candidate in candidates {
        *counts.entry(candidate.key).or_insert(0) += 1;
    }
    counts
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// Connections in the form `ADDRESS STATE SECONDS`; the state is `idle` or `busy`, with `+`
    /// where it is authenticated.
    fn choose(connections: &[&str], arrival: u8, recycles: bool) -> Option<usize> {
        let address = |last: u8| IpAddr::from([10, 0, 0, last]);
        let candidates: Vec<_> = connections
            .iter()
            .zip(0..)
            .map(|(text, id)| {
                let mut parts = text.split(' ');
                let mut part = || parts.next().unwrap();
                let key = address(part().parse().unwrap());
                let state = part();
                let activity = Activity {
                    busy: state.starts_with("busy"),
                    authenticated: state.ends_with('+'),
                    lasts: Duration::from_secs(part().parse().unwrap()),
                };
                Candidate { id, key, activity }
            })
            .collect();
        let counts = counts(&candidates);
        let count = |key: &IpAddr| counts.get(key).copied().unwrap_or(0);
        let has = count(&address(arrival));
        let order = order(candidates.clone(), recycles);
        let next = order
            .iter()
            .find(|candidate| candidate.may_be_evicted_for(has, count(&candidate.key), recycles));
        next.map(|candidate| usize::try_from(candidate.id).unwrap())
    }

    #[test]
    fn the_least_claim_to_a_slot_is_evicted_first() {
        for (connections, arrival, expect, why) in [
            (
                &["1 idle 5", "1 idle 9"][..],
                2,
                Some(1),
                "the longest idle",
            ),
            (&["1 idle 5", "1 busy 9"], 2, Some(0), "idle before busy"),
            (
                &["1 busy 9", "1 idle+ 1"],
                2,
                Some(1),
                "even an authenticated one",
            ),
            (
                &["1 idle+ 9", "1 idle 5"],
                2,
                Some(1),
                "the unauthenticated first",
            ),
            (
                &["1 idle 9", "3 idle 1", "3 idle 2"],
                2,
                Some(2),
                "of the address that has most",
            ),
            (&["1 busy 9", "1 busy 5"], 2, Some(0), "two against none"),
            (
                &["1 busy+ 9", "1 busy 5"],
                2,
                Some(1),
                "the unauthenticated first",
            ),
            (&["1 busy 9", "3 busy 5"], 2, None, "one each"),
            (
                &["1 busy 9", "1 busy 5", "2 busy 1"],
                2,
                None,
                "two and one",
            ),
            (&["1 busy 9", "1 busy 5"], 1, None, "its own"),
            (&["1 busy 9", "1 idle 5"], 1, Some(1), "its own idle one"),
        ] {
            assert_eq!(choose(connections, arrival, false), expect, "{why}");
        }
    }

    #[test]
    fn a_listener_that_recycles_evicts_the_oldest_connection() {
        for (connections, expect) in [
            (&["1 busy 1", "1 busy 5"][..], 1),
            (&["1 busy 5", "1 idle 1"], 0),
            (&["2 busy+ 9", "1 busy 5", "1 idle 1"], 1),
        ] {
            assert_eq!(
                choose(connections, 1, true),
                Some(expect),
                "{connections:?}"
            );
        }
    }
}
