//! What hostile reviews cost the webhook. It runs in a process of its own, so that its memory can
//! be read, and gets the worst bodies within its limits while honest reviews are answered.
//!
//! Figures are printed (`--nocapture`); run with `--release` for those of the product.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a test ends by them, and prints its figures"
)]

mod process;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use futures::StreamExt as _;
use futures::future::join_all;
use holdfast_testkit::hostile::reviews;
use holdfast_webhook::routes::MAX_BODY_BYTES as LARGEST;
use process::Webhook;
use serde_json::Value;

/// Hostile reviews at once.
const HOSTILE: usize = 64;
/// What they may cost together, above the memory of the idle process.
const MEMORY: u64 = 64 * 1024 * 1024;
/// Honest reviews that are sent while the hostile ones run.
const HONEST: usize = 40;
/// The longest time for one of them. The product's figure is 100 ms on a machine of its own; a busy
/// one gets more.
const DEADLINE: Duration = Duration::from_secs(if cfg!(debug_assertions) { 10 } else { 2 });
/// Between two hostile reviews of one sender.
const PAUSE: Duration = Duration::from_secs(if cfg!(debug_assertions) { 2 } else { 0 });

/// Sends honest reviews one after the other and checks every answer; how long each took, the
/// shortest first. Fails with the first one that is not answered.
async fn honest(webhook: &Webhook) -> reqwest::Result<Vec<Duration>> {
    let client = webhook.client();
    let mut took = Vec::new();
    for number in 0..HONEST {
        let begun = Instant::now();
        let (status, answer) = webhook.post(&client, reviews::honest(number)).await?;
        took.push(begun.elapsed());
        assert_eq!(status, 200, "{answer}");
        let answer: Value = serde_json::from_str(&answer).unwrap();
        assert_eq!(answer["response"]["allowed"], true);
        assert_eq!(answer["response"]["patchType"], "JSONPatch", "{answer}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    took.sort();
    Ok(took)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hostile_reviews_of_the_largest_size_cost_a_bounded_memory() {
    let webhook = Arc::new(Webhook::start().await);
    honest(&webhook).await.unwrap();
    let idle = webhook.resident();
    let kinds = reviews::worst(LARGEST);
    let (first, body) = kinds[0].clone();
    let http2 = std::iter::once((format!("{first}, by HTTP/2"), body, true));
    let http1 = kinds
        .into_iter()
        .map(|(name, body)| (name.to_owned(), body, false));
    for (name, body, by_http2) in http1.chain(http2) {
        let peak = webhook.sample();
        let over = Arc::new(AtomicBool::new(false));
        let senders = (0..HOSTILE).map(|_| {
            let (webhook, body, over) = (Arc::clone(&webhook), body.clone(), Arc::clone(&over));
            tokio::spawn(async move {
                let client = if by_http2 {
                    webhook.http2_client()
                } else {
                    webhook.client()
                };
                let mut answered = 0_usize;
                while !over.load(Ordering::Relaxed) {
                    // Refused, cut or answered: each is right, as long as it costs no more than it
                    // may.
                    let outcome = webhook.post(&client, body.clone()).await;
                    answered += usize::from(outcome.is_ok_and(|(status, _)| status == 200));
                    tokio::time::sleep(PAUSE).await;
                }
                answered
            })
        });
        let senders: Vec<_> = senders.collect();
        tokio::time::sleep(Duration::from_millis(300)).await;
        let took = honest(&webhook).await;
        over.store(true, Ordering::Relaxed);
        let answered: usize = join_all(senders)
            .await
            .into_iter()
            .map(Result::unwrap)
            .sum();
        let above = peak.end().saturating_sub(idle);
        let took = took.unwrap_or_else(|error| panic!("{name}: {} MiB, {error:?}", above >> 20));
        println!(
            "{name}: {} MiB above {} MiB idle; honest reviews: median {:?}, longest {:?}; {answered} hostile ones answered",
            above >> 20,
            idle >> 20,
            took[took.len() / 2],
            took[took.len() - 1],
        );
        assert!(above < MEMORY, "{name}: {} MiB", above >> 20);
        assert!(took[took.len() - 1] < DEADLINE, "{name}: {took:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slow_bodies_do_not_delay_honest_reviews() {
    let webhook = Arc::new(Webhook::start().await);
    honest(&webhook).await.unwrap();
    let idle = webhook.resident();
    let peak = webhook.sample();
    let over = Arc::new(AtomicBool::new(false));
    let senders = (0..4 * HOSTILE).map(|number| {
        let (webhook, over) = (Arc::clone(&webhook), Arc::clone(&over));
        let claimed = if number % 2 == 0 { 100 * 1024 } else { LARGEST };
        tokio::spawn(async move {
            let client = webhook.client();
            // By status; 0: no answer.
            let mut outcomes = BTreeMap::new();
            while !over.load(Ordering::Relaxed) {
                let bytes = futures::stream::iter(0..claimed).then(async |_| {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    Ok::<_, std::io::Error>(vec![b' '])
                });
                let outcome = webhook.trickle(
                    &client,
                    claimed,
                    reqwest::Body::wrap_stream(Box::pin(bytes)),
                );
                if let Ok(outcome) = tokio::time::timeout(Duration::from_secs(20), outcome).await {
                    *outcomes.entry(outcome.unwrap_or(0)).or_insert(0_usize) += 1;
                }
            }
            outcomes
        })
    });
    let senders: Vec<_> = senders.collect();
    tokio::time::sleep(Duration::from_millis(500)).await;
    let took = honest(&webhook).await.unwrap();
    over.store(true, Ordering::Relaxed);
    let mut outcomes = BTreeMap::new();
    for (status, count) in join_all(senders).await.into_iter().flat_map(Result::unwrap) {
        *outcomes.entry(status).or_insert(0) += count;
    }
    let above = peak.end().saturating_sub(idle);
    println!(
        "trickling: {} MiB above idle; honest reviews: median {:?}, longest {:?}; by status: {outcomes:?}",
        above >> 20,
        took[took.len() / 2],
        took[took.len() - 1],
    );
    assert!(above < MEMORY, "{} MiB", above >> 20);
    assert!(took[took.len() - 1] < DEADLINE, "{took:?}");
    // Cut, or no room in time; 0: the answer was lost with the connection.
    let known = [0, 408, 503];
    assert!(
        outcomes.keys().all(|status| known.contains(status)),
        "{outcomes:?}"
    );
    let count = |status| outcomes.get(&status).copied().unwrap_or(0);
    let (cut, lost) = (count(408), count(0));
    let ended: usize = outcomes.values().sum();
    assert!(
        4 * HOSTILE <= ended,
        "every slow body ends in time: {outcomes:?}"
    );
    assert!(2 * HOSTILE <= cut, "slow bodies are cut: {outcomes:?}");
    assert!(
        lost < HOSTILE,
        "those that are cut are answered: {outcomes:?}"
    );
}
