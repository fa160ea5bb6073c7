//! Figures of the hostile cases, their bars, and their section of `docs/BENCHMARKS.md`.

use std::fmt::Write as _;

use serde::Serialize;

use super::{
    attacks::{FEWEST, NAMES},
    registry::Round,
    webhook::Kind,
};
use crate::{
    report::{Machine, number},
    stats::Series,
};

/// Hostile reviews of each kind and round at least.
const REVIEWS: u64 = 64;

/// A whole run.
#[derive(Serialize)]
pub(super) struct Figures {
    /// The machine.
    pub(super) machine: Machine,
    /// The registry's rounds.
    pub(super) registry: Vec<Round>,
    /// The webhook's rounds, each with all kinds of reviews.
    pub(super) webhook: Vec<Vec<Kind>>,
}

/// A bar and what the worst round reached.
struct Bar {
    text: &'static str,
    asked: &'static str,
    worst: f64,
    met: bool,
}

impl Bar {
    fn below(text: &'static str, asked: &'static str, bound: f64, values: Vec<f64>) -> Self {
        let worst = Series(values).spread().1;
        Self {
            text,
            asked,
            worst,
            met: worst < bound,
        }
    }

    fn none(text: &'static str, count: usize) -> Self {
        Self {
            text,
            asked: "0",
            worst: count as f64,
            met: count == 0,
        }
    }
}

/// How much longer the longest one took than the one in the middle of those that were measured
/// alone, milliseconds.
fn delay(beside: &Series, alone: &Series) -> f64 {
    beside.spread().1 - alone.median()
}

fn megabytes(bytes: u64) -> f64 {
    bytes as f64 / 1e6
}

fn above(kind: &Kind) -> f64 {
    megabytes(kind.peak_bytes.saturating_sub(kind.idle_bytes))
}

impl Figures {
    fn kinds(&self) -> impl Iterator<Item = &Kind> {
        self.webhook.iter().flatten()
    }

    fn bars(&self) -> Vec<Bar> {
        let registry = |figure: &dyn Fn(&Round) -> f64| self.registry.iter().map(figure).collect();
        let webhook = |figure: &dyn Fn(&Kind) -> f64| self.kinds().map(figure).collect();
        let mut bars = Vec::new();
        if !self.registry.is_empty() {
            let failed = self.registry.iter().map(|round| round.beside.failed.len());
            let ended = self.registry.iter().filter(|round| round.ended).count();
            bars.extend([
                Bar::below(
                    "registry: peak RSS, MB",
                    "< 512",
                    512.0,
                    registry(&|round| megabytes(round.peak_bytes)),
                ),
                Bar::below(
                    "registry: longest pull of a local image, ms more than the median alone",
                    "< 100",
                    100.0,
                    registry(&|round| delay(&round.beside.local, &round.alone.local)),
                ),
                Bar::below(
                    "registry: longest cold pull from a healthy upstream, ms more than the median alone",
                    "< 2000",
                    2000.0,
                    registry(&|round| delay(&round.beside.cold, &round.alone.cold)),
                ),
                Bar::none(
                    "registry: honest pulls and probes that failed",
                    failed.sum(),
                ),
                Bar::none("registry: processes that ended", ended),
            ]);
        }
        if !self.webhook.is_empty() {
            let failed = self.kinds().map(|kind| kind.failed.len()).sum();
            bars.extend([
                Bar::below(
                    "webhook: peak RSS above idle, MB",
                    "< 64",
                    64.0,
                    webhook(&above),
                ),
                Bar::below(
                    "webhook: longest honest review, ms",
                    "< 100",
                    100.0,
                    webhook(&|kind| kind.honest.spread().1),
                ),
                Bar::none("webhook: honest reviews without their patch", failed),
            ]);
        }
        bars
    }

    /// The bars that were missed, with what was measured and, of failures, the first reasons.
    pub(super) fn missed(&self) -> Vec<String> {
        let missed = self.bars().into_iter().filter(|bar| !bar.met);
        let missed =
            missed.map(|bar| format!("{}: {}, asked {}", bar.text, number(bar.worst), bar.asked));
        let of_attacks = self.registry.iter().flat_map(|round| {
            let made = round.attacks.iter().zip(FEWEST).zip(NAMES);
            made.filter(|((made, fewest), _)| *made < fewest).map(|((made, fewest), (name, _))| {
                format!("the machine is too busy: {name} was made {made} times, at least {fewest} were to be")
            })
        });
        let of_reviews = self.kinds().filter(|kind| kind.sent < REVIEWS).map(|kind| {
            format!(
                "the machine is too busy: {}: {} reviews, at least {REVIEWS} were to be",
                kind.name, kind.sent
            )
        });
        let busy: Vec<String> = of_attacks.chain(of_reviews).collect();
        let of_registry = self.registry.iter().flat_map(|round| &round.beside.failed);
        let of_webhook = self.kinds().flat_map(|kind| &kind.failed);
        let reasons = of_registry.take(5).chain(of_webhook.take(5)).cloned();
        missed.chain(busy).chain(reasons).collect()
    }

    /// The table of bars, as text for a terminal and for the document.
    pub(super) fn table(&self) -> String {
        let mut text =
            "| figure, worst round | asked | measured | |\n|---|---|---|---|\n".to_owned();
        for bar in self.bars() {
            let measured = if bar.worst.fract() == 0.0 {
                bar.worst.to_string()
            } else {
                number(bar.worst)
            };
            let met = if bar.met { "reached" } else { "missed" };
            writeln!(
                text,
                "| {} | {} | **{measured}** | {met} |",
                bar.text, bar.asked
            )
            .ok();
        }
        text
    }

    /// The section of the document.
    pub(super) fn section(&self) -> String {
        let seconds = self.registry.first().map_or(0.0, |round| round.seconds);
        let mut text = format!(
            "## Under attack\n\n\
             Written by `cargo xtask bench hostile`.\n\n\
             A registry replica gets eight attacks at the same time, {seconds:.0} s long, while honest clients\n\
             pull a local image ten times a second, pull an image that is not local yet each second, and\n\
             probe it twice a second. A webhook replica gets 64 hostile reviews of the largest size at a\n\
             time, while honest reviews come every 20 ms.\n\n\
             Machine: {}.\n\
             Attackers, honest clients and servers share it. Each round has a new process; a bar counts the\n\
             worst of {} rounds.\n\n\
             Again: `cargo xtask bench hostile` (some minutes), `--only registry` or `webhook`,\n\
             `--rounds N`, `--seconds N`, `--json FILE`, `--quick` (a smoke run whose figures mean nothing).\n\
             A missed bar ends it with an error.\n\n\
             ### Bars under attack\n\n{}\n",
            self.machine,
            self.registry.len(),
            self.table()
        );
        self.registry_figures(&mut text);
        self.webhook_figures(&mut text);
        text += HOW;
        text
    }

    fn registry_figures(&self, text: &mut String) {
        let cell = |figure: &dyn Fn(&Round) -> f64| {
            let series = Series(self.registry.iter().map(figure).collect());
            let (low, high) = series.spread();
            format!(
                "{} ({} – {})",
                number(series.median()),
                number(low),
                number(high)
            )
        };
        type Figure<'a> = &'a dyn Fn(&Round) -> f64;
        let rows: [(&str, Figure<'_>); 14] = [
            ("RSS before, MB", &|round| megabytes(round.idle_bytes)),
            ("peak RSS, MB", &|round| megabytes(round.peak_bytes)),
            ("local pull alone, median, ms", &|round| {
                round.alone.local.median()
            }),
            ("local pull alone, longest, ms", &|round| {
                round.alone.local.spread().1
            }),
            ("local pull under attack, median, ms", &|round| {
                round.beside.local.median()
            }),
            ("local pull under attack, longest, ms", &|round| {
                round.beside.local.spread().1
            }),
            ("cold pull alone, median, ms", &|round| {
                round.alone.cold.median()
            }),
            ("cold pull alone, longest, ms", &|round| {
                round.alone.cold.spread().1
            }),
            ("cold pull under attack, median, ms", &|round| {
                round.beside.cold.median()
            }),
            ("cold pull under attack, longest, ms", &|round| {
                round.beside.cold.spread().1
            }),
            ("probe under attack, longest, ms", &|round| {
                round.beside.probes.spread().1
            }),
            ("honest requests that failed", &|round| {
                round.beside.failed.len() as f64
            }),
            ("registry, share of one processor, %", &|round| {
                round.cpu_seconds / round.seconds * 100.0
            }),
            ("attackers, share of one processor, %", &|round| {
                round.attackers_cpu_seconds / round.seconds * 100.0
            }),
        ];
        *text += "### The registry under attack\n\n| figure | median (lowest – highest) of rounds |\n|---|---|\n";
        for (name, figure) in rows {
            writeln!(text, "| {name} | {} |", cell(figure)).ok();
        }
        *text += "\nHow often each attack was made in a round:\n\n| attack | what is counted | median |\n|---|---|---|\n";
        for (at, (name, what)) in NAMES.iter().enumerate() {
            let made = self.registry.iter().map(|round| round.attacks[at] as f64);
            let made = Series(made.collect()).median();
            writeln!(text, "| `{name}` | {what} | {made:.0} |").ok();
        }
    }

    fn webhook_figures(&self, text: &mut String) {
        *text += "\n### The webhook under attack\n\n\
            Worst of the rounds; a share is of one processor.\n\n\
            | reviews of the largest size | peak RSS above idle, MB | honest reviews: median, longest, ms | webhook, senders, % | sent |\n\
            |---|---|---|---|---|\n";
        let Some(first) = self.webhook.first() else {
            return;
        };
        for (at, kind) in first.iter().enumerate() {
            let rounds: Vec<&Kind> = self.webhook.iter().filter_map(|it| it.get(at)).collect();
            let worst = |figure: &dyn Fn(&Kind) -> f64| {
                let values = rounds.iter().map(|kind| figure(kind)).collect();
                number(Series(values).spread().1)
            };
            let seconds = |kind: &Kind| kind.seconds * 1e-2;
            writeln!(
                text,
                "| {} | {} | {}, {} | {}, {} | {} |",
                kind.name,
                worst(&above),
                worst(&|kind| kind.honest.median()),
                worst(&|kind| kind.honest.spread().1),
                worst(&|kind| kind.cpu_seconds / seconds(kind)),
                worst(&|kind| kind.senders_cpu_seconds / seconds(kind)),
                rounds.iter().map(|kind| kind.sent).min().unwrap_or(0),
            )
            .ok();
        }
    }
}

const HOW: &str = "
### How the attacks run

- Registry: `holdfast registry --config FILE --data DIR --listen 127.0.0.1:PORT`, release build,
  TLS, users with bcrypt of cost 10, anonymous pulls, an admin port, all limits as by default. Its
  upstreams are the healthy one and three hostile ones.
- Honest clients log in, and each pull is a connection of its own: handshake, manifest,
  configuration, a layer of 64 KiB. A hostile upstream offers layers of eight of the cold images,
  too. It sends them slowly and is asked first.
- Webhook: release build, with the chart's configuration and a real kube-apiserver, which takes the
  Artifacts: `holdfast webhook --config FILE --tls-folder DIR --listen ADDRESS --admin-listen
  ADDRESS`.
- Attackers run on one thread with the lowest priority, because on a machine of their own they
  would take no processor time of the server's. They come from four addresses of the loopback
  network, honest clients from another one.
- RSS is `VmHWM` and `VmRSS` by `/proc`, and MB are 10^6 bytes.
";

/// A round of the registry in one line, and the steps of its slowest pulls.
pub(super) fn line(round: &Round) -> String {
    let (alone, beside) = (&round.alone, &round.beside);
    format!(
        "{:.0} MB at most ({:.0} before); local pulls {:.1} ms alone, {:.1} under attack, longest {:.1}; cold pulls {:.1} ms alone, {:.1}, longest {:.1}; longest probe {:.1} ms; {} failed; CPU {:.0} %, attackers {:.0} %; attacks {:?}\nslowest: {}",
        megabytes(round.peak_bytes),
        megabytes(round.idle_bytes),
        alone.local.median(),
        beside.local.median(),
        beside.local.spread().1,
        alone.cold.median(),
        beside.cold.median(),
        beside.cold.spread().1,
        beside.probes.spread().1,
        beside.failed.len(),
        round.cpu_seconds / round.seconds * 100.0,
        round.attackers_cpu_seconds / round.seconds * 100.0,
        round.attacks,
        beside.slowest.join("\nslowest: "),
    )
}

/// A kind of hostile reviews in one line.
pub(super) fn kind_line(kind: &Kind) -> String {
    format!(
        "{}, {} times: {:.1} MB above {:.1} idle; honest reviews {:.1} ms, longest {:.1}; {} failed",
        kind.name,
        kind.sent,
        above(kind),
        megabytes(kind.idle_bytes),
        kind.honest.median(),
        kind.honest.spread().1,
        kind.failed.len()
    )
}
