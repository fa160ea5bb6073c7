//! The folder of a run.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};

/// A folder that is removed with its owner.
pub(crate) struct Scratch(pub(crate) PathBuf);

impl Scratch {
    /// A new one below `base`, or where the system keeps temporary files.
    pub(crate) fn make(base: Option<&Path>) -> Result<Self> {
        let folder = base
            .map_or_else(std::env::temp_dir, Path::to_path_buf)
            .join(format!("holdfast-bench-{}", std::process::id()));
        fs::create_dir_all(&folder).context("make the scratch folder")?;
        Ok(Self(folder))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.0) {
            eprintln!("{} cannot be removed: {error}", self.0.display());
        }
    }
}
