//! How a document reads: its columns, the paths that it names, and the length of the README.

use std::path::Path;

use super::Finding;
use super::files::files_with;

/// Columns a document may have.
const MAX_COLUMNS: usize = 100;
/// The document that people read first.
const README: &str = "README.md";
/// Words that it may have, as `wc -w` counts them.
const MAX_README_WORDS: usize = 1000;
/// Folders whose files documents name by their path from the repository's root.
const ROOTS: [&str; 7] = [
    "services/",
    "docs/",
    "xtask/",
    "e2e/",
    "fuzz/",
    "chart/",
    ".ci/",
];
/// Documents that a program writes with long cells.
const GENERATED: [&str; 2] = ["docs/API.md", "docs/reference/values.md"];
/// Documents whose tables are figures that a program writes.
const FIGURES: [&str; 1] = ["docs/BENCHMARKS.md"];

/// Every Markdown file of the repository, as paths from its root, sorted.
///
/// # Errors
/// When a folder cannot be read.
pub(super) fn markdown_files(root: &Path) -> anyhow::Result<Vec<String>> {
    files_with(root, &[""], &["md"])
}

/// Checks one document. `exists` tells whether a path from the repository's root is there.
pub(super) fn check(path: &str, text: &str, exists: impl Fn(&str) -> bool) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut found = |message: String| findings.push(Finding::new(path, message));
    let words = text.split_whitespace().count();
    if path == README && words > MAX_README_WORDS {
        found(format!("{words} words; {MAX_README_WORDS} are the limit"));
    }
    for (number, line) in text.lines().enumerate() {
        let number = number + 1;
        let columns = line.chars().count();
        let is_exempt = GENERATED.contains(&path)
            || (FIGURES.contains(&path) && line.starts_with('|'))
            || is_one_word(line);
        if columns > MAX_COLUMNS && !is_exempt {
            found(format!(
                "line {number}: {columns} columns; {MAX_COLUMNS} are the limit"
            ));
        }
        let named = paths(line).chain(links(path, line));
        for named in named.filter(|named| !exists(named)) {
            found(format!("line {number}: there is no {named}"));
        }
    }
    findings
}

/// Whether a line is one word, a URL for example.
fn is_one_word(line: &str) -> bool {
    !line.trim_start_matches(['-', '*', '>', ' ']).contains(' ')
}

/// The paths from the repository's root that a line names in backticks. A `{a,b}` stands for
/// several paths; a path with a placeholder, `services/*/tests` for example, is none.
fn paths(line: &str) -> impl Iterator<Item = String> {
    line.split('`')
        .skip(1)
        .step_by(2)
        .filter(|code| ROOTS.iter().any(|root| code.starts_with(root)))
        .filter(|code| !code.contains(['*', '…', ' ', '<', '$']) && !has_placeholder(code))
        .flat_map(alternatives)
        .map(|path| path.split([':', '#']).next().unwrap_or_default().to_owned())
}

/// Whether a part of a path is in capitals: a name that the reader fills in.
fn has_placeholder(path: &str) -> bool {
    let is_capital = |letter: char| letter.is_ascii_uppercase() || letter == '_';
    path.split('/')
        .any(|part| part.len() > 1 && part.chars().all(is_capital))
}

/// The files that a document's links lead to, as paths from the repository's root.
fn links<'a>(path: &'a str, line: &'a str) -> impl Iterator<Item = String> + 'a {
    line.split("](")
        .skip(1)
        .filter_map(|rest| rest.split_once(')'))
        .map(|(target, _)| target.split('#').next().unwrap_or_default())
        .filter(|target| !target.is_empty() && !target.contains("://"))
        .map(|target| resolved(path, target))
}

/// A relative link of a document as a path from the repository's root.
fn resolved(document: &str, target: &str) -> String {
    let mut parts: Vec<&str> = document.split('/').collect();
    parts.pop();
    for part in target.split('/') {
        match part {
            "." | "" => {}
            ".." => {
                parts.pop();
            }
            part => parts.push(part),
        }
    }
    parts.join("/")
}

fn alternatives(path: &str) -> Vec<String> {
    let Some((before, rest)) = path.split_once('{') else {
        return vec![path.to_owned()];
    };
    let Some((names, after)) = rest.split_once('}') else {
        return vec![path.to_owned()];
    };
    names
        .split(',')
        .map(|name| format!("{before}{}{after}", name.trim()))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn messages(text: &str) -> Vec<String> {
        let findings = check("docs/a.md", text, |path| path == "services/a.rs");
        findings
            .into_iter()
            .map(|finding| finding.message)
            .collect()
    }

    #[test]
    fn a_line_has_so_many_columns_and_no_more() {
        let at_limit = format!("a {}", "…".repeat(98));
        assert_eq!(messages(&at_limit), [""; 0]);
        assert_eq!(
            messages(&format!("{at_limit}…")),
            ["line 1: 101 columns; 100 are the limit"]
        );
        let row = format!("| {at_limit} |");
        assert_eq!(check("docs/BENCHMARKS.md", &row, |_| true), []);
        assert_eq!(messages(&row).len(), 1);
        let url = format!("- <https://example.org/{}>", "a".repeat(100));
        assert_eq!(messages(&url), [""; 0]);
    }

    #[test]
    fn the_readme_has_a_thousand_words_at_most() {
        let words = |count: usize| "a *b*\n".repeat(count / 2);
        assert_eq!(check("README.md", &words(1000), |_| true), []);
        let finding = Finding::new("README.md", "1002 words; 1000 are the limit");
        assert_eq!(check("README.md", &words(1002), |_| true), [finding]);
        assert_eq!(check("docs/README.md", &words(1002), |_| true), []);
    }

    #[test]
    fn a_path_that_is_named_exists() {
        for (text, expect) in [
            ("See `services/a.rs`.", &[][..]),
            ("See `services/a.rs:12`.", &[]),
            (
                "See `services/b.rs`.",
                &["line 1: there is no services/b.rs"],
            ),
            (
                "See `services/{a,c}.rs`.",
                &["line 1: there is no services/c.rs"],
            ),
            (
                "See [a](../services/a.rs#b), [b](https://example.org/b).",
                &[],
            ),
            ("See [c](c.md#d).", &["line 1: there is no docs/c.md"]),
            ("See `services/*/tests` and `services/PART/src`.", &[]),
            ("No path: services/b.rs, `other/b.rs`.", &[]),
        ] {
            assert_eq!(messages(text), expect, "{text}");
        }
    }
}
