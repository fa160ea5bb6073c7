//! Follows files that change while the process runs: certificates and configuration in mounted
//! Secrets and `ConfigMaps`.
//!
//! Contents are compared, not times, because such volumes swap a symbolic link. The files are
//! small.

use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash as _, Hasher as _};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// The usual interval for [`watch`].
pub const POLL_INTERVAL: Duration = Duration::from_secs(5);

/// A fingerprint of the contents of `paths`; a file that cannot be read counts as absent.
pub fn fingerprint(paths: &[PathBuf]) -> u64 {
    let mut hasher = DefaultHasher::new();
    for path in paths {
        read(path).hash(&mut hasher);
    }
    hasher.finish()
}

fn read(path: &Path) -> Option<Vec<u8>> {
    std::fs::read(path).ok()
}

/// Calls `changed` whenever the content of one of `paths` has changed, until `shutdown`.
///
/// Several changes within the interval `every` are one.
pub async fn watch(
    paths: Vec<PathBuf>,
    every: Duration,
    shutdown: CancellationToken,
    mut changed: impl FnMut() + Send,
) {
    let mut last = fingerprint(&paths);
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = tokio::time::sleep(every) => {}
        }
        let now = fingerprint(&paths);
        if now != last {
            last = now;
            changed();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_contents_make_a_difference() {
        let dir = tempfile::tempdir().unwrap();
        let paths = vec![dir.path().join("a"), dir.path().join("b")];
        let none = fingerprint(&paths);
        std::fs::write(&paths[0], "x").unwrap();
        let one = fingerprint(&paths);
        assert_ne!(none, one);
        std::fs::write(&paths[0], "x").unwrap();
        assert_eq!(one, fingerprint(&paths), "rewritten with the same bytes");
        std::fs::rename(&paths[0], &paths[1]).unwrap();
        assert_ne!(one, fingerprint(&paths), "moved to the other name");
    }
}
