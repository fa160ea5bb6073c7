//! docs/LIMITS.md: each bound has a row in the table of its section and an entry below it that
//! names the tests that drive it to its limit, and each constant of a `limits.rs` has a row.

use std::collections::{BTreeMap, BTreeSet};

use super::Finding;

/// The document.
pub(super) const DOCUMENT: &str = "docs/LIMITS.md";
/// The column of the tables that names a limit.
const KEY_COLUMN: &str = "key or constant";
/// Ends of the names of constants that bound nothing: how often something is looked at.
const INTERVALS: [&str; 2] = ["_EVERY", "_INTERVAL"];

/// Whether the public constants of a file are bounds.
pub(super) fn holds_constants(path: &str) -> bool {
    path.starts_with("services/") && path.ends_with("/src/limits.rs")
}

/// Checks every section of the document, and that each constant has a row. `constants` are the
/// texts of the files that hold them, by path.
pub(super) fn check(
    document: &str,
    constants: &BTreeMap<String, String>,
    tests: &BTreeSet<String>,
) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut found = |message: String| findings.push(Finding::new(DOCUMENT, message));
    let mut keys = BTreeSet::new();
    for section in document.split("\n## ").skip(1) {
        let title = section.lines().next().unwrap_or_default();
        let rows = rows(section);
        let entries = entries(section);
        if rows.is_empty() {
            found(format!("{title}: no table with the column `{KEY_COLUMN}`"));
        }
        for row in rows.iter().filter(|row| !entries.contains_key(**row)) {
            found(format!("{title}: {row} has a row and no entry"));
        }
        for (key, text) in &entries {
            if !rows.contains(key) {
                found(format!("{title}: {key} has an entry and no row"));
            }
            let names = names(text);
            if names.is_empty() {
                found(format!(
                    "{key}: no test; name the one that drives it to its limit"
                ));
            }
            for name in names.into_iter().filter(|name| !tests.contains(*name)) {
                found(format!("{key}: there is no test {name}"));
            }
        }
        keys.extend(rows);
    }
    for (path, text) in constants {
        for name in public_constants(text) {
            let is_interval = INTERVALS.iter().any(|end| name.ends_with(end));
            if !keys.contains(name) && !is_interval {
                found(format!("{name} of {path} has no row"));
            }
        }
    }
    findings
}

/// The limits that the tables of a section name.
fn rows(section: &str) -> Vec<&str> {
    let mut rows = Vec::new();
    let mut column = None;
    for line in section.lines() {
        if !line.starts_with('|') {
            column = None;
            continue;
        }
        let cells: Vec<&str> = line.split('|').map(str::trim).collect();
        match column {
            None => column = cells.iter().position(|cell| *cell == KEY_COLUMN),
            Some(column) => rows.extend(
                cells
                    .get(column)
                    .filter(|cell| !cell.starts_with("---"))
                    .map(|cell| cell.trim_matches('`')),
            ),
        }
    }
    rows
}

/// The entries of a section, `- KEY: text`, whose further lines are indented.
fn entries(section: &str) -> BTreeMap<&str, String> {
    let mut entries = BTreeMap::new();
    let mut current = None;
    for line in section.lines() {
        if let Some((key, text)) = line
            .strip_prefix("- ")
            .and_then(|entry| entry.split_once(": "))
        {
            let key = key.trim_matches('`');
            current = Some(key);
            entries.insert(key, text.to_owned());
        } else if let (Some(key), Some(text)) = (current, line.strip_prefix("  ")) {
            let entry = entries.entry(key).or_default();
            entry.push(' ');
            entry.push_str(text);
        } else {
            current = None;
        }
    }
    entries
}

/// The tests that an entry names: `Test: …` or `Tests: …, ….`, at its end.
fn names(entry: &str) -> Vec<&str> {
    entry
        .rsplit_once("Test: ")
        .or_else(|| entry.rsplit_once("Tests: "))
        .map_or("", |(_, names)| names)
        .trim_end_matches('.')
        .split(',')
        .map(|name| name.trim().trim_matches('`'))
        .filter(|name| !name.is_empty())
        .collect()
}

fn public_constants(text: &str) -> impl Iterator<Item = &str> {
    text.lines()
        .filter_map(|line| line.strip_prefix("pub const ")?.split(':').next())
}

/// The names of the tests in a file: functions below `#[test]` or `#[tokio::test]`.
pub(super) fn tests(text: &str) -> Vec<String> {
    let mut names = Vec::new();
    let mut is_test = false;
    for line in text.lines().map(str::trim) {
        if line.starts_with("#[test]") || line.starts_with("#[tokio::test") {
            is_test = true;
        } else if let Some(name) = function(line) {
            if is_test {
                names.push(name.to_owned());
            }
            is_test = false;
        }
    }
    names
}

fn function(line: &str) -> Option<&str> {
    let line = line.strip_prefix("async ").unwrap_or(line);
    line.strip_prefix("fn ")?.split(['(', '<']).next()
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: &str =
        "# Limits\n\n## Part\n\n| unit | key or constant | default |\n|---|---|---|\n";

    fn messages(rest: &str, constants: &str) -> Vec<String> {
        let tests = BTreeSet::from(["it_is_bounded".to_owned()]);
        let constants = BTreeMap::from([("limits.rs".to_owned(), constants.to_owned())]);
        let findings = check(&format!("{HEAD}{rest}\n\nText.\n"), &constants, &tests);
        findings
            .into_iter()
            .map(|finding| finding.message)
            .collect()
    }

    #[test]
    fn an_entry_names_tests_that_exist() {
        let no_test = "a: no test; name the one that drives it to its limit";
        for (entry, expect) in [
            ("- `a`: Things.\n  Test: `it_is_bounded`.", &[][..]),
            (
                "- `a`: Things.\n  Tests: `it_is_bounded`,\n  `it_is_bounded`.",
                &[],
            ),
            ("- `a`: Things.\n  Test: .", &[no_test]),
            ("- `a`: Things.", &[no_test]),
            (
                "- `a`: Things.\n  Test: `it_is`.",
                &["a: there is no test it_is"],
            ),
            (
                "- `a`: Things.\n  Tests: `it_is_bounded`, `it_is`.",
                &["a: there is no test it_is"],
            ),
        ] {
            let rest = format!("|  | `a` | 1 |\n\n{entry}");
            assert_eq!(messages(&rest, ""), expect, "{entry}");
        }
    }

    #[test]
    fn rows_and_entries_belong_together() {
        assert_eq!(
            messages("|  | `a` | 1 |", ""),
            ["Part: a has a row and no entry"]
        );
        let rest = "|  | `a` | 1 |\n\n- `a`: A.\n  Test: `it_is_bounded`.\n- `b`: B.\n  Test: \
            `it_is_bounded`.";
        assert_eq!(messages(rest, ""), ["Part: b has an entry and no row"]);
    }

    #[test]
    fn a_constant_has_a_row() {
        let rest = "|  | `A` | 1 |\n\n- `A`: A.\n  Test: `it_is_bounded`.";
        let constants = "/// A.\npub const A: usize = 1;\npub const B: u64 = 2;\nconst C: u8 = \
            1;\npub const D_INTERVAL: u8 = 1;\n";
        assert_eq!(messages(rest, constants), ["B of limits.rs has no row"]);
    }

    #[test]
    fn a_section_has_a_table() {
        let document = "# Limits\n\n## Part\n\n| a | b |\n|---|---|\n| c | d |\n";
        let findings = check(document, &BTreeMap::new(), &BTreeSet::new());
        assert_eq!(findings.len(), 1, "{findings:?}");
    }

    #[test]
    fn files_of_constants_are_told_from_others() {
        assert!(holds_constants("services/registry/src/limits.rs"));
        assert!(!holds_constants(
            "services/controller/src/artifacts/limits.rs"
        ));
        assert!(!holds_constants("xtask/src/lint/limits.rs"));
    }

    #[test]
    fn tests_are_told_from_other_functions() {
        let text = "fn a() {}\n#[test]\nfn b() {\n    fn c() {}\n}\n#[tokio::test(flavor = \"x\")]\n#[expect(x)]\nasync fn d() {}\n";
        assert_eq!(tests(text), ["b", "d"]);
    }
}
