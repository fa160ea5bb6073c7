//! `holdfast diff offline`: what would not start if the uplink went now, by owner. Fetch, decide,
//! print.
#![allow(clippy::print_stdout, reason = "what a command prints is its result")]

mod decide;
mod fetch;

use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use crate::cluster::{ClusterArgs, NamespaceArgs};
use crate::exit_status::{self, Answer};
use crate::terminal;
use decide::{Judgement, Owner, Verdict};
pub(crate) use fetch::facts as namespace_facts;

/// Arguments of `diff offline`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Every owner is judged by its template and by what its living pods hold (sidecars that others put in), also those scaled to \
zero or suspended; a pod without an owner by itself. An image is there when the registry holds it and its pods are sent to the \
registry, or when every node that takes pods holds it already and its pull policy is not Always. Static pods are left to the kubelet.\n\
Exit status: 0 nothing would be missing, 1 something would, 2 it cannot tell (what may not be listed is named)."
)]
pub struct Args {
    #[command(flatten)]
    cluster: ClusterArgs,
    #[command(flatten)]
    namespaces: NamespaceArgs,
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
    exit_status::end(look(&args).await)
}

async fn look(args: &Args) -> anyhow::Result<Answer> {
    let client = args.cluster.client().await?;
    let release = args.cluster.release(&client).await?;
    let namespace = args.namespaces.namespace.as_deref();
    let inventory = fetch::fetch(&client, &release, namespace).await?;
    let judgement = decide::decide(&inventory);
    if let Some(path) = &args.json {
        terminal::write_json(path, &judgement)?;
    }
    print!("{}", render(&judgement, args.all));
    Ok(judgement.answer(args.ignore_uncovered))
}

fn label(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Missing => "MISSING",
        Verdict::OnNodes => "on nodes",
        Verdict::NeverPulled => "never pulled",
        Verdict::Local => "local",
    }
}

fn render(judgement: &Judgement, all: bool) -> String {
    let shown = |owner: &Owner| -> Vec<[String; 6]> {
        owner
            .images
            .iter()
            .filter(|image| all || image.verdict == Verdict::Missing)
            .map(|image| {
                [
                    format!("{}/{}", owner.kind, owner.name),
                    owner.namespace.clone(),
                    image.image.clone(),
                    image.pull_policy.clone(),
                    label(image.verdict).to_owned(),
                    image.why.clone(),
                ]
            })
            .collect()
    };
    let rows: Vec<_> = judgement.owners.iter().flat_map(shown).collect();
    let mut text = String::new();
    if !rows.is_empty() {
        let head = ["OWNER", "NAMESPACE", "IMAGE", "PULL", "OFFLINE", "WHY"];
        text.push_str(&terminal::table(head, &rows));
        text.push('\n');
    }
    for unknown in &judgement.not_judged {
        writeln!(text, "not judged: {unknown}").ok();
    }
    let count = |verdict: Verdict| {
        let images = judgement.owners.iter().flat_map(|owner| &owner.images);
        images.filter(|image| image.verdict == verdict).count()
    };
    let owners = terminal::count(judgement.owners.len() as u64, "owner", "owners");
    let stuck = judgement.owners.iter().filter(|owner| {
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
