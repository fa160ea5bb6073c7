//! An open file of one client.

use std::io;

use holdfast_store::volume::{Metadata, VolumeFile};

use super::{
    State,
    client::{Allocation, EIO, EISDIR, ENOSPC, ESTALE, SimVolume, error},
    tree::Ino,
};

#[derive(Debug)]
pub(super) struct SimFile {
    pub(super) volume: SimVolume,
    pub(super) ino: Ino,
}

impl SimFile {
    fn call<T>(
        &self,
        allocation: Allocation,
        text: impl FnOnce() -> String,
        work: impl FnOnce(&mut State) -> io::Result<T>,
    ) -> io::Result<T> {
        self.volume.call(allocation, text, |state| {
            if state.is_network() && state.tree.node(self.ino).links == 0 {
                return error(ESTALE);
            }
            work(state)
        })
    }
}

fn position(offset: u64) -> usize {
    usize::try_from(offset).unwrap_or(usize::MAX)
}

impl VolumeFile for SimFile {
    fn read_at(&self, buffer: &mut Vec<u8>, offset: u64) -> io::Result<usize> {
        self.call(
            Allocation::None,
            || format!("read inode {} at {offset}", self.ino),
            |state| {
                if state.tree.dir(self.ino).is_some() {
                    return error(EISDIR);
                }
                let visible = position(state.describe(self.volume.client, self.ino).len);
                let short = state.rng.chance(state.faults.short);
                let bytes = state
                    .tree
                    .data(self.ino)
                    .map_or(&[][..], |data| &data.bytes);
                let end = visible.min(bytes.len());
                let from = position(offset).min(end);
                let mut count = (end - from).min(buffer.capacity() - buffer.len());
                if short && count > 1 {
                    count = count.div_ceil(2);
                }
                buffer.extend_from_slice(&bytes[from..from + count]);
                Ok(count)
            },
        )
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<usize> {
        self.call(
            Allocation::Block,
            || {
                format!(
                    "write inode {}, {} bytes at {offset}",
                    self.ino,
                    bytes.len()
                )
            },
            |state| {
                let mut bytes = bytes;
                if state.rng.chance(state.faults.short) && bytes.len() > 1 {
                    bytes = &bytes[..bytes.len().div_ceil(2)];
                }
                let end = offset + bytes.len() as u64;
                if state.faults.longest_file.is_some_and(|most| most < end) {
                    return error(ENOSPC);
                }
                let now = state.now_ms;
                state.tree.write(self.ino, position(offset), bytes, now);
                state.clients[self.volume.client]
                    .caches
                    .ask(&state.tree, self.ino, now);
                Ok(bytes.len())
            },
        )
    }

    fn metadata(&self) -> io::Result<Metadata> {
        self.call(
            Allocation::None,
            || format!("stat inode {}", self.ino),
            |state| Ok(state.describe(self.volume.client, self.ino)),
        )
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.call(
            Allocation::Block,
            || format!("truncate inode {} to {len}", self.ino),
            |state| {
                let now = state.now_ms;
                state.tree.set_len(self.ino, position(len), now);
                state.clients[self.volume.client]
                    .caches
                    .ask(&state.tree, self.ino, now);
                Ok(())
            },
        )
    }

    fn sync(&self) -> io::Result<()> {
        self.call(
            Allocation::None,
            || format!("sync inode {}", self.ino),
            |state| {
                let rate = state.faults.io.saturating_mul(5);
                if state.faults.worn_out || state.rng.chance(rate) {
                    state.tree.fail_sync(self.ino);
                    return error(EIO);
                }
                if !state.faults.skip_file_syncs {
                    state.tree.sync(self.ino);
                }
                Ok(())
            },
        )
    }

    /// Changes nothing: at a loss of power chance decides about every write that was not synced,
    /// whether it was on its way to the disk or not.
    fn start_write_back(&self, _offset: u64, _length: u64) {}
}

impl Drop for SimFile {
    fn drop(&mut self) {
        let mut state = self.volume.shared.state();
        let client = self.volume.client;
        if state.down
            || state.clients[client].dead
            || state.clients[client].boot != self.volume.boot
        {
            return;
        }
        if let Some((dir, name)) = state.clients[client].caches.closed(self.ino)
            && state.tree.entry(dir, &name) == Some(self.ino)
        {
            state.change(client, vec![(dir, name, None)]);
        }
    }
}
