//! `holdfast uninstall`, the chart's pre-delete hook: removes Holdfast from the cluster in an order
//! that breaks nothing. Webhook first, so that new pods keep their images; then the
//! controller, which would put things back; then, if a value asks for it, the pods that still hold
//! rewritten references; then the nodes; then what the controller made.
//!
//! It never hangs. As the chart's hook (`--hook`) it never fails a deletion: what could not be done
//! is in the report.

mod cluster;
mod nodes;
mod report;

use std::process::ExitCode;
use std::time::Duration;

use holdfast_api::names::Names;
use holdfast_cli_kit::cluster::KubeArgs;
use holdfast_cli_kit::confirm::ConfirmArgs;
use holdfast_cli_kit::exit_status::{self, Answer};
use holdfast_cli_kit::leader::LeaderArgs;
use holdfast_cli_kit::output::{Document, OutputArgs};
use holdfast_cli_kit::{duration, terminal};
use serde_json::json;
use tokio::time::Instant;

use crate::config_args::ConfigArgs;
use crate::restore;
use cluster::Cluster;
use report::Report;

/// How long the pods of the controller may take to end.
const CONTROLLER_TIMEOUT: Duration = Duration::from_secs(30);
/// Time for all steps together, without the wait for nodes. The hook's deadline is later, so that a
/// slow API server ends in a report and not in a deletion that fails.
const STEPS_TIMEOUT: Duration = Duration::from_secs(60);
/// Time to find out which originals the nodes pull again.
const PULLS_TIMEOUT: Duration = Duration::from_secs(15);
/// Time for the event with the report.
const EVENT_TIMEOUT: Duration = Duration::from_secs(5);
/// Pods a minute whose original images are restored.
const RESTORED_PER_MINUTE: u32 = 60;
/// Time between two requests to the agents.
const POLL_INTERVAL: Duration = Duration::from_secs(1);

/// Arguments of `uninstall`.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  holdfast uninstall --config config.yaml --yes
  holdfast uninstall --config config.yaml --context edge7 --timeout 5m --yes

The chart runs this command with --hook before a release is deleted.

Exit status: 0 everything was undone (with --hook always), 1 something is left, 2 it could not run.")]
pub struct Args {
    #[command(flatten)]
    config: ConfigArgs,
    /// How long to wait for nodes [default: uninstall.timeoutSeconds of the values]
    #[arg(long, alias = "timeout-seconds", value_name = "DURATION", value_parser = duration::parse)]
    timeout: Option<Duration>,
    /// Runs as the chart's hook: does not ask, and never fails the deletion of the release
    #[arg(long)]
    hook: bool,
    /// The default without --hook
    #[arg(long, hide = true)]
    strict: bool,
    #[command(flatten)]
    confirm: ConfirmArgs,
    /// Restores pods (uninstall.restore) also if their nodes have to pull from an upstream that is
    /// away
    #[arg(long)]
    anyway: bool,
    #[command(flatten)]
    kube: KubeArgs,
    #[command(flatten)]
    leader: LeaderArgs,
    #[command(flatten)]
    output: OutputArgs,
}

/// Undoes the release and prints the report.
pub(crate) async fn run(args: Args) -> ExitCode {
    args.output.apply();
    let result = uninstall(&args).await;
    if !args.hook {
        return args.output.finish(result);
    }
    // A hook that fails would keep the release.
    let result = result.or_else(|error| {
        let why = exit_status::message(&error);
        let data = json!({"done": [], "left": [why], "rewritten": []});
        let text = format!("nothing was undone: {why}\n");
        Document::new("Uninstall", Answer::No, &data, text)
    });
    args.output.finish(result);
    ExitCode::SUCCESS
}

async fn uninstall(args: &Args) -> anyhow::Result<Document> {
    if !args.hook {
        args.confirm
            .ask("this takes Holdfast out of the cluster and deletes its Artifacts")?;
    }
    let report = report(args).await?;
    Document::new(
        "Uninstall",
        report.is_clean().into(),
        &report,
        report.to_string(),
    )
}

async fn report(args: &Args) -> anyhow::Result<Report> {
    let config = args.config.load()?;
    let uninstall = &config.values.uninstall;
    let restore = uninstall
        .restore
        .then(|| Duration::from_secs(u64::from(uninstall.restore_timeout_seconds)));
    let timeout = args
        .timeout
        .unwrap_or_else(|| Duration::from_secs(u64::from(uninstall.timeout_seconds)));
    let release = config.release;
    let names = Names {
        release: release.name,
        fullname: release.fullname,
        namespace: release.namespace,
    };
    let client = args.kube.retrying_client().await?;
    let evicting = args.kube.client().await?;
    let http = reqwest::Client::builder()
        .no_proxy()
        .timeout(Duration::from_secs(3))
        .build()?;
    let cluster = Cluster::new(client, names).evicting_by(evicting);
    let restore = restore.map(|limit| Restoration {
        limit,
        anyway: args.anyway,
        leader: args.leader.clone(),
    });
    let report = undo(&cluster, &http, timeout, restore).await;
    if args.hook {
        // Helm deletes the Job of the hook, and its log with it.
        let recorded = tokio::time::timeout(EVENT_TIMEOUT, cluster.record(&report)).await;
        if !matches!(recorded, Ok(Ok(()))) {
            tracing::warn!("cannot write the event with the report");
        }
    }
    Ok(report)
}

/// How pods get their original images back.
struct Restoration {
    /// The time for it.
    limit: Duration,
    /// Also if upstreams are away.
    anyway: bool,
    leader: LeaderArgs,
}

/// All steps, as far as they are done in time. Pods are restored only if that is asked for.
async fn undo(
    cluster: &Cluster,
    http: &reqwest::Client,
    timeout: Duration,
    restore: Option<Restoration>,
) -> Report {
    let mut report = Report::default();
    let restoring = restore.as_ref().map(|restore| restore.limit);
    let limit = timeout + STEPS_TIMEOUT + restoring.unwrap_or_default();
    let steps = undo_steps(cluster, http, timeout, restore, &mut report);
    if tokio::time::timeout(limit, steps).await.is_err() {
        report.left(format!(
            "everything after that: timed out after {} s",
            limit.as_secs()
        ));
    }
    report
}

/// All steps, in order; each one's failure is noted and the next one is done all the same.
async fn undo_steps(
    cluster: &Cluster,
    http: &reqwest::Client,
    timeout: Duration,
    restore: Option<Restoration>,
    report: &mut Report,
) {
    report.step(
        "webhook configuration deleted",
        cluster.delete_webhook().await,
    );
    // The controller knows what nodes have.
    let restore = match restore {
        Some(restore) => may_restore(cluster, restore, report).await,
        None => None,
    };
    report.step("controller stopped", stop_controller(cluster).await);
    match cluster.remove_startup_taints().await {
        Ok(0) => {}
        removed => report.count("nodes without the startup taint now", removed),
    }
    // The registry still serves, and the nodes still know it: what cannot be restored runs on.
    if let Some(limit) = restore {
        restore_pods(cluster, limit, report).await;
    }
    match cluster.request_node_cleanup().await {
        Ok(true) => await_node_cleanup(cluster, http, Instant::now() + timeout, report).await,
        Ok(false) => report.done("no node was prepared".to_owned()),
        Err(error) => report.left(format!(
            "the node agents could not be asked to restore their hosts: {error}"
        )),
    }
    match cluster.rewritten_pods().await {
        Ok(pods) => report.rewritten = pods,
        Err(error) => report.left(format!(
            "pods with rewritten images could not be listed: {error}"
        )),
    }
    report.count(
        "Secrets and ConfigMaps of the controller deleted",
        cluster.delete_made_objects().await,
    );
    report.step("Lease deleted", cluster.delete_lease().await);
    report.count("Artifacts deleted", cluster.delete_artifacts().await);
    report.count(
        "registry pods on lost nodes deleted, so that they release the volume's claim",
        stop_registry(cluster).await,
    );
}

/// Notes which originals the nodes pull again. Returns the time for the restoration, unless an
/// upstream of them is away.
async fn may_restore(
    cluster: &Cluster,
    restore: Restoration,
    report: &mut Report,
) -> Option<Duration> {
    let pulls = tokio::time::timeout(PULLS_TIMEOUT, cluster.pulls(&restore.leader)).await;
    match pulls {
        Ok(Ok((lines, objection))) => {
            report.pulls = lines;
            if let Some(why) = objection.filter(|_| !restore.anyway) {
                report.left(format!("pods were not restored: {why}"));
                return None;
            }
        }
        Ok(Err(error)) => report.pulls = vec![format!("what nodes pull again: {error:#}")],
        Err(_) => report.pulls = vec!["what nodes pull again is not known: no answer".to_owned()],
    }
    Some(restore.limit)
}

/// Restores the original images of pods, as far as the time suffices.
async fn restore_pods(cluster: &Cluster, limit: Duration, report: &mut Report) {
    let pacing = restore::Pacing {
        per_minute: RESTORED_PER_MINUTE,
        wait: true,
        deadline: restore::now() + limit,
    };
    match cluster.restore_pods(pacing).await {
        Ok(outcome) => {
            report.done(format!(
                "{} restored to their original images",
                terminal::count(outcome.restored.len() as u64, "pod", "pods")
            ));
            report.not_restored(
                outcome
                    .left
                    .iter()
                    .map(|(pod, why)| format!("{}/{}: {why}", pod.namespace, pod.name))
                    .collect(),
            );
        }
        Err(error) => report.left(format!("pods could not be restored: {error:#}")),
    }
}

async fn stop_controller(cluster: &Cluster) -> anyhow::Result<()> {
    cluster.scale_controller_to_zero().await?;
    let deadline = Instant::now() + CONTROLLER_TIMEOUT;
    loop {
        let running = cluster.controller_pods().await?;
        if running.is_empty() {
            return Ok(());
        }
        if Instant::now() >= deadline {
            anyhow::bail!(
                "still there after {} s: {}",
                CONTROLLER_TIMEOUT.as_secs(),
                running.join(", ")
            );
        }
        tokio::time::sleep(POLL_INTERVAL).await;
    }
}

/// A `PersistentVolumeClaim` stays while a pod uses it, and a pod on a lost node stays until it is
/// force-deleted. Otherwise the deletion of the claim would wait until the node is back.
async fn stop_registry(cluster: &Cluster) -> anyhow::Result<usize> {
    cluster.scale_registry_to_zero().await?;
    cluster.delete_registry_pods_on_lost_nodes().await
}

/// Asks the agents until each one on a Ready node has restored its host, or the time is over.
async fn await_node_cleanup(
    cluster: &Cluster,
    http: &reqwest::Client,
    deadline: Instant,
    report: &mut Report,
) {
    let mut answers = nodes::Answers::default();
    loop {
        let survey = match cluster.survey().await {
            Ok(survey) => survey,
            Err(error) => {
                report.left(format!("nodes and agents could not be listed: {error}"));
                return;
            }
        };
        let asked = survey
            .agents
            .iter()
            .filter(|agent| !answers.is_removed(&agent.node));
        let asked = asked
            .map(|agent| async { (agent.node.clone(), nodes::ask(http, &agent.address).await) });
        for (node, answer) in futures::future::join_all(asked).await {
            answers.note(node, answer);
        }
        if answers.waiting(&survey).is_empty() || Instant::now() >= deadline {
            for line in answers.lines(&survey) {
                match line {
                    Ok(done) => report.done(done),
                    Err(left) => report.left(left),
                }
            }
            return;
        }
        tokio::time::sleep(POLL_INTERVAL).await;
    }
}

#[cfg(test)]
mod tests;
