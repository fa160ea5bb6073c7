//! `holdfast restore`: gives pods that hold rewritten references their originals back. Owners are
//! left as they are: their pods are evicted at a bounded rate and made anew; pods without an owner
//! are patched. The uninstaller does the same when a value asks for it.
#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "what a command prints is its result"
)]

mod apply;
mod eviction_queue;
mod plan;

use std::collections::BTreeSet;
use std::io::IsTerminal as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use kube::Client;
use serde::Serialize;

use crate::cluster::{self, ClusterArgs, Release};
use crate::exit_status::{self, Answer};
use crate::terminal;
pub(crate) use apply::{Outcome, Pacing, ask_owners, execute, find, now};
pub(crate) use plan::Found;
use plan::{Remedy, Rewritten};

/// How long API servers may take to learn of a namespace's label.
const LEARNT: Duration = Duration::from_secs(3);

/// Arguments of `restore`.
#[derive(Debug, clap::Args)]
#[command(
    group = clap::ArgGroup::new("scope").required(true).args(["namespace", "all"]),
    after_help = "Pods of ReplicaSets, StatefulSets, DaemonSets and ReplicationControllers are evicted (PodDisruptionBudgets hold), one of an owner at \
a time; the next one when as many are ready as before. Owners and their history are never edited. A pod without an owner is never \
deleted: its containers get their original images in place, which restarts them; image volumes cannot be changed and are named. Pods \
of Jobs and of kinds that Holdfast does not know are named and left.\n\
While the webhook is there, pods made anew would be rewritten again, so restoring needs the namespace to opt out (--opt-out), or \
Holdfast to be uninstalled. Originals are pulled from their upstreams: the uplink has to be up.\n\
Exit status: 0 no rewritten reference is left (or --dry-run), 1 some are, 2 it could not run."
)]
pub struct Args {
    #[command(flatten)]
    cluster: ClusterArgs,
    /// The pods of this namespace
    #[arg(short, long, value_name = "NAMESPACE")]
    namespace: Option<String>,
    /// The pods of all namespaces
    #[arg(long)]
    all: bool,
    /// Only says what would be done
    #[arg(long)]
    dry_run: bool,
    /// Labels the namespaces holdfast.dev/rewrite=disabled first; remove the label to have new
    /// pods rewritten again
    #[arg(long)]
    opt_out: bool,
    /// Pods a minute
    #[arg(long, value_name = "PODS", default_value_t = 30, value_parser = clap::value_parser!(u32).range(1..=6000))]
    rate: u32,
    /// Waits until the pods made anew are ready, and fails when they do not get so
    #[arg(long)]
    wait: bool,
    /// Seconds after which the rest is left as it is
    #[arg(long, value_name = "SECONDS", default_value_t = 3600)]
    timeout: u64,
    /// Writes what was done and what is left as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// What `--json` gets.
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

impl Entry {
    fn new(pod: &Found, why: &str) -> Self {
        Self {
            namespace: pod.namespace.clone(),
            pod: pod.name.clone(),
            owner: pod.owned_by(),
            images: pod.images.clone(),
            why: why.to_owned(),
        }
    }
}

/// Restores.
pub(crate) async fn run(args: Args) -> ExitCode {
    exit_status::end(restore(&args).await.map(Answer::from))
}

async fn restore(args: &Args) -> anyhow::Result<bool> {
    let client = args.cluster.client().await?;
    // After Holdfast is gone there is no release; pods then say by their annotation what they were.
    let releases = args.cluster.releases(&client).await?;
    let addresses = addresses(&client, &releases).await?;
    let mut pods = find(&client, args.namespace.as_deref(), &addresses).await?;
    let own: Vec<String> = releases
        .iter()
        .map(|release| release.names.namespace.clone())
        .collect();
    ask_owners(&client, &mut pods, &addresses).await?;
    if pods.is_empty() {
        println!("no pod holds a rewritten reference");
        write(args, &Outcome::default())?;
        return Ok(true);
    }
    let rewriting = apply::rewriting_namespaces(&client, &pods, &own).await?;
    if args.dry_run {
        print_plan(&pods);
        if !rewriting.is_empty() && !args.opt_out {
            println!(
                "note: {} would have to opt out first (--opt-out)",
                names(&rewriting)
            );
        }
        return Ok(true);
    }
    if !rewriting.is_empty() {
        anyhow::ensure!(
            args.opt_out,
            "pods made anew in {} would be rewritten again; --opt-out labels these namespaces {}={} first, or uninstall Holdfast",
            names(&rewriting),
            holdfast_api::labels::REWRITE,
            holdfast_api::labels::REWRITE_DISABLED
        );
        for namespace in &rewriting {
            apply::opt_out(&client, namespace).await?;
            println!("namespace {namespace} opts out of rewriting now");
        }
        tokio::time::sleep(LEARNT).await;
    }
    let deadline = now() + Duration::from_secs(args.timeout);
    let outcome = with_progress(&client, pods, args, deadline).await;
    let again = find(&client, args.namespace.as_deref(), &addresses).await?;
    print_outcome(&outcome, &again);
    write(args, &outcome)?;
    Ok(outcome.left.is_empty() && unexpected(&outcome, &again).is_empty())
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
    pods: Vec<Found>,
    args: &Args,
    deadline: Instant,
) -> Outcome {
    let total = pods
        .iter()
        .filter(|pod| !matches!(pod.remedy, Remedy::Leave(_)))
        .count();
    let bar = terminal::things(total as u64);
    let terminal = std::io::stderr().is_terminal();
    let pacing = Pacing {
        per_minute: args.rate,
        wait: args.wait,
        deadline,
    };
    let outcome = execute(client, pods, pacing, |line, waiting| {
        bar.set_message(line.to_owned());
        bar.set_position(total.saturating_sub(waiting) as u64);
        if !terminal {
            eprintln!("{line}");
        }
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

/// Pods that hold rewritten references after the work and of which nothing was said: made
/// meanwhile.
fn unexpected<'a>(outcome: &Outcome, again: &'a [Found]) -> Vec<&'a Found> {
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

fn write(args: &Args, outcome: &Outcome) -> anyhow::Result<()> {
    let Some(path) = &args.json else {
        return Ok(());
    };
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
    terminal::write_json(path, &report)
}

fn print_plan(pods: &[Found]) {
    let rows: Vec<_> = pods
        .iter()
        .map(|pod| {
            let what = match &pod.remedy {
                Remedy::Recreate => "evicted and made anew".to_owned(),
                Remedy::Patch(_, left) if left.is_empty() => {
                    "patched, its containers restart".to_owned()
                }
                Remedy::Patch(_, left) => {
                    format!("patched, its containers restart; {}", left.join(", "))
                }
                Remedy::Leave(why) => format!("LEFT: {why}"),
            };
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
                what,
            ]
        })
        .collect();
    let head = ["OWNER", "NAMESPACE", "POD", "ORIGINALS", "WOULD BE"];
    print!("{}", terminal::table(head, &rows));
    println!(
        "{}; nothing was changed",
        terminal::count(pods.len() as u64, "pod", "pods")
    );
}

fn print_outcome(outcome: &Outcome, again: &[Found]) {
    for (pod, why) in &outcome.left {
        println!(
            "LEFT  {}/{} of {}: {why}",
            pod.namespace,
            pod.name,
            pod.owned_by()
        );
    }
    for pod in unexpected(outcome, again) {
        println!(
            "LEFT  {}/{} of {}: made meanwhile, and rewritten",
            pod.namespace,
            pod.name,
            pod.owned_by()
        );
    }
    println!(
        "{} restored, {} left",
        terminal::count(outcome.restored.len() as u64, "pod", "pods"),
        outcome.left.len() + unexpected(outcome, again).len()
    );
}
