//! A volume that hangs, or is another one than before.

use std::time::Duration;

use super::harness::Process;

#[tokio::test(flavor = "multi_thread")]
async fn a_volume_that_hangs_at_start_is_served_once_it_answers() {
    let process = Process::start(true);
    process.until("/livez", 200).await;
    let text = process.until("/readyz", 503).await;
    assert!(text.contains("[-] volume: the volume"), "{text}");
    assert_eq!(process.admin("/metrics").await.0, 200);
    let (status, text) = process.admin("/debug/health").await;
    assert!(status == 503 && text.starts_with(r#"{"volume":"#), "{text}");
    tokio::time::sleep(Duration::from_millis(700)).await;
    assert_eq!(process.admin("/livez").await.0, 200);
    assert_eq!(process.api("/v2/").await.0, 0, "nothing is served yet");
    process.volume.set(false);
    process.until("/readyz", 200).await;
    assert_eq!(process.admin("/debug/health").await, (200, "{}".to_owned()));
    assert_eq!(process.api("/v2/").await.0, 200);
    process.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_whose_volume_never_answered_ends_when_told() {
    let mut process = Process::start(true);
    process.until("/livez", 200).await;
    process.shutdown.cancel();
    tokio::time::timeout(Duration::from_secs(5), &mut process.task)
        .await
        .expect("it ends")
        .unwrap()
        .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_volume_that_hangs_later_fails_readiness_and_refuses_requests() {
    let process = Process::start(false);
    process.until("/readyz", 200).await;
    process.volume.set(true);
    // Requests that hang on the volume, more than it has threads: the watch must see it all the
    // same.
    for _ in 0..40 {
        let (client, url) = (
            process.client.clone(),
            format!("{}/v2/a/tags/list", process.api),
        );
        tokio::spawn(async move { client.get(url).send().await.ok() });
    }
    let text = process.until("/readyz", 503).await;
    assert!(text.contains("has not answered for"), "{text}");
    assert_eq!(process.admin("/livez").await.0, 200);
    tokio::time::sleep(Duration::from_millis(900)).await;
    let begun = std::time::Instant::now();
    let (status, text) = process.api("/v2/a/tags/list").await;
    assert_eq!(status, 503, "{text}");
    assert!(begun.elapsed() < Duration::from_secs(1), "refused at once");
    assert_eq!(process.api("/v2/").await.0, 200);
    let (_, metrics) = process.admin("/metrics").await;
    assert!(
        metrics.contains("holdfast_registry_volume_up 0"),
        "{metrics}"
    );
    process.volume.set(false);
    process.until("/readyz", 200).await;
    assert_eq!(process.api("/v2/a/tags/list").await.0, 404);
    let (_, metrics) = process.admin("/metrics").await;
    assert!(
        metrics.contains("holdfast_registry_volume_up 1"),
        "{metrics}"
    );
    process.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_whose_volume_hangs_ends_when_told() {
    let mut process = Process::start(false);
    process.until("/readyz", 200).await;
    process.volume.set(true);
    process.until("/readyz", 503).await;
    process.shutdown.cancel();
    tokio::time::timeout(Duration::from_secs(20), &mut process.task)
        .await
        .expect("it ends")
        .unwrap()
        .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_volume_that_was_swapped_is_noticed_and_served() {
    let process = Process::start(false);
    process.until("/readyz", 200).await;
    let swaps = |text: &str, count: u32| {
        text.contains(&format!("holdfast_registry_volume_swaps_total {count}"))
    };
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!(swaps(&process.admin("/metrics").await.1, 0));
    std::fs::rename(process.root.join("docker"), process.root.join("old")).unwrap();
    let begun = std::time::Instant::now();
    while !swaps(&process.admin("/metrics").await.1, 1) {
        assert!(begun.elapsed() < Duration::from_secs(5), "not noticed");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    process.until("/readyz", 200).await;
    assert_eq!(process.api("/v2/_catalog").await.0, 200);
    process.end().await;
}
