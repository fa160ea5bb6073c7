//! docs/LIMITS.md: each bound names the tests that drive it to its limit, and each constant of the
//! registry's bounds has a row.

use std::collections::BTreeSet;

use super::Finding;

/// The document.
pub(super) const DOCUMENT: &str = "docs/LIMITS.md";
/// The file whose public constants are bounds.
pub(super) const CONSTANTS: &str = "services/registry/src/limits.rs";
/// Constants of that file that bound nothing: how often something is looked at.
const INTERVALS: [&str; 2] = ["VOLUME_EVERY", "HOLD_EVERY"];
/// Checks every row of every table of the document that has a column `test`, and that each constant
/// has a row.
pub(super) fn check(document: &str, constants: &str, tests: &BTreeSet<String>) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut found = |message: String| findings.push(Finding::new(DOCUMENT, message));
    let mut keys = BTreeSet::new();
    let mut columns: Option<(usize, usize)> = None;
    for line in document.lines() {
        let cells: Vec<&str> = line.split('|').map(str::trim).collect();
        if !line.starts_with('|') {
            columns = None;
            continue;
        }
        let Some((key, test)) = columns else {
            let column = |name| cells.iter().position(|cell| *cell == name);
            columns = column("key or constant").zip(column("test"));
            if columns.is_none() {
                found(format!(
                    "a table without the columns `key or constant` and `test`: {line}"
                ));
                columns = Some((usize::MAX, usize::MAX));
            }
            continue;
        };
        let (Some(key), Some(test)) = (cells.get(key), cells.get(test)) else {
            if key != usize::MAX {
                found(format!("a row without its columns: {line}"));
            }
            continue;
        };
        if key.starts_with("---") {
            continue;
        }
        let key = key.trim_matches('`');
        keys.insert(key.to_owned());
        let names: Vec<&str> = test
            .split(',')
            .map(|name| name.trim().trim_matches('`'))
            .filter(|name| !name.is_empty())
            .collect();
        if names.is_empty() {
            found(format!(
                "{key}: no test; name the one that drives it to its limit"
            ));
        }
        for name in names.into_iter().filter(|name| !tests.contains(*name)) {
            found(format!("{key}: there is no test {name}"));
        }
    }
    for name in public_constants(constants) {
        if !keys.contains(name) && !INTERVALS.contains(&name) {
            found(format!("{name} of {CONSTANTS} has no row"));
        }
    }
    findings
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

    const HEAD: &str = "| what | key or constant | default | test |\n|---|---|---|---|\n";

    fn messages(rows: &str, constants: &str) -> Vec<String> {
        let tests = BTreeSet::from(["it_is_bounded".to_owned()]);
        let document = format!("# Limits\n\n{HEAD}{rows}\n\nText.\n");
        let findings = check(&document, constants, &tests);
        findings
            .into_iter()
            .map(|finding| finding.message)
            .collect()
    }

    #[test]
    fn a_row_names_tests_that_exist() {
        for (rows, expect) in [
            ("| a | `a` | 1 | `it_is_bounded` |", &[][..]),
            ("| a | `a` | 1 | `it_is_bounded`, `it_is_bounded` |", &[]),
            (
                "| a | `a` | 1 | |",
                &["a: no test; name the one that drives it to its limit"],
            ),
            ("| a | `a` | 1 | `it_is` |", &["a: there is no test it_is"]),
            (
                "| a | `a` | 1 |",
                &["a: no test; name the one that drives it to its limit"],
            ),
            ("| a |", &["a row without its columns: | a |"]),
        ] {
            assert_eq!(messages(rows, ""), expect, "{rows}");
        }
    }

    #[test]
    fn a_constant_has_a_row() {
        let row = "| a | `A` | 1 | `it_is_bounded` |";
        let constants =
            "/// A.\npub const A: usize = 1;\npub const B: u64 = 2;\nconst C: u8 = 1;\n";
        let expect = format!("B of {CONSTANTS} has no row");
        assert_eq!(messages(row, constants), [expect]);
    }

    #[test]
    fn a_table_has_the_columns() {
        let findings = check("| a | b |\n|---|---|\n| c | d |\n", "", &BTreeSet::new());
        assert_eq!(findings.len(), 1, "{findings:?}");
    }

    #[test]
    fn tests_are_told_from_other_functions() {
        let text = "fn a() {}\n#[test]\nfn b() {\n    fn c() {}\n}\n#[tokio::test(flavor = \"x\")]\n#[expect(x)]\nasync fn d() {}\n";
        assert_eq!(tests(text), ["b", "d"]);
    }
}
