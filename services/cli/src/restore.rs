//! `holdfast restore`: restores the original images of pods with rewritten references. Owners stay
//! unchanged: their pods are evicted at a limited rate and recreated; pods without an owner are
//! patched. The uninstaller does the same if `uninstall.restore` is set.

mod apply;
mod eviction_queue;
mod plan;
mod pulls;

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use holdfast_api::names::Names;
use holdfast_cli_kit::cluster::{self, ClusterArgs, NamespaceArgs, Release};
use holdfast_cli_kit::confirm::ConfirmArgs;
use holdfast_cli_kit::exit_status::{Answer, Usage};
use holdfast_cli_kit::leader::LeaderArgs;
use holdfast_cli_kit::output::{Document, OutputArgs};
use holdfast_cli_kit::{duration, terminal};
use kube::Client;
use serde::Serialize;

pub(crate) use apply::{Outcome, Pacing, ask_owners, execute, find, now};
pub(crate) use plan::RewrittenPod;
use plan::{Remedy, Rewritten};
pub(crate) use pulls::{Pull, lines, objection, pulls};

/// How long API servers may take until they know a new label of a namespace.
const PROPAGATION_DELAY: Duration = Duration::from_secs(3);

/// Arguments of `restore`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  holdfast restore -n shop --dry-run
  holdfast restore -n shop --opt-out --wait --yes
  holdfast restore -A --opt-out --rate 10

Pods of ReplicaSets, StatefulSets, DaemonSets and ReplicationControllers are evicted, one of an \
owner at a time, the next one when as many are ready as before. PodDisruptionBudgets apply. Owners \
and their history are never edited. A pod without an owner is never deleted: its images are \
changed in place, which restarts its containers; image volumes cannot be changed and are listed. \
Pods of Jobs and of kinds that Holdfast does not know are listed and left unchanged.

While the webhook exists, it would rewrite the new pods again. So restoring needs the namespace to \
opt out (--opt-out), or Holdfast to be uninstalled. Nodes that do not have an original pull it from \
its upstream; they are listed, and nothing is restored while such an upstream is away (--anyway).

Exit status: 0 no rewritten reference is left (or --dry-run), 1 some are left, 2 it could not run.")]
pub struct Args {
    #[command(flatten)]
    namespaces: NamespaceArgs,
    /// As --all-namespaces
    #[arg(long, hide = true)]
    all: bool,
    /// Only prints what it would do
    #[arg(long)]
    dry_run: bool,
    /// Restores pods also if their nodes have to pull from an upstream that is away
    #[arg(long)]
    anyway: bool,
    /// Labels the namespaces holdfast.dev/rewrite=disabled first; remove the label to have new
    /// pods rewritten again
    #[arg(long)]
    opt_out: bool,
    /// Pods a minute
    #[arg(long, value_name = "PODS", default_value_t = 30, value_parser = clap::value_parser!(u32).range(1..=6000))]
    rate: u32,
    /// Waits until the new pods are ready, and fails if they do not become ready
    #[arg(long)]
    wait: bool,
    /// Ends after this time, also if something is left
    #[arg(long, value_name = "DURATION", default_value = "1h", value_parser = duration::parse)]
    timeout: Duration,
    #[command(flatten)]
    confirm: ConfirmArgs,
    #[command(flatten)]
    cluster: ClusterArgs,
    #[command(flatten)]
    leader: LeaderArgs,
    #[command(flatten)]
    output: OutputArgs,
}

/// The data of the command.
#[derive(Serialize)]
struct Report {
    restored: Vec<Entry>,
    left: Vec<Entry>,
}

#[derive(Serialize)]
struct Entry {
    namespace: String,
    pod: String,
    owner: String,
    images: Vec<Rewritten>,
    #[serde(skip_serializing_if = "String::is_empty")]
    why: String,
}

/// A pod of a plan.
#[derive(Serialize)]
struct Planned {
    #[serde(flatten)]
    entry: Entry,
    remedy: String,
}

impl Entry {
    fn new(pod: &RewrittenPod, why: &str) -> Self {
        Self {
            namespace: pod.namespace.clone(),
            pod: pod.name.clone(),
            owner: pod.owned_by(),
            images: pod.images.clone(),
            why: why.to_owned(),
        }
    }
}

/// Restores the pods, and prints the outcome.
pub(crate) async fn run(args: Args) -> ExitCode {
    args.output.apply();
    if args.all {
        terminal::note("--all is deprecated here; use --all-namespaces");
    }
    let result = restore(&args).await;
    args.output.finish(result)
}

async fn restore(args: &Args) -> anyhow::Result<Document> {
    let NamespaceArgs {
        namespace,
        all_namespaces,
    } = &args.namespaces;
    if namespace.is_none() && !all_namespaces && !args.all {
        let usage = "give --namespace NAME, or --all-namespaces for every pod";
        return Err(Usage(usage.to_owned()).into());
    }
    let client = args.cluster.client().await?;
    // After an uninstallation there is no release. The annotations of pods still name their
    // original images.
    let releases = args.cluster.releases(&client).await?;
    let addresses = addresses(&client, &releases).await?;
    let namespace = args.namespaces.namespace.as_deref();
    let mut pods = find(&client, namespace, &addresses, !releases.is_empty()).await?;
    let own: Vec<String> = releases
        .iter()
        .map(|release| release.names.namespace.clone())
        .collect();
    ask_owners(&client, &mut pods, &addresses).await?;
    if pods.is_empty() {
        let text = "no pod holds a rewritten reference\n".to_owned();
        return document(Answer::Yes, &Outcome::default(), text);
    }
    let rewriting = apply::rewriting_namespaces(&client, &pods, &own).await?;
    let names_of = releases.first().map(|release| &release.names);
    let known = known(&client, &args.leader, names_of, &pods).await?;
    let pulls = pulls(&pods, &known);
    for line in lines(&pulls, &known) {
        terminal::note(&line);
    }
    if args.dry_run {
        if !rewriting.is_empty() && !args.opt_out {
            let names = names(&rewriting);
            terminal::note(&format!("{names} would have to opt out first (--opt-out)"));
        }
        return planned(&pods, &pulls);
    }
    anyhow::ensure!(
        rewriting.is_empty() || args.opt_out,
        "new pods in {} would be rewritten again by the webhook; use --opt-out, which labels \
         these namespaces {}={}, or uninstall Holdfast first",
        names(&rewriting),
        holdfast_api::labels::REWRITE,
        holdfast_api::labels::REWRITE_DISABLED
    );
    if let Some(why) = objection(&pulls).filter(|_| !args.anyway) {
        anyhow::bail!("{why}");
    }
    let count = terminal::count(pods.len() as u64, "pod", "pods");
    args.confirm
        .ask(&format!("this evicts or restarts {count}"))?;
    for namespace in &rewriting {
        apply::opt_out(&client, namespace).await?;
        terminal::note(&format!("namespace {namespace} opts out of rewriting now"));
    }
    if !rewriting.is_empty() {
        tokio::time::sleep(PROPAGATION_DELAY).await;
    }
    let outcome = with_progress(&client, pods, args, now() + args.timeout).await;
    let again = find(&client, namespace, &addresses, !releases.is_empty()).await?;
    let done = outcome.left.is_empty() && unexpected(&outcome, &again).is_empty();
    document(done.into(), &outcome, summary(&outcome, &again))
}

/// What the leading controller of a release knows of the nodes and of upstreams.
pub(crate) async fn known(
    client: &Client,
    leader: &LeaderArgs,
    names: Option<&Names>,
    pods: &[RewrittenPod],
) -> anyhow::Result<pulls::Known> {
    let Some(names) = names else {
        let silent = Some("Holdfast is not installed".to_owned());
        return Ok(pulls::Known {
            silent,
            ..pulls::Known::default()
        });
    };
    let mut known = pulls::Known {
        delivery: cluster::delivery(client, names).await?,
        ..pulls::Known::default()
    };
    let questions: Vec<_> = pulls::questions(pods).into_iter().collect();
    if questions.is_empty() {
        return Ok(known);
    }
    let said = match leader.connect(client, names).await {
        Ok(mut leader) => leader.starts(&questions).await,
        Err(why) => Err(why),
    };
    match said {
        Ok(said) => known.starts = questions.into_iter().zip(said).collect(),
        Err(why) => known.silent = Some(why),
    }
    Ok(known)
}

/// Every address of every release; none when all are gone.
async fn addresses(client: &Client, releases: &[Release]) -> anyhow::Result<Vec<String>> {
    let mut addresses = Vec::new();
    for release in releases {
        addresses.extend(cluster::addresses(release.state(client).await?.as_ref()));
    }
    Ok(addresses)
}

async fn with_progress(
    client: &Client,
    pods: Vec<RewrittenPod>,
    args: &Args,
    deadline: Instant,
) -> Outcome {
    let total = pods
        .iter()
        .filter(|pod| !matches!(pod.remedy, Remedy::Leave(_)))
        .count();
    let bar = terminal::items(total as u64);
    let pacing = Pacing {
        per_minute: args.rate,
        wait: args.wait,
        deadline,
    };
    let outcome = execute(client, pods, pacing, |line, waiting| {
        bar.set_message(line.to_owned());
        bar.set_position(total.saturating_sub(waiting) as u64);
        terminal::progress(line);
    })
    .await;
    bar.finish_and_clear();
    outcome
}

fn names(namespaces: &BTreeSet<String>) -> String {
    namespaces
        .iter()
        .map(String::as_str)
        .collect::<Vec<_>>()
        .join(", ")
}

/// Pods that still have rewritten references afterwards and are in neither list of the outcome:
/// they were created during the run.
fn unexpected<'a>(outcome: &Outcome, again: &'a [RewrittenPod]) -> Vec<&'a RewrittenPod> {
    let known: BTreeSet<&str> = outcome
        .left
        .iter()
        .map(|(pod, _)| pod.uid.as_str())
        .chain(outcome.restored.iter().map(|pod| pod.uid.as_str()))
        .collect();
    again
        .iter()
        .filter(|pod| !known.contains(pod.uid.as_str()))
        .collect()
}

fn document(answer: Answer, outcome: &Outcome, table: String) -> anyhow::Result<Document> {
    let report = Report {
        restored: outcome
            .restored
            .iter()
            .map(|pod| Entry::new(pod, ""))
            .collect(),
        left: outcome
            .left
            .iter()
            .map(|(pod, why)| Entry::new(pod, why))
            .collect(),
    };
    let restored = outcome.restored.iter().map(name);
    Ok(Document::new("Restore", answer, &report, table)?.with_names(restored))
}

/// The name of a pod for `-o name`.
fn name(pod: &RewrittenPod) -> String {
    format!("pod/{}/{}", pod.namespace, pod.name)
}

/// What would be done.
fn planned(pods: &[RewrittenPod], pulls: &BTreeSet<Pull>) -> anyhow::Result<Document> {
    let entries: Vec<Planned> = pods
        .iter()
        .map(|pod| Planned {
            entry: Entry::new(pod, ""),
            remedy: remedy(pod),
        })
        .collect();
    let data = serde_json::json!({ "pods": entries, "pulls": pulls });
    Ok(
        Document::new("RestorePlan", Answer::Yes, &data, plan_table(pods))?
            .with_names(pods.iter().map(name)),
    )
}

fn remedy(pod: &RewrittenPod) -> String {
    match &pod.remedy {
        Remedy::Recreate => "evicted; its owner recreates it".to_owned(),
        Remedy::Patch(_, left) if left.is_empty() => "patched, its containers restart".to_owned(),
        Remedy::Patch(_, left) => {
            format!("patched, its containers restart; {}", left.join(", "))
        }
        Remedy::Leave(why) => format!("LEFT: {why}"),
    }
}

fn plan_table(pods: &[RewrittenPod]) -> String {
    let rows: Vec<_> = pods
        .iter()
        .map(|pod| {
            let images: Vec<_> = pod
                .images
                .iter()
                .map(|image| image.original.as_str())
                .collect();
            [
                pod.owned_by(),
                pod.namespace.clone(),
                pod.name.clone(),
                images.join(", "),
                remedy(pod),
            ]
        })
        .collect();
    let head = ["OWNER", "NAMESPACE", "POD", "ORIGINALS", "WOULD BE"];
    format!(
        "{}{}; nothing was changed\n",
        terminal::table(head, &rows),
        terminal::count(pods.len() as u64, "pod", "pods")
    )
}

fn summary(outcome: &Outcome, again: &[RewrittenPod]) -> String {
    let meanwhile = "made meanwhile, and rewritten".to_owned();
    let unexpected = unexpected(outcome, again);
    let left = outcome.left.iter().map(|(pod, why)| (pod, why));
    let left = left.chain(unexpected.iter().map(|pod| (*pod, &meanwhile)));
    let mut text = String::new();
    for (pod, why) in left {
        let (namespace, name, owner) = (&pod.namespace, &pod.name, pod.owned_by());
        let line = terminal::clean(&format!("{namespace}/{name} of {owner}: {why}"));
        writeln!(text, "LEFT  {line}").ok();
    }
    let restored = terminal::count(outcome.restored.len() as u64, "pod", "pods");
    let left = outcome.left.len() + unexpected.len();
    writeln!(text, "{restored} restored, {left} left").ok();
    text
}
