//! Our own folder of a volume: partial copies and the quarantine.

use holdfast_core::digest::Digest;

use super::{Pending, Progress, Survey};
use crate::{files, layout::names};

impl Survey<'_> {
    /// Partial copies and what lies in the quarantine.
    pub(super) fn own(&mut self) {
        for (folder, quarantine) in [(names::INCOMING, false), (names::QUARANTINE, true)] {
            let folder = self.layout.own().join(folder);
            for algorithm in self.entries(&folder) {
                let folder = folder.join(&algorithm.name);
                // Copies under way have temporary names, too.
                for entry in self.entries_but(&folder, |name| name.starts_with(".nfs")) {
                    let path = folder.join(&entry.name);
                    let size = self.size(&path);
                    if quarantine {
                        self.found.quarantined.0 += 1;
                        self.found.quarantined.1 += size;
                        if let Some(digest) = digest_of(&algorithm.name, &entry.name) {
                            let path = self.relative(&path);
                            self.found.restorable.push((digest, path));
                        }
                    } else {
                        self.found.pending.push(Pending {
                            repository: None,
                            age: self.age(std::slice::from_ref(&path)),
                            size,
                            has_start: true,
                            path: self.relative(&path),
                        });
                    }
                }
            }
        }
    }

    /// Keeps of the quarantine what is sound, wanted and missing in its place: a registry that is
    /// killed between two steps can leave it there. Nothing else in the quarantine is read.
    pub(super) fn quarantined(&mut self, progress: &mut dyn FnMut(Progress<'_>)) {
        let mut missing = std::mem::take(&mut self.found.restorable);
        let wanted = self.found.wanted();
        missing.retain(|(digest, _)| wanted.contains(digest) && !self.found.holds(digest));
        let sizes = missing
            .iter()
            .map(|(_, path)| self.size(&self.root.join(path)));
        let (mut done, total) = (0, sizes.sum());
        for (digest, path) in missing {
            let full = self.root.join(&path);
            let hashed = files::hash(self.volume, &full, digest.algorithm(), |bytes| {
                done += bytes;
                progress(Progress::Hashing { done, total });
            });
            match hashed {
                Ok(Some((size, actual))) => {
                    self.found.hashed_bytes += size;
                    if actual == digest {
                        self.found.restorable.push((digest, path));
                    }
                }
                Ok(None) => {}
                Err(error) => self.unreadable(&full, &error),
            }
        }
    }
}

/// Whose content a file of the quarantine was (see `Layout::quarantine`).
fn digest_of(algorithm: &str, name: &str) -> Option<Digest> {
    let (hex, _) = name.split_once('.')?;
    Digest::parse(&format!("{algorithm}:{hex}")).ok()
}
