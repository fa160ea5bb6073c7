//! Reports for machines: what `--json FILE` writes.

use std::path::Path;

use anyhow::Context;
use serde::Serialize;

/// Writes `value` to `file`, if one was asked for.
///
/// # Errors
/// When the file cannot be written.
pub(crate) fn write(file: Option<&Path>, value: &impl Serialize) -> anyhow::Result<()> {
    let Some(file) = file else { return Ok(()) };
    let text = serde_json::to_string_pretty(value).context("report as JSON")?;
    std::fs::write(file, text + "\n").with_context(|| format!("write {}", file.display()))
}
