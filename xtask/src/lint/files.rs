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

/// Every Rust file of the repository, as paths from its root, sorted.
///
/// # Errors
/// When a folder cannot be read.
pub(crate) fn rust_files(root: &Path) -> anyhow::Result<Vec<String>> {
    let mut files = Vec::new();
    for folder in FOLDERS {
        collect(root, Path::new(folder), &["rs"], &mut files)?;
    }
    files.sort();
    Ok(files)
}

/// Every file of the chart that people read, as paths from the repository's root, sorted.
///
/// # Errors
/// When a folder cannot be read.
pub(super) fn templates(root: &Path) -> anyhow::Result<Vec<String>> {
    let mut files = Vec::new();
    collect(
        root,
        Path::new("chart"),
        &["yaml", "tpl", "txt"],
        &mut files,
    )?;
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
        if entry
            .file_type()
            .with_context(|| format!("look at {}", path.display()))?
            .is_dir()
        {
            if name != "target" && !name.starts_with('.') {
                collect(root, &path, extensions, files)?;
            }
        } else if path
            .extension()
            .and_then(|extension| extension.to_str())
            .is_some_and(|extension| extensions.contains(&extension))
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
}
