//! A cold herd: 64 clients pull the same image, which is nowhere yet, through three Holdfast
//! replicas on one folder, while the upstream sends 50 MB/s in all.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use sha2::{Digest as _, Sha256};
use tokio::task::JoinSet;

use super::{Bench, say};
use crate::{
    content::{self, Named},
    http::{self, Connection, Sink, Target},
    results::RATIO,
    servers::{Kind, Pull},
    upstream::{Served, Upstream},
};

const BYTES: &str = "cold herd, upstream bytes";
const LAST_CLIENT: &str = "cold herd, last client";
const CLIENTS: usize = 64;
const REPLICAS: usize = 3;
const REPOSITORY: &str = "team/herd";
const BYTES_PER_SECOND: f64 = 50e6;

/// Runs the case.
pub(super) async fn run(bench: &mut Bench) -> Result<()> {
    if !bench.wants(BYTES) && !bench.wants(LAST_CLIENT) {
        return Ok(());
    }
    for round in 0..bench.rounds {
        let image = Image::new(500 + round as u64, bench.scale(75_000_000, 2_000_000));
        let served = Served {
            repository: REPOSITORY.to_owned(),
            tag: "1".to_owned(),
            manifest: image.manifest.clone(),
            blobs: image.blobs.clone(),
        };
        let upstream = Upstream::start(vec![served], BYTES_PER_SECOND)?;
        // The upstream's own time: one client, straight.
        let direct = Target {
            address: upstream.address,
            tls: None,
        };
        let begun = Instant::now();
        pull(&direct, REPOSITORY, &image, 0).await?;
        let own = begun.elapsed();
        let before = upstream.sent();

        let data = bench.stand.scratch.join("herd");
        let mut replicas = Vec::new();
        for _ in 0..REPLICAS {
            let pull = Pull {
                upstream: upstream.address,
                replicas: true,
            };
            replicas.push(bench.stand.start_pulling(&data, &pull).await?);
        }
        let repository = format!("127.0.0.1_{}/{REPOSITORY}", upstream.address.port());
        let image = Arc::new(image);
        let begun = Instant::now();
        let mut clients = JoinSet::new();
        for number in 0..CLIENTS {
            let target = replicas[number % REPLICAS].target.clone();
            let (repository, image) = (repository.clone(), Arc::clone(&image));
            clients.spawn(async move {
                pull(&target, &repository, &image, number)
                    .await
                    .with_context(|| format!("client {number}"))?;
                anyhow::Ok(begun.elapsed())
            });
        }
        let mut last = Duration::ZERO;
        while let Some(ended) = clients.join_next().await {
            last = last.max(ended??);
        }
        let bytes = (upstream.sent() - before) as f64 / image.bytes() as f64;
        let time = last.as_secs_f64() / own.as_secs_f64();
        drop(replicas);
        drop(upstream);
        std::fs::remove_dir_all(&data).context("remove what was copied")?;
        bench.results.add(BYTES, RATIO, Kind::Holdfast, bytes);
        bench.results.add(LAST_CLIENT, RATIO, Kind::Holdfast, time);
        say(&format!(
            "cold herd of {CLIENTS}, round {}: upstream sent {bytes:.3} × the image; last client after {:.2} s, {time:.2} × the upstream's own {:.2} s",
            round + 1,
            last.as_secs_f64(),
            own.as_secs_f64()
        ));
    }
    Ok(())
}

struct Image {
    manifest: Named,
    blobs: Vec<Named>,
}

impl Image {
    fn new(seed: u64, layer: usize) -> Self {
        let (manifest, blobs) = content::image(seed * 10, &[64, layer, layer]);
        Self { manifest, blobs }
    }

    fn bytes(&self) -> usize {
        self.manifest.1.len()
            + self
                .blobs
                .iter()
                .map(|(_, bytes)| bytes.len())
                .sum::<usize>()
    }
}

/// Pulls the whole image: manifest by tag, then every blob from its first byte to its last. One
/// client in eight hashes what it gets; all check the sizes.
async fn pull(target: &Target, repository: &str, image: &Image, number: usize) -> Result<()> {
    let mut connection = Connection::open(target).await?;
    let mut got = Vec::new();
    let head = http::head("GET", &format!("/v2/{repository}/manifests/1"), None);
    let answer = connection
        .request(&head, &[], Sink::Keep(&mut got), |_| {})
        .await?;
    ensure!(
        answer.status == 200 && got == image.manifest.1,
        "the manifest: status {}: {}",
        answer.status,
        String::from_utf8_lossy(&got)
    );
    for (digest, bytes) in &image.blobs {
        if !connection.is_reusable() {
            connection = Connection::open(target).await?;
        }
        let path = format!("/v2/{repository}/blobs/sha256:{digest}");
        let mut hash = Sha256::new();
        let sink = if number % 8 == 1 {
            Sink::Hash(&mut hash)
        } else {
            Sink::Count
        };
        let answer = connection
            .request(&http::head("GET", &path, None), &[], sink, |_| {})
            .await?;
        ensure!(
            answer.status == 200 && answer.length == Some(bytes.len() as u64),
            "a blob: status {}",
            answer.status
        );
        ensure!(
            number % 8 != 1 || hex::encode(hash.finalize()) == *digest,
            "a blob came with other bytes"
        );
    }
    Ok(())
}
