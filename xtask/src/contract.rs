//! docs/CONTRACT.md: each MUST line in our own words (`contract/lines.txt`) with how many tests
//! show it, and docs/contract.json with the names of all of them.
//!
//! A test names its lines in a comment directly above its attributes, `// SPEC 5, SPEC 45`; the
//! path of its file decides the level.

mod render;
mod scan;

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, bail};

use crate::generated::write;
use crate::lint::rust_files;

const LINES: &str = include_str!("contract/lines.txt");
const DOCUMENT: &str = "docs/CONTRACT.md";
const TESTS: &str = "docs/contract.json";

/// Writes both files, or compares them.
///
/// # Errors
/// When a test names a line that does not exist, or with `check` when a file is out of step.
pub(crate) fn generate(root: &Path, check: bool) -> anyhow::Result<()> {
    let lines = parse(LINES)?;
    let mut shown = Vec::new();
    for path in rust_files(root)? {
        let text =
            std::fs::read_to_string(root.join(&path)).with_context(|| format!("read {path}"))?;
        shown.extend(scan::file(&path, &text)?);
    }
    let unknown: Vec<_> = shown
        .iter()
        .filter(|shown| !lines.contains_key(&shown.line))
        .collect();
    if let Some(first) = unknown.first() {
        bail!(
            "{}: {} names SPEC {}, which does not exist ({} such)",
            first.path,
            first.test,
            first.line,
            unknown.len()
        );
    }
    write(root, check, DOCUMENT, &render::document(&lines, &shown))?;
    write(root, check, TESTS, &render::tests(&lines, &shown)?)
}

/// Reads `NUMBER text` lines. A line that begins with a blank goes on with the text before it.
fn parse(text: &str) -> anyhow::Result<BTreeMap<u32, String>> {
    text.replace("\n ", " ")
        .lines()
        .map(|line| {
            let (number, text) = line
                .split_once(' ')
                .with_context(|| format!("contract line without text: {line}"))?;
            let number = number
                .parse()
                .with_context(|| format!("contract line without number: {line}"))?;
            Ok((number, text.trim().to_owned()))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_lines_of_the_contract_are_there() {
        let lines = parse(LINES).expect("parses");
        assert_eq!(
            lines.keys().copied().collect::<Vec<_>>(),
            (1..=93).collect::<Vec<_>>()
        );
    }
}
