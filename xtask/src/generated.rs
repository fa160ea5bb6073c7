//! Writes generated files, or compares them with what the code would write.

use std::path::Path;

use anyhow::{Context as _, bail};

/// Writes one generated file, or compares it.
///
/// # Errors
/// When it cannot be written, or with `check` when it differs.
pub(crate) fn write(root: &Path, check: bool, file: &str, content: &str) -> anyhow::Result<()> {
    let path = root.join(file);
    if check {
        if std::fs::read_to_string(&path).unwrap_or_default() != content {
            bail!("{file} is out of step: run `cargo xtask generate`");
        }
        return Ok(());
    }
    std::fs::write(&path, content).with_context(|| format!("write {file}"))
}
