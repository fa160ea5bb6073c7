//! The cache folder: what is slow to make and the same for every checkout.
//!
//! Programs and node images are keyed by what they are made from, so a changed version makes a new
//! entry and an old checkout still finds its own. File locks keep two runs from making the same
//! entry twice; the kernel drops them with the process, so a killed run blocks no other.

use std::fs::{File, create_dir_all};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use sha2::{Digest, Sha256};

/// `$HOLDFAST_CACHE`, else `$XDG_CACHE_HOME/holdfast`, else `~/.cache/holdfast`; made if missing.
pub fn directory() -> Result<PathBuf> {
    let variable = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
    let path = variable("HOLDFAST_CACHE")
        .map(PathBuf::from)
        .or_else(|| variable("XDG_CACHE_HOME").map(|base| PathBuf::from(base).join("holdfast")))
        .or_else(|| variable("HOME").map(|home| PathBuf::from(home).join(".cache/holdfast")))
        .context("no cache folder: set HOLDFAST_CACHE or HOME")?;
    create_dir_all(&path).with_context(|| format!("cannot make {}", path.display()))?;
    Ok(path)
}

/// An exclusive lock that ends when it is dropped or when its process dies.
#[derive(Debug)]
pub struct Lock {
    _file: File,
}

impl Lock {
    /// Waits for the lock of this name.
    pub fn take(name: &str) -> Result<Self> {
        let folder = directory()?.join("locks");
        create_dir_all(&folder)?;
        let path = folder.join(name);
        let file =
            File::create(&path).with_context(|| format!("cannot open {}", path.display()))?;
        file.lock()
            .with_context(|| format!("cannot lock {}", path.display()))?;
        Ok(Self { _file: file })
    }
}

/// The first 16 hexadecimal digits of the SHA-256 over all parts.
pub(crate) fn key<Part: AsRef<[u8]>>(parts: impl IntoIterator<Item = Part>) -> String {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update(part.as_ref());
    }
    let mut text = hex::encode(hash.finalize());
    text.truncate(16);
    text
}

/// Where the repository is that this crate was built from.
pub(crate) fn repository() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.ancestors().nth(2).unwrap_or(here).to_path_buf()
}
