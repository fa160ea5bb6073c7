//! Folders that are made in advance, for deletes on a full volume.
//!
//! A reserve folder already holds a placeholder. A delete renames it to the folder that it needs,
//! which takes no block. Of several deletes one gets it; the others take the next one.

use uuid::Uuid;

use super::{Deletes, PLACEHOLDER, Path, files, links};
use crate::{Error, Result};

/// Folders in reserve: enough for concurrent deletes. A finished delete frees its folders again.
const RESERVE_DIRS: usize = 4;

impl Deletes {
    /// Moves a reserve folder to `path`; `false` if there is none left.
    pub(super) fn use_reserve_dir(&self, path: &Path) -> Result<bool> {
        let folder = self.layout.reserve();
        for name in links::names(self.files.volume(), &folder)? {
            if self.try_rename(&folder.join(name), path)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Makes reserve folders up to [`RESERVE_DIRS`], as far as there is space.
    pub(super) fn refill_reserve(&self) -> Result<()> {
        let folder = self.layout.reserve();
        let present = links::names(self.files.volume(), &folder)?.len();
        for _ in present..RESERVE_DIRS {
            let dir = folder.join(Uuid::new_v4().to_string());
            let made = files::create_dir_unsynced(self.files.volume(), &dir)
                .and_then(|()| self.create_placeholder(&dir.join(PLACEHOLDER)));
            match made {
                Err(Error::NoSpace { .. }) => break,
                other => other?,
            }
        }
        Ok(())
    }
}
