//! How many files and sockets the process may have open.
//!
//! Container runtimes start programs with a soft limit of 1024, for programs that use `select`. A
//! registry that may serve 4096 connections would fail at its volume long before that.

use rustix::process::{Resource, getrlimit, setrlimit};

/// Raises the process's soft limit of open files to its hard one. A failure is logged: the
/// listeners then take fewer connections.
pub fn raise() {
    let mut limit = getrlimit(Resource::Nofile);
    if limit.current == limit.maximum {
        return;
    }
    limit.current = limit.maximum;
    if let Err(error) = setrlimit(Resource::Nofile, limit) {
        tracing::warn!(%error, "the limit of open files cannot be raised");
    }
}

/// How many of the connections that a listener may have the process can hold open. The rest of its
/// files is for the volume, upstreams and the other listeners.
pub(crate) fn connections(wanted: usize) -> usize {
    let most = share(getrlimit(Resource::Nofile).current, 3);
    if most < wanted {
        tracing::warn!(
            connections = most,
            wanted,
            "the limit of open files allows fewer connections"
        );
    }
    wanted.min(most)
}

/// How many connections a listener may hold that have no place yet: of the files a small part.
pub(crate) fn arrivals(wanted: usize) -> usize {
    wanted.min(share(getrlimit(Resource::Nofile).current, 16))
}

/// One of so many parts of a limit. `None`: no limit.
fn share(limit: Option<u64>, parts: u64) -> usize {
    let most = limit.map_or(u64::MAX, |limit| limit / parts);
    usize::try_from(most).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listener_gets_no_more_connections_than_files_allow() {
        for (limit, parts, expect) in [
            (Some(1024), 3, 341),
            (Some(1024), 16, 64),
            (Some(524_288), 3, 174_762),
            (None, 3, usize::MAX),
        ] {
            assert_eq!(share(limit, parts), expect, "{limit:?}");
        }
    }

    #[test]
    fn the_soft_limit_becomes_the_hard_one() {
        let mut low = getrlimit(Resource::Nofile);
        low.current = low.maximum.map(|most| most - 1);
        setrlimit(Resource::Nofile, low).unwrap();
        raise();
        let raised = getrlimit(Resource::Nofile);
        assert_eq!(raised.current, raised.maximum);
    }
}
