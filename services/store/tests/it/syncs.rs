//! The order of writes and syncs on the real file system, for each operation that is acknowledged:
//! bytes before their name, every new folder's name, blob before link, history before tag, and all
//! of it before success is returned.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test, helpers included"
)]

mod recorder;
mod remembered;
mod sessions;

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use bytes::Bytes;
use holdfast_core::{
    digest::{Algorithm, Digest},
    reference::{RepositoryName, Tag},
};
use holdfast_store::{CarriedHash, Hasher, LockHolder, Options, Store};
use recorder::{Call, Recorder};

/// An operation, and the names that it gives (`+`) or takes (`-`) for good, in order.
struct Row {
    what: &'static str,
    op: Op,
    names: &'static [&'static str],
    /// Most syncs of files and of directories that it may cost: each one is time that a client
    /// waits.
    most_syncs: (usize, usize),
}

enum Op {
    Push(&'static str, &'static [u8]),
    Fill(&'static [u8]),
    Mount(&'static str, &'static [u8]),
    PutManifest(&'static str, &'static [u8]),
    SetTag(&'static str, &'static str, &'static [u8]),
    DeleteTag(&'static str, &'static str),
    DeleteManifest(&'static str, &'static [u8]),
    /// What follows the answer to that.
    Untag(&'static str, &'static [u8]),
    Unlink(&'static str, &'static [u8]),
}

const LAYER: &str = "+repositories/R/_layers/sha256/H/link";
const REVISION: &str = "+repositories/R/_manifests/revisions/sha256/H/link";
const BLOB: &str = "+blobs/sha256/HH/H/data";
const HISTORY: &str = "+repositories/R/_manifests/tags/T/index/sha256/H/link";
const CURRENT: &str = "+repositories/R/_manifests/tags/T/current/link";

const ROWS: [Row; 16] = [
    Row {
        what: "a first push makes every folder durable",
        op: Op::Push("a/b", b"one"),
        names: &[BLOB, LAYER],
        most_syncs: (2, 10),
    },
    Row {
        what: "a second push syncs what is new only",
        op: Op::Push("a/b", b"two"),
        names: &[BLOB, LAYER],
        most_syncs: (2, 5),
    },
    Row {
        what: "a push of what is there adds the link",
        op: Op::Push("c", b"one"),
        names: &[LAYER],
        most_syncs: (1, 5),
    },
    Row {
        what: "a mount adds the link",
        op: Op::Mount("c", b"two"),
        names: &[LAYER],
        most_syncs: (1, 2),
    },
    Row {
        what: "a mount again promises what is there",
        op: Op::Mount("c", b"two"),
        names: &[],
        most_syncs: (0, 0),
    },
    Row {
        what: "a fill adds the blob",
        op: Op::Fill(b"three"),
        names: &[BLOB],
        most_syncs: (1, 3),
    },
    Row {
        what: "a manifest is a blob and a revision",
        op: Op::PutManifest("a/b", b"{}"),
        names: &[BLOB, REVISION],
        most_syncs: (2, 8),
    },
    Row {
        what: "a tag is set after its history",
        op: Op::SetTag("a/b", "t", b"{}"),
        names: &[HISTORY, CURRENT],
        most_syncs: (2, 8),
    },
    Row {
        what: "the next manifest",
        op: Op::PutManifest("a/b", b"[]"),
        names: &[BLOB, REVISION],
        most_syncs: (2, 5),
    },
    Row {
        what: "a tag moves",
        op: Op::SetTag("a/b", "t", b"[]"),
        names: &[HISTORY, CURRENT],
        most_syncs: (2, 3),
    },
    Row {
        what: "a tag that says so already",
        op: Op::SetTag("a/b", "t", b"[]"),
        names: &[],
        most_syncs: (0, 0),
    },
    Row {
        what: "another tag",
        op: Op::SetTag("a/b", "u", b"[]"),
        names: &[HISTORY, CURRENT],
        most_syncs: (2, 7),
    },
    Row {
        what: "a manifest goes, and its tombstone is kept",
        op: Op::DeleteManifest("a/b", b"[]"),
        names: &["-repositories/R/_manifests/revisions/sha256/H/link"],
        most_syncs: (0, 3),
    },
    Row {
        what: "its tags go after the answer",
        op: Op::Untag("a/b", b"[]"),
        names: &[
            "-repositories/R/_manifests/tags/T/current/link",
            "-repositories/R/_manifests/tags/U/current/link",
        ],
        most_syncs: (0, 5),
    },
    Row {
        what: "a tag goes",
        op: Op::DeleteTag("a/b", "u"),
        names: &["-repositories/R/_manifests/tags/T/current/link"],
        most_syncs: (0, 1),
    },
    Row {
        what: "a repository loses a blob",
        op: Op::Unlink("c", b"two"),
        names: &["-repositories/R/_layers/sha256/H/link"],
        most_syncs: (0, 1),
    },
];

fn digest(bytes: &[u8]) -> Digest {
    Hasher::digest(Algorithm::Sha256, bytes)
}

fn repo(name: &str) -> RepositoryName {
    name.parse().unwrap()
}

async fn push(store: &Store, name: &str, bytes: &'static [u8]) {
    let owner = LockHolder {
        address: String::new(),
        id: "test".to_owned(),
    };
    let id = store
        .create_upload(&repo(name), "2026-01-01T00:00:00Z")
        .await
        .unwrap();
    let carried = CarriedHash::none(Algorithm::Sha256);
    let mut writer = store
        .upload_writer(&repo(name), &id, 0, carried, &owner)
        .await
        .unwrap();
    writer.append(Bytes::from_static(bytes)).await.unwrap();
    writer.commit(&digest(bytes)).await.unwrap();
}

impl Op {
    async fn perform(&self, store: &Store) {
        match self {
            Self::Push(name, bytes) => push(store, name, bytes).await,
            Self::Fill(bytes) => {
                let mut incoming = store.ingest_blob(&digest(bytes)).await.unwrap();
                incoming.append(Bytes::from_static(bytes)).await.unwrap();
                incoming.commit().await.unwrap();
            }
            Self::Mount(name, bytes) => {
                store.link_blob(&repo(name), &digest(bytes)).await.unwrap();
            }
            Self::PutManifest(name, bytes) => store
                .put_manifest(&repo(name), &digest(bytes), Bytes::from_static(bytes))
                .await
                .unwrap(),
            Self::SetTag(name, tag, bytes) => store
                .set_tag(&repo(name), &tag.parse().unwrap(), &digest(bytes))
                .await
                .unwrap(),
            Self::DeleteTag(name, tag) => {
                let tag: Tag = tag.parse().unwrap();
                assert!(store.delete_tag(&repo(name), &tag).await.unwrap());
            }
            Self::DeleteManifest(name, bytes) => {
                let (name, digest) = (repo(name), digest(bytes));
                assert!(store.delete_manifest(&name, &digest).await.unwrap());
            }
            Self::Untag(..) => assert_eq!(store.finish_deletes().await.unwrap(), 1),
            Self::Unlink(name, bytes) => {
                let (name, digest) = (repo(name), digest(bytes));
                assert!(store.unlink_blob(&name, &digest).await.unwrap());
            }
        }
    }

    /// The path that a name of the table stands for.
    fn path(&self, pattern: &str) -> String {
        let (name, tag, bytes) = match self {
            Self::Push(name, bytes)
            | Self::Mount(name, bytes)
            | Self::PutManifest(name, bytes)
            | Self::DeleteManifest(name, bytes)
            | Self::Untag(name, bytes)
            | Self::Unlink(name, bytes) => (*name, "t", *bytes),
            Self::Fill(bytes) => ("", "", *bytes),
            Self::SetTag(name, tag, bytes) => (*name, *tag, *bytes),
            Self::DeleteTag(name, tag) => (*name, *tag, &b""[..]),
        };
        let digest = digest(bytes);
        let (prefix, _) = digest.hex().split_at(2);
        pattern
            .replace("/HH/", &format!("/{prefix}/"))
            .replace("/H/", &format!("/{}/", digest.hex()))
            .replace("/R/", &format!("/{name}/"))
            .replace("/T/", &format!("/{tag}/"))
            .replace("/U/", "/u/")
    }
}

/// Whether the name counts: neither temporary nor ours alone nor a session's.
fn is_final(path: &Path) -> bool {
    let text = path.to_str().unwrap();
    let own = ["/_uploads/", "/_holdfast/"];
    !own.iter().any(|part| text.contains(part)) && path.extension().is_none_or(|end| end != "tmp")
}

/// Checks the order of the calls of one operation; returns the names that were given or taken for
/// good.
fn check(what: &str, base: &Path, calls: &[Call]) -> Vec<String> {
    let mut names = Vec::new();
    for (at, call) in calls.iter().enumerate() {
        let (sign, path) = match call {
            Call::Rename(from, to) if is_final(to) => {
                let synced = calls[..at]
                    .iter()
                    .rposition(|call| *call == Call::Sync(from.clone()));
                let written = calls[..at]
                    .iter()
                    .rposition(|call| *call == Call::Write(from.clone()));
                assert!(
                    synced > written && synced.is_some(),
                    "{what}: {} got its name before its bytes were synced",
                    to.display()
                );
                ('+', to)
            }
            Call::Remove(path) if is_final(path) => ('-', path),
            // Taken aside, then removed.
            Call::Rename(from, to) if is_final(from) && !is_final(to) => {
                if from.to_str().unwrap().contains("/revisions/") {
                    // The entry of the tombstone, and the name of the tombstone.
                    must_sync(what, calls, at, to);
                    must_sync(what, calls, at, to.parent().unwrap());
                }
                ('-', from)
            }
            Call::CreateDir(path) if is_final(path) => {
                must_sync(what, calls, at, path);
                continue;
            }
            _ => continue,
        };
        let end = if sign == '-' {
            must_stay_away(what, calls, at, path)
        } else {
            must_sync(what, calls, at, path)
        };
        // The next name waits until this one is durable: a link never outlives its blob, nor a tag
        // its history.
        let next = calls[at + 1..end]
            .iter()
            .find(|call| matches!(call, Call::Rename(_, to) if is_final(to)));
        assert!(
            next.is_none(),
            "{what}: {next:?} before {} was durable",
            path.display()
        );
        let relative = path.strip_prefix(base).unwrap();
        names.push(format!("{sign}{}", relative.display()));
    }
    names
}

/// Where, after a call that took `path` away, that is made durable: by a sync of its directory, or
/// of the one that this was removed from.
fn must_stay_away(what: &str, calls: &[Call], at: usize, path: &Path) -> usize {
    let folder = path.parent().unwrap();
    let removed = Call::RemoveDir(folder.to_owned());
    match calls[at..].iter().position(|call| *call == removed) {
        Some(later) if !calls[at..].contains(&Call::SyncDir(folder.to_owned())) => {
            must_stay_away(what, calls, at + later, folder)
        }
        _ => must_sync(what, calls, at, path),
    }
}

/// Where, after a call that changed `path`, its directory is synced.
fn must_sync(what: &str, calls: &[Call], at: usize, path: &Path) -> usize {
    let folder = Call::SyncDir(path.parent().map(PathBuf::from).unwrap());
    let later = calls[at..].iter().position(|call| *call == folder);
    match later {
        Some(later) => at + later,
        None => panic!(
            "{what}: {} changed and {folder:?} never followed",
            path.display()
        ),
    }
}

#[tokio::test]
async fn everything_is_synced_in_order_before_it_is_acknowledged() {
    let dir = tempfile::tempdir().unwrap();
    let recorder = Recorder::new(dir.path());
    let store = Store::open_on(Arc::new(recorder.clone()), dir.path(), Options::unlimited())
        .await
        .unwrap();
    let base = dir.path().join("docker/registry/v2");
    check("opening", &base, &recorder.take());
    for row in &ROWS {
        if let Op::DeleteTag(name, tag) = &row.op {
            let tag: Tag = tag.parse().unwrap();
            store
                .set_tag(&repo(name), &tag, &digest(b"{}"))
                .await
                .unwrap();
        }
        recorder.take();
        row.op.perform(&store).await;
        let calls = recorder.take();
        let names = check(row.what, &base, &calls);
        let expected: Vec<_> = row.names.iter().map(|name| row.op.path(name)).collect();
        assert_eq!(names, expected, "{}", row.what);
        let files = calls
            .iter()
            .filter(|call| matches!(call, Call::Sync(_)))
            .count();
        let folders = calls
            .iter()
            .filter(|call| matches!(call, Call::SyncDir(_)))
            .count();
        println!("{}: {files} files, {folders} folders", row.what);
        assert!(
            files <= row.most_syncs.0 && folders <= row.most_syncs.1,
            "{}: {files} syncs of files and {folders} of directories: {calls:#?}",
            row.what
        );
    }
}

/// Bytes of the pieces in which large blobs arrive below.
const PIECE_BYTES: usize = 100_000;

#[tokio::test]
async fn a_large_push_is_written_back_while_it_arrives_and_synced_once() {
    let dir = tempfile::tempdir().unwrap();
    let recorder = Recorder::new(dir.path());
    let store = Store::open_on(Arc::new(recorder.clone()), dir.path(), Options::unlimited())
        .await
        .unwrap();
    let owner = LockHolder {
        address: String::new(),
        id: "test".to_owned(),
    };
    let name = repo("large");
    // Size, and whether the session's own file is written or, by one request with everything, a
    // file beside it.
    for (size, is_whole) in [
        (1_000_000_usize, true),
        (18_500_000, true),
        (18_600_000, false),
    ] {
        let bytes = Bytes::from(vec![7; size]);
        let id = store
            .create_upload(&name, "2026-01-01T00:00:00Z")
            .await
            .unwrap();
        let mut writer = if is_whole {
            let algorithm = Algorithm::Sha256;
            store.whole_upload_writer(&name, &id, algorithm).await
        } else {
            let carried = CarriedHash::none(Algorithm::Sha256);
            store.upload_writer(&name, &id, 0, carried, &owner).await
        }
        .unwrap();
        recorder.take();
        for start in (0..size).step_by(PIECE_BYTES) {
            let end = size.min(start + PIECE_BYTES);
            writer.append(bytes.slice(start..end)).await.unwrap();
        }
        writer.commit(&digest(&bytes)).await.unwrap();
        let calls = recorder.take();
        let names = if is_whole { "/.whole." } else { "/.data." };
        let is_data = |path: &Path| path.to_str().unwrap().contains(names);
        let started: Vec<usize> = positions(&calls, |call| match call {
            Call::StartWriteBack(path, _) => is_data(path),
            _ => false,
        });
        let synced = positions(&calls, |call| match call {
            Call::Sync(path) => is_data(path),
            _ => false,
        });
        let written = positions(&calls, |call| match call {
            Call::Write(path) => is_data(path),
            _ => false,
        });
        let [synced] = synced[..] else {
            panic!("{size} bytes: synced {} times", synced.len());
        };
        // Every 8 MiB, before the next bytes are written; the rest goes with the sync.
        assert_eq!(started.len(), size >> 23, "{size} bytes: {calls:#?}");
        for at in &started {
            assert!(
                written.iter().any(|write| at < write),
                "{size} bytes: write-back was not started while bytes arrived"
            );
        }
        assert!(started.iter().chain(&written).all(|at| *at < synced));
    }
}

fn positions(calls: &[Call], wanted: impl Fn(&Call) -> bool) -> Vec<usize> {
    let all = calls.iter().enumerate();
    all.filter(|(_, call)| wanted(call))
        .map(|(at, _)| at)
        .collect()
}

#[test]
fn a_sync_that_is_missing_is_found() {
    let path = PathBuf::from;
    let (from, to) = (path("/v/x.tmp"), path("/v/x"));
    for (what, calls, expect) in [
        (
            "a name before the bytes",
            vec![
                Call::Write(from.clone()),
                Call::Rename(from.clone(), to.clone()),
                Call::Sync(from.clone()),
                Call::SyncDir("/v".into()),
            ],
            "got its name before its bytes were synced",
        ),
        (
            "the tombstone of a delete",
            vec![
                Call::Rename(
                    path("/v/_manifests/revisions/h/link"),
                    path("/v/_holdfast/deletes/r/x"),
                ),
                Call::SyncDir("/v/_manifests/revisions/h".into()),
                Call::SyncDir("/v/_holdfast/deletes/r".into()),
            ],
            "never followed",
        ),
        (
            "the end of a removed folder",
            vec![
                Call::Remove("/v/tags/t/link".into()),
                Call::RemoveDir("/v/tags/t".into()),
            ],
            "never followed",
        ),
        (
            "the folder of a new name",
            vec![
                Call::Write(from.clone()),
                Call::Sync(from.clone()),
                Call::Rename(from, to),
            ],
            "never followed",
        ),
    ] {
        let found = std::panic::catch_unwind(|| check("test", Path::new("/v"), &calls));
        let said = found.expect_err(what);
        let said = said.downcast_ref::<String>().expect(what);
        assert!(said.contains(expect), "{what}: {said}");
    }
}
