//! The calls of the store's volume, carried out on the simulated server with the client's beliefs.

use std::{
    io,
    path::Path,
    sync::Arc,
    time::{Duration, SystemTime},
};

use holdfast_store::{
    Space,
    volume::{Entry, Kind, Metadata, Volume, VolumeFile},
};

use super::{
    Shared, State,
    files::SimFile,
    parts,
    tree::{Body, Change, Data, Dir, Ino, ROOT},
};

const ENOENT: i32 = 2;
pub(super) const EIO: i32 = 5;
const EEXIST: i32 = 17;
const ENOTDIR: i32 = 20;
pub(super) const EISDIR: i32 = 21;
pub(super) const ENOSPC: i32 = 28;
const ENOTEMPTY: i32 = 39;
pub(super) const ESTALE: i32 = 116;

/// What a call takes of the volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Room {
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
        room: Room,
        text: impl FnOnce() -> String,
        work: impl FnOnce(&mut State) -> io::Result<T>,
    ) -> io::Result<T> {
        self.shared.step();
        let mut state = self.shared.state();
        let result = state
            .begin(self.client, self.boot, room)
            .and_then(|()| work(&mut state));
        let outcome = result.as_ref().err().map(ToString::to_string);
        let client = self.client;
        state.line(|| {
            let outcome = outcome.unwrap_or_default();
            format!("client {client}: {} {outcome}", text())
        });
        result
    }

    fn file(&self, ino: Ino) -> Arc<dyn VolumeFile> {
        Arc::new(SimFile {
            volume: self.clone(),
            ino,
        })
    }
}

impl State {
    fn begin(&mut self, client: usize, boot: u64, room: Room) -> io::Result<()> {
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
        let is_full = faults.full && room == Room::Block;
        if is_full || room != Room::None && self.rng.chance(faults.no_space) {
            return error(ENOSPC);
        }
        Ok(())
    }

    /// Runs `work` with what the client knows, and again with the present state if that was stale,
    /// as Linux does.
    fn retry<T>(&mut self, work: impl Fn(&mut Self, bool) -> io::Result<T>) -> io::Result<T> {
        match work(self, false) {
            Err(error) if error.raw_os_error() == Some(ESTALE) => work(self, true),
            other => other,
        }
    }

    fn look_up(&mut self, client: usize, dir: Ino, name: &str, fresh: bool) -> Option<Ino> {
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
    fn folder(&mut self, client: usize, path: &Path, fresh: bool) -> io::Result<Ino> {
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
    fn parent<'a>(
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
    fn find(&mut self, client: usize, path: &Path, fresh: bool) -> io::Result<Ino> {
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
    fn existing<'a>(
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
    fn noticed(&mut self, client: usize, dir: Ino, name: &str) {
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
    fn silly(&mut self, client: usize, dir: Ino, ino: Ino) -> Option<(Ino, String, Option<Ino>)> {
        if !self.is_network() {
            return None;
        }
        let open = self.clients[client].caches.open_mut(ino)?;
        let name = format!(".nfs{ino:08x}");
        open.silly = Some((dir, name.clone()));
        Some((dir, name, Some(ino)))
    }

    /// The result of a change that was made, unless its reply is lost.
    fn replied(&mut self, repeated: i32) -> io::Result<()> {
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

    fn open(&mut self, client: usize, ino: Ino) {
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

    fn create(&mut self, client: usize, dir: Ino, name: &str, body: Body) -> Ino {
        let ino = self.tree.add(body, self.now_ms);
        self.change(client, vec![(dir, name.to_owned(), Some(ino))]);
        ino
    }
}

fn kind(body: &Body) -> Kind {
    match body {
        Body::Dir(_) => Kind::Dir,
        Body::File(_) => Kind::File,
    }
}

impl Volume for SimVolume {
    fn open_read(&self, path: &Path) -> io::Result<Arc<dyn VolumeFile>> {
        let ino = self.call(
            Room::None,
            || format!("open {}", path.display()),
            |state| {
                let ino = state.retry(|state, fresh| state.find(self.client, path, fresh))?;
                state.open(self.client, ino);
                Ok(ino)
            },
        )?;
        Ok(self.file(ino))
    }

    fn open_write(&self, path: &Path, create: bool) -> io::Result<Arc<dyn VolumeFile>> {
        let ino = self.call(
            if create { Room::Block } else { Room::None },
            || format!("open for writing {}", path.display()),
            |state| {
                let ino = state.retry(|state, fresh| {
                    if !create {
                        return state.find(self.client, path, fresh);
                    }
                    let (dir, name) = state.parent(self.client, path, fresh)?;
                    if let Some(ino) = state.tree.entry(dir, name) {
                        state.noticed(self.client, dir, name);
                        return Ok(ino);
                    }
                    Ok(state.create(self.client, dir, name, Body::File(Data::default())))
                })?;
                state.open(self.client, ino);
                Ok(ino)
            },
        )?;
        Ok(self.file(ino))
    }

    fn create_new(&self, path: &Path) -> io::Result<Arc<dyn VolumeFile>> {
        let ino = self.call(
            Room::Block,
            || format!("create {}", path.display()),
            |state| {
                let ino = state.retry(|state, fresh| {
                    let (dir, name) = state.parent(self.client, path, fresh)?;
                    if state.tree.entry(dir, name).is_some() {
                        state.noticed(self.client, dir, name);
                        return error(EEXIST);
                    }
                    Ok(state.create(self.client, dir, name, Body::File(Data::default())))
                })?;
                state.open(self.client, ino);
                Ok(ino)
            },
        )?;
        Ok(self.file(ino))
    }

    fn metadata(&self, path: &Path) -> io::Result<Metadata> {
        self.call(
            Room::None,
            || format!("stat {}", path.display()),
            |state| {
                let ino = state.retry(|state, fresh| state.find(self.client, path, fresh))?;
                Ok(state.describe(self.client, ino))
            },
        )
    }

    fn list(&self, folder: &Path) -> io::Result<Vec<Entry>> {
        self.call(
            Room::None,
            || format!("list {}", folder.display()),
            |state| {
                let dir = state.retry(|state, fresh| state.folder(self.client, folder, fresh))?;
                state.clients[self.client]
                    .caches
                    .revalidate(&state.tree, dir, state.now_ms);
                let mut entries: Vec<_> = state
                    .tree
                    .dir(dir)
                    .into_iter()
                    .flat_map(|dir| &dir.entries)
                    .collect();
                // Not by name: names that a run makes up at random must not decide its course.
                entries.sort_unstable_by_key(|(_, ino)| **ino);
                Ok(entries
                    .into_iter()
                    .map(|(name, ino)| Entry {
                        name: name.into(),
                        kind: kind(&state.tree.node(*ino).body),
                    })
                    .collect())
            },
        )
    }

    fn create_dir(&self, path: &Path) -> io::Result<()> {
        self.call(
            Room::Block,
            || format!("mkdir {}", path.display()),
            |state| {
                state.retry(|state, fresh| {
                    let (dir, name) = state.parent(self.client, path, fresh)?;
                    if name.is_empty() || state.tree.entry(dir, name).is_some() {
                        state.noticed(self.client, dir, name);
                        return error(EEXIST);
                    }
                    state.create(self.client, dir, name, Body::Dir(Dir::default()));
                    Ok(())
                })?;
                state.replied(EEXIST)
            },
        )
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.call(
            Room::Name,
            || format!("rename {} to {}", from.display(), to.display()),
            |state| {
                state.retry(|state, fresh| {
                    let (dir, name, ino) = state.existing(self.client, from, fresh)?;
                    let (target, new) = state.parent(self.client, to, fresh)?;
                    let mut change = vec![
                        (dir, name.to_owned(), None),
                        (target, new.to_owned(), Some(ino)),
                    ];
                    match state.tree.entry(target, new) {
                        Some(old) if old == ino => return Ok(()),
                        Some(old) => {
                            let silly = state.silly(self.client, target, old);
                            change.splice(0..0, silly);
                        }
                        None => {}
                    }
                    state.change(self.client, change);
                    Ok(())
                })?;
                state.replied(ENOENT)
            },
        )
    }

    fn link(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.call(
            Room::Name,
            || format!("link {} to {}", from.display(), to.display()),
            |state| {
                state.retry(|state, fresh| {
                    let (_, _, ino) = state.existing(self.client, from, fresh)?;
                    let (target, new) = state.parent(self.client, to, fresh)?;
                    if state.tree.entry(target, new).is_some() {
                        state.noticed(self.client, target, new);
                        return error(EEXIST);
                    }
                    state.change(self.client, vec![(target, new.to_owned(), Some(ino))]);
                    Ok(())
                })?;
                state.replied(EEXIST)
            },
        )
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        self.call(
            Room::None,
            || format!("unlink {}", path.display()),
            |state| {
                if state.faults.worn_out {
                    return error(EIO);
                }
                state.retry(|state, fresh| {
                    let (dir, name, ino) = state.existing(self.client, path, fresh)?;
                    if state.tree.dir(ino).is_some() {
                        return error(EISDIR);
                    }
                    let mut change = vec![(dir, name.to_owned(), None)];
                    if !name.starts_with(".nfs") {
                        let silly = state.silly(self.client, dir, ino);
                        change.splice(0..0, silly);
                    }
                    state.change(self.client, change);
                    Ok(())
                })?;
                state.replied(ENOENT)
            },
        )
    }

    fn remove_dir(&self, path: &Path) -> io::Result<()> {
        self.call(
            Room::None,
            || format!("rmdir {}", path.display()),
            |state| {
                state.retry(|state, fresh| {
                    let (dir, name, ino) = state.existing(self.client, path, fresh)?;
                    match state.tree.dir(ino) {
                        None => return error(ENOTDIR),
                        Some(found) if !found.entries.is_empty() => return error(ENOTEMPTY),
                        Some(_) => {}
                    }
                    state.change(self.client, vec![(dir, name.to_owned(), None)]);
                    Ok(())
                })?;
                state.replied(ENOENT)
            },
        )
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        self.call(
            Room::None,
            || format!("sync dir {}", path.display()),
            |state| {
                let dir = state.retry(|state, fresh| state.folder(self.client, path, fresh))?;
                state.clients[self.client]
                    .caches
                    .revalidate(&state.tree, dir, state.now_ms);
                if !state.faults.skip_dir_syncs {
                    state.tree.sync(dir);
                }
                Ok(())
            },
        )
    }

    fn touch(&self, path: &Path) -> io::Result<()> {
        self.call(
            Room::None,
            || format!("touch {}", path.display()),
            |state| {
                let ino = state.retry(|state, fresh| state.find(self.client, path, fresh))?;
                state.tree.node_mut(ino).modified = state.now_ms;
                state.clients[self.client]
                    .caches
                    .ask(&state.tree, ino, state.now_ms);
                Ok(())
            },
        )
    }

    fn space(&self, _path: &Path) -> io::Result<Space> {
        Ok(Space {
            total_bytes: 1 << 40,
            available_bytes: 1 << 39,
        })
    }

    fn refresh(&self, path: &Path) -> io::Result<bool> {
        self.call(
            Room::None,
            || format!("refresh {}", path.display()),
            |state| {
                if !state.is_network() {
                    return Ok(false);
                }
                // As far as there are directories; what is absent is seen as absent.
                drop(state.parent(self.client, path, true));
                if let Ok((dir, name)) = state.parent(self.client, path, false) {
                    state.look_up(self.client, dir, name, true);
                }
                Ok(true)
            },
        )
    }

    fn is_blocking(&self) -> bool {
        false
    }
}
