//! Pulls: manifests and blobs of three sizes, at 1, 16 and 128 connections, plain and over TLS. All
//! servers read the same files.

use std::{path::Path, time::Duration};

use anyhow::{Context as _, Result};

use super::{Bench, say};
use crate::{
    content::{self, Tree},
    load::{self, Item},
    results::{BYTES, CPU, RATE},
    servers::{Kind, Server},
};

const REPOSITORY: &str = "bench/read";
const KINDS: [Kind; 3] = [Kind::Holdfast, Kind::Distribution, Kind::Nginx];
const WARM_UP: Duration = Duration::from_millis(400);

struct Case {
    name: String,
    items: Vec<Item>,
    manifests: bool,
    connections: usize,
}

impl Case {
    /// The items as a server names them: nginx has files only.
    fn items(&self, kind: Kind) -> Vec<Item> {
        let path = |item: &Item| match kind {
            Kind::Nginx => format!(
                "/blobs/sha256/{}/{}/data",
                item.digest.get(..2).unwrap_or_default(),
                item.digest
            ),
            _ => item.path.clone(),
        };
        self.items
            .iter()
            .map(|item| Item {
                path: path(item),
                ..item.clone()
            })
            .collect()
    }
}

/// Writes blobs of a size and links them into the repository.
pub(super) fn blobs(tree: &Tree, seed: u64, size: usize, count: u64) -> Result<Vec<Item>> {
    (0..count)
        .map(|number| {
            let digest = tree.blob(&content::bytes(seed + number, size))?;
            tree.layer(REPOSITORY, &digest)?;
            Ok(Item {
                path: format!("/v2/{REPOSITORY}/blobs/sha256:{digest}"),
                digest,
                size: size as u64,
            })
        })
        .collect()
}

fn cases(data: &Path, quick: bool) -> Result<Vec<Case>> {
    let tree = Tree::new(data);
    let sizes = [
        ("4 KiB", blobs(&tree, 1, 4 << 10, 16)?),
        ("1 MiB", blobs(&tree, 100, 1 << 20, 8)?),
        (
            "100 MiB",
            blobs(&tree, 200, if quick { 10 << 20 } else { 100 << 20 }, 2)?,
        ),
    ];
    let layers: Vec<Item> = sizes.iter().flat_map(|(_, items)| items.clone()).collect();
    let bytes = content::manifest(&layers[..8]);
    let digest = tree.revision(REPOSITORY, &bytes)?;
    tree.tag(REPOSITORY, "latest", &digest)?;
    let manifest = |reference: &str| Item {
        path: format!("/v2/{REPOSITORY}/manifests/{reference}"),
        digest: digest.clone(),
        size: bytes.len() as u64,
    };
    let mut cases = vec![
        Case {
            name: "manifest by tag, 16".to_owned(),
            items: vec![manifest("latest")],
            manifests: true,
            connections: 16,
        },
        Case {
            name: "manifest by digest, 16".to_owned(),
            items: vec![manifest(&format!("sha256:{digest}"))],
            manifests: true,
            connections: 16,
        },
    ];
    for (size, items) in sizes {
        for connections in [1, 16, 128] {
            cases.push(Case {
                name: format!("blob {size}, {connections}"),
                items: items.clone(),
                manifests: false,
                connections,
            });
        }
    }
    Ok(cases)
}

/// Runs the cases.
pub(super) async fn run(bench: &mut Bench) -> Result<()> {
    let data = bench.stand.scratch.join("read");
    let mut prepared = None;
    for tls in [false, true] {
        let suffix = if tls { ", TLS" } else { "" };
        if !any_wanted(bench, suffix) {
            continue;
        }
        if prepared.is_none() {
            prepared = Some(cases(&data, bench.quick)?);
        }
        let mut servers = Vec::new();
        for kind in KINDS {
            servers.push(bench.stand.start(kind, &data, tls).await?);
        }
        for case in prepared.iter().flatten() {
            let name = format!("{}{suffix}", case.name);
            if bench.wants(&name) {
                run_case(bench, &servers, case, &name).await?;
            }
        }
    }
    if prepared.is_some() {
        std::fs::remove_dir_all(&data).context("remove the content of the pulls")?;
    }
    Ok(())
}

/// Whether any case with this end was asked for; names are the same with and without content.
fn any_wanted(bench: &Bench, suffix: &str) -> bool {
    let manifests = ["manifest by tag, 16", "manifest by digest, 16"].map(str::to_owned);
    let blobs = ["4 KiB", "1 MiB", "100 MiB"]
        .into_iter()
        .flat_map(|size| [1, 16, 128].map(|connections| format!("blob {size}, {connections}")));
    manifests
        .into_iter()
        .chain(blobs)
        .any(|name| bench.wants(&format!("{name}{suffix}")))
}

async fn run_case(bench: &mut Bench, servers: &[Server], case: &Case, name: &str) -> Result<()> {
    let small = case.items[0].size < 1 << 20;
    for round in 0..bench.rounds {
        let mut line = Vec::new();
        for turn in 0..servers.len() {
            // Everybody is first once.
            let server = &servers[(turn + round) % servers.len()];
            let items = case.items(server.kind);
            let context = || format!("{name}: {}", server.kind);
            if round == 0 {
                load::verify(&server.target, &items)
                    .await
                    .with_context(context)?;
            }
            let seen = load::window(
                &server.target,
                &items,
                case.connections,
                WARM_UP,
                bench.window,
                || server.usage(),
            )
            .await
            .with_context(context)?;
            let gigabytes = seen.bytes_per_second / 1e9;
            if small {
                bench
                    .results
                    .add(name, RATE, server.kind, seen.requests_per_second);
                line.push(format!(
                    "{} {:.0}/s p99 {:.1} ms",
                    server.kind, seen.requests_per_second, seen.p99_ms
                ));
            } else {
                bench.results.add(name, BYTES, server.kind, gigabytes);
                line.push(format!("{} {gigabytes:.2} GB/s", server.kind));
            }
            if !case.manifests {
                bench
                    .results
                    .add(name, CPU, server.kind, seen.cpu_seconds_per_gb);
                line.push(format!("({:.2} CPU s/GB)", seen.cpu_seconds_per_gb));
            }
        }
        say(&format!("{name}, round {}: {}", round + 1, line.join(" ")));
    }
    Ok(())
}
