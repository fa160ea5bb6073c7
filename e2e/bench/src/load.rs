//! Closed-loop load: a number of connections, each with one request at a time, for a time. Sizes of
//! all answers are checked; of a sample the bytes are hashed.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use sha2::{Digest as _, Sha256};
use tokio::task::JoinSet;

use crate::{
    http::{self, Connection, Sink, Target},
    process::Usage,
};

/// What is asked for, and what must come back.
#[derive(Clone, Debug)]
pub(crate) struct Item {
    /// Path of the request.
    pub(crate) path: String,
    /// SHA-256 of the body.
    pub(crate) digest: String,
    /// Its bytes.
    pub(crate) size: u64,
}

/// One of this number of answers is hashed, where answers are small enough.
const SAMPLE: u64 = 256;
const SAMPLE_BYTES: u64 = 1 << 20;

/// What one window showed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Window {
    /// Complete answers a second.
    pub(crate) requests_per_second: f64,
    /// Bytes of bodies a second.
    pub(crate) bytes_per_second: f64,
    /// The server's CPU seconds per 10^9 bytes of bodies.
    pub(crate) cpu_seconds_per_gb: f64,
    /// Time of an answer that one in a hundred exceeds, milliseconds.
    pub(crate) p99_ms: f64,
}

#[derive(Default)]
struct Counters {
    requests: AtomicU64,
    bytes: AtomicU64,
    stop: AtomicBool,
}

/// Fetches each item once and hashes it.
pub(crate) async fn verify(target: &Target, items: &[Item]) -> Result<()> {
    let mut connection = Connection::open(target).await?;
    for item in items {
        if !connection.is_reusable() {
            connection = Connection::open(target).await?;
        }
        fetch(&mut connection, item, true, |_| {}).await?;
    }
    Ok(())
}

async fn fetch(
    connection: &mut Connection,
    item: &Item,
    hashed: bool,
    arrived: impl Fn(u64),
) -> Result<()> {
    let head = http::head("GET", &item.path, None);
    let mut hash = Sha256::new();
    let sink = if hashed {
        Sink::Hash(&mut hash)
    } else {
        Sink::Count
    };
    let answer = connection.request(&head, &[], sink, arrived).await?;
    ensure!(
        answer.status == 200 && answer.length == Some(item.size),
        "{}: status {}, {:?} bytes instead of {}",
        item.path,
        answer.status,
        answer.length,
        item.size
    );
    if hashed {
        let found = hex::encode(hash.finalize());
        ensure!(found == item.digest, "{}: other bytes came", item.path);
    }
    Ok(())
}

/// Loads the target for `warm_up` and then, measured, for `length`.
pub(crate) async fn window(
    target: &Target,
    items: &[Item],
    connections: usize,
    warm_up: Duration,
    length: Duration,
    usage: impl Fn() -> Result<Usage>,
) -> Result<Window> {
    let counters = Arc::new(Counters::default());
    let mut workers = JoinSet::new();
    for number in 0..connections {
        let (target, items, counters) = (target.clone(), items.to_vec(), Arc::clone(&counters));
        workers.spawn(async move { work(&target, &items, number, &counters).await });
    }
    tokio::select! {
        () = tokio::time::sleep(warm_up) => {}
        failed = failure(&mut workers) => return Err(failed),
    }
    let (begun, before, cpu) = (Instant::now(), counters.snapshot(), usage()?);
    tokio::select! {
        () = tokio::time::sleep(length) => {}
        failed = failure(&mut workers) => return Err(failed),
    }
    let (seconds, after, used) = (begun.elapsed().as_secs_f64(), counters.snapshot(), usage()?);
    counters.stop.store(true, Ordering::Relaxed);
    // What is small ends by itself and tells its times; what is large is cut.
    let mut times = Vec::new();
    let patience = tokio::time::sleep(Duration::from_millis(300));
    tokio::pin!(patience);
    loop {
        tokio::select! {
            () = &mut patience => break,
            ended = workers.join_next() => match ended {
                None => break,
                Some(ended) => times.extend(ended.context("a worker ended")??),
            }
        }
    }
    workers.shutdown().await;
    let bytes = after.1 - before.1;
    if bytes == 0 {
        bail!("nothing came from {}", target.address);
    }
    times.sort_unstable();
    let p99 = times.get(times.len().saturating_mul(99) / 100);
    Ok(Window {
        requests_per_second: (after.0 - before.0) as f64 / seconds,
        bytes_per_second: bytes as f64 / seconds,
        cpu_seconds_per_gb: (used.cpu_seconds - cpu.cpu_seconds) / (bytes as f64 / 1e9),
        p99_ms: p99.map_or(0.0, |micros| f64::from(*micros) / 1000.0),
    })
}

async fn failure(workers: &mut JoinSet<Result<Vec<u32>>>) -> anyhow::Error {
    match workers.join_next().await {
        Some(Ok(Err(error))) => error,
        Some(Err(error)) => error.into(),
        _ => anyhow::anyhow!("a worker ended early"),
    }
}

async fn work(
    target: &Target,
    items: &[Item],
    number: usize,
    counters: &Counters,
) -> Result<Vec<u32>> {
    let mut connection = Connection::open(target).await?;
    let mut times = Vec::new();
    let mut round = number as u64;
    while !counters.stop.load(Ordering::Relaxed) {
        if !connection.is_reusable() {
            connection = Connection::open(target).await?;
        }
        let item = &items[usize::try_from(round).unwrap_or(0) % items.len()];
        let hashed = round.is_multiple_of(SAMPLE) && item.size <= SAMPLE_BYTES;
        let begun = Instant::now();
        fetch(&mut connection, item, hashed, |bytes| {
            counters.bytes.fetch_add(bytes, Ordering::Relaxed);
        })
        .await?;
        times.push(u32::try_from(begun.elapsed().as_micros()).unwrap_or(u32::MAX));
        counters.requests.fetch_add(1, Ordering::Relaxed);
        round += 1;
    }
    Ok(times)
}

impl Counters {
    fn snapshot(&self) -> (u64, u64) {
        (
            self.requests.load(Ordering::Relaxed),
            self.bytes.load(Ordering::Relaxed),
        )
    }
}
