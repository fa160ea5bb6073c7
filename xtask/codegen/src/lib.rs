//! The files that are made from the types of `config` and `api`, so that every fact has one source.
//!
//! All of it is pure but [`generate`] and [`check`]: [`outputs`] says what each file holds.

use std::path::Path;

use anyhow::{Context, Result, bail};

mod api_reference;
mod crds;
mod values_reference;
mod values_yaml;
mod walk;

pub use walk::{Leaf, leaves};

/// The command that brings the files in step.
pub const FIX: &str = "cargo xtask generate";

/// A generated file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Output {
    /// Path from the folder of the workspace.
    pub path: &'static str,
    /// The whole text.
    pub text: String,
}

/// Every generated file.
pub fn outputs() -> Result<Vec<Output>> {
    let schema = holdfast_config::values_schema();
    let pretty = format!("{}\n", serde_json::to_string_pretty(&schema)?);
    Ok(vec![
        Output {
            path: "chart/values.schema.json",
            text: pretty,
        },
        Output {
            path: "chart/values.yaml",
            text: values_yaml::text(&schema)?,
        },
        Output {
            path: "docs/reference/values.md",
            text: values_reference::text(&schema)?,
        },
        Output {
            path: "chart/files/crds/artifacts.yaml",
            text: crds::artifacts()?,
        },
        Output {
            path: "docs/API.md",
            text: api_reference::text()?,
        },
    ])
}

/// Writes every generated file below `root`.
pub fn generate(root: &Path) -> Result<()> {
    for output in outputs()? {
        let path = root.join(output.path);
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder)
                .with_context(|| format!("cannot make {}", folder.display()))?;
        }
        std::fs::write(&path, output.text)
            .with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

/// Compares every generated file below `root` with what it would be.
pub fn check(root: &Path) -> Result<()> {
    let mut stale = Vec::new();
    for output in outputs()? {
        let committed = std::fs::read_to_string(root.join(output.path)).unwrap_or_default();
        if committed != output.text {
            stale.push(output.path);
        }
    }
    if !stale.is_empty() {
        bail!(
            "not in step with the types: {}; run `{FIX}` and commit the result",
            stale.join(", ")
        );
    }
    Ok(())
}
