//! Many names: a repository of 20,000 tags that is listed and that a manifest is deleted from, and
//! a catalog of 10,000 repositories.

use std::{
    fs,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};

use super::{Bench, say};
use crate::{
    content::{self, Tree},
    http::{self, Connection, Sink, Target},
    load::Item,
    results::TIME,
    servers::{Kind, Server},
};

const TAGS: &str = "list 20,000 tags";
const DELETE: &str = "delete a manifest among 20,000 tags";
const CATALOG: &str = "catalog of 10,000 repositories";
const PAGE: &str = "first page of the catalog, 100 of 10,000";
const KINDS: [Kind; 2] = [Kind::Holdfast, Kind::Distribution];
const REPOSITORY: &str = "bench/tags";
/// Tags of each manifest that is deleted.
const TAGS_EACH: usize = 5;
/// The most that is waited for the rest of a delete.
const UNTIED_WITHIN: Duration = Duration::from_secs(60);

/// Runs the cases.
pub(super) async fn run(bench: &mut Bench) -> Result<()> {
    if bench.wants(TAGS) || bench.wants(DELETE) {
        tags(bench).await?;
    }
    if bench.wants(CATALOG) || bench.wants(PAGE) {
        catalog(bench).await?;
    }
    Ok(())
}

async fn tags(bench: &mut Bench) -> Result<()> {
    let data = bench.stand.scratch.join("tags");
    let count = bench.scale(20_000, 300);
    let doomed = bench.rounds * KINDS.len();
    let manifests = tagged(&data, count, doomed)?;
    let mut servers = Vec::new();
    for kind in KINDS {
        servers.push(bench.stand.start(kind, &data, false).await?);
    }
    let mut manifests = manifests.into_iter();
    let mut left = count;
    for round in 0..bench.rounds {
        let mut line = Vec::new();
        for turn in 0..servers.len() {
            let server = &servers[(turn + round) % servers.len()];
            let begun = Instant::now();
            let found = pages(
                &server.target,
                &format!("/v2/{REPOSITORY}/tags/list?n=1000"),
                "tags",
            )
            .await?;
            ensure!(
                found == left,
                "{}: {found} tags instead of {left}",
                server.kind
            );
            let listed = begun.elapsed().as_secs_f64() * 1e3;
            let (digest, tag) = manifests.next().context("a manifest to delete")?;
            let deleted = delete(server, &digest, &tag).await?;
            left -= TAGS_EACH;
            let after = untied(&data, left).await?;
            bench.results.add(TAGS, TIME, server.kind, listed);
            bench.results.add(DELETE, TIME, server.kind, deleted);
            line.push(format!(
                "{} lists in {listed:.0} ms, deletes in {deleted:.1} ms and has untied the tags {after:.0} ms later",
                server.kind
            ));
        }
        say(&format!(
            "20,000 tags, round {}: {}",
            round + 1,
            line.join("; ")
        ));
    }
    drop(servers);
    fs::remove_dir_all(&data).context("remove the tags")
}

/// A repository with `count` tags, and manifests in it that a few of the tags name: their digests,
/// and one of the tags of each.
fn tagged(data: &Path, count: usize, doomed: usize) -> Result<Vec<(String, String)>> {
    let tree = Tree::new(data);
    let config = tree.blob(b"{}")?;
    tree.layer(REPOSITORY, &config)?;
    let item = |digest: String, size: u64| Item {
        path: String::new(),
        digest,
        size,
    };
    let image = |number: usize| -> Result<String> {
        let layer = tree.blob(format!("layer {number}").as_bytes())?;
        tree.layer(REPOSITORY, &layer)?;
        let blobs = [item(config.clone(), 2), item(layer, 8)];
        tree.revision(REPOSITORY, &content::manifest(&blobs))
    };
    let main = image(0)?;
    let mut digests = Vec::new();
    for number in 1..=doomed {
        digests.push(image(number)?);
    }
    let few = doomed * TAGS_EACH;
    for number in 0..count {
        // Spread over the whole list.
        let step = count / few;
        let digest = if number.is_multiple_of(step) && number / step < few {
            &digests[number / step % doomed]
        } else {
            &main
        };
        tree.tag(REPOSITORY, &format!("v{number}"), digest)?;
    }
    let step = count / few;
    Ok(digests
        .into_iter()
        .enumerate()
        .map(|(number, digest)| (digest, format!("v{}", number * step)))
        .collect())
}

/// Waits until only `left` tags are on the volume, for the other program reads it next;
/// milliseconds. A registry may answer a delete before.
async fn untied(data: &Path, left: usize) -> Result<f64> {
    let folder = data.join(format!(
        "docker/registry/v2/repositories/{REPOSITORY}/_manifests/tags"
    ));
    let begun = Instant::now();
    while fs::read_dir(&folder)?.count() != left {
        ensure!(
            begun.elapsed() < UNTIED_WITHIN,
            "the tags of a deleted manifest stay"
        );
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    Ok(begun.elapsed().as_secs_f64() * 1e3)
}

/// Deletes a manifest by digest; milliseconds. Its tags are gone with it, others are not.
async fn delete(server: &Server, digest: &str, tag: &str) -> Result<f64> {
    let mut connection = Connection::open(&server.target).await?;
    let path = format!("/v2/{REPOSITORY}/manifests/");
    let status = async |connection: &mut Connection, method: &str, reference: &str| {
        let head = http::head(method, &format!("{path}{reference}"), None);
        let answer = connection.request(&head, &[], Sink::Count, |_| {}).await?;
        anyhow::Ok(answer.status)
    };
    ensure!(
        status(&mut connection, "HEAD", tag).await? == 200,
        "{tag} is there"
    );
    let begun = Instant::now();
    let deleted = status(&mut connection, "DELETE", &format!("sha256:{digest}")).await?;
    let took = begun.elapsed().as_secs_f64() * 1e3;
    ensure!(deleted == 202, "{}: delete: status {deleted}", server.kind);
    ensure!(
        status(&mut connection, "HEAD", tag).await? == 404,
        "{}: {tag} outlived its manifest",
        server.kind
    );
    ensure!(
        status(&mut connection, "HEAD", "v1").await? == 200,
        "v1 stays"
    );
    Ok(took)
}

async fn catalog(bench: &mut Bench) -> Result<()> {
    let data = bench.stand.scratch.join("catalog");
    let count = bench.scale(10_000, 300);
    let base = data.join("docker/registry/v2/repositories");
    for number in 0..count {
        let folder = base.join(format!(
            "team-{:02}/app-{number:05}/_manifests",
            number % 50
        ));
        fs::create_dir_all(folder)?;
    }
    let mut servers = Vec::new();
    for kind in KINDS {
        servers.push(bench.stand.start(kind, &data, false).await?);
    }
    for round in 0..bench.rounds {
        let mut line = Vec::new();
        for turn in 0..servers.len() {
            let server = &servers[(turn + round) % servers.len()];
            let begun = Instant::now();
            http::get(&server.target, "/v2/_catalog?n=100").await?;
            let page = begun.elapsed().as_secs_f64() * 1e3;
            let begun = Instant::now();
            let found = pages(&server.target, "/v2/_catalog?n=1000", "repositories").await?;
            let all = begun.elapsed().as_secs_f64() * 1e3;
            // Holdfast keeps one image of its own for the nodes' probes.
            ensure!(
                (count..=count + 1).contains(&found),
                "{}: {found} repositories instead of {count}",
                server.kind
            );
            bench.results.add(PAGE, TIME, server.kind, page);
            bench.results.add(CATALOG, TIME, server.kind, all);
            line.push(format!(
                "{} all in {all:.0} ms, first page in {page:.1} ms",
                server.kind
            ));
        }
        say(&format!(
            "10,000 repositories, round {}: {}",
            round + 1,
            line.join("; ")
        ));
    }
    drop(servers);
    fs::remove_dir_all(&data).context("remove the repositories")
}

/// Follows a list to its end; how many names it had.
async fn pages(target: &Target, first: &str, key: &str) -> Result<usize> {
    let mut path = first.to_owned();
    let mut count = 0;
    loop {
        let (head, body) = http::get(target, &path).await?;
        ensure!(head.status == 200, "{path}: status {}", head.status);
        let page: serde_json::Value = serde_json::from_slice(&body)?;
        count += page[key].as_array().map_or(0, Vec::len);
        let next = head
            .header("link")
            .and_then(|link| link.split_once('<')?.1.split_once('>'))
            .map(|(next, _)| next.to_owned());
        match next {
            Some(next) => path = next,
            None => return Ok(count),
        }
    }
}
