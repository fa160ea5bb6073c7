//! What a process remembers to be durable is synced once; what took its place is not taken for it.

use std::{fs, path::Path, sync::Arc, time::Duration};

use holdfast_store::{Options, Store};

use super::{
    digest, push,
    recorder::{Call, Recorder},
};

const CONTENT: &[u8] = b"content";

/// Pushes the content to a repository; says how often the folder of its bytes was synced.
async fn syncs(store: &Store, recorder: &Recorder, name: &str) -> usize {
    // Modification times are as coarse as the kernel's clock.
    tokio::time::sleep(Duration::from_millis(30)).await;
    recorder.take();
    push(store, name, CONTENT).await;
    let path = store.layout().blob(&digest(CONTENT));
    let folder = Call::SyncDir(path.parent().unwrap().to_owned());
    let calls = recorder.take();
    calls.iter().filter(|call| **call == folder).count()
}

/// As another process does that puts the same bytes there: another file has the name.
fn replace(path: &Path) {
    let fresh = path.with_file_name("fresh");
    fs::copy(path, &fresh).unwrap();
    fs::rename(fresh, path).unwrap();
}

#[tokio::test]
async fn touched_content_stays_durable_and_what_takes_its_place_is_synced() {
    let dir = tempfile::tempdir().unwrap();
    let recorder = Recorder::new(dir.path());
    let store = Store::open_on(Arc::new(recorder.clone()), dir.path(), Options::unlimited())
        .await
        .unwrap();
    let path = store.layout().blob(&digest(CONTENT));
    assert_eq!(syncs(&store, &recorder, "a").await, 1, "its name is new");
    let mut before = fs::metadata(&path).unwrap().modified().unwrap();
    for name in ["b", "c"] {
        assert_eq!(syncs(&store, &recorder, name).await, 0, "{name}");
        let renewed = fs::metadata(&path).unwrap().modified().unwrap();
        assert!(before < renewed, "each push renews the time");
        before = renewed;
    }
    replace(&path);
    assert_eq!(syncs(&store, &recorder, "d").await, 1, "another file");
    assert_eq!(syncs(&store, &recorder, "e").await, 0);
    // The same file, with a time that others gave it.
    let file = fs::File::options().append(true).open(&path).unwrap();
    file.set_modified(before).unwrap();
    assert_eq!(syncs(&store, &recorder, "f").await, 1);
}
