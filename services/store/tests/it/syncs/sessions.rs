//! Uploads whose bytes are cut off: what vouches for a hash of them is gone before, for good.

use std::{path::Path, sync::Arc};

use bytes::Bytes;
use holdfast_core::digest::Algorithm;
use holdfast_store::{CarriedHash, LockHolder, Options, Store};

use super::{
    digest, positions,
    recorder::{Call, Recorder},
    repo,
};

const CONTENT: Bytes = Bytes::from_static(b"all of the bytes");

/// Where a request goes on, and where the bytes that came before end; `true` when some are cut off.
const CASES: [(usize, usize, bool); 3] = [(0, 16, true), (7, 16, true), (16, 16, false)];

/// Checks the calls of a request that went on; says whether it cut the file.
fn check(calls: &[Call], session: &Path) -> bool {
    let hashes = session.join("hashstates");
    let is_data = |path: &Path| path.file_name().unwrap().to_str().unwrap().contains("data");
    let cut = positions(
        calls,
        |call| matches!(call, Call::Write(path) if is_data(path)),
    );
    let Some(cut) = cut.first() else {
        return false;
    };
    let before = &calls[..*cut];
    let forgotten = before
        .iter()
        .position(|call| *call == Call::RemoveTree(hashes.clone()));
    let forgotten = forgotten.expect("the generation is taken back before the file is cut");
    let folder = Call::SyncDir(session.to_owned());
    assert!(
        before[forgotten..].contains(&folder),
        "the file is cut before it is durable that its generation is gone: {calls:#?}"
    );
    true
}

#[tokio::test]
async fn a_generation_is_gone_for_good_before_bytes_are_cut_off() {
    let dir = tempfile::tempdir().unwrap();
    let recorder = Recorder::new(dir.path());
    let store = Store::open_on(Arc::new(recorder.clone()), dir.path(), Options::unlimited())
        .await
        .unwrap();
    let owner = LockHolder {
        address: String::new(),
        id: "test".to_owned(),
    };
    let name = repo("a");
    for (offset, end, expect) in CASES {
        let begun = "2026-01-01T00:00:00Z";
        let id = store.create_upload(&name, begun).await.unwrap();
        let session = store.layout().upload(&name, id.as_str());
        // A state at the offset, and one at the end.
        let mut states = vec![CarriedHash::none(Algorithm::Sha256)];
        for (from, to) in [(0, offset), (offset, end)] {
            if from == to {
                continue;
            }
            let state = states.last().unwrap().clone();
            let writer = store.upload_writer(&name, &id, from as u64, state, &owner);
            let mut writer = writer.await.unwrap();
            writer.append(CONTENT.slice(from..to)).await.unwrap();
            states.push(writer.finish().await.unwrap().1);
        }
        let old = states.last().unwrap().generation.unwrap().to_string();
        assert!(session.join("hashstates").join(&old).exists());
        recorder.take();
        let state = states[usize::from(0 < offset)].clone();
        let writer = store.upload_writer(&name, &id, offset as u64, state, &owner);
        let writer = writer.await;
        let calls = recorder.take();
        assert_eq!(check(&calls, &session), expect, "{offset}: {calls:#?}");
        // It is another one from then on, or the same.
        let (_, next) = writer.unwrap().finish().await.unwrap();
        let next = next.generation.unwrap().to_string();
        assert_eq!(next != old, expect, "{offset}");
        assert_eq!(!session.join("hashstates").join(&old).exists(), expect);
    }
    assert_eq!(store.stat_blob(&digest(&CONTENT)).await.unwrap(), None);
}

#[test]
fn a_cut_before_its_time_is_found() {
    let session = Path::new("/v/_uploads/id");
    let cut = Call::Write(session.join("data"));
    let forgotten = Call::RemoveTree(session.join("hashstates"));
    let synced = Call::SyncDir(session.to_owned());
    let right = [forgotten.clone(), synced.clone(), cut.clone()];
    assert!(check(&right, session));
    for wrong in [
        [cut.clone(), forgotten.clone(), synced.clone()],
        [forgotten.clone(), cut.clone(), synced.clone()],
        [synced, forgotten, cut],
    ] {
        let found = std::panic::catch_unwind(|| check(&wrong, session));
        assert!(found.is_err(), "{wrong:?}");
    }
}
