//! docs/CONTRACT.md: each MUST line in our own words (`contract/lines.txt`), with the tests that
//! show it.
//!
//! A test names its lines in a comment directly above its attributes, `// SPEC 5, SPEC 45`; the
//! path of its file decides the level.

mod scan;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;

use anyhow::{Context, bail};

use crate::lint::rust_files;
use scan::{Level, Shown};

const LINES: &str = include_str!("contract/lines.txt");
const DOCUMENT: &str = "docs/CONTRACT.md";
/// The first MUST line that belongs to the connected registry.
const CONNECTED: u32 = 46;

/// Writes the document, or compares it.
///
/// # Errors
/// When a test names a line that does not exist, or with `check` when the document is out of step.
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
    let document = render(&lines, &shown);
    let path = root.join(DOCUMENT);
    if check {
        if std::fs::read_to_string(&path).unwrap_or_default() != document {
            bail!("{DOCUMENT} is out of step: run `cargo xtask generate`");
        }
        return Ok(());
    }
    std::fs::write(&path, document).with_context(|| format!("write {DOCUMENT}"))
}

/// Reads `NUMBER text` lines.
fn parse(text: &str) -> anyhow::Result<BTreeMap<u32, &str>> {
    text.lines()
        .map(|line| {
            let (number, text) = line
                .split_once(' ')
                .with_context(|| format!("contract line without text: {line}"))?;
            Ok((
                number
                    .parse()
                    .with_context(|| format!("contract line without number: {line}"))?,
                text.trim(),
            ))
        })
        .collect()
}

fn render(lines: &BTreeMap<u32, &str>, shown: &[Shown]) -> String {
    let mut text = String::from(
        "# Contract\n\nWritten by `cargo xtask generate`; do not edit. What Holdfast must do, line by line, and the tests that show it. A test names its\nlines in a comment above it (`// SPEC 5, SPEC 45`). Levels: *unit* (a function), *in process* (a real listener or the whole part), *cluster*\n(a real API server, kubelets and containerd: `cargo xtask e2e`).\n\n",
    );
    let missing: Vec<u32> = lines
        .keys()
        .copied()
        .filter(|line| !shown.iter().any(|shown| shown.line == *line))
        .collect();
    let cluster = lines
        .keys()
        .filter(|line| {
            shown
                .iter()
                .any(|shown| shown.line == **line && shown.level == Level::Cluster)
        })
        .count();
    line(
        &mut text,
        &format!(
            "{} of {} lines are shown by at least one test, {cluster} of them on a cluster.\n",
            lines.len() - missing.len(),
            lines.len()
        ),
    );
    section(
        &mut text,
        "Cluster registry",
        lines.range(..CONNECTED),
        shown,
    );
    section(
        &mut text,
        "Connected registry",
        lines.range(CONNECTED..),
        shown,
    );
    line(&mut text, "\n## Lines that nothing shows yet\n");
    let missing: Vec<_> = missing.iter().map(u32::to_string).collect();
    line(&mut text, if missing.is_empty() { "None." } else { "" });
    line(&mut text, &missing.join(", "));
    text.trim_end().to_owned() + "\n"
}

fn section<'a>(
    text: &mut String,
    title: &str,
    lines: impl Iterator<Item = (&'a u32, &'a &'a str)>,
    shown: &[Shown],
) {
    line(
        text,
        &format!("\n## {title}\n\n| | line | unit | in process | cluster |\n|---|---|---|---|---|"),
    );
    for (number, words) in lines {
        let cell = |level: Level| {
            let mut tests: Vec<_> = shown
                .iter()
                .filter(|shown| shown.line == *number && shown.level == level)
                .map(|shown| format!("`{}`", shown.test))
                .collect();
            tests.sort();
            tests.dedup();
            tests.join(" ")
        };
        line(
            text,
            &format!(
                "| {number} | {words} | {} | {} | {} |",
                cell(Level::Unit),
                cell(Level::InProcess),
                cell(Level::Cluster)
            ),
        );
    }
}

fn line(text: &mut String, line: &str) {
    writeln!(text, "{line}").expect("writing to a String cannot fail");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_lines_of_the_contract_are_there() {
        let lines = parse(LINES).expect("parses");
        assert_eq!(
            lines.keys().copied().collect::<Vec<_>>(),
            (1..=82).collect::<Vec<_>>()
        );
    }

    #[test]
    fn a_line_that_nothing_shows_is_listed() {
        let lines = parse("1 One.\n2 Two.").expect("parses");
        let shown = [Shown {
            line: 1,
            test: "a".to_owned(),
            path: "x.rs".to_owned(),
            level: Level::Unit,
        }];
        let text = render(&lines, &shown);
        assert!(text.contains("| 1 | One. | `a` |  |  |"), "{text}");
        assert!(text.ends_with("nothing shows yet\n\n\n2\n"), "{text}");
    }
}
