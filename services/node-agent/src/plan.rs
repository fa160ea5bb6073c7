//! Compares the host with what is wanted and plans the actions in between. Pure. To undo
//! everything, plan with nothing wanted.

use std::collections::{BTreeMap, BTreeSet};

use crate::journal::{Entry, Journal, Original};

/// The first line of every file that the agent writes. It tells operators whose file it is, and an
/// agent that lost its journal recognizes its files by it.
pub const MARKER: &str =
    "# Written by the node agent of Holdfast, which repairs it and takes it away again.";

/// A file that the agent wants on the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostFile {
    /// The content.
    pub bytes: Vec<u8>,
    /// Permission bits.
    pub mode: u32,
}

/// What is at a path of the host now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    /// Nothing, a regular file or a symbolic link: what an [`Original`] can restore.
    Known(Original),
    /// A directory, a device, or a file that is too large or unreadable: never touched.
    Foreign,
}

const NOTHING: Found = Found::Known(Original::Absent);

/// What a plan needs to know about the host.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Host {
    /// What is at each path of the wanted files and of the journal.
    pub files: BTreeMap<String, Found>,
    /// The existing directories above those paths.
    pub directories: BTreeSet<String>,
    /// Paths above those files that exist and are not directories, for instance links.
    pub obstructed: BTreeSet<String>,
}

/// One step on the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Create a directory (0755).
    CreateDirectory(String),
    /// Write a file of the agent.
    Write(String, HostFile),
    /// Restore what was there before the agent.
    Restore(String, Original),
    /// Remove a directory that the agent created, if it is empty.
    RemoveDirectory(String),
}

/// The actions that bring the host to the wanted state, and the journals before and after them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan {
    /// The journal to store before the first action.
    pub journal_first: Journal,
    /// The actions, in order.
    pub actions: Vec<Action>,
    /// The journal to store after the last action; empty if no trace is left.
    pub journal_last: Journal,
    /// The agent's files that another program changed or removed, and that are written again.
    pub repaired: Vec<String>,
    /// What is not touched and why, for the operator.
    pub left: Vec<String>,
}

/// Plans the way from `host` to `wanted`. `exhausted` are files that the agent no longer repairs,
/// because another program changed them too often.
pub fn plan(
    host: &Host,
    journal: &Journal,
    wanted: &BTreeMap<String, HostFile>,
    exhausted: &BTreeSet<String>,
) -> Plan {
    let mut plan = Plan {
        journal_first: journal.clone(),
        journal_last: journal.clone(),
        ..Plan::default()
    };
    for (path, file) in wanted {
        plan.put(host, path, file, exhausted.contains(path));
    }
    for (path, entry) in &journal.files {
        if !wanted.contains_key(path) {
            plan.restore(path, entry, host.files.get(path).unwrap_or(&NOTHING));
        }
    }
    // Deepest first, so that children are removed before their parents.
    for directory in journal.directories.iter().rev() {
        let needed = wanted
            .keys()
            .any(|path| path.starts_with(&format!("{directory}/")));
        if !needed {
            if host.directories.contains(directory) {
                plan.actions
                    .push(Action::RemoveDirectory(directory.clone()));
            }
            plan.journal_last.directories.remove(directory);
        }
    }
    plan
}

impl Plan {
    fn put(&mut self, host: &Host, path: &str, file: &HostFile, exhausted: bool) {
        if let Some(above) = parents(path).find(|above| host.obstructed.contains(*above)) {
            self.left
                .push(format!("{path} is not written: {above} is not a directory"));
            return;
        }
        let found = host.files.get(path).unwrap_or(&NOTHING);
        let known = self.journal_first.files.get(path);
        let current = match found {
            Found::Foreign => {
                self.left.push(format!(
                    "{path} is not written: it exists and is not a regular file"
                ));
                return;
            }
            Found::Known(current) => current.clone(),
        };
        let ours = known.is_some_and(|entry| is_own(entry, &current))
            || (known.is_none() && is_marked(&current));
        if matches!(&current, Original::File { content, mode, .. } if *content == file.bytes && *mode == file.mode && ours)
        {
            if known.is_none() {
                self.adopt(path, file);
            }
            return;
        }
        if known.is_some() && !ours {
            if exhausted {
                self.left.push(format!(
                    "{path} is left: another program changed it repeatedly"
                ));
                return;
            }
            self.repaired.push(path.to_owned());
        }
        for directory in parents(path).collect::<Vec<_>>().into_iter().rev() {
            let planned = self
                .actions
                .iter()
                .any(|a| matches!(a, Action::CreateDirectory(d) if d == directory));
            if !host.directories.contains(directory) && !planned {
                self.actions
                    .push(Action::CreateDirectory(directory.to_owned()));
                self.journal_first.directories.insert(directory.to_owned());
                self.journal_last.directories.insert(directory.to_owned());
            }
        }
        if ours && known.is_none() {
            self.adopt(path, file);
        } else {
            let original = if ours { Original::Absent } else { current };
            self.record(path, original, file);
        }
        self.actions
            .push(Action::Write(path.to_owned(), file.clone()));
    }

    /// Takes over a file that an agent wrote whose journal is lost, and the directory of its
    /// address.
    fn adopt(&mut self, path: &str, file: &HostFile) {
        if let Some(directory) = parents(path).next() {
            for journal in [&mut self.journal_first, &mut self.journal_last] {
                journal.directories.insert(directory.to_owned());
            }
        }
        self.record(path, Original::Absent, file);
    }

    /// Enters the file into both journals. An entry keeps its first original.
    fn record(&mut self, path: &str, original: Original, file: &HostFile) {
        for journal in [&mut self.journal_first, &mut self.journal_last] {
            let entry = Entry {
                original: original.clone(),
                written: Vec::new(),
            };
            journal
                .files
                .entry(path.to_owned())
                .or_insert(entry)
                .remember(&file.bytes);
        }
    }

    fn restore(&mut self, path: &str, entry: &Entry, found: &Found) {
        self.journal_last.files.remove(path);
        let current = match found {
            Found::Known(current) => current,
            Found::Foreign => {
                self.left
                    .push(format!("{path} is left: it is no longer a regular file"));
                return;
            }
        };
        if *current == entry.original {
            return;
        }
        if *current == Original::Absent || is_own(entry, current) {
            self.actions
                .push(Action::Restore(path.to_owned(), entry.original.clone()));
        } else {
            self.left.push(format!(
                "{path} is left: another program changed it after the agent wrote it"
            ));
        }
    }
}

fn is_own(entry: &Entry, current: &Original) -> bool {
    matches!(current, Original::File { content, .. } if entry.wrote(content))
}

/// Whether an agent wrote this file, also one whose journal is lost.
fn is_marked(current: &Original) -> bool {
    matches!(current, Original::File { content, .. } if content.starts_with(MARKER.as_bytes()))
}

/// The directories above a relative path, nearest first.
pub(crate) fn parents(path: &str) -> impl Iterator<Item = &str> {
    std::iter::successors(path.rsplit_once('/').map(|(above, _)| above), |p| {
        p.rsplit_once('/').map(|(above, _)| above)
    })
}

#[cfg(test)]
mod tests;
