//! How a document reads: its columns.

use std::path::Path;

use anyhow::Context;

use super::Finding;

/// Columns a document may have.
const MAX_COLUMNS: usize = 100;
/// Documents that a program writes with long cells.
const GENERATED: [&str; 2] = ["docs/API.md", "docs/reference/values.md"];
/// Documents whose tables are figures that a program writes.
const FIGURES: [&str; 1] = ["docs/BENCHMARKS.md"];
/// Folders that hold documents of other programs, or none of ours.
const SKIPPED: [&str; 2] = ["target", "node_modules"];

/// Every Markdown file of the repository, as paths from its root, sorted.
///
/// # Errors
/// When a folder cannot be read.
pub(super) fn markdown_files(root: &Path) -> anyhow::Result<Vec<String>> {
    let mut files = Vec::new();
    collect(root, Path::new(""), &mut files)?;
    files.sort();
    Ok(files)
}

fn collect(root: &Path, folder: &Path, files: &mut Vec<String>) -> anyhow::Result<()> {
    let entries = std::fs::read_dir(root.join(folder))
        .with_context(|| format!("read folder {}", folder.display()))?;
    for entry in entries {
        let entry = entry.with_context(|| format!("read folder {}", folder.display()))?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let path = folder.join(&name);
        let is_folder = entry
            .file_type()
            .with_context(|| format!("look at {}", path.display()))?
            .is_dir();
        if is_folder {
            if !name.starts_with('.') && !SKIPPED.contains(&name.as_str()) {
                collect(root, &path, files)?;
            }
        } else if path.extension().is_some_and(|extension| extension == "md") {
            files.push(path.to_string_lossy().into_owned());
        }
    }
    Ok(())
}

/// Checks one document.
pub(super) fn check(path: &str, text: &str) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut found = |message: String| findings.push(Finding::new(path, message));
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
    }
    findings
}

/// Whether a line is one word, a URL for example.
fn is_one_word(line: &str) -> bool {
    !line.trim_start_matches(['-', '*', '>', ' ']).contains(' ')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn messages(text: &str) -> Vec<String> {
        let findings = check("docs/a.md", text);
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
        assert_eq!(check("docs/BENCHMARKS.md", &row), []);
        assert_eq!(messages(&row).len(), 1);
        let url = format!("- <https://example.org/{}>", "a".repeat(100));
        assert_eq!(messages(&url), [""; 0]);
    }
}
