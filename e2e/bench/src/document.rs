//! `docs/BENCHMARKS.md` as sections: a run replaces its own, whole, and leaves the others as they
//! are.

use std::{fs, path::Path};

use anyhow::{Context as _, Result};

/// Who writes a part of the document.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Section {
    /// `cargo xtask bench registry`.
    Registry,
    /// `cargo xtask bench controller`.
    Controller,
    /// `cargo xtask bench hostile`.
    Hostile,
    /// `cargo xtask bench admission`.
    Admission,
}

const HEAD: &str = "# Benchmarks\n\nEach section is written by its command, which leaves the other sections as they are.\n";

impl Section {
    /// In the order of the document.
    const ALL: [Self; 4] = [
        Self::Registry,
        Self::Controller,
        Self::Hostile,
        Self::Admission,
    ];

    const fn marks(self) -> (&'static str, &'static str) {
        match self {
            Self::Registry => ("<!-- registry -->\n", "<!-- end of registry -->\n"),
            Self::Controller => ("<!-- controller -->\n", "<!-- end of controller -->\n"),
            Self::Hostile => ("<!-- hostile -->\n", "<!-- end of hostile -->\n"),
            Self::Admission => ("<!-- admission -->\n", "<!-- end of admission -->\n"),
        }
    }

    /// What stands in the document between this section's marks.
    pub(crate) fn of(self, document: &str) -> Option<&str> {
        let (begin, end) = self.marks();
        let (_, rest) = document.split_once(begin)?;
        rest.split_once(end).map(|(text, _)| text)
    }

    /// The document with this text as the section.
    pub(crate) fn put(self, document: &str, text: &str) -> String {
        let mut made = HEAD.to_owned();
        for section in Self::ALL {
            let text = if section == self {
                Some(text)
            } else {
                section.of(document)
            };
            if let Some(text) = text {
                let (begin, end) = section.marks();
                made += "\n";
                made += begin;
                made += text;
                made += end;
            }
        }
        made
    }
}

/// Columns of a line of prose.
const COLUMNS: usize = 100;

/// Text whose lines have at most [`COLUMNS`], but for tables. What follows an item of a list is
/// indented below it.
fn wrapped(text: &str) -> String {
    let mut made = String::new();
    for line in text.lines() {
        let indent = if line.starts_with("- ") { "  " } else { "" };
        let mut columns = 0;
        let table = line.starts_with('|');
        for (number, word) in line.split(' ').enumerate() {
            let wide = word.chars().count();
            if number > 0 && !table && columns + 1 + wide > COLUMNS {
                made += "\n";
                made += indent;
                columns = indent.len();
            } else if number > 0 {
                made += " ";
                columns += 1;
            }
            made += word;
            columns += wide;
        }
        made += "\n";
    }
    made
}

/// Writes a section; `make` sees what stood there before.
pub(crate) fn rewrite(
    path: &Path,
    section: Section,
    make: impl FnOnce(Option<&str>) -> String,
) -> Result<()> {
    let before = fs::read_to_string(path).unwrap_or_default();
    let text = wrapped(&make(section.of(&before)));
    fs::write(path, section.put(&before, &text))
        .with_context(|| format!("write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_replaces_its_own_section_and_keeps_the_other() {
        let both = Section::Controller.put("", "c 1\n");
        assert_eq!(Section::Registry.of(&both), None);
        let both = Section::Registry.put(&both, "r 1\n<!-- a note -->\n");
        assert!(both.starts_with(HEAD));
        for (section, own, other) in [
            (Section::Registry, "r 2\n", Section::Controller),
            (Section::Controller, "c 2\n", Section::Registry),
        ] {
            let after = section.put(&both, own);
            assert_eq!(section.of(&after), Some(own));
            assert_eq!(other.of(&after), other.of(&both));
            assert_eq!(section.put(&after, section.of(&both).unwrap()), both);
        }
    }

    #[test]
    fn prose_is_wrapped_and_tables_are_not() {
        let words = |first: &str, count: usize| format!("{first}{}", " 456789012".repeat(count));
        for (line, expect) in [
            (words("1234567890", 9), words("1234567890", 9)),
            (
                words("1234567890×", 9),
                words("1234567890×", 8) + "\n456789012",
            ),
            (words("- ×", 10), words("- ×", 9) + "\n  456789012"),
            (words("| a", 12), words("| a", 12)),
            ("a\n\n  b".to_owned(), "a\n\n  b".to_owned()),
        ] {
            assert_eq!(wrapped(&line), expect + "\n");
            assert_eq!(wrapped(&wrapped(&line)), wrapped(&line));
        }
    }

    #[test]
    fn the_checked_in_document_has_every_section_and_nothing_else() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/BENCHMARKS.md");
        let document = fs::read_to_string(path).unwrap();
        for section in Section::ALL {
            let text = section.of(&document).unwrap();
            assert_eq!(section.put(&document, text), document);
            assert_eq!(wrapped(text), text);
        }
    }
}
