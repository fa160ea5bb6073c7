//! Sums over a volume, for reports.

use holdfast_store::survey::Inventory;

/// Sums over a volume.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Totals {
    /// Repositories that hold manifests.
    pub repositories: u64,
    /// Tags.
    pub tags: u64,
    /// Manifests, counted once in each repository.
    pub manifests: u64,
    /// Blobs, manifests' bytes included.
    pub blobs: u64,
    /// Their bytes.
    pub blob_bytes: u64,
    /// Of these, bytes that no repository links.
    pub unlinked_bytes: u64,
    /// Bytes that were hashed in this survey.
    pub hashed_bytes: u64,
    /// Uploads and partial copies under way, or left.
    pub pending: u64,
    /// Damaged contents that were moved aside before.
    pub quarantined: u64,
    /// Their bytes.
    pub quarantined_bytes: u64,
}

impl Totals {
    /// The sums over what a survey found.
    pub fn of(inventory: &Inventory) -> Self {
        let mut totals = Self {
            blobs: inventory.blobs.len() as u64,
            blob_bytes: inventory.blobs.values().map(|blob| blob.size).sum(),
            pending: inventory.pending.len() as u64,
            quarantined: inventory.quarantined.0,
            quarantined_bytes: inventory.quarantined.1,
            hashed_bytes: inventory.hashed_bytes,
            ..Self::default()
        };
        for repository in inventory.repositories.values() {
            totals.repositories += u64::from(!repository.revisions.is_empty());
            totals.tags += repository
                .tags
                .values()
                .filter(|tag| tag.current.is_some())
                .count() as u64;
            totals.manifests += repository.revisions.len() as u64;
        }
        let linked = inventory.linked();
        totals.unlinked_bytes = inventory
            .blobs
            .iter()
            .filter(|(digest, _)| !linked.contains(*digest))
            .map(|(_, blob)| blob.size)
            .sum();
        totals
    }
}
