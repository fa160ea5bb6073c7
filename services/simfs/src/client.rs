//! A client of the simulated server: what it knows, what a call may meet, and how a change becomes
//! known to it.

use std::{
    io,
    path::Path,
    sync::Arc,
    time::{Duration, SystemTime},
};

use holdfast_store::volume::{Kind, Metadata};

use super::{
    Shared, State, parts,
    tree::{Body, Change, Ino, ROOT},
};

pub(super) const ENOENT: i32 = 2;
pub(super) const EIO: i32 = 5;
pub(super) const EEXIST: i32 = 17;
pub(super) const ENOTDIR: i32 = 20;
pub(super) const EISDIR: i32 = 21;
pub(super) const ENOSPC: i32 = 28;
pub(super) const ENOTEMPTY: i32 = 39;
pub(super) const ESTALE: i32 = 116;

/// What a call takes of the volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Allocation {
    None,
    /// A name in a folder: mostly there is a place for it.
    Name,
    /// Bytes, a file or a folder.
    Block,
}

/// The volume as one client sees it, between one start and the next.
#[derive(Clone, Debug)]
pub struct SimVolume {
    pub(super) shared: Arc<Shared>,
    pub(super) client: usize,
    pub(super) boot: u64,
}

pub(super) fn error<T>(code: i32) -> io::Result<T> {
    Err(io::Error::from_raw_os_error(code))
}

impl SimVolume {
    pub(super) fn new(shared: Arc<Shared>, client: usize, boot: u64) -> Self {
        Self {
            shared,
            client,
            boot,
        }
    }

    pub(super) fn call<T>(
        &self,
        allocation: Allocation,
        text: impl FnOnce() -> String,
        work: impl FnOnce(&mut State) -> io::Result<T>,
    ) -> io::Result<T> {
        self.shared.step();
        let mut state = self.shared.state();
        let result = state
            .begin(self.client, self.boot, allocation)
            .and_then(|()| work(&mut state));
        let outcome = result.as_ref().err().map(ToString::to_string);
        let client = self.client;
        state.line(|| {
            let outcome = outcome.unwrap_or_default();
            format!("client {client}: {} {outcome}", text())
        });
        result
    }
}

impl State {
    fn begin(&mut self, client: usize, boot: u64, allocation: Allocation) -> io::Result<()> {
        let known = &self.clients[client];
        if self.down || known.dead || known.boot != boot {
            return error(EIO);
        }
        self.calls += 1;
        self.now_ms += 1;
        if self.power_cut_at.is_some_and(|at| self.calls >= at) {
            self.cut_power();
            return error(EIO);
        }
        if self
            .kill_at
            .is_some_and(|(at, victim)| self.calls >= at && victim == client)
        {
            self.clients[client].dead = true;
            self.line(|| format!("---- client {client} is killed"));
            return error(EIO);
        }
        let faults = self.faults;
        if self.rng.chance(faults.io) {
            return error(EIO);
        }
        let is_full = faults.full && allocation == Allocation::Block;
        if is_full || allocation != Allocation::None && self.rng.chance(faults.no_space) {
            return error(ENOSPC);
        }
        Ok(())
    }

    /// Runs `work` with what the client knows, and again with the present state if that was stale,
    /// as Linux does.
    pub(super) fn retry<T>(
        &mut self,
        work: impl Fn(&mut Self, bool) -> io::Result<T>,
    ) -> io::Result<T> {
        match work(self, false) {
            Err(error) if error.raw_os_error() == Some(ESTALE) => work(self, true),
            other => other,
        }
    }

    pub(super) fn look_up(
        &mut self,
        client: usize,
        dir: Ino,
        name: &str,
        fresh: bool,
    ) -> Option<Ino> {
        if !self.is_network() {
            return self.tree.entry(dir, name);
        }
        let caches = &mut self.clients[client].caches;
        if fresh {
            caches.revalidate(&self.tree, dir, self.now_ms);
        }
        caches.look_up(&self.tree, dir, name, self.now_ms, self.faults.stale_ms)
    }

    /// A directory's inode.
    pub(super) fn folder(&mut self, client: usize, path: &Path, fresh: bool) -> io::Result<Ino> {
        let mut at = ROOT;
        for part in parts(path) {
            at = match self.look_up(client, at, part, fresh) {
                None => return error(ENOENT),
                Some(ino) if self.tree.node(ino).links == 0 => return error(ESTALE),
                Some(ino) if self.tree.dir(ino).is_none() => return error(ENOTDIR),
                Some(ino) => ino,
            };
        }
        Ok(at)
    }

    /// The directory of a path's last part, and that part.
    pub(super) fn parent<'a>(
        &mut self,
        client: usize,
        path: &'a Path,
        fresh: bool,
    ) -> io::Result<(Ino, &'a str)> {
        let name = parts(path).last().unwrap_or_default();
        let parent = path.parent().unwrap_or(path);
        Ok((self.folder(client, parent, fresh)?, name))
    }

    /// The inode of a name, as the client believes.
    pub(super) fn find(&mut self, client: usize, path: &Path, fresh: bool) -> io::Result<Ino> {
        if parts(path).next().is_none() {
            return Ok(ROOT);
        }
        let (dir, name) = self.parent(client, path, fresh)?;
        match self.look_up(client, dir, name, fresh) {
            None => error(ENOENT),
            Some(ino) if self.tree.node(ino).links == 0 => error(ESTALE),
            Some(ino) => Ok(ino),
        }
    }

    /// A name that is to be changed: absent when the client believes so or when it is so.
    pub(super) fn existing<'a>(
        &mut self,
        client: usize,
        path: &'a Path,
        fresh: bool,
    ) -> io::Result<(Ino, &'a str, Ino)> {
        let (dir, name) = self.parent(client, path, fresh)?;
        if self.look_up(client, dir, name, fresh).is_none() {
            return error(ENOENT);
        }
        let Some(ino) = self.tree.entry(dir, name) else {
            self.noticed(client, dir, name);
            return error(ENOENT);
        };
        Ok((dir, name, ino))
    }

    /// The client has learned the present state of a name.
    pub(super) fn noticed(&mut self, client: usize, dir: Ino, name: &str) {
        if self.is_network() {
            self.clients[client]
                .caches
                .changed(&self.tree, dir, name, self.now_ms);
        }
    }

    pub(super) fn change(&mut self, client: usize, change: Change) {
        self.tree.change(change.clone(), self.now_ms);
        for (dir, name, _) in change {
            self.noticed(client, dir, &name);
        }
    }

    /// The other name of a file that the client has open and that loses its name: the last part of
    /// the change, or nothing.
    pub(super) fn silly(
        &mut self,
        client: usize,
        dir: Ino,
        ino: Ino,
    ) -> Option<(Ino, String, Option<Ino>)> {
        if !self.is_network() {
            return None;
        }
        let open = self.clients[client].caches.open_mut(ino)?;
        let name = format!(".nfs{ino:08x}");
        open.silly = Some((dir, name.clone()));
        Some((dir, name, Some(ino)))
    }

    /// The result of a change that was made, unless its reply is lost.
    pub(super) fn replied(&mut self, repeated: i32) -> io::Result<()> {
        let rate = self.faults.lost_reply;
        if self.rng.chance(rate) {
            let code = if self.is_network() && self.rng.chance(7_000) {
                repeated
            } else {
                EIO
            };
            return error(code);
        }
        Ok(())
    }

    pub(super) fn open(&mut self, client: usize, ino: Ino) {
        let caches = &mut self.clients[client].caches;
        caches.opened(ino);
        caches.ask(&self.tree, ino, self.now_ms);
    }

    pub(super) fn describe(&mut self, client: usize, ino: Ino) -> Metadata {
        let stale_ms = self.faults.stale_ms;
        let caches = &mut self.clients[client].caches;
        let known = if stale_ms == 0 {
            caches.ask(&self.tree, ino, self.now_ms)
        } else {
            caches.attributes(&self.tree, ino, self.now_ms, stale_ms)
        };
        Metadata {
            kind: kind(&self.tree.node(ino).body),
            len: known.len,
            modified: Some(SystemTime::UNIX_EPOCH + Duration::from_millis(known.modified)),
            inode: (1, ino as u64),
        }
    }

    pub(super) fn create(&mut self, client: usize, dir: Ino, name: &str, body: Body) -> Ino {
        let ino = self.tree.add(body, self.now_ms);
        self.change(client, vec![(dir, name.to_owned(), Some(ino))]);
        ino
    }
}

pub(super) fn kind(body: &Body) -> Kind {
    match body {
        Body::Dir(_) => Kind::Dir,
        Body::File(_) => Kind::File,
    }
}
