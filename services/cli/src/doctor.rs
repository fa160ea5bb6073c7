//! `holdfast doctor`: what keeps Holdfast from working in a cluster, one line a finding with the
//! fix; with `--quick` only whether the registry answers, which the chart's test asks.
#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "what a command prints is its result"
)]

mod access;
mod diagnose;
mod fetch;
mod policy_dry_run;
mod scaling;
mod self_test;
mod upstreams;
mod verifiers;
mod void;
mod volume;
mod webhook;

use std::path::PathBuf;
use std::process::ExitCode;

use crate::cluster::ClusterArgs;
use crate::exit_status;
use crate::terminal;
use diagnose::Report;

/// Arguments of `doctor`.
#[derive(clap::Args)]
#[command(
    after_help = "Looks at the parts' pods, the volume and its claim, the webhook's configuration and its CA, the nodes, the autoscalers' metrics API, \
wanted images that are not local and policies that verify images by name, and tries in every namespace that \
has Artifacts whether a policy refuses pods with the registry's references: server-side dry runs, which create nothing.\n\
Exit status: 0 nothing found, 1 something found, 2 it cannot tell (what may not be seen is named)."
)]
pub struct Args {
    #[command(flatten)]
    cluster: ClusterArgs,
    /// Policies in this namespace only
    #[arg(short, long, value_name = "NAMESPACE")]
    namespace: Option<String>,
    /// Writes findings as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    #[command(flatten)]
    quick: self_test::SelfTest,
}

/// Looks, and prints what it found.
pub(crate) async fn run(args: Args) -> anyhow::Result<ExitCode> {
    if args.quick.asked {
        return self_test::run(args.quick).await;
    }
    let report = look(&args).await.inspect(|report| print!("{report}"));
    Ok(exit_status::end(report.map(|report| report.answer())))
}

async fn look(args: &Args) -> anyhow::Result<Report> {
    let client = args.cluster.client().await?;
    let release = args.cluster.release(&client).await?;
    let facts = fetch::facts(&client, &release, args.namespace.as_deref()).await;
    let report = diagnose::diagnose(&facts);
    if let Some(path) = &args.json {
        terminal::write_json(path, &report)?;
    }
    Ok(report)
}
