//! Random programs over a small world, so that operations meet.

use bytes::Bytes;
use holdfast_core::{
    digest::{Algorithm, Digest},
    reference::{RepositoryName, Tag},
};
use holdfast_simfs::Rng;
use holdfast_store::Hasher;

/// All names and contents there are.
#[derive(Debug)]
pub(crate) struct World {
    pub(crate) repos: Vec<RepositoryName>,
    pub(crate) tags: Vec<Tag>,
    pub(crate) blobs: Vec<(Digest, Bytes)>,
    pub(crate) manifests: Vec<Manifest>,
}

#[derive(Debug)]
pub(crate) struct Manifest {
    pub(crate) digest: Digest,
    pub(crate) bytes: Bytes,
    /// Blobs that it refers to.
    pub(crate) blobs: Vec<usize>,
}

impl World {
    pub(crate) fn new() -> Self {
        let blobs = [0, 1, 90, 400, 700].map(|size: usize| {
            let bytes: Bytes = (0..size)
                .map(|n| u8::try_from((n * 31 + size) % 251).unwrap())
                .collect();
            (Hasher::digest(Algorithm::Sha256, &bytes), bytes)
        });
        let manifests = [&[][..], &[2], &[2, 3], &[1, 4]].map(|blobs| {
            let bytes = Bytes::from(format!("{{\"blobs\":{blobs:?}}}"));
            Manifest {
                digest: Hasher::digest(Algorithm::Sha256, &bytes),
                bytes,
                blobs: blobs.to_vec(),
            }
        });
        Self {
            repos: ["a", "b/c"].map(|name| name.parse().unwrap()).into(),
            tags: ["t", "u"].map(|name| name.parse().unwrap()).into(),
            blobs: blobs.into(),
            manifests: manifests.into(),
        }
    }
}

/// One thing a client asks for. Each request goes to any replica.
#[derive(Clone, Debug)]
pub(crate) enum Op {
    /// Uploads in pieces and commits.
    Push {
        repo: usize,
        blob: usize,
        cuts: Vec<usize>,
    },
    /// Uploads bytes under a wrong digest.
    PushWrong {
        repo: usize,
        blob: usize,
    },
    /// Goes on with an upload by any of the states that it ever had, with right and wrong bytes.
    Replay {
        repo: usize,
        blob: usize,
        steps: Vec<Step>,
    },
    /// Fetches from an upstream, whose bytes may be wrong.
    Fill {
        repo: usize,
        blob: usize,
        wrong: bool,
    },
    Mount {
        from: usize,
        repo: usize,
        blob: usize,
    },
    Unlink {
        repo: usize,
        blob: usize,
    },
    PutManifest {
        repo: usize,
        manifest: usize,
        tags: Vec<usize>,
    },
    DeleteManifest {
        repo: usize,
        manifest: usize,
    },
    DeleteTag {
        repo: usize,
        tag: usize,
    },
    ReadBlob {
        repo: usize,
        blob: usize,
    },
    ReadManifest {
        repo: usize,
        manifest: usize,
    },
    ReadTag {
        repo: usize,
        tag: usize,
    },
    ListTags {
        repo: usize,
    },
    /// Hashes a blob, which moves a damaged one aside.
    Scrub {
        blob: usize,
    },
    Purge,
    /// Removes the tags of deleted manifests.
    Finish,
}

/// One request of an upload. States are numbered as they were given; a number above the last begins
/// again at the first.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Step {
    /// A chunk up to this offset.
    Chunk {
        state: usize,
        end: usize,
        wrong: bool,
        /// The client breaks off before the end.
        breaks_off: bool,
    },
    /// The end, under the right digest; with the rest of the bytes, or with none.
    End {
        state: usize,
        rest: bool,
        wrong: bool,
    },
}

fn step(size: usize, rng: &mut Rng) -> Step {
    let state = rng.below(4);
    let wrong = rng.chance(5_000);
    if rng.chance(3_000) {
        let rest = rng.chance(5_000);
        return Step::End { state, rest, wrong };
    }
    let end = if rng.chance(6_000) {
        size
    } else {
        rng.below(size + 1)
    };
    let breaks_off = rng.chance(1_000);
    Step::Chunk {
        state,
        end,
        wrong,
        breaks_off,
    }
}

pub(crate) fn operation(world: &World, rng: &mut Rng) -> Op {
    let repo = rng.below(world.repos.len());
    let blob = rng.below(world.blobs.len());
    let manifest = rng.below(world.manifests.len());
    let tag = rng.below(world.tags.len());
    match rng.below(110) {
        0..=19 => {
            let size = world.blobs[blob].1.len();
            let mut cuts: Vec<_> = (0..rng.below(3)).map(|_| rng.below(size + 1)).collect();
            cuts.sort_unstable();
            Op::Push { repo, blob, cuts }
        }
        20..=21 => Op::PushWrong { repo, blob },
        22..=29 => Op::Fill {
            repo,
            blob,
            wrong: rng.chance(2_000),
        },
        30..=35 => Op::Mount {
            from: rng.below(world.repos.len()),
            repo,
            blob,
        },
        36..=38 => Op::Unlink { repo, blob },
        39..=60 => Op::PutManifest {
            repo,
            manifest,
            tags: (0..rng.below(3))
                .map(|_| rng.below(world.tags.len()))
                .collect(),
        },
        61..=67 => Op::DeleteManifest { repo, manifest },
        68..=70 => Op::DeleteTag { repo, tag },
        71..=73 => Op::Finish,
        74..=78 => Op::ReadBlob { repo, blob },
        79..=83 => Op::ReadManifest { repo, manifest },
        84..=91 => Op::ReadTag { repo, tag },
        92..=94 => Op::ListTags { repo },
        95..=97 => Op::Scrub { blob },
        100..=109 => {
            let size = world.blobs[blob].1.len();
            let steps = (0..2 + rng.below(5)).map(|_| step(size, rng)).collect();
            Op::Replay { repo, blob, steps }
        }
        _ => Op::Purge,
    }
}
