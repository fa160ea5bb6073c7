//! A busy machine, and a process that was suspended: healthy upstreams are not blamed for it.

use super::*;

/// Each turn of the scheduler takes so long from now on, until the guard is dropped.
fn busy(turn: Duration) -> impl Drop {
    struct Guard(tokio::task::JoinHandle<()>);
    impl Drop for Guard {
        fn drop(&mut self) {
            self.0.abort();
        }
    }
    Guard(tokio::spawn(async move {
        loop {
            std::thread::sleep(turn);
            tokio::task::yield_now().await;
        }
    }))
}

// One thread for everything: whatever there is to do waits for the busy task.
#[tokio::test]
async fn a_busy_machine_is_no_fault_of_an_upstream() {
    let image = ImageBuilder::new(130).layer(100_000).build();
    let layer = digest(&image.layers[0]);
    let upstream = upstream_with(&image).await;
    let folder = tempfile::tempdir().unwrap();
    let registry = fills(folder.path(), &upstream).await;
    let limits = timeouts();
    // A request needs several turns.
    let _busy = busy(limits.headers / 5);
    let manifest = registry.manifest(&repo(&upstream), &tag("1")).await;
    assert_eq!(manifest.unwrap().bytes, image.bytes());
    let blob = registry.blob(&repo(&upstream), &layer).await.unwrap();
    assert_eq!(read(blob).await.unwrap(), image.blobs[layer.as_str()]);
}

#[tokio::test]
async fn a_copy_that_another_replica_took_over_ends_with_its_blob() {
    let image = ImageBuilder::new(131).layer(1_000_000).build();
    let layer = digest(&image.layers[0]);
    let upstream = upstream_with(&image).await;
    slow::hang_within(&upstream, &layer);
    let folder = tempfile::tempdir().unwrap();
    let registry = fills_within(folder.path(), &[&upstream], uplink(), slow::long_stall()).await;
    let wanted = request(&upstream, ":1", &[]);
    let fill = {
        let registry = registry.clone();
        tokio::spawn(async move { registry.fill(&wanted).await })
    };
    eventually("the copy runs", LIMIT, || {
        upstream.sent(layer.as_str()) >= 300_000
    })
    .await;
    // As after a standstill for which another replica held this one dead.
    let lock = registry
        .store()
        .layout()
        .lock(&crate::replicas::blob_lock_name(&layer));
    let other = r#"{"address":"127.0.0.1:1","id":"other","token":"other"}"#;
    std::fs::write(&lock, other).unwrap();
    // The next beat finds out.
    tokio::time::sleep(Duration::from_secs(5)).await;
    upstream.faults().clear();
    tokio::time::sleep(Duration::from_millis(500)).await;
    std::fs::remove_file(&lock).unwrap();
    let done = tokio::time::timeout(LIMIT, fill).await;
    done.expect("it ends").unwrap().unwrap();
    assert_local(&registry, &upstream, &image, "1").await;
}
