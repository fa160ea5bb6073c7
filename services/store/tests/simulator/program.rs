//! Random programs over a small world, so that operations meet.

use bytes::Bytes;
use holdfast_core::{
    digest::{Algorithm, Digest},
    reference::{RepositoryName, Tag},
};
use holdfast_store::Hasher;
use holdfast_testkit::simfs::Rng;

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
    /// Unties the tags of deleted manifests.
    Finish,
}

pub(crate) fn operation(world: &World, rng: &mut Rng) -> Op {
    let repo = rng.below(world.repos.len());
    let blob = rng.below(world.blobs.len());
    let manifest = rng.below(world.manifests.len());
    let tag = rng.below(world.tags.len());
    match rng.below(100) {
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
        _ => Op::Purge,
    }
}
