//! `holdfast version`: the version of this program, and of the releases in the cluster.

use std::fmt::Write as _;
use std::process::ExitCode;

use holdfast_cli_kit::cluster::ClusterArgs;
use holdfast_cli_kit::exit_status::Answer;
use holdfast_cli_kit::output::{Document, OutputArgs};
use holdfast_cli_kit::terminal;
use serde::Serialize;

/// The version of this program.
const CLIENT: &str = env!("CARGO_PKG_VERSION");

/// Arguments of `version`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  holdfast version
  holdfast version --client
  holdfast version -o json

Exit status: 0 every release has the version of this program (with --client always), 1 a release \
has another one or there is none, 2 the cluster could not be read.")]
pub struct Args {
    /// Only the version of this program; does not read the cluster
    #[arg(long)]
    client: bool,
    #[command(flatten)]
    cluster: ClusterArgs,
    #[command(flatten)]
    output: OutputArgs,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Versions {
    client: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    releases: Option<Vec<Release>>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Release {
    name: String,
    namespace: String,
    version: String,
    /// Whether the client has another version.
    skew: bool,
}

/// Prints the versions.
pub(crate) async fn run(args: Args) -> ExitCode {
    args.output.apply();
    let result = versions(&args).await;
    if result.is_err() {
        // The version of this program is known in any case.
        terminal::note(&format!("holdfast {CLIENT}; --client asks no cluster"));
    }
    args.output.finish(result)
}

async fn versions(args: &Args) -> anyhow::Result<Document> {
    let releases = if args.client {
        None
    } else {
        let client = args.cluster.client().await?;
        let found = args.cluster.releases(&client).await?;
        let releases = found.into_iter().map(|release| Release {
            skew: release.version != CLIENT,
            name: release.names.release,
            namespace: release.names.namespace,
            version: release.version,
        });
        Some(releases.collect::<Vec<_>>())
    };
    document(&Versions {
        client: CLIENT,
        releases,
    })
}

fn document(versions: &Versions) -> anyhow::Result<Document> {
    let mut text = format!("holdfast {}\n", versions.client);
    let releases = versions.releases.as_deref();
    for release in releases.unwrap_or_default() {
        let Release {
            name,
            namespace,
            version,
            skew,
        } = release;
        let skew = if *skew { " (another version)" } else { "" };
        writeln!(text, "release {name} in {namespace}: {version}{skew}")?;
    }
    if releases.is_some_and(<[Release]>::is_empty) {
        text.push_str("no release was found\n");
    }
    let same =
        |releases: &[Release]| !releases.is_empty() && releases.iter().all(|release| !release.skew);
    let answer = Answer::from(releases.is_none_or(same));
    Document::new("Version", answer, versions, text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_release_of_another_version_is_no() {
        for (versions, expect) in [
            (None, Answer::Yes),
            (Some(vec![]), Answer::No),
            (Some(vec![CLIENT]), Answer::Yes),
            (Some(vec![CLIENT, "9.9.9"]), Answer::No),
        ] {
            let releases = versions.clone().map(|versions| {
                let release = |version: &str| Release {
                    name: "edge".to_owned(),
                    namespace: "sys".to_owned(),
                    version: version.to_owned(),
                    skew: version != CLIENT,
                };
                versions.into_iter().map(release).collect()
            });
            let client = CLIENT;
            let document = document(&Versions { client, releases }).unwrap();
            assert_eq!(document.answer(), expect, "{versions:?}");
        }
    }
}
