//! Memory: the highest resident memory of a fresh process while 128 clients read 100 MiB each, as
//! fast as they can and slowly.

use std::time::Duration;

use anyhow::{Context as _, Result};
use tokio::task::JoinSet;

use super::{Bench, read, say};
use crate::{
    content::Tree,
    http::{self, Connection, Target},
    load::{self, Item},
    results::MEMORY,
    servers::Kind,
};

const FAST: &str = "128 × 100 MiB, fast clients";
const SLOW: &str = "128 × 100 MiB, slow clients";
const CLIENTS: usize = 128;
/// A slow client takes so much, so often: about 1 MB/s.
const SLOW_READ_BYTES: u64 = 64 << 10;
const SLOW_READ_INTERVAL: Duration = Duration::from_millis(60);

/// Runs the cases.
pub(super) async fn run(bench: &mut Bench) -> Result<()> {
    if !bench.wants(FAST) && !bench.wants(SLOW) {
        return Ok(());
    }
    let data = bench.stand.scratch.join("memory");
    let items = read::blobs(&Tree::new(&data), 300, 100 << 20, 2)?;
    for round in 0..bench.rounds {
        let mut line = Vec::new();
        for kind in [Kind::Holdfast, Kind::Distribution] {
            let server = bench.stand.start(kind, &data, false).await?;
            load::verify(&server.target, &items).await?;
            server.reset_peak()?;
            let length = Duration::from_secs(bench.scale(3, 1) as u64);
            load::window(
                &server.target,
                &items,
                CLIENTS,
                Duration::ZERO,
                length,
                || server.usage(),
            )
            .await?;
            let fast = mebibytes(server.usage()?.peak_rss_bytes);
            server.reset_peak()?;
            slow(&server.target, &items, bench.scale(50, 10)).await?;
            let slow = mebibytes(server.usage()?.peak_rss_bytes);
            bench.results.add(FAST, MEMORY, kind, fast);
            bench.results.add(SLOW, MEMORY, kind, slow);
            line.push(format!("{kind} {fast:.0} MiB, slow clients {slow:.0} MiB"));
        }
        say(&format!(
            "memory at 128 streams, round {}: {}",
            round + 1,
            line.join("; ")
        ));
    }
    std::fs::remove_dir_all(&data).context("remove the content of the memory case")
}

/// Clients that read a little again and again, and leave in the middle.
async fn slow(target: &Target, items: &[Item], reads: usize) -> Result<()> {
    let mut clients = JoinSet::new();
    for number in 0..CLIENTS {
        let target = target.clone();
        let request = http::head("GET", &items[number % items.len()].path, None);
        clients.spawn(async move {
            let mut connection = Connection::open(&target).await?;
            connection.begin(&request).await?;
            for _ in 0..reads {
                connection.read_some(SLOW_READ_BYTES).await?;
                tokio::time::sleep(SLOW_READ_INTERVAL).await;
            }
            anyhow::Ok(())
        });
    }
    while let Some(ended) = clients.join_next().await {
        ended??;
    }
    Ok(())
}

fn mebibytes(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}
