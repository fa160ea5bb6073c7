//! `cargo xtask lint`: what the compiler and clippy do not say. Each rule is a pure function over
//! `cargo metadata` or over a file's text; this module gathers the input and prints what they
//! found.

mod dependencies;
mod directions;
mod documents;
mod files;
mod impls;
mod language;
mod limits;

pub(crate) use files::rust_files;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;

use anyhow::{Context, bail};
use serde::Serialize;

use crate::{programs, report, run};

/// One thing that breaks a rule, and where.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct Finding {
    /// A crate's name or a file's path in the repository.
    place: String,
    message: String,
}

impl Finding {
    fn new(place: impl Into<String>, message: impl Into<String>) -> Self {
        Self {
            place: place.into(),
            message: message.into(),
        }
    }
}

/// Runs every rule; prints one line a finding.
///
/// # Errors
/// When a rule is broken, or the repository cannot be read.
pub(crate) fn run(json: Option<&Path>) -> anyhow::Result<()> {
    let root = run::root();
    let metadata = run::output(
        "cargo metadata",
        run::cargo(&["metadata", "--format-version", "1", "--no-deps"]),
    )?;
    let metadata = serde_json::from_str(&metadata).context("read cargo metadata")?;
    let mut findings = directions::check(&metadata);
    let read = |path: &str| {
        std::fs::read_to_string(root.join(path)).with_context(|| format!("read {path}"))
    };
    let mut tests = BTreeSet::new();
    let mut constants = BTreeMap::new();
    let mut sources = BTreeMap::new();
    let mut impls = impls::Impls::default();
    for path in rust_files(&root)? {
        let text = read(&path)?;
        findings.extend(files::check(&path, &text));
        findings.extend(language::check(&path, &text));
        impls.add(&path, &text);
        tests.extend(limits::tests(&text));
        if limits::holds_constants(&path) {
            constants.insert(path.clone(), text.clone());
        }
        sources.insert(root.join(path), text);
    }
    findings.extend(impls.check());
    for path in documents::markdown_files(&root)? {
        let text = read(&path)?;
        findings.extend(documents::check(&path, &text, |named| {
            root.join(named).exists()
        }));
        findings.extend(language::prose(&path, &text));
    }
    for path in files::templates(&root)? {
        let text = read(&path)?;
        findings.extend(files::check_template(&path, &text));
        findings.extend(language::prose(&path, &text));
    }
    let manifest = read("Cargo.toml")?;
    findings.extend(dependencies::check(&metadata, &manifest, &sources));
    let limits = read(limits::DOCUMENT)?;
    findings.extend(limits::check(&limits, &constants, &tests));
    report::write(json, &findings)?;
    for finding in &findings {
        println!("lint: {}: {}", finding.place, finding.message);
    }
    let dependencies = dependency_policy();
    if !findings.is_empty() {
        bail!("lint: {} finding(s)", findings.len());
    }
    dependencies
}

/// Licences, bans, duplicates and sources by deny.toml. Advisories need a database that not every
/// machine reaches.
fn dependency_policy() -> anyhow::Result<()> {
    let mut check = Command::new(programs::cargo_deny()?);
    check
        .args(["--log-level", "error", "check"])
        .args(["bans", "licenses", "sources"])
        .current_dir(run::root());
    run::status("cargo deny", check)
}
