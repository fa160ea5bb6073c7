//! The controller's figures, its bars, and its section of `docs/BENCHMARKS.md`.

use std::{collections::BTreeSet, fmt::Write as _};

use serde::Serialize;

use super::measure::Interval;
use crate::report::{Machine, number};

/// The most memory that the controller may have, 10^6 bytes.
const MEGABYTES: f64 = 200.0;

/// A kind of request has a row of its own from this number on.
const OFTEN: u64 = 5;

/// A whole run.
#[derive(Serialize)]
pub(super) struct Figures {
    /// The machine.
    pub(super) machine: Machine,
    /// Pods.
    pub(super) pods: usize,
    /// Images.
    pub(super) images: usize,
    /// Nodes, with an agent each.
    pub(super) nodes: usize,
    /// From the controller's start until the registry ran by the certificate that it had made.
    pub(super) registry_seconds: f64,
    /// From the controller's start until all images were copied.
    pub(super) adopted_seconds: f64,
    /// How often the manifest or blob was asked of the upstream that was asked for most.
    pub(super) most_asked: u64,
    /// Pods that were replaced.
    pub(super) replaced: usize,
    /// From the controller's start until some seconds after the last copy.
    pub(super) adoption: Interval,
    /// While nothing happened.
    pub(super) rest: Interval,
    /// While pods were replaced.
    pub(super) churn: Interval,
}

/// A bar and what was reached.
#[derive(Debug, Serialize)]
pub(super) struct Bar {
    text: &'static str,
    asked: String,
    measured: f64,
    met: bool,
}

/// Figures with the bars that they are held against.
#[derive(Serialize)]
pub(super) struct WithBars<'a> {
    #[serde(flatten)]
    figures: &'a Figures,
    bars: Vec<Bar>,
}

impl Figures {
    fn bars(&self) -> Vec<Bar> {
        let memory = |text, stretch: &Interval| Bar {
            text,
            asked: format!("< {MEGABYTES}"),
            measured: stretch.peak_megabytes(),
            met: stretch.peak_megabytes() < MEGABYTES,
        };
        let exactly = |text, count: u64, expect: u64| Bar {
            text,
            asked: expect.to_string(),
            measured: count as f64,
            met: count == expect,
        };
        let stretches = [&self.adoption, &self.rest, &self.churn];
        let forbidden = stretches.iter().flat_map(|it| it.calls.forbidden.values());
        vec![
            memory(
                "peak RSS while the pods' images are copied, MB",
                &self.adoption,
            ),
            memory("peak RSS while pods are replaced, MB", &self.churn),
            exactly(
                "requests to the upstream for one manifest or blob, at most",
                self.most_asked,
                1,
            ),
            exactly(
                "copies that the registry made for the controller",
                self.adoption.copied,
                self.images as u64,
            ),
            exactly(
                "requests to the registry while pods are replaced",
                self.churn.copied + self.churn.not_copied,
                0,
            ),
            exactly(
                "requests to the upstream while pods are replaced",
                self.churn.upstream_requests,
                0,
            ),
            exactly(
                "pods that healing changed, though none was ill",
                stretches.iter().map(|it| it.healing_actions).sum(),
                0,
            ),
            exactly(
                "requests to the API server that the chart's roles do not allow",
                forbidden.sum(),
                0,
            ),
        ]
    }

    /// The bars that were missed, with what was measured.
    pub(super) fn missed(&self) -> Vec<String> {
        let missed = self.bars().into_iter().filter(|bar| !bar.met);
        missed
            .map(|bar| {
                format!(
                    "{}: {}, asked {}",
                    bar.text,
                    number(bar.measured),
                    bar.asked
                )
            })
            .collect()
    }

    /// For a file.
    pub(super) fn with_bars(&self) -> WithBars<'_> {
        WithBars {
            figures: self,
            bars: self.bars(),
        }
    }

    /// The table of bars, as text for a terminal and for the document.
    pub(super) fn bars_table(&self) -> String {
        let mut text = "| figure | asked | measured | |\n|---|---|---|---|\n".to_owned();
        for bar in self.bars() {
            let Bar {
                text: what, asked, ..
            } = &bar;
            let measured = if bar.measured.fract() == 0.0 {
                bar.measured.to_string()
            } else {
                number(bar.measured)
            };
            let met = if bar.met { "reached" } else { "missed" };
            writeln!(text, "| {what} | {asked} | **{measured}** | {met} |").ok();
        }
        text
    }

    /// The section of the document.
    pub(super) fn section(&self) -> String {
        let Self {
            machine,
            pods,
            images,
            nodes,
            replaced,
            ..
        } = self;
        let (pods, images) = (thousands(*pods), thousands(*images));
        let mut text = format!(
            "## The controller at a large site\n\n\
             Written by `cargo xtask bench controller`.\n\n\
             The controller comes to {pods} running pods of {images} images, each of a Deployment with its ReplicaSet, on {nodes} nodes, and has all images copied; \
             then nothing happens for half a minute; then {} pods are replaced, a thousand a minute. Healing and everything else is as the chart's defaults have it.\n\n\
             Machine: {machine}. Times follow the machine, and what else it does; memory and requests do not.\n\n\
             Again: `cargo xtask bench controller` (a few minutes), `--pods N`, `--images N`, `--minutes N`, `--json FILE`. A missed bar ends it with an error.\n\n\
             ### The controller's bars\n\n{}\n### The controller's figures\n\n\
             | | images are copied | at rest | pods are replaced |\n|---|---|---|---|\n",
            thousands(*replaced),
            self.bars_table()
        );
        let stretches = [&self.adoption, &self.rest, &self.churn];
        type Figure<'a> = &'a dyn Fn(&Interval) -> String;
        let rows: [(&str, Figure<'_>); 7] = [
            ("seconds", &|it| format!("{:.1}", it.seconds)),
            ("CPU seconds", &|it| format!("{:.2}", it.cpu_seconds)),
            ("share of one processor, %", &|it| number(it.cpu_percent())),
            ("peak RSS, MB", &|it| number(it.peak_megabytes())),
            ("RSS at its end, MB", &|it| {
                number(it.rss_bytes as f64 / 1e6)
            }),
            ("requests to the API server", &|it| {
                it.calls.total().to_string()
            }),
            ("of these a second", &|it| number(it.calls_per_second())),
        ];
        for (name, figure) in rows {
            let cells = stretches.map(figure).join(" | ");
            writeln!(text, "| {name} | {cells} |").ok();
        }
        writeln!(
            text,
            "\nThe last image was local {:.1} s after the controller's start, {:.1} s of which passed before there was a registry: it waits for the certificate that \
             the controller makes. The first stretch ends some seconds after the last copy. The upstream got {} requests, {:.2} an image; {} of the controller's requests to \
             the registry had to be repeated.\n\n\
             Requests to the API server by kind:\n\n| request | images are copied | an image | at rest, a minute | pods are replaced, a minute |\n|---|---|---|---|---|",
            self.adopted_seconds,
            self.registry_seconds,
            self.adoption.upstream_requests,
            self.adoption.upstream_requests as f64 / self.images as f64,
            self.adoption.not_copied,
        )
        .ok();
        let (often, seldom): (Vec<_>, Vec<_>) = self
            .kinds()
            .into_iter()
            .partition(|kind| stretches.iter().any(|it| it.count(kind) >= OFTEN));
        for kind in &often {
            text += &self.row(kind, |stretch| stretch.count(kind));
        }
        let others = format!(
            "{} other kinds, lists and watches of all that is followed among them",
            seldom.len()
        );
        text += &self.row(&others, |stretch| {
            seldom.iter().map(|kind| stretch.count(kind)).sum()
        });
        text += HOW;
        text
    }

    fn row(&self, name: &str, count: impl Fn(&Interval) -> u64) -> String {
        let a_minute = |stretch| count(stretch) as f64 / stretch.seconds * 60.0;
        let adopting = count(&self.adoption);
        format!(
            "| {name} | {adopting} | {:.2} | {:.1} | {:.1} |\n",
            adopting as f64 / self.images as f64,
            a_minute(&self.rest),
            a_minute(&self.churn)
        )
    }

    /// All kinds of requests, what was asked most while images were copied first.
    fn kinds(&self) -> Vec<&str> {
        let mut seen = BTreeSet::new();
        [&self.adoption, &self.rest, &self.churn]
            .into_iter()
            .flat_map(|stretch| stretch.calls.sorted())
            .map(|(kind, _)| kind)
            .filter(|kind| seen.insert(*kind))
            .collect()
    }
}

const HOW: &str = "\n### How the controller runs\n\n\
    - A real etcd and kube-apiserver without nodes. The chart is installed by `helm install` with its default values and `enableClusterRegistry`. Nodes, and what kubelets and \
    Kubernetes' own controllers would say of pods, ReplicaSets and Deployments, are written by the bench.\n\
    - Controller: `holdfast controller --config FILE --registry 127.0.0.1:PORT --admin-listen 127.0.0.1:PORT`, release build, a process of its own. Its configuration is the chart's \
    ConfigMap, its token that of its service account, so that it may do what the chart's roles allow and no more.\n\
    - Registry: the real one, `holdfast registry --config FILE --data DIR`, asked over mutual TLS by the certificates that the controller makes. Its upstream is a server of the bench \
    on loopback; `uplink.requestsPerSecondPerHost` is 0, for it is the controller that is measured.\n\
    - The webhook does not run, and its configuration has no rules. Pods that replace others come as the webhook would have made them, say that they run after 1.2 s, and their \
    ReplicaSet and Deployment are counted twice each.\n\
    - Requests are those of the API server's audit log for the controller's user: a watch counts when it begins, events and the lease count. CPU and memory are those of the process by \
    `/proc`.\n";

/// A number as people write it.
fn thousands(number: usize) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::controller::audit::Calls;

    fn stretch(peak_rss_bytes: u64) -> Interval {
        Interval {
            seconds: 60.0,
            cpu_seconds: 1.5,
            peak_rss_bytes,
            rss_bytes: 1 << 20,
            calls: Calls {
                by_kind: [("get pods".to_owned(), 30)].into(),
                ..Calls::default()
            },
            copied: 0,
            not_copied: 0,
            healing_actions: 0,
            upstream_requests: 0,
        }
    }

    fn figures() -> Figures {
        Figures {
            machine: Machine::this(std::path::Path::new("/")),
            pods: 5000,
            images: 500,
            nodes: 50,
            registry_seconds: 1.0,
            adopted_seconds: 9.0,
            most_asked: 1,
            replaced: 1000,
            adoption: Interval {
                copied: 500,
                ..stretch(100_000_000)
            },
            rest: stretch(100_000_000),
            churn: stretch(100_000_000),
        }
    }

    #[test]
    fn a_bar_that_is_missed_is_named_and_nothing_else() {
        assert!(figures().missed().is_empty());
        type Change = fn(&mut Figures);
        let cases: [(Change, &str); 8] = [
            (
                |it| it.adoption.peak_rss_bytes = 200_000_000,
                "images are copied",
            ),
            (
                |it| it.churn.peak_rss_bytes = 201_000_000,
                "pods are replaced, MB",
            ),
            (|it| it.most_asked = 2, "one manifest or blob"),
            (|it| it.adoption.copied = 501, "for the controller"),
            (|it| it.churn.not_copied = 1, "requests to the registry"),
            (
                |it| it.churn.upstream_requests = 1,
                "requests to the upstream while",
            ),
            (|it| it.rest.healing_actions = 1, "healing"),
            (
                |it| {
                    it.churn.calls.forbidden.insert("list pods".to_owned(), 1);
                },
                "roles",
            ),
        ];
        for (change, expect) in cases {
            let mut changed = figures();
            change(&mut changed);
            let missed = changed.missed();
            assert_eq!(missed.len(), 1, "{expect}: {missed:?}");
            assert!(missed[0].contains(expect), "{missed:?}");
        }
    }

    #[test]
    fn the_section_tells_requests_by_image_and_by_minute() {
        let section = figures().section();
        for part in [
            "5,000 running pods of 500 images",
            "| get pods | 30 | 0.06 | 30.0 | 30.0 |",
            "| share of one processor, % | 2.50 | 2.50 | 2.50 |",
        ] {
            assert!(section.contains(part), "{part} is not in\n{section}");
        }
    }
}
