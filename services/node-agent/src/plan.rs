//! From what is on the host and what is wanted to the actions between: a pure function. Undoing is
//! the same function with nothing wanted.

use std::collections::{BTreeMap, BTreeSet};

use crate::certs_d::{MARKER, Wanted};
use crate::journal::{Entry, Journal, Original};

/// What is at a path of the host now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    /// Nothing, a plain file or a link: what an [`Original`] can put back.
    Known(Original),
    /// A directory, a device, or a file that cannot be read: never touched.
    Foreign,
}

const NOTHING: Found = Found::Known(Original::Absent);

/// The host as far as the plan needs it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Host {
    /// Every path of the wanted files and of the journal.
    pub files: BTreeMap<String, Found>,
    /// Directories above those paths that exist as plain directories.
    pub directories: BTreeSet<String>,
    /// Paths above those files that are something else, a link for instance.
    pub obstructed: BTreeSet<String>,
}

/// One step on the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Makes a directory (0755).
    CreateDirectory(String),
    /// Puts the agent's bytes there, atomically.
    Write(String, Wanted),
    /// Puts back what was there before the agent.
    Restore(String, Original),
    /// Removes a directory that the agent made, when it is empty.
    RemoveDirectory(String),
}

/// The way from the host as it is to the host as it is wanted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan {
    /// To be on disk before the first action.
    pub journal_first: Journal,
    /// In this order.
    pub actions: Vec<Action>,
    /// To be on disk after the last action; empty means that no trace is left.
    pub journal_last: Journal,
    /// Files of the agent's that somebody else had changed or removed, and that are written again.
    pub repaired: Vec<String>,
    /// What was not touched, with the reason, in words for an operator.
    pub left: Vec<String>,
}

/// Plans. `yielded` are files that somebody else changed so often that the agent no longer fights
/// for them.
pub fn plan(
    host: &Host,
    journal: &Journal,
    wanted: &BTreeMap<String, Wanted>,
    yielded: &BTreeSet<String>,
) -> Plan {
    let mut plan = Plan {
        journal_first: journal.clone(),
        journal_last: journal.clone(),
        ..Plan::default()
    };
    for (path, file) in wanted {
        plan.put(host, path, file, yielded.contains(path));
    }
    for (path, entry) in &journal.files {
        if !wanted.contains_key(path) {
            plan.take_back(path, entry, host.files.get(path).unwrap_or(&NOTHING));
        }
    }
    // Deepest first: a parent can only go when its children went.
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
    fn put(&mut self, host: &Host, path: &str, file: &Wanted, yielded: bool) {
        if let Some(above) = parents(path).find(|above| host.obstructed.contains(*above)) {
            self.left.push(format!(
                "{path} is not written: {above} is not a plain directory"
            ));
            return;
        }
        let found = host.files.get(path).unwrap_or(&NOTHING);
        let known = self.journal_first.files.get(path);
        let current = match found {
            Found::Foreign => {
                self.left.push(format!(
                    "{path} is not written: something that is not a plain file is there"
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
            if yielded {
                self.left.push(format!(
                    "{path} was changed by somebody else again and again, and is left as it is"
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

    /// Takes a file of an agent whose journal is gone as its own, and with it the directory that
    /// bears an address.
    fn adopt(&mut self, path: &str, file: &Wanted) {
        if let Some(directory) = parents(path).next() {
            for journal in [&mut self.journal_first, &mut self.journal_last] {
                journal.directories.insert(directory.to_owned());
            }
        }
        self.record(path, Original::Absent, file);
    }

    /// Notes the file as the agent's in both journals; the original is the one known first.
    fn record(&mut self, path: &str, original: Original, file: &Wanted) {
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

    fn take_back(&mut self, path: &str, entry: &Entry, found: &Found) {
        self.journal_last.files.remove(path);
        let current = match found {
            Found::Known(current) => current,
            Found::Foreign => {
                self.left.push(format!(
                    "{path} is left: something that is not a plain file is there now"
                ));
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
                "{path} is left: somebody else changed it after the agent wrote it"
            ));
        }
    }
}

fn is_own(entry: &Entry, current: &Original) -> bool {
    matches!(current, Original::File { content, .. } if entry.wrote(content))
}

/// A file of an agent whose journal is gone.
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
