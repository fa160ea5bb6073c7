//! `holdfast status`: whether Holdfast works and how many images are local. Fetch, diagnose,
//! print.
#![allow(clippy::print_stdout, reason = "what a command prints is its result")]

pub(crate) mod diagnose;
pub(crate) mod fetch;

use std::fmt::Write as _;
use std::io::IsTerminal as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use crate::cluster::{ClusterArgs, NamespaceArgs};
use crate::exit_status::{self, Answer};
use crate::terminal;
use diagnose::{Status, Verdict};

/// Between two looks with `--watch`.
const WATCH_INTERVAL: Duration = Duration::from_secs(2);
/// At most so many images that are not local are named; `--json` names all.
const MAX_NAMED_IMAGES: usize = 40;

/// Arguments of `status`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Exit status: 0 all is well, 1 something is missing (an image is not local, a pod is not ready, pods are not rewritten, \
the volume is full), 2 it cannot tell.\n\
Needs a kubeconfig that may read Artifacts, and the release's namespace; the volume is read through the API server (pods/proxy)."
)]
pub struct Args {
    #[command(flatten)]
    cluster: ClusterArgs,
    #[command(flatten)]
    images_of: NamespaceArgs,
    /// Writes everything as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Looks again every two seconds until it is interrupted
    #[arg(short, long)]
    watch: bool,
}

/// Prints the status, once or until interrupted.
pub(crate) async fn run(args: Args) -> ExitCode {
    exit_status::end(look(&args).await.map(Answer::from))
}

impl From<Verdict> for Answer {
    fn from(verdict: Verdict) -> Self {
        match verdict {
            Verdict::Ok => Self::Yes,
            Verdict::Missing => Self::No,
            Verdict::Unknown => Self::Unknown,
        }
    }
}

async fn look(args: &Args) -> anyhow::Result<Verdict> {
    let client = args.cluster.client().await?;
    let mut before = String::new();
    let mut interrupted = std::pin::pin!(tokio::signal::ctrl_c());
    loop {
        let release = args.cluster.release(&client).await?;
        let namespace = args.images_of.namespace.as_deref();
        let facts = fetch::facts(&client, &release, namespace).await;
        let status = diagnose::diagnose(&facts);
        if let Some(path) = &args.json {
            terminal::write_json(path, &status)?;
        }
        let text = render(&status);
        if !args.watch {
            print!("{text}");
            return Ok(status.verdict);
        }
        if std::io::stdout().is_terminal() {
            // Clears the screen and goes to its first line.
            print!("\u{1b}[2J\u{1b}[H{text}");
        } else if text != before {
            println!("{text}");
        }
        before = text;
        tokio::select! {
            _ = &mut interrupted => return Ok(status.verdict),
            () = tokio::time::sleep(WATCH_INTERVAL) => {}
        }
    }
}

/// The status as text.
fn render(status: &Status) -> String {
    let mut out = String::new();
    let mut line = |name: &str, text: String| {
        writeln!(out, "{name:<11} {text}").ok();
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
        let named = status.absent.iter().take(MAX_NAMED_IMAGES);
        let rows: Vec<_> = named
            .map(|image| {
                [
                    &image.namespace,
                    &image.source,
                    &image.reason,
                    &image.message,
                ]
            })
            .collect();
        let head = ["NAMESPACE", "IMAGE", "REASON", "MESSAGE"];
        out.push('\n');
        out.push_str(&terminal::table(head, &rows));
        let more = status.absent.len().saturating_sub(MAX_NAMED_IMAGES);
        if more > 0 {
            writeln!(out, "and {more} more; --json names all").ok();
        }
    }
    for problem in &status.problems {
        writeln!(out, "problem     {problem}").ok();
    }
    for warning in &status.warnings {
        writeln!(out, "warning     {warning}").ok();
    }
    for unknown in &status.unknown {
        writeln!(out, "unknown     {unknown}").ok();
    }
    out
}
