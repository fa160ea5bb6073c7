//! `cargo xtask generate`: the files that the code writes.

use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, bail};

use crate::{contract, run};

/// The page that has the help of every command.
const COMMANDS: &str = "docs/reference/cli.md";

/// Writes (or with `check` compares) every generated file of the repository.
///
/// # Errors
/// When a file cannot be made, or with `check` when one differs.
pub(crate) fn run(check: bool) -> anyhow::Result<()> {
    let root = run::root();
    let programs = run::build(
        "building the generators",
        &["holdfast-codegen", "holdfast"],
        "dev",
    )?;
    let schema = schema(&programs, check);
    let commands = commands(&root, &programs, check);
    schema.and(commands).and(contract::generate(&root, check))
}

fn schema(programs: &Path, check: bool) -> anyhow::Result<()> {
    let mut schema = Command::new(programs.join("holdfast-codegen"));
    schema.current_dir(run::root()).arg("generate");
    if check {
        schema.arg("--check");
    }
    run::status("generate: schema and chart", schema)
}

fn commands(root: &Path, programs: &Path, check: bool) -> anyhow::Result<()> {
    let mut reference = Command::new(programs.join("holdfast"));
    reference.args(["docs", "reference"]);
    let text = run::output("generate: reference of the commands", reference)?;
    write(root, check, COMMANDS, &text)
}

/// Writes one generated file, or compares it.
///
/// # Errors
/// When it cannot be written, or with `check` when it differs.
pub(crate) fn write(root: &Path, check: bool, file: &str, content: &str) -> anyhow::Result<()> {
    let path = root.join(file);
    if check {
        if std::fs::read_to_string(&path).unwrap_or_default() != content {
            bail!("{file} is out of step: run `cargo xtask generate`");
        }
        return Ok(());
    }
    std::fs::write(&path, content).with_context(|| format!("write {file}"))
}
