//! What one client of a network mount believes: names, absent ones too, until its knowledge of
//! their directory is too old or its own look shows a newer one; attributes until they are too old
//! or the file is opened.

use std::collections::HashMap;

use super::tree::{Ino, Tree};

#[derive(Debug, Default)]
pub(super) struct Caches {
    dirs: HashMap<Ino, Known>,
    attributes: HashMap<Ino, Attributes>,
    open: HashMap<Ino, Open>,
}

#[derive(Debug, Default)]
struct Known {
    version: u64,
    at: u64,
    names: HashMap<String, (Option<Ino>, u64)>,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Attributes {
    pub(super) len: u64,
    pub(super) modified: u64,
    at: u64,
}

#[derive(Debug, Default)]
pub(super) struct Open {
    handles: usize,
    /// Where the name went that was removed while the file was open.
    pub(super) silly: Option<(Ino, String)>,
}

impl Caches {
    /// Asks the server for the directory's state.
    pub(super) fn revalidate(&mut self, tree: &Tree, dir: Ino, now: u64) {
        let known = self.dirs.entry(dir).or_default();
        known.version = tree.node(dir).version;
        known.at = now;
    }

    /// What the client finds under a name, with what it knows, or after a look.
    pub(super) fn look_up(
        &mut self,
        tree: &Tree,
        dir: Ino,
        name: &str,
        now: u64,
        stale_ms: u64,
    ) -> Option<Ino> {
        let known = self.dirs.entry(dir).or_default();
        if known.at + stale_ms < now {
            known.version = tree.node(dir).version;
            known.at = now;
        }
        if let Some((found, version)) = known.names.get(name)
            && *version == known.version
        {
            return *found;
        }
        let found = tree.entry(dir, name);
        known.names.insert(name.to_owned(), (found, known.version));
        found
    }

    /// The client's own change of a directory: the reply carries the directory's new state.
    pub(super) fn changed(&mut self, tree: &Tree, dir: Ino, name: &str, now: u64) {
        self.revalidate(tree, dir, now);
        let known = self.dirs.entry(dir).or_default();
        let version = known.version;
        known
            .names
            .insert(name.to_owned(), (tree.entry(dir, name), version));
    }

    /// Attributes from the server.
    pub(super) fn ask(&mut self, tree: &Tree, ino: Ino, now: u64) -> Attributes {
        let attributes = Attributes {
            len: tree.data(ino).map_or(0, |data| data.bytes.len() as u64),
            modified: tree.node(ino).modified,
            at: now,
        };
        self.attributes.insert(ino, attributes);
        attributes
    }

    /// Attributes as the client knows them, asked for when they are too old.
    pub(super) fn attributes(
        &mut self,
        tree: &Tree,
        ino: Ino,
        now: u64,
        stale_ms: u64,
    ) -> Attributes {
        match self.attributes.get(&ino) {
            Some(known) if known.at + stale_ms >= now => *known,
            _ => self.ask(tree, ino, now),
        }
    }

    pub(super) fn opened(&mut self, ino: Ino) {
        self.open.entry(ino).or_default().handles += 1;
    }

    /// Closes a handle; with the last one of a removed file goes the name that held it.
    pub(super) fn closed(&mut self, ino: Ino) -> Option<(Ino, String)> {
        let open = self.open.get_mut(&ino)?;
        open.handles = open.handles.saturating_sub(1);
        if open.handles > 0 {
            return None;
        }
        self.open.remove(&ino).and_then(|open| open.silly)
    }

    /// The open file, if this client has it open.
    pub(super) fn open_mut(&mut self, ino: Ino) -> Option<&mut Open> {
        self.open.get_mut(&ino)
    }
}
