//! `holdfast fsck`: reports damage of a volume and its consequences, and makes the repairs that
//! have one possible result.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use anyhow::Context as _;
use holdfast_cli_kit::confirm::ConfirmArgs;
use holdfast_cli_kit::output::{Document, OutputArgs};
use holdfast_cli_kit::terminal;
use holdfast_store::survey::{Depth, Inventory, Progress, survey};
use holdfast_store::volume::Disk;
use holdfast_volume_tools::fsck::{self, Finding, Kind, Outcome, Policy, Totals};
use serde::Serialize;

/// Time between the two surveys that must agree: longer than any write takes from its first file
/// to its last.
const PAUSE: Duration = Duration::from_secs(2);

/// Most rounds of checks and repairs: a disk that reads different bytes each time must not cause an
/// endless loop.
const MAX_ROUNDS: usize = 5;

/// Arguments of `fsck`.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  holdfast fsck --data /var/lib/holdfast
  holdfast fsck --data /var/lib/holdfast --deep -o json
  holdfast fsck --data /var/lib/holdfast --repair --yes

Works beside running registries: files younger than an hour may belong to a running operation and \
are not reported.

Exit status: 0 nothing is wrong (or everything was repaired and nothing is missing), 1 there are \
findings, 2 the check could not run.")]
pub struct Args {
    /// Data folder of the registry (rootdirectory of distribution)
    #[arg(long, value_name = "DIR")]
    data: PathBuf,
    /// Repairs what has one possible content and moves damaged content to the quarantine; without
    /// it nothing is changed
    #[arg(long)]
    repair: bool,
    /// Hashes every blob, not only manifests and blobs of a wrong size
    #[arg(long)]
    deep: bool,
    #[command(flatten)]
    confirm: ConfirmArgs,
    #[command(flatten)]
    output: OutputArgs,
}

/// The data of the command.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Report<'a> {
    data: &'a Path,
    deep: bool,
    totals: Totals,
    findings: Vec<Entry>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Entry {
    kind: &'static str,
    path: PathBuf,
    repository: Option<String>,
    digest: Option<String>,
    meaning: String,
    /// The repair; null unless exactly one is certain.
    repair: Option<String>,
    /// `repaired`, `resolved` (nothing was left to do) or the error; null without `--repair`.
    outcome: Option<String>,
}

impl Entry {
    fn is_resolved(&self) -> bool {
        matches!(self.outcome.as_deref(), Some("repaired" | "resolved"))
    }

    /// Whether its repair moved content into the quarantine or out of it, which changes what else
    /// is found.
    fn moved_content(&self) -> bool {
        let kinds = [Kind::WrongContent, Kind::SoundInQuarantine];
        kinds.iter().any(|kind| kind.as_str() == self.kind) && self.is_resolved()
    }
}

/// Checks the volume and reports what is wrong with it.
pub(crate) fn run(args: &Args) -> ExitCode {
    args.output.apply();
    args.output.finish(check(args))
}

fn check(args: &Args) -> anyhow::Result<Document> {
    if args.repair {
        args.confirm.ask(&format!(
            "this repairs {} and moves damaged content to the quarantine",
            args.data.display()
        ))?;
    }
    let (mut totals, mut entries) = round(args)?;
    // Content in the quarantine is missing now, and content from there may refer to more content.
    let mut moved = entries.iter().any(Entry::moved_content);
    for _ in 1..MAX_ROUNDS {
        if !moved {
            break;
        }
        entries.retain(Entry::is_resolved);
        let next;
        (totals, next) = round(args)?;
        moved = next.iter().any(Entry::moved_content);
        entries.extend(next);
    }
    let text = render(&args.data, &totals, &entries, args.repair);
    let clean = entries.iter().all(Entry::is_resolved);
    let paths: Vec<String> = entries
        .iter()
        .map(|entry| entry.path.display().to_string())
        .collect();
    let report = Report {
        data: &args.data,
        deep: args.deep,
        totals,
        findings: entries,
    };
    Ok(Document::new("VolumeCheck", clean.into(), &report, text)?.with_names(paths))
}

/// Checks the volume, and repairs findings if asked.
fn round(args: &Args) -> anyhow::Result<(Totals, Vec<Entry>)> {
    let depth = if args.deep { Depth::Deep } else { Depth::Quick };
    let inventory = run_survey(&args.data, &depth)?;
    let mut findings = fsck::plan(&inventory, &Policy::default());
    if !findings.is_empty() {
        // What changes between two surveys is work in progress, not damage.
        std::thread::sleep(PAUSE);
        let again = run_survey(&args.data, &Depth::Only(inventory.wrong()))?;
        findings = fsck::confirm(findings, &fsck::plan(&again, &Policy::default()));
    }
    let entries = findings
        .iter()
        .map(|finding| entry(finding, args.repair.then_some(args.data.as_path())))
        .collect();
    Ok((Totals::of(&inventory), entries))
}

fn run_survey(root: &Path, depth: &Depth) -> anyhow::Result<Inventory> {
    let line = terminal::spinner();
    let mut bar = None;
    let found = survey(
        &Disk::at(root),
        root,
        SystemTime::now(),
        depth,
        &mut |progress| match progress {
            Progress::Repository(name) => {
                line.set_message(name.to_owned());
                line.tick();
            }
            Progress::Contents => {
                line.set_message("contents");
                line.tick();
            }
            Progress::Hashing { done, total } => {
                let bar = bar.get_or_insert_with(|| terminal::bytes(total));
                bar.set_length(total);
                bar.set_position(done);
            }
        },
    );
    line.finish_and_clear();
    if let Some(bar) = bar {
        bar.finish_and_clear();
    }
    found.with_context(|| {
        format!(
            "{} holds no registry: docker/registry/v2 is expected below it (distribution's \
             rootdirectory)",
            root.display()
        )
    })
}

/// Formats a finding; repairs it first if `root` is given.
fn entry(finding: &Finding, root: Option<&Path>) -> Entry {
    let outcome = match (root, &finding.repair) {
        (Some(root), Some(repair)) => Some(match fsck::repair(&Disk::at(root), root, repair) {
            Ok(Outcome::Repaired) => "repaired".to_owned(),
            Ok(Outcome::Resolved) => "resolved".to_owned(),
            Err(error) => format!("{:#}", anyhow::Error::new(error)),
        }),
        _ => None,
    };
    Entry {
        kind: finding.kind.as_str(),
        path: finding.path.clone(),
        repository: finding.repository.as_ref().map(ToString::to_string),
        digest: finding.digest.as_ref().map(ToString::to_string),
        meaning: finding.meaning.clone(),
        repair: finding.repair.as_ref().map(ToString::to_string),
        outcome,
    }
}

fn render(root: &Path, totals: &Totals, entries: &[Entry], repair: bool) -> String {
    let mut lines = vec![format!(
        "{}: {}, {}, {}, {} of {} ({} linked by no repository), {} hashed",
        root.display(),
        terminal::count(totals.repositories, "repository", "repositories"),
        terminal::count(totals.tags, "tag", "tags"),
        terminal::count(totals.manifests, "manifest", "manifests"),
        terminal::count(totals.blobs, "blob", "blobs"),
        terminal::size(totals.blob_bytes),
        terminal::size(totals.unlinked_bytes),
        terminal::size(totals.hashed_bytes),
    )];
    if totals.pending > 0 {
        let pending = terminal::count(totals.pending, "upload or copy", "uploads or copies");
        lines.push(format!("{pending} under way"));
    }
    if totals.quarantined > 0 {
        lines.push(format!(
            "{} in the quarantine, {}",
            terminal::count(totals.quarantined, "damaged blob", "damaged blobs"),
            terminal::size(totals.quarantined_bytes)
        ));
    }
    if entries.is_empty() {
        lines.push("nothing is wrong".to_owned());
        return lines.join("\n") + "\n";
    }
    for entry in entries {
        lines.push(format!("\n{}  {}", entry.kind, entry.path.display()));
        lines.push(format!("    {}", terminal::clean(&entry.meaning)));
        match (&entry.repair, &entry.outcome) {
            (Some(_), Some(outcome)) => lines.push(format!("    {}", terminal::clean(outcome))),
            (Some(repair), None) => lines.push(format!("    --repair {repair}")),
            (None, _) => {}
        }
    }
    lines.push(format!("\n{}", table(entries)));
    let resolved = entries.iter().filter(|entry| entry.is_resolved()).count();
    let repairable = entries
        .iter()
        .filter(|entry| entry.repair.is_some())
        .count();
    let all = terminal::count(entries.len() as u64, "finding", "findings");
    lines.push(if repair {
        format!("{all}, {resolved} repaired")
    } else {
        format!("{all}; --repair can repair {repairable}")
    });
    lines.join("\n") + "\n"
}

/// Findings by kind, harmful ones first.
fn table(entries: &[Entry]) -> String {
    let mut sums: BTreeMap<&str, (u64, u64)> = BTreeMap::new();
    for entry in entries {
        let sum = sums.entry(entry.kind).or_default();
        sum.0 += 1;
        sum.1 += u64::from(entry.repair.is_some());
    }
    let mut lines = vec![format!("{:<22}{:>8}{:>12}", "KIND", "FOUND", "REPAIRABLE")];
    for kind in Kind::ALL {
        if let Some((found, repairable)) = sums.get(kind.as_str()) {
            lines.push(format!("{kind:<22}{found:>8}{repairable:>12}"));
        }
    }
    lines.join("\n")
}
