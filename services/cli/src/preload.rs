//! `holdfast preload`: copies images ahead of need. It reads which images are wanted, creates an
//! Artifact for each image, and with `--wait` waits until they are local. The controller and the
//! registry copy them.

mod artifacts;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use holdfast_api::artifact_name;
use holdfast_cli_kit::cluster::{self, ClusterArgs, Listed};
use holdfast_cli_kit::exit_status::{Answer, IMAGES_UNKNOWN};
use holdfast_cli_kit::output::{Document, OutputArgs};
use holdfast_cli_kit::{duration, terminal};
use holdfast_cluster_model::image_sources::{Refused, WantedImages};
use holdfast_core::workload::{self, KINDS};
use kube::Client;
use serde::Serialize;
use tokio::time::Instant;

use artifacts::Image;

/// Arguments of `preload`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  holdfast preload registry.example/team/app:1 --wait
  holdfast preload -f images.txt --wait --timeout 1h
  helm template ./chart | holdfast preload --from-manifests -
  holdfast preload --from-namespace shop --dry-run

Each image gets an Artifact. The controller copies it after all images that pods wait for, and \
keeps it although nothing runs it. A second run changes nothing.

Private images: the controller uses the pull secrets of pods and owners in the namespace of the \
Artifact that use this image (--from-namespace finds them), and the credentials of `upstreams` in \
the values. Other pull secrets cannot be named: an Artifact alone must not open one.

Exit status: 0 every Artifact exists (with --wait: every image is local), 1 some do not, or a \
reference is wrong, 2 it could not run, 4 as 0, but manifests have objects of custom kinds whose \
images are not known.")]
pub struct Args {
    /// Images as a pod names them
    #[arg(value_name = "IMAGE", required_unless_present_any = ["file", "from_manifests", "from_namespace"])]
    images: Vec<String>,
    /// File with one image a line, # begins a remark; - is standard input
    #[arg(short, long, value_name = "FILE")]
    file: Vec<PathBuf>,
    /// Manifests: a folder with everything below it, a file, or - for standard input
    #[arg(long, value_name = "DIR")]
    from_manifests: Vec<PathBuf>,
    /// Images of everything in this namespace: owners, also those scaled to zero or suspended, and
    /// pods
    #[arg(long, value_name = "NAMESPACE")]
    from_namespace: Vec<String>,
    /// Namespace of the Artifacts [default: that of the manifest or of --from-namespace if it
    /// exists, else that of the release]
    #[arg(short, long, value_name = "NAMESPACE")]
    namespace: Option<String>,
    /// As --namespace
    #[arg(
        long,
        value_name = "NAMESPACE",
        hide = true,
        conflicts_with = "namespace"
    )]
    into: Option<String>,
    /// Waits until every image is local
    #[arg(long)]
    wait: bool,
    /// Ends after this time, also if something is left
    #[arg(
        long,
        value_name = "DURATION",
        default_value = "30m",
        value_parser = duration::parse,
        requires = "wait"
    )]
    timeout: Duration,
    /// Only prints what it would do
    #[arg(long, conflicts_with = "wait")]
    dry_run: bool,
    #[command(flatten)]
    cluster: ClusterArgs,
    #[command(flatten)]
    output: OutputArgs,
}

/// The data of the command.
#[derive(Serialize)]
struct Report<'a> {
    images: &'a [Image],
    refused: &'a [Refused],
    skipped: &'a [Refused],
    unknown: &'a [Refused],
}

/// Creates the Artifacts, and prints how they stand.
pub(crate) async fn run(args: Args) -> ExitCode {
    args.output.apply();
    if args.into.is_some() {
        terminal::note("--into is deprecated; use --namespace");
    }
    let result = preload(&args).await;
    args.output
        .finish_as(result, Answer::Unknown, IMAGES_UNKNOWN)
}

async fn preload(args: &Args) -> anyhow::Result<Document> {
    let client = args.cluster.client().await?;
    let release = args.cluster.release(&client).await?;
    let state = release.state(&client).await?;
    let mut wanted = WantedImages::new(cluster::addresses(state.as_ref()));
    read_files(args, &mut wanted)?;
    for namespace in &args.from_namespace {
        read_namespace(&client, namespace, &mut wanted).await?;
    }
    let target = args.namespace.as_ref().or(args.into.as_ref());
    let fallback = target.unwrap_or(&release.names.namespace);
    let mut images = assign_namespaces(&wanted, target.map(String::as_str), fallback);
    if args.dry_run {
        artifacts::refresh(&client, &mut images).await?;
    } else {
        artifacts::create(&client, &mut images, fallback).await;
        if args.wait {
            follow(&client, &mut images, Instant::now() + args.timeout).await?;
        } else {
            artifacts::refresh(&client, &mut images).await?;
        }
    }
    document(args, &images, &wanted)
}

fn document(args: &Args, images: &[Image], wanted: &WantedImages) -> anyhow::Result<Document> {
    let mut table = if args.dry_run {
        plan(images)
    } else {
        summary(images)
    };
    for refused in &wanted.refused {
        let text = format!("{}: {:?} {}", refused.from, refused.text, refused.why);
        writeln!(table, "refused  {}", terminal::clean(&text))?;
    }
    for skipped in &wanted.skipped {
        let text = format!("{}: {} ({})", skipped.from, skipped.text, skipped.why);
        writeln!(table, "left out {}", terminal::clean(&text))?;
    }
    for unknown in &wanted.unknown {
        let text = format!("{}: {} {}", unknown.from, unknown.text, unknown.why);
        writeln!(table, "unknown  {}", terminal::clean(&text))?;
    }
    let done = |image: &Image| !image.is_refused() && (image.local || !args.wait);
    let answer = if !wanted.refused.is_empty() || !images.iter().all(done) {
        Answer::No
    } else if wanted.unknown.is_empty() {
        Answer::Yes
    } else {
        Answer::Unknown
    };
    let report = Report {
        images,
        refused: &wanted.refused,
        skipped: &wanted.skipped,
        unknown: &wanted.unknown,
    };
    let names = images.iter().map(|image| {
        format!(
            "artifact/{}/{}",
            image.namespace,
            artifact_name(&image.source)
        )
    });
    Ok(Document::new("Preload", answer, &report, table)?.with_names(names))
}

fn read_files(args: &Args, wanted: &mut WantedImages) -> anyhow::Result<()> {
    for image in &args.images {
        wanted.image(image, None, "command line");
    }
    for path in &args.file {
        wanted.list(&read(path)?, &shown(path));
    }
    for path in &args.from_manifests {
        for file in manifests(path)? {
            wanted.manifests(&read(&file)?, &shown(&file));
        }
    }
    Ok(())
}

fn shown(path: &Path) -> String {
    if path == Path::new("-") {
        "standard input".to_owned()
    } else {
        path.display().to_string()
    }
}

fn read(path: &Path) -> anyhow::Result<String> {
    if path == Path::new("-") {
        let mut text = String::new();
        std::io::stdin()
            .read_to_string(&mut text)
            .context("cannot read standard input")?;
        return Ok(text);
    }
    std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))
}

/// The file itself, or every YAML and JSON file below a folder, sorted. Hidden folders are skipped.
fn manifests(path: &Path) -> anyhow::Result<Vec<PathBuf>> {
    if !path.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let mut found = Vec::new();
    let mut folders = vec![path.to_owned()];
    while let Some(folder) = folders.pop() {
        let entries = std::fs::read_dir(&folder)
            .with_context(|| format!("cannot read {}", folder.display()))?;
        for entry in entries {
            let entry = entry.with_context(|| format!("cannot read {}", folder.display()))?;
            let path = entry.path();
            let hidden = entry.file_name().to_string_lossy().starts_with('.');
            // A link to a folder is not followed: it may lead back.
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                if !hidden {
                    folders.push(path);
                }
            } else if path
                .extension()
                .is_some_and(|kind| kind == "yaml" || kind == "yml" || kind == "json")
            {
                found.push(path);
            }
        }
    }
    anyhow::ensure!(
        !found.is_empty(),
        "there are no *.yaml, *.yml or *.json files below {}",
        path.display()
    );
    found.sort();
    Ok(found)
}

/// Reads the images of everything that may start in a namespace.
async fn read_namespace(
    client: &Client,
    namespace: &str,
    wanted: &mut WantedImages,
) -> anyhow::Result<()> {
    for kind in KINDS {
        match cluster::list(client, kind.into(), Some(namespace)).await? {
            Listed::Items(items) => {
                let living = items
                    .iter()
                    .filter(|object| workload::may_start(kind.kind, object));
                for object in living {
                    wanted.object(kind.kind, object, Some(namespace), "");
                }
            }
            Listed::Forbidden => anyhow::bail!(
                "{} in namespace {namespace} may not be listed, so its images are not all known",
                kind.plural
            ),
            Listed::Unknown => {}
        }
    }
    Ok(())
}

/// Each image in the namespace where its Artifact is to be.
fn assign_namespaces(wanted: &WantedImages, target: Option<&str>, fallback: &str) -> Vec<Image> {
    let mut images: BTreeMap<(String, String), BTreeSet<String>> = BTreeMap::new();
    for ((namespace, source), from) in &wanted.wanted {
        let namespace = target.or(namespace.as_deref()).unwrap_or(fallback);
        images
            .entry((namespace.to_owned(), source.clone()))
            .or_default()
            .extend(from.iter().cloned());
    }
    images
        .iter()
        .map(|((namespace, source), from)| Image::new(namespace, source, from))
        .collect()
}

async fn follow(client: &Client, images: &mut [Image], deadline: Instant) -> anyhow::Result<()> {
    let total = images.len();
    let bar = terminal::items(total as u64);
    let outcome = artifacts::follow(client, images, deadline, |image, count| {
        bar.set_message(image.source.clone());
        bar.set_position(count as u64);
        terminal::progress(&format!("local {count} of {total}: {}", image.source));
    })
    .await;
    bar.finish_and_clear();
    outcome
}

fn plan(images: &[Image]) -> String {
    let rows: Vec<_> = images
        .iter()
        .map(|image| {
            let state = if image.local { "local" } else { "not local" };
            [
                image.namespace.clone(),
                image.source.clone(),
                state.to_owned(),
                image.from.join(", "),
            ]
        })
        .collect();
    let head = ["NAMESPACE", "IMAGE", "NOW", "NAMED BY"];
    let local = images.iter().filter(|image| image.local).count();
    format!(
        "{}{} ({local} local already); nothing was changed\n",
        terminal::table(head, &rows),
        terminal::count(images.len() as u64, "image", "images")
    )
}

fn summary(images: &[Image]) -> String {
    let rows: Vec<_> = images
        .iter()
        .filter(|image| !image.local)
        .map(|image| {
            [
                &image.namespace,
                &image.source,
                &image.reason,
                &image.message,
            ]
        })
        .collect();
    let head = ["NAMESPACE", "NOT LOCAL", "REASON", "MESSAGE"];
    let table = if rows.is_empty() {
        String::new()
    } else {
        terminal::table(head, &rows)
    };
    let local = images.iter().filter(|image| image.local);
    let bytes = local.clone().map(|image| image.size_bytes).sum();
    format!(
        "{table}{}: {} local ({}), {} not\n",
        terminal::count(images.len() as u64, "image", "images"),
        local.count(),
        terminal::size(bytes),
        rows.len()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_takes_everything_and_without_one_a_manifests_namespace_counts() {
        let mut wanted = WantedImages::new(Vec::new());
        wanted.image("a:1", Some("shop"), "one");
        wanted.image("a:1", None, "two");
        let of = |images: Vec<Image>| {
            images
                .into_iter()
                .map(|image| (image.namespace, image.from.join(",")))
                .collect::<Vec<_>>()
        };
        let pair = |a: &str, b: &str| (a.to_owned(), b.to_owned());
        assert_eq!(
            of(assign_namespaces(&wanted, None, "sys")),
            [pair("shop", "one"), pair("sys", "two")]
        );
        assert_eq!(
            of(assign_namespaces(&wanted, Some("t"), "t")),
            [pair("t", "one,two")]
        );
    }

    #[test]
    fn a_folder_gives_every_manifest_below_it_in_order() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str| {
            let path = folder.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, "").unwrap();
        };
        for name in ["b/two.yml", "a.yaml", "c.json", "README.md", ".git/x.yaml"] {
            write(name);
        }
        let found = manifests(folder.path()).unwrap();
        let names: Vec<_> = found
            .iter()
            .map(|path| path.strip_prefix(folder.path()).unwrap().to_str().unwrap())
            .collect();
        assert_eq!(names, ["a.yaml", "b/two.yml", "c.json"]);
        let empty = tempfile::tempdir().unwrap();
        assert!(manifests(empty.path()).is_err(), "nothing is not a success");
    }
}
