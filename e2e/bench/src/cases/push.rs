//! Pushes, every one acknowledged only when it is on the disk: 1 MiB by 8 clients, 100 MiB by 4.
//! Each server begins each round on an empty folder. Large blobs are pushed in both ways that
//! clients use: whole in one PUT, as containerd does, and as one PATCH of chunks without an
//! announced length, as Docker does. Eight at once show what memory that takes.
//!
//! Nothing is removed before the last round is over: ext4 without a journal hands out no inode for
//! minutes after it was freed, and a process that makes files then steps over all of those, which
//! took half of a server's time.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Instant,
};

use anyhow::{Context as _, Result};
use tokio::task::JoinSet;

use super::{Bench, say};
use crate::{
    content,
    http::{self, Connection, Target},
    load::{self, Item},
    results::{BYTES, CPU, MEMORY},
    servers::Kind,
};

const REPOSITORY: &str = "bench/push";

struct Case {
    name: &'static str,
    size: usize,
    clients: usize,
    pushes: usize,
    /// Blobs take turns in these.
    ways: &'static [Way],
    rounds: usize,
}

/// How the bytes of a blob are sent.
#[derive(Clone, Copy)]
enum Way {
    /// All of them in the PUT that ends the session.
    Whole,
    /// In one PATCH with `Transfer-Encoding: chunked`; the PUT has no body.
    Stream,
}

impl Way {
    /// The body of the request that carries the bytes.
    fn encode(self, bytes: Vec<u8>) -> Vec<u8> {
        match self {
            Self::Whole => bytes,
            Self::Stream => http::chunked(&bytes),
        }
    }
}

/// Runs the cases.
pub(super) async fn run(bench: &mut Bench) -> Result<()> {
    let cases = [
        Case {
            name: "push 1 MiB × 8",
            size: 1 << 20,
            clients: 8,
            pushes: bench.scale(240, 16),
            ways: &[Way::Whole],
            rounds: bench.rounds,
        },
        Case {
            name: "push 100 MiB × 4, whole",
            size: bench.scale(100 << 20, 5 << 20),
            clients: 4,
            pushes: 4,
            ways: &[Way::Whole],
            rounds: bench.rounds,
        },
        Case {
            name: "push 100 MiB × 4, one chunked stream",
            size: bench.scale(100 << 20, 5 << 20),
            clients: 4,
            pushes: 4,
            ways: &[Way::Stream],
            rounds: bench.rounds,
        },
        Case {
            name: "push 100 MiB × 8, both ways",
            size: bench.scale(100 << 20, 5 << 20),
            clients: 8,
            pushes: 8,
            ways: &[Way::Whole, Way::Stream],
            // Memory varies little, and every round takes 1.7 GB of disk.
            rounds: 1,
        },
    ];
    for case in &cases {
        if !bench.wants(case.name) {
            continue;
        }
        // Making, hashing and framing the bytes is the client's work, and done before the clock
        // runs.
        let blobs = Arc::new(blobs(case));
        let all = bench.stand.scratch.join("push");
        for round in 0..case.rounds {
            let mut line = Vec::new();
            let mut order = [Kind::Holdfast, Kind::Distribution];
            order.rotate_left(round % 2);
            for kind in order {
                let data = all.join(format!("{round}-{kind}"));
                std::fs::create_dir_all(&data)?;
                let server = bench.stand.start(kind, &data, false).await?;
                // What others wrote before is not this round's business.
                rustix::fs::sync();
                let before = server.usage()?;
                let begun = Instant::now();
                push_all(&server.target, case, &blobs)
                    .await
                    .with_context(|| format!("{}: {kind}", case.name))?;
                let seconds = begun.elapsed().as_secs_f64();
                let after = server.usage()?;
                let used = after.cpu_seconds - before.cpu_seconds;
                let peak = after.peak_rss_bytes as f64 / f64::from(1 << 20);
                let gigabytes = (case.size * case.pushes) as f64 / 1e9;
                let sample: Vec<Item> = blobs
                    .iter()
                    .step_by((case.pushes / 8).max(1))
                    .map(|Blob { digest, .. }| Item {
                        path: format!("/v2/{REPOSITORY}/blobs/sha256:{digest}"),
                        digest: digest.clone(),
                        size: case.size as u64,
                    })
                    .collect();
                load::verify(&server.target, &sample).await?;
                drop(server);
                bench
                    .results
                    .add(case.name, BYTES, kind, gigabytes / seconds);
                bench.results.add(case.name, CPU, kind, used / gigabytes);
                bench.results.add(case.name, MEMORY, kind, peak);
                let rate = gigabytes / seconds;
                line.push(format!("{kind} {rate:.3} GB/s, {peak:.0} MiB"));
            }
            say(&format!(
                "{}, round {}: {}",
                case.name,
                round + 1,
                line.join(", ")
            ));
        }
        std::fs::remove_dir_all(&all).context("remove what was pushed")?;
    }
    Ok(())
}

/// A blob, and the body that carries it.
struct Blob {
    digest: String,
    way: Way,
    body: Vec<u8>,
}

/// The blobs of a case, each with other bytes.
fn blobs(case: &Case) -> Vec<Blob> {
    let base = content::bytes(400, case.size);
    (0..case.pushes)
        .map(|number| {
            let mut bytes = base.clone();
            bytes[..8].copy_from_slice(&(number as u64).to_le_bytes());
            let way = case.ways[number % case.ways.len()];
            Blob {
                digest: content::hex_digest(&bytes),
                way,
                body: way.encode(bytes),
            }
        })
        .collect()
}

async fn push_all(target: &Target, case: &Case, blobs: &Arc<Vec<Blob>>) -> Result<()> {
    let next = Arc::new(AtomicUsize::new(0));
    let mut clients = JoinSet::new();
    for _ in 0..case.clients {
        let (target, blobs, next) = (target.clone(), Arc::clone(blobs), Arc::clone(&next));
        clients.spawn(async move {
            let mut connection = Connection::open(&target).await?;
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                let Some(Blob { digest, way, body }) = blobs.get(number) else {
                    return anyhow::Ok(());
                };
                if !connection.is_reusable() {
                    connection = Connection::open(&target).await?;
                }
                match way {
                    Way::Whole => {
                        content::push_blob(&mut connection, REPOSITORY, digest, body).await?;
                    }
                    Way::Stream => {
                        content::push_stream(&mut connection, REPOSITORY, digest, body).await?;
                    }
                }
            }
        });
    }
    while let Some(ended) = clients.join_next().await {
        ended??;
    }
    Ok(())
}
