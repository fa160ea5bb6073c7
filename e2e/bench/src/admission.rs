//! What the inputs of the decision about names cost at admission: webhook processes answer the same
//! reviews while ConfigMap `holdfast-delivery` is empty, and while it is full.

use std::{fs, path::PathBuf, time::Instant};

use anyhow::{Context as _, Result, ensure};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use clap::Args;
use serde::Serialize;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use crate::{
    cases::say,
    controller::{api::Api, release::namespaced},
    document::{self, Section},
    hostile::webhook::{self, Site},
    http::Connection,
    process::Process,
    report::{Machine, number},
    scratch::Scratch,
    stats::Series,
};

/// Sources in each set, the size of a large site.
const SOURCES: usize = 10_000;
/// Hosts of upstreams, and those that the configuration of nodes names.
const HOSTS: (usize, usize) = (500, 200);
/// Reviews of each half of a round.
const REVIEWS: usize = 2000;
/// Rounds of a run that is written down.
const ROUNDS: usize = 7;
/// The 99th percentile with the inputs, over that without.
const MOST_RATIO: f64 = 1.1;
/// Resident memory with the inputs above that without, bytes.
const MOST_BYTES: f64 = 2e6;

/// Arguments of `admission`.
#[derive(Args)]
pub(crate) struct Arguments {
    /// Rounds, each with and without the inputs
    #[arg(long, value_name = "N", default_value_t = ROUNDS)]
    rounds: usize,
    /// Writes everything measured as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Where the files of the webhook lie while it runs; removed at the end
    #[arg(long, value_name = "DIR")]
    scratch: Option<PathBuf>,
    /// Writes the document here, after a run of at least the default length
    #[arg(long, value_name = "FILE")]
    document: Option<PathBuf>,
}

/// All rounds. Times are milliseconds.
#[derive(Serialize)]
struct Figures {
    machine: Machine,
    /// The 99th percentile of each round, without and with the inputs.
    empty: Series,
    full: Series,
    /// The medians of each round.
    empty_median: Series,
    full_median: Series,
    /// Resident memory at the end of each half, bytes.
    empty_bytes: Series,
    full_bytes: Series,
}

/// What the ConfigMap says.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Inputs {
    Empty,
    /// All sets are full.
    Full,
    /// As full, and the upstream of the reviews is away, so that they are not rewritten.
    Away,
}

/// Measures; a bar that is missed is an error, after everything was written.
pub(crate) async fn run(arguments: &Arguments) -> Result<()> {
    holdfast_testkit::tls::install_crypto_provider();
    let scratch = Scratch::make(arguments.scratch.as_deref())?;
    say("starting etcd and kube-apiserver");
    let site = Site::prepare(&scratch.0).await?;
    let api = site.api()?;
    let map = json!({
        "apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {"name": "holdfast-delivery"},
    });
    api.post(&namespaced("configmaps"), &map).await?;
    let mut figures = Figures {
        machine: Machine::this(&scratch.0),
        empty: Series::default(),
        full: Series::default(),
        empty_median: Series::default(),
        full_median: Series::default(),
        empty_bytes: Series::default(),
        full_bytes: Series::default(),
    };
    let rounds = arguments.rounds.max(1);
    for round in 0..rounds {
        // The second finds warmer caches.
        let mut halves = [Inputs::Empty, Inputs::Full];
        halves.rotate_left(round % 2);
        for inputs in halves {
            let bench = Bench::start(&site, &api, inputs).await?;
            let (times, bytes) = bench.measure().await?;
            let (p99, median, memory) = match inputs {
                Inputs::Empty => (
                    &mut figures.empty,
                    &mut figures.empty_median,
                    &mut figures.empty_bytes,
                ),
                _ => (
                    &mut figures.full,
                    &mut figures.full_median,
                    &mut figures.full_bytes,
                ),
            };
            p99.0.push(percentile_99(&times));
            median.0.push(times.median());
            memory.0.push(bytes);
        }
        say(&format!(
            "round {}: p99 {} ms without, {} ms with",
            round + 1,
            number(figures.empty.0[round]),
            number(figures.full.0[round]),
        ));
    }
    println!("{}", figures.table());
    if let Some(path) = &arguments.json {
        let text = serde_json::to_string_pretty(&figures)? + "\n";
        fs::write(path, text).with_context(|| format!("write {}", path.display()))?;
    }
    if let Some(path) = arguments.document.as_deref().filter(|_| rounds >= ROUNDS) {
        document::rewrite(path, Section::Admission, |_| figures.section())?;
    }
    ensure!(figures.ratio() <= MOST_RATIO, "missed: the 99th percentile");
    ensure!(figures.more_bytes() < MOST_BYTES, "missed: memory");
    Ok(())
}

/// The value that 99 of a hundred do not exceed.
fn percentile_99(series: &Series) -> f64 {
    let mut sorted = series.0.clone();
    sorted.sort_by(f64::total_cmp);
    let at = (sorted.len() * 99).div_ceil(100);
    let value = sorted.get(at.saturating_sub(1));
    value.copied().unwrap_or(f64::NAN)
}

/// A new webhook process.
struct Bench {
    process: Process,
    target: crate::http::Target,
    connection: Option<Connection>,
}

impl Bench {
    /// Starts one that decides by these inputs.
    async fn start(site: &Site, api: &Api, inputs: Inputs) -> Result<Self> {
        write(api, Inputs::Empty).await?;
        let (process, target) = site.start().await?;
        let mut bench = Self {
            process,
            target,
            connection: None,
        };
        if inputs == Inputs::Full {
            // A review that is not rewritten any more, and then is again, shows that it read both.
            write(api, Inputs::Away).await?;
            bench.wait(false).await?;
            write(api, Inputs::Full).await?;
            bench.wait(true).await?;
        }
        Ok(bench)
    }

    /// How long reviews take, and the memory afterwards.
    async fn measure(mut self) -> Result<(Series, f64)> {
        let mut times = Series::default();
        for number in 0..REVIEWS {
            let begun = Instant::now();
            webhook::review(&self.target, &mut self.connection, number % SOURCES).await?;
            times.0.push(begun.elapsed().as_secs_f64() * 1e3);
        }
        Ok((times, self.process.usage()?.rss_bytes as f64))
    }

    async fn wait(&mut self, rewritten: bool) -> Result<()> {
        let begun = Instant::now();
        // No set holds this image.
        while webhook::review(&self.target, &mut self.connection, SOURCES)
            .await
            .is_ok()
            != rewritten
        {
            ensure!(
                begun.elapsed().as_secs() < 20,
                "the webhook does not read its inputs"
            );
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
        Ok(())
    }
}

async fn write(api: &Api, inputs: Inputs) -> Result<()> {
    let path = namespaced("configmaps/holdfast-delivery");
    api.merge(&path, &content(inputs)).await.map(drop)
}

/// The data of the ConfigMap.
fn content(inputs: Inputs) -> Value {
    if inputs == Inputs::Empty {
        return json!({"data": null, "binaryData": null});
    }
    let confirmed = "2100-01-01T00:00:00Z";
    let host =
        |host: &str, state: &str| json!({"host": host, "state": state, "confirmed": confirmed});
    let mut hosts: Vec<Value> = (1..HOSTS.0)
        .map(|at| host(&format!("host-{at:03}.example"), "answers"))
        .collect();
    let away = if inputs == Inputs::Away {
        "away"
    } else {
        "answers"
    };
    // In order: it comes after all others.
    hosts.push(host("registry.example", away));
    let foreign: Vec<_> = (0..HOSTS.1)
        .map(|at| format!("site-{at:03}.example"))
        .collect();
    let state = json!({"hosts": hosts, "foreign": foreign, "unprepared": []});
    let set = |name: &str| {
        let hashes = (0..SOURCES).map(|at| {
            let digest: [u8; 32] = Sha256::digest(format!("registry.example/{name}:{at}")).into();
            digest.first_chunk::<8>().copied().unwrap_or_default()
        });
        let mut hashes: Vec<_> = hashes.collect();
        hashes.sort_unstable();
        STANDARD.encode(hashes.concat())
    };
    // The reviews' images are held; the other sets are searched in vain.
    json!({
        "data": {"delivery.json": state.to_string()},
        "binaryData": {
            "held": set("team/app"),
            "onAllNodes": set("on/all"),
            "onSomeNodes": set("on/some"),
            "protected": set("protected"),
        },
    })
}

impl Figures {
    fn ratio(&self) -> f64 {
        self.full.over(&self.empty).median()
    }

    fn more_bytes(&self) -> f64 {
        self.full_bytes.median() - self.empty_bytes.median()
    }

    fn table(&self) -> String {
        let (low, high) = self.full.over(&self.empty).spread();
        let verdict = |met: bool| if met { "reached" } else { "missed" };
        format!(
            "| figure | asked | measured | rounds | |\n|---|---|---|---|---|\n\
             | 99th percentile with the inputs: × without | ≤ {MOST_RATIO} | **{}** | {} – {} | {} |\n\
             | resident memory with the inputs, MB more | < {} | **{}** | | {} |\n\n\
             Median of the 99th percentiles: {} ms without, {} ms with; of the medians {} and {} ms.\n",
            number(self.ratio()),
            number(low),
            number(high),
            verdict(self.ratio() <= MOST_RATIO),
            MOST_BYTES / 1e6,
            number(self.more_bytes() / 1e6),
            verdict(self.more_bytes() < MOST_BYTES),
            number(self.empty.median()),
            number(self.full.median()),
            number(self.empty_median.median()),
            number(self.full_median.median()),
        )
    }

    fn section(&self) -> String {
        format!(
            "## What the webhook knows of images\n\n\
             Written by `cargo xtask bench admission`.\n\n\
             A new webhook process answers {REVIEWS} reviews while ConfigMap `F-delivery` is empty, \
             and another one while it has {SOURCES} sources in each set, {} hosts of upstreams and \
             {} hosts of nodes; {} rounds. The memory is the median with the inputs, less the \
             median without. Machine: {}.\n\n{}",
            HOSTS.0,
            HOSTS.1,
            self.full.0.len(),
            self.machine,
            self.table(),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_of_a_hundred_is_above_the_percentile() {
        let series = Series((1..=200).map(f64::from).collect());
        assert!((percentile_99(&series) - 198.0).abs() < 1e-9);
        assert!((percentile_99(&Series(vec![3.0])) - 3.0).abs() < 1e-9);
        assert!(percentile_99(&Series(vec![])).is_nan());
    }
}
