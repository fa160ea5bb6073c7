//! The limit of open files and sockets, and each listener's share of it.
//!
//! Container runtimes start programs with a soft limit of 1024, for programs that use `select`.
//! With it, a registry that serves 4096 connections could not open files on its volume. So the soft
//! limit is raised, each listener has a share, and the rest is for the volume and upstreams.

use rustix::process::{Resource, getrlimit, setrlimit};

use crate::server::{BACKLOG, Limits, MAX_WAITING};

/// Raises the soft limit of open files to the hard limit. A failure is logged, and the listeners
/// accept fewer connections.
pub fn raise() {
    let mut limit = getrlimit(Resource::Nofile);
    if limit.current == limit.maximum {
        return;
    }
    limit.current = limit.maximum;
    if let Err(error) = setrlimit(Resource::Nofile, limit) {
        tracing::warn!(%error, "cannot raise the limit of open files");
    }
}

/// The sockets that a listener may hold open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Share {
    /// Connections with a slot.
    pub connections: usize,
    /// Connections that wait for a slot.
    pub waiting: usize,
    /// Accepted connections that were not processed yet.
    pub arrivals: usize,
}

impl Share {
    /// The share of a listener with these limits, in a process that may have this many files open
    /// (`None`: no limit).
    pub fn of(limits: &Limits, files: Option<u64>) -> Self {
        let files = files.map_or(u64::MAX, |files| files / limits.part_of_files.max(1));
        let files = usize::try_from(files).unwrap_or(usize::MAX);
        let waiting = MAX_WAITING.min(files / 8);
        let arrivals = (BACKLOG as usize).min(files / 8);
        let connections = limits.connections.min(files - waiting - arrivals);
        Self {
            connections,
            waiting,
            arrivals: arrivals.min(connections),
        }
    }

    /// The share of a listener of this process.
    pub(crate) fn of_this_process(limits: &Limits) -> Self {
        let share = Self::of(limits, getrlimit(Resource::Nofile).current);
        if share.connections < limits.connections {
            tracing::warn!(
                connections = share.connections,
                wanted = limits.connections,
                "the limit of open files reduces the number of connections"
            );
        }
        share
    }

    /// The total of the share.
    pub fn files(&self) -> usize {
        self.connections + self.waiting + self.arrivals
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listener_takes_no_more_than_its_part_of_the_files() {
        let all = (4096, MAX_WAITING, 4096);
        for (files, part_of_files, connections, expect) in [
            (Some(1024), 3, 4096, (257, 42, 42)),
            (Some(1024), 6, 128, (128, 21, 21)),
            (Some(1024), 6, 20, (20, 21, 20)),
            (Some(524_288), 3, 4096, all),
            (None, 3, 4096, all),
            (Some(2), 3, 4096, (0, 0, 0)),
        ] {
            let limits = Limits {
                connections,
                part_of_files,
                ..Limits::default()
            };
            let share = Share::of(&limits, files);
            let found = (share.connections, share.waiting, share.arrivals);
            assert_eq!(found, expect, "{files:?}");
            assert!(files.is_none_or(|files| share.files() as u64 <= files / part_of_files));
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
