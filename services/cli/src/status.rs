//! `holdfast status`: whether Holdfast works and how many images are local. Fetch, diagnose,
//! print.

mod artifact_watch;
pub(crate) mod diagnose;
pub(crate) mod fetch;

use std::fmt::Write as _;
use std::process::ExitCode;

use anstyle::Style;
use holdfast_cli_kit::cluster::{ClusterArgs, NamespaceArgs};
use holdfast_cli_kit::exit_status::{self, Answer};
use holdfast_cli_kit::finding::Finding;
use holdfast_cli_kit::output::{Document, OutputArgs};
use holdfast_cli_kit::sort::SortArgs;
use holdfast_cli_kit::terminal;
use holdfast_cli_kit::watch::WatchArgs;

use artifact_watch::ArtifactWatch;
use diagnose::Status;

/// Images that are not local of which the table names this many; `--limit` and `-o wide` change it.
const MAX_NAMED_IMAGES: usize = 40;

/// Arguments of `status`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  holdfast status
  holdfast status -n shop -l team=web --sort-by .reason -o wide
  holdfast status --watch --until yes
  holdfast status -o jsonpath={.images.local}

Exit status: 0 everything works and every image is local, 1 something is missing (an image is not \
local, a pod is not ready, pods are not rewritten, the volume is full), 2 not everything could be \
read.

Needs read access to Artifacts and to the namespace of the release. With --watch, the caller needs \
the verb watch for Artifacts, or they are listed for each check. The volume is read through the \
API server (pods/proxy).")]
pub struct Args {
    #[command(flatten)]
    images_of: NamespaceArgs,
    /// Only Artifacts with these labels, for example team=web
    #[arg(
        short = 'l',
        long,
        value_name = "SELECTOR",
        default_value = "",
        hide_default_value = true
    )]
    selector: String,
    #[command(flatten)]
    watch: WatchArgs,
    /// Images that the table names at most
    #[arg(long, value_name = "NUMBER", default_value_t = MAX_NAMED_IMAGES)]
    limit: usize,
    #[command(flatten)]
    sort: SortArgs,
    #[command(flatten)]
    cluster: ClusterArgs,
    #[command(flatten)]
    output: OutputArgs,
}

/// Prints the status, once or until interrupted.
pub(crate) async fn run(args: Args) -> ExitCode {
    args.output.apply();
    let result = check(&args).await;
    args.output.finish(result)
}

async fn check(args: &Args) -> anyhow::Result<Document> {
    let client = args.cluster.client().await?;
    let namespace = args.images_of.namespace.as_deref();
    let request_timeout = args.cluster.request_timeout();
    let start = || ArtifactWatch::start(client.clone(), namespace, &args.selector, request_timeout);
    let watch = args.watch.is_on().then(start);
    let mut is_first = true;
    args.watch
        .run(&args.output, async || {
            let release = args.cluster.release(&client).await?;
            let watched = match &watch {
                Some(watch) => watch.current().await,
                None => None,
            };
            let artifacts = match watched {
                Some(artifacts) => Ok(artifacts),
                None => fetch::artifacts(&client, namespace, &args.selector).await,
            };
            let artifacts = match artifacts {
                Err(error) if exit_status::is_wrong_usage(&error) => return Err(error),
                other => other.map_err(|error| format!("{error:#}")),
            };
            let selects_nothing = artifacts.as_ref().is_ok_and(Vec::is_empty);
            if std::mem::take(&mut is_first) && selects_nothing && !args.selector.is_empty() {
                let selector = &args.selector;
                terminal::note(&format!("the selector {selector:?} selects no Artifact"));
            }
            let facts = fetch::facts(&client, &release, artifacts).await;
            let (answer, mut status) = diagnose::diagnose(&facts);
            args.sort.sort(&mut status.absent)?;
            document(answer, &status, args.limit)
        })
        .await
}

fn document(answer: Answer, status: &Status, limit: usize) -> anyhow::Result<Document> {
    let names = status
        .absent
        .iter()
        .map(|image| format!("artifact/{}/{}", image.namespace, image.artifact));
    Ok(
        Document::new("Status", answer, status, render(status, limit, false))?
            .with_wide(render(status, usize::MAX, true))
            .with_names(names),
    )
}

/// The status as text, with at most `limit` images that are not local.
fn render(status: &Status, limit: usize, wide: bool) -> String {
    let mut out = String::new();
    let mut line = |name: &str, text: String| {
        writeln!(out, "{name:<11} {}", terminal::clean(&text)).ok();
    };
    line(
        "release",
        format!(
            "{} in {}, version {}",
            status.release, status.namespace, status.version
        ),
    );
    line(
        "address",
        status
            .registry_address
            .clone()
            .unwrap_or_else(|| "not known yet".to_owned()),
    );
    for part in &status.parts {
        let text = match (part.ready, part.wanted) {
            (Some(ready), Some(wanted)) => format!("{ready} of {wanted} ready"),
            _ => part.problem.clone().unwrap_or_default(),
        };
        line(part.name, text);
    }
    line(
        "volume",
        match (&status.volume, &status.volume_problem) {
            (Some(volume), _) => format!(
                "{}: {} of {} free",
                volume.level,
                terminal::size(volume.available_bytes),
                terminal::size(volume.total_bytes)
            ),
            (None, problem) => format!("not known: {}", problem.clone().unwrap_or_default()),
        },
    );
    let rewriting = if status.rewriting { "on" } else { "OFF" };
    line(
        "rewriting",
        format!("{rewriting}: {}", status.rewriting_reason),
    );
    let images = &status.images;
    let mut text = format!(
        "{} of {} local ({})",
        images.local,
        images.wanted,
        terminal::size(images.local_bytes)
    );
    for (reason, count) in &images.by_reason {
        write!(text, ", {count} {reason}").ok();
    }
    line("images", text);
    if !status.absent.is_empty() {
        out.push('\n');
        out.push_str(&absent(status, limit, wide));
        let more = status.absent.len().saturating_sub(limit);
        if more > 0 {
            writeln!(out, "and {more} more; -o wide names all").ok();
        }
    }
    let findings = |out: &mut String, style: Style, label: &str, findings: &[Finding]| {
        for finding in findings {
            let what = terminal::clean(&finding.what);
            writeln!(out, "{style}{label:<11}{style:#} {what}").ok();
        }
    };
    findings(&mut out, terminal::bad(), "problem", &status.problems);
    findings(&mut out, terminal::warning(), "warning", &status.warnings);
    for unknown in &status.unknown {
        writeln!(out, "unknown     {}", terminal::clean(unknown)).ok();
    }
    out
}

/// The table of the images that are not local.
fn absent(status: &Status, limit: usize, wide: bool) -> String {
    let rows = status.absent.iter().take(limit);
    if wide {
        let rows: Vec<_> = rows
            .map(|image| {
                [
                    image.namespace.clone(),
                    image.source.clone(),
                    image.reason.clone(),
                    image.since.clone(),
                    image.attempts.to_string(),
                    image.message.clone(),
                ]
            })
            .collect();
        let head = [
            "NAMESPACE",
            "IMAGE",
            "REASON",
            "SINCE",
            "ATTEMPTS",
            "MESSAGE",
        ];
        return terminal::table(head, &rows);
    }
    let rows: Vec<_> = rows
        .map(|image| {
            [
                &image.namespace,
                &image.source,
                &image.reason,
                &image.message,
            ]
        })
        .collect();
    terminal::table(["NAMESPACE", "IMAGE", "REASON", "MESSAGE"], &rows)
}
