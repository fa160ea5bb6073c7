//! How many files and sockets the process may have open.
//!
//! Container runtimes start programs with a soft limit of 1024, for programs that use `select`. A
//! registry that may serve 4096 connections would fail at its volume long before that. So each
//! listener takes a part of them, and the rest is for the volume and upstreams.

use rustix::process::{Resource, getrlimit, setrlimit};

use crate::server::{BACKLOG, Limits, WAITING};

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

/// What a listener holds open at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Share {
    /// Connections that have a place.
    pub connections: usize,
    /// Connections that wait for one.
    pub waiting: usize,
    /// Connections that were not looked at yet.
    pub arrivals: usize,
}

impl Share {
    /// Of a listener with these limits, in a process that may have so many files open (`None`: any
    /// number).
    pub fn of(limits: &Limits, files: Option<u64>) -> Self {
        let files = files.map_or(u64::MAX, |files| files / limits.part_of_files.max(1));
        let files = usize::try_from(files).unwrap_or(usize::MAX);
        let waiting = WAITING.min(files / 8);
        let arrivals = (BACKLOG as usize).min(files / 8);
        let connections = limits.connections.min(files - waiting - arrivals);
        Self {
            connections,
            waiting,
            arrivals: arrivals.min(connections),
        }
    }

    /// Of a listener of this process.
    pub(crate) fn of_this_process(limits: &Limits) -> Self {
        let share = Self::of(limits, getrlimit(Resource::Nofile).current);
        if share.connections < limits.connections {
            tracing::warn!(
                connections = share.connections,
                wanted = limits.connections,
                "the limit of open files allows fewer connections"
            );
        }
        share
    }

    /// All files of it.
    pub fn files(&self) -> usize {
        self.connections + self.waiting + self.arrivals
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listener_takes_no_more_than_its_part_of_the_files() {
        let all = (4096, WAITING, 4096);
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
