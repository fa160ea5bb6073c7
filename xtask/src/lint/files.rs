//! How a source file reads: its size, its head, its name.

use std::path::Path;

use anyhow::Context;

use super::Finding;

/// Lines a file may have; past that it is two files.
const MAX_LINES: usize = 600;
/// Columns a comment may have, as code has by rustfmt.
const MAX_COMMENT_COLUMNS: usize = 100;
/// Names that say nothing of what a module owns.
const EMPTY_NAMES: [&str; 4] = ["utils", "util", "common", "helpers"];
/// Folders with Rust sources of ours.
const FOLDERS: [&str; 4] = ["services", "xtask", "e2e", "fuzz"];
/// Folders of built files, or of files of other programs.
const SKIPPED: [&str; 2] = ["target", "node_modules"];

/// Every Rust file of the repository, as paths from its root, sorted.
///
/// # Errors
/// When a folder cannot be read.
pub(crate) fn rust_files(root: &Path) -> anyhow::Result<Vec<String>> {
    files_with(root, &FOLDERS, &["rs"])
}

/// Every file of the chart that people read, as paths from the repository's root, sorted.
///
/// # Errors
/// When a folder cannot be read.
pub(super) fn templates(root: &Path) -> anyhow::Result<Vec<String>> {
    files_with(root, &["chart"], &["yaml", "tpl", "txt"])
}

/// The files below these folders whose names have one of these extensions, as paths from the
/// root, sorted. Hidden folders and those of built or foreign files are left out.
///
/// # Errors
/// When a folder cannot be read.
pub(super) fn files_with(
    root: &Path,
    folders: &[&str],
    extensions: &[&str],
) -> anyhow::Result<Vec<String>> {
    let mut files = Vec::new();
    for folder in folders {
        collect(root, Path::new(folder), extensions, &mut files)?;
    }
    files.sort();
    Ok(files)
}

fn collect(
    root: &Path,
    folder: &Path,
    extensions: &[&str],
    files: &mut Vec<String>,
) -> anyhow::Result<()> {
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
                collect(root, &path, extensions, files)?;
            }
        } else if path
            .extension()
            .is_some_and(|found| extensions.iter().any(|one| found == *one))
        {
            files.push(path.to_string_lossy().into_owned());
        }
    }
    Ok(())
}

/// Checks one file.
pub(super) fn check(path: &str, text: &str) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut found = |message: String| findings.push(Finding::new(path, message));
    let lines = text.lines().count();
    if lines > MAX_LINES {
        found(format!("{lines} lines; split it, {MAX_LINES} is the limit"));
    }
    if !text
        .lines()
        .find(|line| !line.starts_with("#!"))
        .is_some_and(|line| line.starts_with("//!"))
    {
        found("opens without `//!`: say what it owns and what it must not know".to_owned());
    }
    let name = Path::new(path)
        .file_stem()
        .map(|stem| stem.to_string_lossy().into_owned())
        .unwrap_or_default();
    if EMPTY_NAMES.contains(&name.as_str()) {
        found(format!("`{name}` says nothing; name it after what it owns"));
    }
    if name == "mod" {
        found("use foo.rs beside foo/, not mod.rs".to_owned());
    }
    for (number, line) in text.lines().enumerate() {
        let code = line.trim_start();
        if code.starts_with(concat!("todo", "!(")) || code.contains(concat!(" todo", "!(")) {
            found(format!("line {}: stray todo", number + 1));
        }
        if code.starts_with("//") && line.chars().count() > MAX_COMMENT_COLUMNS {
            found(format!(
                "line {}: a comment of more than {MAX_COMMENT_COLUMNS} columns",
                number + 1
            ));
        }
        if code.contains(concat!("TODO", ":")) && !code.contains('#') {
            found(format!("line {}: a TODO names its issue", number + 1));
        }
        let module = code
            .trim_start_matches("pub ")
            .trim_start_matches("pub(crate) ")
            .strip_prefix("mod ");
        if let Some(module) = module.map(|rest| rest.trim_end_matches([';', '{', ' ']))
            && EMPTY_NAMES.contains(&module)
        {
            found(format!(
                "line {}: `{module}` says nothing; name it after what it owns",
                number + 1
            ));
        }
    }
    findings
}

/// Checks the width of comments in a template of the chart: those of YAML, and those of Helm, which
/// may have several lines.
pub(super) fn check_template(path: &str, text: &str) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut in_comment = false;
    for (number, line) in text.lines().enumerate() {
        let code = line.trim_start();
        in_comment |= code.starts_with("{{/*") || code.starts_with("{{- /*");
        let is_comment = in_comment || code.starts_with('#');
        if is_comment && line.chars().count() > MAX_COMMENT_COLUMNS {
            findings.push(Finding::new(
                path,
                format!(
                    "line {}: a comment of more than {MAX_COMMENT_COLUMNS} columns",
                    number + 1
                ),
            ));
        }
        in_comment &= !line.contains("*/");
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;

    fn count(path: &str, text: &str, expect: usize) {
        let findings = check(path, text);
        assert_eq!(findings.len(), expect, "{path}: {findings:?}");
    }

    #[test]
    fn files_are_judged_by_head_name_and_size() {
        count("a/digest.rs", "//! Digests.\nfn a() {}\n", 0);
        count("a/digest.rs", "fn a() {}\n", 1);
        count("a/utils.rs", "//! Things.\n", 1);
        count("a/mod.rs", "//! Things.\n", 1);
        count("a/b.rs", "//! B.\npub(crate) mod helpers;\n", 1);
        count("a/b.rs", &format!("//! B.\n{}", "\n".repeat(600)), 1);
        let at_limit = format!("    // {}", "…".repeat(93));
        count("a/b.rs", &format!("//! B.\n{at_limit}\n"), 0);
        count("a/b.rs", &format!("//! B.\n{at_limit}…\n"), 1);
    }

    #[test]
    fn comments_of_templates_have_a_width() {
        let long = "x".repeat(101);
        for (text, expect) in [
            (format!("a: {long}\n"), 0),
            (format!("  # {}\n", "x".repeat(96)), 0),
            (format!("  # {long}\n"), 1),
            (format!("{{{{/* a\n  {long}\n  b */}}}}\na: {long}\n"), 1),
            (format!("{{{{- /* {long} */}}}}\na: {long}\n"), 1),
        ] {
            assert_eq!(
                check_template("chart/a.yaml", &text).len(),
                expect,
                "{text}"
            );
        }
    }
}
