//! The registry and the webhook under attack: their memory, and what honest clients notice.

mod attackers;
mod attacks;
mod honest;
mod registry;
mod report;
pub(crate) mod webhook;

use std::{fs, path::PathBuf, time::Duration};

use anyhow::{Context as _, Result, ensure};
use clap::Args;

use crate::{
    cases::say,
    document::{self, Section},
    hostile::report::Figures,
    report::Machine,
    scratch::Scratch,
};

/// The least seconds and rounds of a run that is written down.
const SECONDS: u64 = 30;
const ROUNDS: usize = 3;

/// Arguments of `hostile`.
#[derive(Args)]
pub(crate) struct Arguments {
    /// Only this case: registry or webhook
    #[arg(long, value_name = "CASE")]
    only: Option<String>,
    /// Rounds of each case, each with a new process
    #[arg(long, value_name = "N", default_value_t = ROUNDS)]
    rounds: usize,
    /// Seconds of all attacks together, in each round
    #[arg(long, value_name = "SECONDS", default_value_t = SECONDS)]
    seconds: u64,
    /// A smoke run: short, its figures mean nothing
    #[arg(long)]
    quick: bool,
    /// Writes everything measured as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Where content lies while it runs; removed at the end
    #[arg(long, value_name = "DIR")]
    scratch: Option<PathBuf>,
    /// Writes the document here, after a whole run of at least the default length
    #[arg(long, value_name = "FILE")]
    document: Option<PathBuf>,
}

/// Measures; a bar that is missed is an error, after everything was written.
pub(crate) async fn run(arguments: &Arguments) -> Result<()> {
    holdfast_testkit::tls::install_crypto_provider();
    let wants = |case: &str| arguments.only.as_deref().is_none_or(|only| only == case);
    ensure!(
        wants("registry") || wants("webhook"),
        "--only: registry or webhook"
    );
    let (rounds, seconds) = if arguments.quick {
        (1, 5)
    } else {
        (arguments.rounds.max(1), arguments.seconds.max(5))
    };
    let scratch = Scratch::make(arguments.scratch.as_deref())?;
    let mut figures = Figures {
        machine: Machine::this(&scratch.0),
        registry: Vec::new(),
        webhook: Vec::new(),
    };
    if wants("registry") {
        for number in 1..=rounds {
            let length = Duration::from_secs(seconds);
            let round = registry::round(&scratch.0, length / 2, length).await?;
            say(&format!(
                "registry, round {number}: {}",
                report::line(&round)
            ));
            figures.registry.push(round);
        }
    }
    if wants("webhook") {
        say("starting etcd and kube-apiserver");
        let site = webhook::Site::prepare(&scratch.0).await?;
        for number in 1..=rounds {
            let kinds = site.round(Duration::from_secs(seconds) / 4).await?;
            for kind in &kinds {
                say(&format!(
                    "webhook, round {number}: {}",
                    report::kind_line(kind)
                ));
            }
            figures.webhook.push(kinds);
        }
    }
    println!("{}", figures.table());
    if let Some(path) = &arguments.json {
        let text = serde_json::to_string_pretty(&figures)? + "\n";
        fs::write(path, text).with_context(|| format!("write {}", path.display()))?;
    }
    let whole = arguments.only.is_none() && rounds >= ROUNDS && seconds >= SECONDS;
    if let Some(path) = arguments.document.as_deref().filter(|_| whole) {
        document::rewrite(path, Section::Hostile, |_| figures.section())?;
    }
    let missed = figures.missed();
    ensure!(missed.is_empty(), "missed: {}", missed.join("; "));
    Ok(())
}
