//! `holdfast diff offline`: what would not start if the uplink went now, by owner. Fetch, decide, print.
#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "what a command prints is its result"
)]

mod decide;
mod fetch;

use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use crate::cluster::{CANNOT_TELL, ClusterArgs};
use crate::terminal;
use decide::{Answer, End, Owner, Verdict};

/// Arguments of `diff offline`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Every owner is judged by its template and by what its living pods hold (sidecars that others put in), also those scaled to \
zero or suspended; a pod without an owner by itself. An image is there when the registry holds it and its pods are sent to the \
registry, or when every node that takes pods holds it already and its pull policy is not Always. Static pods are left to the kubelet.\n\
Exit status: 0 nothing would be missing, 1 something would, 2 it cannot tell (what may not be listed is named)."
)]
pub(crate) struct Args {
    #[command(flatten)]
    cluster: ClusterArgs,
    /// One namespace only
    #[arg(short, long, value_name = "NAMESPACE")]
    namespace: Option<String>,
    /// All namespaces (the default)
    #[arg(short = 'A', long, conflicts_with = "namespace")]
    all_namespaces: bool,
    /// What opts out, or is left out by the configuration, does not count for the exit status
    #[arg(long)]
    ignore_uncovered: bool,
    /// Prints what is there as well
    #[arg(long)]
    all: bool,
    /// Writes every owner and image as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// Says what would be missing.
pub(crate) async fn offline(args: Args) -> ExitCode {
    match look(&args).await {
        Ok(End::Nothing) => ExitCode::SUCCESS,
        Ok(End::Missing) => ExitCode::FAILURE,
        Ok(End::Unknown) => ExitCode::from(CANNOT_TELL),
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::from(CANNOT_TELL)
        }
    }
}

async fn look(args: &Args) -> anyhow::Result<End> {
    let client = args.cluster.client().await?;
    let release = args.cluster.release(&client).await?;
    let inventory = fetch::fetch(&client, &release, args.namespace.as_deref()).await?;
    let answer = decide::decide(&inventory);
    if let Some(path) = &args.json {
        terminal::write_json(path, &answer)?;
    }
    print!("{}", render(&answer, args.all));
    Ok(answer.end(args.ignore_uncovered))
}

fn word(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Missing => "MISSING",
        Verdict::OnNodes => "on nodes",
        Verdict::NeverPulled => "never pulled",
        Verdict::Local => "local",
    }
}

fn render(answer: &Answer, all: bool) -> String {
    let shown = |owner: &Owner| -> Vec<Vec<String>> {
        owner
            .images
            .iter()
            .filter(|image| all || image.verdict == Verdict::Missing)
            .map(|image| {
                vec![
                    format!("{}/{}", owner.kind, owner.name),
                    owner.namespace.clone(),
                    image.image.clone(),
                    image.pull_policy.clone(),
                    word(image.verdict).to_owned(),
                    image.why.clone(),
                ]
            })
            .collect()
    };
    let rows: Vec<Vec<String>> = answer.owners.iter().flat_map(shown).collect();
    let mut text = String::new();
    if !rows.is_empty() {
        let head = ["OWNER", "NAMESPACE", "IMAGE", "PULL", "OFFLINE", "WHY"];
        text.push_str(&terminal::table(&head, &rows));
        text.push('\n');
    }
    for unknown in &answer.not_judged {
        text.push_str("not judged: ");
        text.push_str(unknown);
        text.push('\n');
    }
    let count = |verdict: Verdict| {
        let images = answer.owners.iter().flat_map(|owner| &owner.images);
        images.filter(|image| image.verdict == verdict).count()
    };
    let owners = terminal::count(answer.owners.len() as u64, "owner", "owners");
    let stuck = answer.owners.iter().filter(|owner| {
        owner
            .images
            .iter()
            .any(|image| image.verdict == Verdict::Missing)
    });
    let missing = match stuck.count() {
        0 => "every one would start offline".to_owned(),
        1 => "1 would not start offline".to_owned(),
        many => format!("{many} would not start offline"),
    };
    writeln!(
        text,
        "{owners}: {missing} ({} images local, {} on nodes, {} never pulled, {} missing)",
        count(Verdict::Local),
        count(Verdict::OnNodes),
        count(Verdict::NeverPulled),
        count(Verdict::Missing),
    )
    .ok();
    text
}
