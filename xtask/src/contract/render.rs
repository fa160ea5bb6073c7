//! The contract as a page for people and as JSON for programs.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use anyhow::Context;
use serde_json::json;

use super::scan::{Level, Shown};

/// Columns of the page.
const COLUMNS: usize = 100;
/// The first line of each section.
const SECTIONS: [(u32, &str); 3] = [
    (1, "Cluster registry"),
    (46, "Connected registry"),
    (83, "Both, and delivery"),
];
const LEVELS: [Level; 3] = [Level::Unit, Level::InProcess, Level::Cluster];

const HEAD: &str = "# Contract

`cargo xtask generate` writes this page and [contract.json](contract.json); do not edit them.

The page lists what Holdfast must do. `SPEC n` in code, tests and documents is line `n` of this
page. A test names the lines that it shows in a comment above it (`// SPEC 5, SPEC 45`). Below each
line are the number of its tests at each level and one example; contract.json names all of them.

| level | what the test starts |
|---|---|
| unit | a function or a module |
| in process | a real listener or a whole part |
| cluster | a real API server, kubelets and containerd (`cargo xtask e2e`) |

";

/// The page.
pub(super) fn document(lines: &BTreeMap<u32, String>, shown: &[Shown]) -> String {
    let mut page = String::from(HEAD);
    let missing: Vec<String> = lines
        .keys()
        .filter(|line| {
            LEVELS
                .iter()
                .all(|level| names(shown, **line, *level).is_empty())
        })
        .map(u32::to_string)
        .collect();
    let on_cluster = lines
        .keys()
        .filter(|line| !names(shown, **line, Level::Cluster).is_empty())
        .count();
    let summary = format!(
        "At least one test shows {} of {} lines; {on_cluster} of them are shown on a cluster.",
        lines.len() - missing.len(),
        lines.len()
    );
    paragraph(&mut page, "", &summary);
    for (number, text) in lines {
        if let Some((_, title)) = SECTIONS.iter().find(|(first, _)| first == number) {
            write(&mut page, &format!("\n## {title}\n\n"));
        }
        paragraph(&mut page, "    ", &format!("{number}. {text}"));
        paragraph(
            &mut page,
            "    ",
            &format!("    {}", summary_of(shown, *number)),
        );
    }
    write(&mut page, "\n## Lines that no test shows yet\n\n");
    let missing = if missing.is_empty() {
        "None".to_owned()
    } else {
        missing.join(", ")
    };
    paragraph(&mut page, "", &format!("{missing}."));
    page
}

/// How many tests of each level show a line, and one of the highest level.
fn summary_of(shown: &[Shown], line: u32) -> String {
    let mut counts = Vec::new();
    let mut example = None;
    for level in LEVELS {
        let names = names(shown, line, level);
        if let Some(first) = names.first() {
            counts.push(format!("{} {}", names.len(), level.label()));
            example = Some(*first);
        }
    }
    match example {
        Some(example) => format!("*{}*: `{example}`", counts.join(", ")),
        None => "*no test yet*".to_owned(),
    }
}

/// Every line with the names of its tests.
pub(super) fn tests(lines: &BTreeMap<u32, String>, shown: &[Shown]) -> anyhow::Result<String> {
    let lines: Vec<_> = lines
        .iter()
        .map(|(number, text)| {
            let tests: serde_json::Map<_, _> = LEVELS
                .iter()
                .map(|level| {
                    let names = names(shown, *number, *level);
                    (level.label().to_owned(), json!(names))
                })
                .collect();
            json!({ "line": number, "text": text, "tests": tests })
        })
        .collect();
    let text = serde_json::to_string_pretty(&lines).context("write JSON")?;
    Ok(text + "\n")
}

/// The names of the tests that show a line at a level, sorted.
fn names(shown: &[Shown], line: u32, level: Level) -> Vec<&str> {
    let names: BTreeSet<&str> = shown
        .iter()
        .filter(|shown| shown.line == line && shown.level == level)
        .map(|shown| shown.test.as_str())
        .collect();
    names.into_iter().collect()
}

/// Appends text in lines of at most [`COLUMNS`]; lines after the first begin with `indent`.
fn paragraph(page: &mut String, indent: &str, text: &str) {
    let mut line = " ".repeat(text.len() - text.trim_start().len());
    let mut is_empty = true;
    for word in text.split_whitespace() {
        if !is_empty && line.chars().count() + 1 + word.chars().count() > COLUMNS {
            write(page, &format!("{line}\n"));
            indent.clone_into(&mut line);
            is_empty = true;
        }
        if !is_empty {
            line.push(' ');
        }
        line.push_str(word);
        is_empty = false;
    }
    write(page, &format!("{line}\n"));
}

fn write(page: &mut String, text: &str) {
    page.write_str(text)
        .expect("writing to a String cannot fail");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one_of_two() -> (BTreeMap<u32, String>, Vec<Shown>) {
        let lines = BTreeMap::from([(1, "One.".to_owned()), (2, "Two.".to_owned())]);
        let shown = ["b", "a"].map(|test| Shown {
            line: 1,
            test: test.to_owned(),
            path: "x.rs".to_owned(),
            level: Level::Unit,
        });
        (lines, shown.into())
    }

    #[test]
    fn a_line_has_the_number_of_its_tests_and_an_example() {
        let (lines, shown) = one_of_two();
        let page = document(&lines, &shown);
        assert!(page.contains("\n1. One.\n    *2 unit*: `a`\n"), "{page}");
    }

    #[test]
    fn a_line_that_nothing_shows_is_listed() {
        let (lines, shown) = one_of_two();
        let page = document(&lines, &shown);
        assert!(page.contains("\n2. Two.\n    *no test yet*\n"), "{page}");
        assert!(page.ends_with("no test shows yet\n\n2.\n"), "{page}");
    }

    #[test]
    fn the_list_names_every_test_of_a_line() {
        let (lines, shown) = one_of_two();
        let list = tests(&lines, &shown).expect("renders");
        let list: serde_json::Value = serde_json::from_str(&list).expect("parses");
        assert_eq!(list[0]["tests"]["unit"], json!(["a", "b"]));
        assert_eq!(list[1]["tests"]["cluster"], json!([]));
    }

    #[test]
    fn long_lines_are_wrapped() {
        let mut page = String::new();
        paragraph(&mut page, "  ", &"word ".repeat(30));
        assert_eq!(page.lines().count(), 2, "{page}");
        assert!(page.lines().all(|line| line.len() <= COLUMNS), "{page}");
        assert!(page.lines().nth(1).unwrap().starts_with("  word"), "{page}");
    }
}
