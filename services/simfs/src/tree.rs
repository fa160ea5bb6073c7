//! What the server holds: the present tree, and what of it would survive a loss of power.

use std::collections::{BTreeMap, BTreeSet};

use super::Rng;

pub(super) type Ino = usize;

pub(super) const ROOT: Ino = 0;

/// Names of directories that change together: they survive as a whole or not at all. As on every
/// file system with a journal, a rename is one change, across two directories too, and the sync of
/// either keeps it.
pub(super) type Change = Vec<(Ino, String, Option<Ino>)>;

#[derive(Debug)]
pub(super) struct Node {
    pub(super) body: Body,
    /// Milliseconds of the volume's clock.
    pub(super) modified: u64,
    /// Names that it has; a directory has one until it is removed.
    pub(super) links: usize,
    /// Grows with every change of a directory.
    pub(super) version: u64,
}

#[derive(Debug)]
pub(super) enum Body {
    Dir(Dir),
    File(Data),
}

#[derive(Debug, Default)]
pub(super) struct Dir {
    pub(super) entries: BTreeMap<String, Ino>,
    durable: BTreeMap<String, Ino>,
}

#[derive(Debug, Default)]
pub(super) struct Data {
    pub(super) bytes: Vec<u8>,
    durable: Vec<u8>,
    pending: Vec<Write>,
}

#[derive(Clone, Debug)]
enum Write {
    Bytes(usize, Vec<u8>),
    Len(usize),
}

impl Write {
    fn apply(self, to: &mut Vec<u8>) {
        match self {
            Self::Bytes(offset, bytes) => {
                let end = offset + bytes.len();
                if to.len() < end {
                    to.resize(end, 0);
                }
                to[offset..end].copy_from_slice(&bytes);
            }
            Self::Len(len) => to.resize(len, 0),
        }
    }
}

/// How much of what was not synced survives a loss of power.
#[derive(Clone, Copy, Debug)]
enum Survival {
    Nothing,
    Everything,
    /// In ten thousand.
    Some(u32),
}

impl Survival {
    fn draw(rng: &mut Rng) -> Self {
        match rng.below(4) {
            0 => Self::Nothing,
            1 => Self::Everything,
            2 => Self::Some(9_000),
            _ => Self::Some(4_000),
        }
    }

    fn keeps(self, rng: &mut Rng) -> bool {
        match self {
            Self::Nothing => false,
            Self::Everything => true,
            Self::Some(rate) => rng.chance(rate),
        }
    }
}

#[derive(Debug)]
pub(super) struct Tree {
    nodes: Vec<Node>,
    /// Changes of directories that are not durable yet, in order.
    journal: Vec<Change>,
}

impl Tree {
    pub(super) fn new() -> Self {
        Self {
            nodes: vec![Node {
                body: Body::Dir(Dir::default()),
                modified: 0,
                links: 1,
                version: 1,
            }],
            journal: Vec::new(),
        }
    }

    pub(super) fn node(&self, ino: Ino) -> &Node {
        &self.nodes[ino]
    }

    pub(super) fn node_mut(&mut self, ino: Ino) -> &mut Node {
        &mut self.nodes[ino]
    }

    pub(super) fn dir(&self, ino: Ino) -> Option<&Dir> {
        match &self.nodes[ino].body {
            Body::Dir(dir) => Some(dir),
            Body::File(_) => None,
        }
    }

    pub(super) fn data(&self, ino: Ino) -> Option<&Data> {
        match &self.nodes[ino].body {
            Body::File(data) => Some(data),
            Body::Dir(_) => None,
        }
    }

    pub(super) fn entry(&self, dir: Ino, name: &str) -> Option<Ino> {
        self.dir(dir)?.entries.get(name).copied()
    }

    pub(super) fn add(&mut self, body: Body, now: u64) -> Ino {
        self.nodes.push(Node {
            body,
            modified: now,
            links: 0,
            version: 1,
        });
        self.nodes.len() - 1
    }

    /// Changes names of directories, as one change.
    pub(super) fn change(&mut self, change: Change, now: u64) {
        for (dir, name, ino) in &change {
            if let Some(ino) = ino {
                self.nodes[*ino].links += 1;
            }
            let node = &mut self.nodes[*dir];
            node.version += 1;
            node.modified = now;
            let Body::Dir(body) = &mut node.body else {
                continue;
            };
            let before = match ino {
                Some(ino) => body.entries.insert(name.clone(), *ino),
                None => body.entries.remove(name),
            };
            if let Some(before) = before {
                self.nodes[before].links -= 1;
            }
        }
        self.journal.push(change);
    }

    /// Makes a change durable.
    fn keep(&mut self, change: Change) {
        for (dir, name, ino) in change {
            if let Body::Dir(dir) = &mut self.nodes[dir].body {
                match ino {
                    Some(ino) => dir.durable.insert(name, ino),
                    None => dir.durable.remove(&name),
                };
            }
        }
    }

    pub(super) fn write(&mut self, ino: Ino, offset: usize, bytes: &[u8], now: u64) {
        self.modify(ino, Write::Bytes(offset, bytes.to_vec()), now);
    }

    pub(super) fn set_len(&mut self, ino: Ino, len: usize, now: u64) {
        self.modify(ino, Write::Len(len), now);
    }

    fn modify(&mut self, ino: Ino, write: Write, now: u64) {
        let node = &mut self.nodes[ino];
        node.modified = now;
        if let Body::File(data) = &mut node.body {
            write.clone().apply(&mut data.bytes);
            data.pending.push(write);
        }
    }

    pub(super) fn sync(&mut self, ino: Ino) {
        if let Body::File(data) = &mut self.nodes[ino].body {
            for write in std::mem::take(&mut data.pending) {
                write.apply(&mut data.durable);
            }
            return;
        }
        // Backwards: with a change of two directories go the earlier ones of both, so that the
        // order of a name's values holds.
        let mut dirs = BTreeSet::from([ino]);
        let mut kept = Vec::new();
        let mut left = Vec::new();
        for change in std::mem::take(&mut self.journal).into_iter().rev() {
            if change.iter().any(|(dir, ..)| dirs.contains(dir)) {
                dirs.extend(change.iter().map(|(dir, ..)| *dir));
                kept.push(change);
            } else {
                left.push(change);
            }
        }
        left.reverse();
        self.journal = left;
        for change in kept.into_iter().rev() {
            self.keep(change);
        }
    }

    /// A sync of a file that failed: the pages count as clean from now on, and no later sync writes
    /// them.
    pub(super) fn fail_sync(&mut self, ino: Ino) {
        if let Body::File(data) = &mut self.nodes[ino].body {
            data.pending.clear();
        }
    }

    /// Keeps what was synced, and of the rest what chance leaves.
    pub(super) fn cut_power(&mut self, rng: &mut Rng) {
        let survival = Survival::draw(rng);
        for change in std::mem::take(&mut self.journal) {
            if survival.keeps(rng) {
                self.keep(change);
            }
        }
        for node in &mut self.nodes {
            node.version += 1;
            node.links = 0;
            match &mut node.body {
                Body::Dir(dir) => dir.entries = dir.durable.clone(),
                Body::File(data) => {
                    for write in std::mem::take(&mut data.pending) {
                        if survival.keeps(rng) {
                            torn(write, rng).apply(&mut data.durable);
                        }
                    }
                    data.bytes = data.durable.clone();
                }
            }
        }
        let mut reached = vec![ROOT];
        self.nodes[ROOT].links = 1;
        while let Some(ino) = reached.pop() {
            let children: Vec<_> = self
                .dir(ino)
                .map(|dir| dir.entries.values().copied().collect())
                .unwrap_or_default();
            for child in children {
                self.nodes[child].links += 1;
                reached.push(child);
            }
        }
    }

    /// Every file with its path, as the server has it now.
    pub(super) fn files(&self) -> Vec<(String, Vec<u8>)> {
        let mut files = Vec::new();
        let mut pending = vec![(ROOT, String::new())];
        while let Some((ino, path)) = pending.pop() {
            match &self.nodes[ino].body {
                Body::Dir(dir) => pending.extend(
                    dir.entries
                        .iter()
                        .map(|(name, ino)| (*ino, format!("{path}/{name}"))),
                ),
                Body::File(data) => files.push((path, data.bytes.clone())),
            }
        }
        files
    }
}

/// Part of a write, sometimes.
fn torn(write: Write, rng: &mut Rng) -> Write {
    match write {
        Write::Bytes(offset, mut bytes) if rng.chance(2_000) => {
            bytes.truncate(rng.below(bytes.len() + 1));
            Write::Bytes(offset, bytes)
        }
        whole => whole,
    }
}
