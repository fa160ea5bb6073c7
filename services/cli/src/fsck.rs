//! `holdfast fsck`: what of a volume is damaged, what that means, and the repairs of which only one
//! is possible.
#![allow(clippy::print_stdout, reason = "what a command prints is its result")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use anyhow::Context as _;
use holdfast_store::check::{
    self, Depth, Finding, Inventory, Kind, Outcome, Policy, Progress, Totals,
};
use holdfast_store::volume::Disk;
use serde::Serialize;

use crate::exit_status::{self, Answer};
use crate::terminal;

/// Between the two looks that must agree: longer than any write takes from its first file to its
/// last.
const PAUSE: Duration = Duration::from_secs(2);

/// Arguments of `fsck`.
#[derive(clap::Args)]
#[command(
    after_help = "Exit status: 0 nothing is wrong (or everything was mended), 1 there are findings, 2 the check could not run.\n\
Works beside running registries: what is younger than an hour may be under way and is no finding."
)]
pub struct Args {
    /// The registry's data folder (distribution's rootdirectory)
    #[arg(long, value_name = "DIR")]
    data: PathBuf,
    /// Mends what has one certain answer and moves damaged content to the quarantine; without it
    /// nothing is changed
    #[arg(long)]
    repair: bool,
    /// Hashes every blob, not only manifests and what has a wrong size
    #[arg(long)]
    deep: bool,
    /// Writes totals and findings as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// What `--json` gets.
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
    /// What mends it; null where no single answer is certain.
    repair: Option<String>,
    /// `mended`, `healed` (nothing was left to do) or what went wrong; null without `--repair`.
    outcome: Option<String>,
}

impl Entry {
    fn is_over(&self) -> bool {
        matches!(self.outcome.as_deref(), Some("mended" | "healed"))
    }

    fn is_given_back(&self) -> bool {
        self.kind == Kind::SoundInQuarantine.as_str() && self.is_over()
    }
}

/// Checks the volume and says what is wrong with it.
pub(crate) fn run(args: &Args) -> ExitCode {
    exit_status::end(check(args).map(Answer::from))
}

/// Whether nothing is left that is wrong.
fn check(args: &Args) -> anyhow::Result<bool> {
    let (totals, mut entries) = round(args)?;
    // What lies behind content that was missing could not be judged before it was given back.
    if entries.iter().any(Entry::is_given_back) {
        entries.retain(Entry::is_over);
        entries.extend(round(args)?.1);
    }
    print(&args.data, &totals, &entries, args.repair);
    let clean = entries.iter().all(Entry::is_over);
    if let Some(path) = &args.json {
        let report = Report {
            data: &args.data,
            deep: args.deep,
            totals,
            findings: entries,
        };
        terminal::write_json(path, &report)?;
    }
    Ok(clean)
}

/// Looks at the volume, and mends what was found if that is wanted.
fn round(args: &Args) -> anyhow::Result<(Totals, Vec<Entry>)> {
    let depth = if args.deep { Depth::Deep } else { Depth::Quick };
    let inventory = look(&args.data, &depth)?;
    let mut findings = check::plan(&inventory, &Policy::default());
    if !findings.is_empty() {
        // What changes between two looks is somebody's work and no damage.
        std::thread::sleep(PAUSE);
        let again = look(&args.data, &Depth::Only(inventory.wrong()))?;
        findings = check::confirm(findings, &check::plan(&again, &Policy::default()));
    }
    let entries = findings
        .iter()
        .map(|finding| entry(finding, args.repair.then_some(args.data.as_path())))
        .collect();
    Ok((inventory.totals(), entries))
}

fn look(root: &Path, depth: &Depth) -> anyhow::Result<Inventory> {
    let line = terminal::spinner();
    let mut bar = None;
    let found = check::survey(
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
            "{} holds no registry: docker/registry/v2 is expected below it (distribution's rootdirectory)",
            root.display()
        )
    })
}

/// The finding as it is told; mended first if `root` says where.
fn entry(finding: &Finding, root: Option<&Path>) -> Entry {
    let outcome = match (root, &finding.repair) {
        (Some(root), Some(repair)) => Some(match check::repair(&Disk::at(root), root, repair) {
            Ok(Outcome::Mended) => "mended".to_owned(),
            Ok(Outcome::Healed) => "healed".to_owned(),
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

fn print(root: &Path, totals: &Totals, entries: &[Entry], repair: bool) {
    println!(
        "{}: {}, {}, {}, {} of {} ({} linked by no repository), {} hashed",
        root.display(),
        terminal::count(totals.repositories, "repository", "repositories"),
        terminal::count(totals.tags, "tag", "tags"),
        terminal::count(totals.manifests, "manifest", "manifests"),
        terminal::count(totals.blobs, "blob", "blobs"),
        terminal::size(totals.blob_bytes),
        terminal::size(totals.unlinked_bytes),
        terminal::size(totals.hashed_bytes),
    );
    if totals.pending > 0 {
        println!(
            "{} under way",
            terminal::count(totals.pending, "upload or copy", "uploads or copies")
        );
    }
    if totals.quarantined > 0 {
        println!(
            "{} in the quarantine, {}",
            terminal::count(totals.quarantined, "damaged blob", "damaged blobs"),
            terminal::size(totals.quarantined_bytes)
        );
    }
    if entries.is_empty() {
        println!("nothing is wrong");
        return;
    }
    for entry in entries {
        println!("\n{}  {}", entry.kind, entry.path.display());
        println!("    {}", entry.meaning);
        match (&entry.repair, &entry.outcome) {
            (Some(_), Some(outcome)) => println!("    {outcome}"),
            (Some(repair), None) => println!("    --repair {repair}"),
            (None, _) => {}
        }
    }
    println!("\n{}", table(entries));
    let over = entries.iter().filter(|entry| entry.is_over()).count();
    let mendable = entries
        .iter()
        .filter(|entry| entry.repair.is_some())
        .count();
    let all = terminal::count(entries.len() as u64, "finding", "findings");
    if repair {
        println!("{all}, {over} mended");
    } else {
        println!("{all}; --repair mends {mendable}");
    }
}

/// Findings by kind, harmful ones first.
fn table(entries: &[Entry]) -> String {
    let mut sums: BTreeMap<&str, (u64, u64)> = BTreeMap::new();
    for entry in entries {
        let sum = sums.entry(entry.kind).or_default();
        sum.0 += 1;
        sum.1 += u64::from(entry.repair.is_some());
    }
    let mut lines = vec![format!("{:<22}{:>8}{:>12}", "KIND", "FOUND", "MENDABLE")];
    for kind in Kind::ALL {
        if let Some((found, mendable)) = sums.get(kind.as_str()) {
            lines.push(format!("{kind:<22}{found:>8}{mendable:>12}"));
        }
    }
    lines.join("\n")
}
