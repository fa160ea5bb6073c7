//! `holdfast diff offline`: what would not start if the uplink went now, by owner. Fetch, decide,
//! print.

mod decide;
mod fetch;

use std::fmt::Write as _;
use std::process::ExitCode;

use crate::cluster::{ClusterArgs, NamespaceArgs};
use crate::output::{Document, OutputArgs};
use crate::sort::SortArgs;
use crate::terminal;
use crate::watch::WatchArgs;
use decide::{Judgement, Owner, Verdict};
pub(crate) use fetch::facts as namespace_facts;

/// Arguments of `diff offline`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  holdfast diff offline
  holdfast diff offline -n shop --show-local
  holdfast diff offline --ignore-uncovered -o json

Every owner is judged by its template and by the images of its running pods (sidecars that others \
inject), also owners that are scaled to zero or suspended. An image is available if the registry \
holds it and the pods are rewritten, or if every node that takes pods holds it and its pull policy \
is not Always. Without the right to list nodes, images that only nodes may hold are not judged. \
Static pods are left to the kubelet.

Exit status: 0 nothing would be missing, 1 something would be, 2 not everything could be read.")]
pub struct Args {
    #[command(flatten)]
    namespaces: NamespaceArgs,
    /// Ignores, for the exit status, pods that opt out or that the configuration leaves out
    #[arg(long)]
    ignore_uncovered: bool,
    /// Also lists images that are available
    #[arg(long)]
    show_local: bool,
    /// As --show-local
    #[arg(long, hide = true)]
    all: bool,
    #[command(flatten)]
    watch: WatchArgs,
    #[command(flatten)]
    sort: SortArgs,
    #[command(flatten)]
    cluster: ClusterArgs,
    #[command(flatten)]
    output: OutputArgs,
}

/// Lists what would be missing.
pub(crate) async fn offline(args: Args) -> ExitCode {
    args.output.apply();
    if args.all {
        terminal::note("--all is deprecated here; use --show-local");
    }
    let result = check(&args).await;
    args.output.finish(result)
}

async fn check(args: &Args) -> anyhow::Result<Document> {
    let client = args.cluster.client().await?;
    args.watch
        .run(&args.output, async || {
            let release = args.cluster.release(&client).await?;
            let namespace = args.namespaces.namespace.as_deref();
            let inventory = fetch::fetch(&client, &release, namespace).await?;
            let mut judgement = decide::decide(&inventory);
            args.sort.sort(&mut judgement.owners)?;
            let answer = judgement.answer(args.ignore_uncovered);
            let table = render(&judgement, args.show_local || args.all);
            let names = judgement
                .owners
                .iter()
                .filter(|owner| owner.has(Verdict::Missing))
                .map(|owner| {
                    format!("{}/{}/{}", owner.kind, owner.namespace, owner.name).to_lowercase()
                });
            Ok(Document::new("OfflineDiff", answer, &judgement, table)?
                .with_wide(render(&judgement, true))
                .with_names(names))
        })
        .await
}

fn label(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Missing => "MISSING",
        Verdict::NotJudged => "not judged",
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
            .filter(|image| all || matches!(image.verdict, Verdict::Missing | Verdict::NotJudged))
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
        writeln!(text, "not judged: {}", terminal::clean(unknown)).ok();
    }
    let count = |verdict: Verdict| {
        let images = judgement.owners.iter().flat_map(|owner| &owner.images);
        images.filter(|image| image.verdict == verdict).count()
    };
    let owners = terminal::count(judgement.owners.len() as u64, "owner", "owners");
    writeln!(
        text,
        "{owners}: {} ({} images local, {} on nodes, {} never pulled, {} missing, {} not judged)",
        summary(&judgement.owners),
        count(Verdict::Local),
        count(Verdict::OnNodes),
        count(Verdict::NeverPulled),
        count(Verdict::Missing),
        count(Verdict::NotJudged),
    )
    .ok();
    text
}

/// How many owners would not start, and of how many that is not known.
fn summary(owners: &[Owner]) -> String {
    let (stuck, rest): (Vec<_>, Vec<_>) =
        owners.iter().partition(|owner| owner.has(Verdict::Missing));
    let open = rest.iter().filter(|owner| owner.has(Verdict::NotJudged));
    match (stuck.len(), open.count()) {
        (0, 0) => "every one would start offline".to_owned(),
        (0, open) => format!("{open} not judged"),
        (stuck, 0) => format!("{stuck} would not start offline"),
        (stuck, open) => format!("{stuck} would not start offline, {open} not judged"),
    }
}
