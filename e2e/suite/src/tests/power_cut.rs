//! `diff offline` beside a real power cut: what it said of each owner before, and which of its pods
//! start afterwards without uplink. No answer may be wrong.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::operator::holdfast;
use crate::kube;
use crate::objects::{self, Pod};
use crate::site::{Pushed, Site};

/// How long after the power came back pods may take: the kubelet's longest pause between two pulls,
/// and a start.
const SETTLED: Duration = Duration::from_secs(400);

/// What the answer says of an owner: the worst of its images.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Said {
    Starts,
    Unknown,
    OnlyOn,
    WouldNot,
}

/// The answers of one namespace by the name of the owner.
pub(super) struct Answers {
    namespace: String,
    said: BTreeMap<String, (Said, String)>,
}

impl Answers {
    /// Asks about a namespace.
    pub(super) fn ask(site: &Site, program: &PathBuf, namespace: &str) -> Result<Self> {
        let answer = holdfast(site, program, &["diff", "offline", "-n", namespace])?;
        let owners = answer.json["owners"].as_array();
        let owners = owners.with_context(|| format!("no owners: {}", answer.text))?;
        let mut said = BTreeMap::new();
        for owner in owners {
            let name = owner["name"].as_str().context("a name")?.to_owned();
            let images = owner["images"].as_array().context("images")?;
            let worst = images.iter().map(of_image).max();
            let why = images.iter().max_by_key(|image| of_image(image));
            let why = why.map(|image| image["why"].to_string());
            said.insert(name, (worst.context("an image")?, why.unwrap_or_default()));
        }
        ensure!(!said.is_empty(), "no owners in {namespace}");
        Ok(Self {
            namespace: namespace.to_owned(),
            said,
        })
    }

    fn count(&self, of: Said) -> usize {
        self.said.values().filter(|(said, _)| *said == of).count()
    }
}

fn of_image(image: &Value) -> Said {
    match image["start"].as_str() {
        Some("starts" | "startsHealed") => Said::Starts,
        Some("onlyOn") => Said::OnlyOn,
        Some("wouldNot") => Said::WouldNot,
        _ => Said::Unknown,
    }
}

/// A namespace that Holdfast leaves, with pods that start offline and pods that do not.
pub(super) fn excluded_pods(site: &Site, namespace: &str) -> Result<()> {
    let labels = json!({"holdfast.dev/rewrite": "disabled"});
    site.kube.apply(&[objects::namespace(namespace, &labels)])?;
    let workers = site.workers()?;
    let first = workers.first().context("no worker")?;
    let push = |name: &str, nodes: &[&String]| -> Result<Pushed> {
        let image = site.push(&site.plain, &format!("left/{name}"), 1, 1000)?;
        for node in nodes {
            let pull = ["crictl", "pull", &image.reference];
            site.cluster.node_exec(node, &pull)?;
        }
        Ok(image)
    };
    let pod = |name: &str, nodes: &[&String]| -> Result<Pod> {
        Ok(Pod::new(name, &push(name, nodes)?.reference))
    };
    let all: Vec<_> = workers.iter().collect();
    let mut never = Pod::new("never", &push("never", &[])?.reference).deployment(namespace, 1);
    never["spec"]["template"]["spec"]["containers"][0]["imagePullPolicy"] = json!("Never");
    site.kube.apply(&[
        // Starts.
        pod("kept", &all)?.deployment(namespace, 2),
        pod("kept-here", &[first])?
            .on(first)
            .deployment(namespace, 1),
        pod("kept-daemon", &all)?.daemon_set(namespace),
        // Would not: each start asks the upstream.
        pod("asks", &all)?.always().deployment(namespace, 1),
        // Would not: it waits for an image that is nowhere.
        Pod::new("nowhere", &format!("{}/left/nowhere:1", site.plain.host))
            .deployment(namespace, 1),
        // Would not: it may not pull, and no node has its image.
        never,
    ])
}

/// The pods of an owner: which are ready, and which are not, with the reason.
fn pods_of(site: &Site, namespace: &str, owner: &str) -> Result<(usize, Vec<String>)> {
    let label = format!("app={owner}");
    let pods = site.kube.list(&["pods", "-n", namespace, "-l", &label])?;
    let of_use = pods.iter().filter(|pod| {
        pod["metadata"]["deletionTimestamp"].is_null() && pod["status"]["phase"] != "Succeeded"
    });
    let (ready, waiting): (Vec<_>, Vec<_>) = of_use.partition(|pod| kube::is_ready(pod));
    Ok((
        ready.len(),
        waiting.into_iter().map(kube::explain).collect(),
    ))
}

/// Waits until [`SETTLED`] after `power`, or until every pod of an owner that was said to start is
/// ready; then compares all answers with what is there.
pub(super) fn compare(site: &Site, answers: &[Answers], power: Instant) -> Result<()> {
    let mut wrong;
    loop {
        wrong = Vec::new();
        for answers in answers {
            for (owner, (said, why)) in &answers.said {
                let (ready, waiting) = pods_of(site, &answers.namespace, owner)?;
                let is_wrong = match said {
                    Said::Starts => !waiting.is_empty(),
                    Said::WouldNot => ready > 0 && waiting.is_empty(),
                    Said::OnlyOn | Said::Unknown => false,
                };
                if is_wrong {
                    let waiting = waiting.join("; ");
                    wrong.push(format!(
                        "{owner}: {said:?} ({why}), {ready} ready, waiting: {waiting}"
                    ));
                }
            }
        }
        if power.elapsed() > SETTLED {
            break;
        }
        std::thread::sleep(Duration::from_secs(10));
    }
    for (said, text) in [
        (Said::Starts, "start"),
        (Said::WouldNot, "do not"),
        (Said::OnlyOn, "only on some nodes"),
        (Said::Unknown, "unknown"),
    ] {
        let count: usize = answers.iter().map(|answers| answers.count(said)).sum();
        println!("  diff offline said of {count} owners: {text}");
    }
    ensure!(wrong.is_empty(), "wrong answers: {}", wrong.join("\n"));
    Ok(())
}

/// That the answers cover what the comparison is about.
pub(super) fn ensure_variety(answers: &[Answers]) -> Result<()> {
    let count = |said| answers.iter().map(|it| it.count(said)).sum::<usize>();
    let (starts, not) = (count(Said::Starts), count(Said::WouldNot));
    ensure!(
        starts >= 30 && not >= 3,
        "starts: {starts}, would not: {not}"
    );
    Ok(())
}
