//! Indexes of indexes of large manifests whose layer never ends: memory stays bounded.

#![allow(
    clippy::unwrap_used,
    reason = "helpers of tests stand outside of test functions"
)]

#[allow(dead_code, reason = "this test needs a part of what the others have")]
#[path = "it/harness.rs"]
mod harness;
#[allow(dead_code, reason = "this test needs a part of what the others have")]
#[path = "it/hostile/mirror.rs"]
mod mirror;

use std::time::Duration;

use holdfast_api::fill::FillRequest;
use holdfast_testkit::hostile::bomb::Bomb;
use holdfast_upstream::limits::MANIFEST_MEMORY;

use mirror::{mirror, uplink};

/// Bytes of this process that are in memory.
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status
        .lines()
        .find(|line| line.starts_with("VmRSS:"))
        .unwrap();
    let number = line.split_whitespace().nth(1).unwrap();
    number.parse::<u64>().unwrap() << 10
}

/// The memory that copies of `bombs` such images at once take, and how many manifests were sent.
async fn explode(depth: usize, bombs: usize) -> (u64, usize) {
    let mut bomb = Bomb::default();
    (0..bombs).for_each(|_| bomb.push(depth));
    let (address, bomb) = bomb.serve().await.unwrap();
    let url = format!("http://{address}");
    let mirror = mirror("bomb.example", &url, &uplink()).await;
    let before = resident();
    let copies: Vec<_> = (0..bombs)
        .map(|number| {
            let fills = mirror.fills.clone();
            let request = FillRequest {
                source: format!("bomb.example/x:bomb{number}"),
                ..FillRequest::default()
            };
            tokio::spawn(async move { fills.fill(&request).await })
        })
        .collect();
    let (mut most, mut still, mut sent) = (0, 0, 0);
    // Until nothing more is sent for two seconds, and a minute at most.
    for _ in 0..1200 {
        tokio::time::sleep(Duration::from_millis(50)).await;
        most = most.max(resident().saturating_sub(before));
        let now = bomb.sent();
        still = if now == sent { still + 1 } else { 0 };
        sent = now;
        if sent > 0 && still > 40 {
            break;
        }
    }
    for copy in copies {
        assert!(!copy.is_finished(), "its blobs never end");
        copy.abort();
    }
    (most, sent)
}

/// One test, so that nothing else of this process takes memory meanwhile but small tests.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nested_indexes_of_large_manifests_take_bounded_memory() {
    let budget = MANIFEST_MEMORY + (64 << 20);
    // Their large manifests alone would be more: eight are read before their blobs are waited for.
    for (depth, bombs, least) in [(2, 1, 1 + 8 + 1), (1, 6, 6 * (1 + 8))] {
        let (most, sent) = explode(depth, bombs).await;
        println!(
            "depth {depth}, {bombs} at once: {} MiB, {sent} manifests",
            most >> 20
        );
        assert!(
            least <= sent,
            "the upstream was asked for {sent} manifests only"
        );
        assert!(
            most < budget,
            "{bombs} images of depth {depth} took {} MiB, more than {} MiB",
            most >> 20,
            budget >> 20
        );
    }
}
