//! Folders that are made while there is room, for deletes while there is none.
//!
//! A spare folder holds the note of a delete already, and is moved to where one is needed: on a
//! full volume that takes no block. Whoever comes second to one finds it gone and takes the next.

use uuid::Uuid;

use super::{Inner, NOTE, Path, durable, links};
use crate::{Error, Result};

/// Enough for deletes that meet; when one is finished its folders are room for the next.
const SPARES: usize = 4;

impl Inner {
    /// Moves a spare folder to `path`; `false` if there is none left.
    pub(super) fn use_spare(&self, path: &Path) -> Result<bool> {
        let folder = self.layout.spares();
        for name in links::names(self.volume(), &folder)? {
            if self.take(&folder.join(name), path)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Makes spare folders up to the number that there should be, as far as there is room.
    pub(super) fn keep_spares(&self) -> Result<()> {
        let folder = self.layout.spares();
        let there = links::names(self.volume(), &folder)?.len();
        for _ in there..SPARES {
            let spare = folder.join(Uuid::new_v4().to_string());
            let made = durable::create_dir_unsynced(self.volume(), &spare)
                .and_then(|()| self.note(&spare.join(NOTE)));
            match made {
                Err(Error::NoSpace { .. }) => break,
                other => other?,
            }
        }
        Ok(())
    }
}
