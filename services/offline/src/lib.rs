//! `holdfast diff offline`: what would not start if the uplink went now, by owner. Fetch, decide,
//! print: the decision is pure, and a fact that is not known never counts as a yes.

mod answers;
mod ask;
mod decide;
mod fetch;
mod images;
mod inventory;
mod judge;
mod nodes;
mod outcome;
mod own;
mod plan;
mod scheduling;

use std::fmt::Write as _;
use std::process::ExitCode;

use anyhow::Context as _;
use holdfast_cli_kit::cluster::{ClusterArgs, NamespaceArgs};
use holdfast_cli_kit::exit_status::Usage;
use holdfast_cli_kit::leader::LeaderArgs;
use holdfast_cli_kit::output::{Document, OutputArgs};
use holdfast_cli_kit::sort::SortArgs;
use holdfast_cli_kit::terminal;
use holdfast_cli_kit::watch::WatchArgs;
use holdfast_core::workload::text;

use crate::decide::{Judgement, Owner};
use crate::inventory::Inventory;
use crate::judge::Start;
use crate::outcome::{Image, Verdict};

/// Arguments of `diff offline`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  holdfast diff offline
  holdfast diff offline -n shop --show-local
  holdfast diff offline --node worker-1
  holdfast diff offline --ignore-uncovered -o json

Every owner is judged by its template and by its living pods, also owners that are scaled to zero \
or suspended. A living pod starts on its node under the name that it has; a new pod on every node \
that its tolerations, selector and affinity admit, under the name that the webhook chooses. Healing \
counts. The leading controller is asked what the registry and each node hold now, by a port-forward \
with the caller's rights. What is not known is never a yes.

Exit status: 0 every one would start, 1 some would not, 2 not everything is known.")]
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
    /// As if this node alone were lost and replaced by an empty one
    #[arg(long, value_name = "NODE")]
    node: Option<String>,
    #[command(flatten)]
    watch: WatchArgs,
    #[command(flatten)]
    sort: SortArgs,
    #[command(flatten)]
    cluster: ClusterArgs,
    #[command(flatten)]
    leader: LeaderArgs,
    #[command(flatten)]
    output: OutputArgs,
}

/// Lists what would be missing.
pub async fn run(args: Args) -> ExitCode {
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
            let mut inventory = fetch::fetch(&client, &release, namespace).await?;
            inventory.lost = lost(args.node.as_deref(), &inventory)?;
            ask::ask(&client, &args.leader, &release, &mut inventory).await?;
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

/// The node of `--node`, if it exists.
fn lost(node: Option<&str>, inventory: &Inventory) -> anyhow::Result<Option<String>> {
    let Some(node) = node else {
        return Ok(None);
    };
    let nodes = inventory
        .nodes
        .as_ref()
        .context("--node: nodes may not be listed")?;
    if !nodes
        .iter()
        .any(|known| text(known, "/metadata/name") == node)
    {
        return Err(Usage(format!("there is no node {node}")).into());
    }
    Ok(Some(node.to_owned()))
}

fn label(image: &Image) -> &'static str {
    match (image.verdict, image.start) {
        (Verdict::Missing, _) => "MISSING",
        (Verdict::NotJudged, _) => "not judged",
        (Verdict::OnNodes, _) => "on nodes",
        (Verdict::Local, Start::StartsHealed) => "healed",
        (Verdict::Local, _) => "local",
    }
}

fn reason(image: &Image) -> String {
    if image.fix.is_empty() {
        image.why.clone()
    } else {
        format!("{} (fix: {})", image.why, image.fix)
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
                    label(image).to_owned(),
                    reason(image),
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
        "{owners}: {} ({} images local, {} on nodes, {} missing, {} not judged)",
        summary(&judgement.owners),
        count(Verdict::Local),
        count(Verdict::OnNodes),
        count(Verdict::Missing),
        count(Verdict::NotJudged),
    )
    .ok();
    writeln!(text, "basis: {}", judgement.basis.message()).ok();
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
