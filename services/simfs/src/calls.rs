//! The calls of the store's volume, carried out on the simulated server for one client.

use std::{io, path::Path, sync::Arc};

use holdfast_store::{
    Space,
    volume::{Entry, Metadata, Volume, VolumeFile},
};

use super::{
    client::{Allocation, EEXIST, EIO, EISDIR, ENOENT, ENOTDIR, ENOTEMPTY, SimVolume, error, kind},
    files::SimFile,
    tree::{Body, Data, Dir, Ino},
};

impl SimVolume {
    fn file(&self, ino: Ino) -> Arc<dyn VolumeFile> {
        Arc::new(SimFile {
            volume: self.clone(),
            ino,
        })
    }
}

impl Volume for SimVolume {
    fn open_read(&self, path: &Path) -> io::Result<Arc<dyn VolumeFile>> {
        let ino = self.call(
            Allocation::None,
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
            if create {
                Allocation::Block
            } else {
                Allocation::None
            },
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
            Allocation::Block,
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
            Allocation::None,
            || format!("stat {}", path.display()),
            |state| {
                let ino = state.retry(|state, fresh| state.find(self.client, path, fresh))?;
                Ok(state.describe(self.client, ino))
            },
        )
    }

    fn list(&self, folder: &Path) -> io::Result<Vec<Entry>> {
        self.call(
            Allocation::None,
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
            Allocation::Block,
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
            Allocation::Name,
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
            Allocation::Name,
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
            Allocation::None,
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
            Allocation::None,
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
            Allocation::None,
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
            Allocation::None,
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
            Allocation::None,
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
