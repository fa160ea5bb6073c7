//! `cargo xtask generate`: the files that the code writes.

use std::path::Path;
use std::process::Command;

use crate::generated::write;
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
    let tests = contract::generate(&root, check);
    schema.and(commands).and(tests)
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
