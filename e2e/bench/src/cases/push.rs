//! Pushes, every one acknowledged only when it is on the disk: 1 MiB by 8 clients, 100 MiB by 4. Each server begins each round on an empty folder.
//!
//! Nothing is removed before the last round is over: ext4 without a journal hands out no inode for minutes after it was freed, and whoever makes
//! files meanwhile steps over all of those, which took half of a server's time.

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
    http::{Connection, Target},
    load::{self, Item},
    results::{BYTES, CPU},
    servers::Kind,
};

const REPOSITORY: &str = "bench/push";

struct Case {
    name: &'static str,
    size: usize,
    clients: usize,
    pushes: usize,
}

/// Runs the cases.
pub(super) async fn run(bench: &mut Bench) -> Result<()> {
    let cases = [
        Case {
            name: "push 1 MiB × 8",
            size: 1 << 20,
            clients: 8,
            pushes: bench.scale(240, 16),
        },
        Case {
            name: "push 100 MiB × 4",
            size: bench.scale(100 << 20, 5 << 20),
            clients: 4,
            pushes: 4,
        },
    ];
    for case in &cases {
        if !bench.wants(case.name) {
            continue;
        }
        let base = Arc::new(content::bytes(400, case.size));
        // Hashing is the client's work, and done before the clock runs.
        let digests: Arc<Vec<String>> = Arc::new(
            (0..case.pushes)
                .map(|number| content::hex_digest(&stamped(&base, number)))
                .collect(),
        );
        let all = bench.stand.scratch.join("push");
        for round in 0..bench.rounds {
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
                push_all(&server.target, case, &base, &digests)
                    .await
                    .with_context(|| format!("{}: {kind}", case.name))?;
                let seconds = begun.elapsed().as_secs_f64();
                let used = server.usage()?.cpu_seconds - before.cpu_seconds;
                let gigabytes = (case.size * case.pushes) as f64 / 1e9;
                let sample: Vec<Item> = digests
                    .iter()
                    .step_by((case.pushes / 8).max(1))
                    .map(|digest| Item {
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
                line.push(format!("{kind} {:.3} GB/s", gigabytes / seconds));
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

/// Other bytes for each number.
fn stamped(base: &[u8], number: usize) -> Vec<u8> {
    let mut bytes = base.to_vec();
    bytes[..8].copy_from_slice(&(number as u64).to_le_bytes());
    bytes
}

async fn push_all(
    target: &Target,
    case: &Case,
    base: &Arc<Vec<u8>>,
    digests: &Arc<Vec<String>>,
) -> Result<()> {
    let next = Arc::new(AtomicUsize::new(0));
    let mut clients = JoinSet::new();
    for _ in 0..case.clients {
        let (target, base, digests, next) = (
            target.clone(),
            Arc::clone(base),
            Arc::clone(digests),
            Arc::clone(&next),
        );
        clients.spawn(async move {
            let mut connection = Connection::open(&target).await?;
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                let Some(digest) = digests.get(number) else {
                    return anyhow::Ok(());
                };
                if !connection.is_reusable() {
                    connection = Connection::open(&target).await?;
                }
                content::push_blob(&mut connection, REPOSITORY, digest, &stamped(&base, number))
                    .await?;
            }
        });
    }
    while let Some(ended) = clients.join_next().await {
        ended??;
    }
    Ok(())
}
