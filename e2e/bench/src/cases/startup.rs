//! Starting over 100,000 blobs: the time from the process's start until a manifest and a blob have
//! come. Holdfast has an upstream configured that does not answer.

use std::{fs, time::Instant};

use anyhow::{Context as _, Result, ensure};
use holdfast_testkit::server::free_address;

use super::{Bench, say};
use crate::{
    content::{self, Tree, hex_digest},
    http,
    load::Item,
    results::TIME,
    servers::{Kind, Pull},
};

const CASE: &str = "start with 100,000 blobs";
const REPOSITORY: &str = "bench/start";

/// Runs the case.
pub(super) async fn run(bench: &mut Bench) -> Result<()> {
    if !bench.wants(CASE) {
        return Ok(());
    }
    let data = bench.stand.scratch.join("start");
    let tree = Tree::new(&data);
    let digest = tree.blob(b"served")?;
    tree.layer(REPOSITORY, &digest)?;
    let blob = Item {
        path: String::new(),
        digest,
        size: 6,
    };
    let manifest = tree.revision(REPOSITORY, &content::manifest(std::slice::from_ref(&blob)))?;
    tree.tag(REPOSITORY, "1", &manifest)?;
    fill(&tree, bench.scale(100_000, 1000))?;
    // Nobody listens there.
    let upstream = free_address()?;
    for round in 0..bench.rounds {
        let mut line = Vec::new();
        for kind in [Kind::Holdfast, Kind::Distribution] {
            let begun = Instant::now();
            let server = if kind == Kind::Holdfast {
                let pull = Pull {
                    upstream,
                    replicas: false,
                };
                bench.stand.start_pulling(&data, &pull).await?
            } else {
                bench.stand.start(kind, &data, false).await?
            };
            let path = format!("/v2/{REPOSITORY}/manifests/1");
            let (head, body) = http::get(&server.target, &path).await?;
            ensure!(
                head.status == 200 && hex_digest(&body) == manifest,
                "the manifest"
            );
            let path = format!("/v2/{REPOSITORY}/blobs/sha256:{}", blob.digest);
            let (head, body) = http::get(&server.target, &path).await?;
            ensure!(head.status == 200 && body == b"served", "the blob");
            let took = begun.elapsed().as_secs_f64() * 1e3;
            bench.results.add(CASE, TIME, kind, took);
            line.push(format!("{kind} {took:.0} ms"));
        }
        say(&format!("{CASE}, round {}: {}", round + 1, line.join(", ")));
    }
    fs::remove_dir_all(&data).context("remove the blobs")
}

/// Blobs that are never requested: their folders are what a start could stumble over, so their
/// files are hard links of a few.
fn fill(tree: &Tree, count: usize) -> Result<()> {
    let mut first = None;
    for number in 0..count {
        let digest = hex_digest(format!("filler {number}").as_bytes());
        let path = tree.blob_path(&digest);
        fs::create_dir_all(path.parent().context("a blob's folder")?)?;
        // A file has at most 65,000 names on ext4.
        if number.is_multiple_of(50_000) {
            fs::write(&path, b"filler")?;
            first = Some(path);
        } else if let Some(first) = &first {
            fs::hard_link(first, &path)?;
        }
    }
    Ok(())
}
