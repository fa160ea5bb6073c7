//! `cargo xtask cluster`: a real cluster on this machine, and the programs that come with it.

use std::path::PathBuf;

use anyhow::Context;
use holdfast_cluster::{Cluster, Options, Program, programs};

use crate::report;

/// The test cluster on this machine.
#[derive(clap::Subcommand)]
pub(crate) enum Command {
    /// Makes the cluster, or brings up again what there is of it
    Up {
        #[command(flatten)]
        which: Which,
        /// The kind configuration; the repository's own by default
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
        /// Make a container engine even where one answers
        #[arg(long)]
        own_engine: bool,
        /// Writes the state as JSON
        #[arg(long, value_name = "FILE")]
        json: Option<PathBuf>,
    },
    /// Deletes the cluster
    Down {
        #[command(flatten)]
        which: Which,
        /// Removes its engine's data too, the node image included
        #[arg(long)]
        purge: bool,
    },
    /// Says how the cluster does and how to talk to it
    Status {
        #[command(flatten)]
        which: Which,
        /// Writes the state as JSON
        #[arg(long, value_name = "FILE")]
        json: Option<PathBuf>,
    },
}

/// Which cluster.
#[derive(clap::Args)]
pub(crate) struct Which {
    /// The cluster's name
    #[arg(long, default_value = "holdfast")]
    name: String,
}

/// Runs a subcommand.
///
/// # Errors
/// When the cluster cannot be made, reached or deleted.
pub(crate) fn run(command: &Command) -> anyhow::Result<()> {
    match command {
        Command::Up {
            which,
            config,
            own_engine,
            json,
        } => {
            let mut options = Options {
                own_engine: *own_engine,
                ..Options::default()
            };
            if let Some(config) = config {
                options.config.clone_from(config);
            }
            show(&Cluster::up(&which.name, &options)?, json.as_ref())
        }
        Command::Down { which, purge } => {
            let cluster = Cluster::open(&which.name)?;
            if *purge {
                cluster.purge()
            } else {
                cluster.down()
            }
        }
        Command::Status { which, json } => show(&Cluster::open(&which.name)?, json.as_ref()),
    }
}

fn show(cluster: &Cluster, json: Option<&PathBuf>) -> anyhow::Result<()> {
    let status = cluster.status()?;
    report::write(json.map(PathBuf::as_path), &status)?;
    let word = |good: bool| if good { "answers" } else { "does not answer" };
    println!(
        "cluster {}: engine {}, API server {}",
        status.name,
        word(status.engine),
        word(status.api_server)
    );
    for (node, ready) in &status.nodes {
        println!(
            "  node {node}: {}",
            if *ready { "Ready" } else { "NotReady" }
        );
    }
    for pod in &status.unready_pods {
        println!("  pod {pod}: not ready");
    }
    println!(
        "  KUBECONFIG={} {} kubectl get pods --all-namespaces",
        status.kubeconfig.display(),
        status.prefix.join(" ")
    );
    Ok(())
}

/// The paths of helm 4 and helm 3, built when they are not there yet.
///
/// # Errors
/// When one cannot be built.
pub(crate) fn helms() -> anyhow::Result<Vec<PathBuf>> {
    let wanted = [Program::Helm, Program::Helm3];
    let programs = programs::ensure(&wanted).context("helm is needed to render the chart")?;
    wanted
        .into_iter()
        .map(|program| Ok(programs.path(program)?.to_path_buf()))
        .collect()
}
