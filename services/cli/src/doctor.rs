//! `holdfast doctor`: what keeps Holdfast from working in a cluster, one line a finding with the
//! fix; with `--quick` only whether the registry answers, which the chart's test asks.

mod access;
mod api;
mod credential_checks;
mod diagnose;
mod fetch;
mod policy_dry_run;
mod pull_records;
mod quotas;
mod report;
mod scaling;
mod self_test;
mod upstreams;
mod verifiers;
mod volume;
mod webhook;

use std::process::ExitCode;

use holdfast_cli_kit::cluster::{ClusterArgs, NamespaceArgs};
use holdfast_cli_kit::leader::LeaderArgs;
use holdfast_cli_kit::output::{Document, OutputArgs};
use holdfast_cli_kit::watch::WatchArgs;

/// Arguments of `doctor`.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  holdfast doctor
  holdfast doctor -n shop
  holdfast doctor -o jsonpath={.findings[*].code}

Checks the pods of Holdfast, the volume and its claim, the configuration of the webhook and its \
CA, the nodes, the metrics API of the autoscalers, wanted images that are not local, \
ResourceQuotas of Artifacts, policies that verify images by name, the kubelets' policies for images \
that they did not pull, and running pods whose nodes pull an image again at the next restart. In every namespace with \
Artifacts, server-side dry runs, which create nothing, show whether a policy refuses pods with \
references to the registry.

Exit status: 0 no problem, 1 problems, 2 not everything could be read.")]
pub struct Args {
    #[command(flatten)]
    namespaces: NamespaceArgs,
    #[command(flatten)]
    watch: WatchArgs,
    #[command(flatten)]
    cluster: ClusterArgs,
    #[command(flatten)]
    leader: LeaderArgs,
    #[command(flatten)]
    output: OutputArgs,
    #[command(flatten)]
    self_test: self_test::SelfTest,
}

/// Checks, and prints the findings.
pub(crate) async fn run(args: Args) -> ExitCode {
    args.output.apply();
    let result = if args.self_test.quick {
        self_test::run(&args.self_test).await
    } else {
        check(&args).await
    };
    args.output.finish(result)
}

async fn check(args: &Args) -> anyhow::Result<Document> {
    let client = args.cluster.client().await?;
    args.watch
        .run(&args.output, async || {
            let release = args.cluster.release(&client).await?;
            let namespace = args.namespaces.namespace.as_deref();
            let facts = fetch::facts(&client, &args.leader, &release, namespace).await;
            let report = diagnose::diagnose(&facts);
            let codes = report
                .findings
                .iter()
                .map(|finding| format!("{:?}", finding.code));
            Ok(
                Document::new("Diagnosis", report.answer(), &report, report.to_string())?
                    .with_names(codes),
            )
        })
        .await
}
