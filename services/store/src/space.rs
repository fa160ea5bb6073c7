//! The room on the volume, and when writes stop (reads never do).

use std::{
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use parking_lot::Mutex;

use crate::{Error, Result, volume::Volume};

/// Bytes of a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Space {
    /// Size of the volume.
    pub total_bytes: u64,
    /// What an unprivileged process may still write.
    pub available_bytes: u64,
}

impl Space {
    /// Used share in percent, rounded up, of what unprivileged processes can use.
    pub fn used_percent(self) -> u8 {
        let used = self.total_bytes.saturating_sub(self.available_bytes);
        u8::try_from((u128::from(used) * 100).div_ceil(u128::from(self.total_bytes.max(1))))
            .unwrap_or(100)
    }
}

/// When writes are refused.
#[derive(Clone, Copy, Debug)]
pub struct WriteLimits {
    /// Highest used share in percent; 100 switches this limit off.
    pub max_used_percent: u8,
    /// Bytes that stay free for metadata and deletes.
    pub reserve_bytes: u64,
    /// From this used share on, in percent, clients that write are warned; 101 switches the
    /// warning off.
    pub warn_used_percent: u8,
}

impl Default for WriteLimits {
    fn default() -> Self {
        Self {
            max_used_percent: 95,
            reserve_bytes: 64 << 20,
            warn_used_percent: 85,
        }
    }
}

/// Decides whether a write may begin.
#[derive(Debug)]
pub struct WriteGate {
    limits: WriteLimits,
    root: PathBuf,
    last: Mutex<Option<(Instant, Space)>>,
}

impl WriteGate {
    const MEASUREMENT_TTL: Duration = Duration::from_secs(1);

    /// A gate for the volume that holds `root`.
    pub fn new(root: PathBuf, limits: WriteLimits) -> Self {
        Self {
            limits,
            root,
            last: Mutex::new(None),
        }
    }

    /// Whether `bytes` more fit.
    ///
    /// # Errors
    /// [`Error::NoSpace`].
    pub fn allows(&self, space: Space, bytes: u64) -> Result<()> {
        let over_share = self.limits.max_used_percent < 100
            && space.used_percent() > self.limits.max_used_percent;
        if over_share || space.available_bytes < self.limits.reserve_bytes.saturating_add(bytes) {
            tracing::debug!(
                volume = %self.root.display(), available_bytes = space.available_bytes,
                "write refused, the volume is full"
            );
            return Err(Error::NoSpace {
                available_bytes: space.available_bytes,
            });
        }
        Ok(())
    }

    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// Whether `bytes` more fit, measured now.
    ///
    /// # Errors
    /// [`Error::NoSpace`], or an error of the volume.
    pub(crate) fn check_now(&self, volume: &dyn Volume, bytes: u64) -> Result<()> {
        let space = volume.space(&self.root);
        let space = space.map_err(Error::io("stat", &self.root))?;
        self.allows(space, bytes)
    }

    pub(crate) fn cached(&self) -> Option<Space> {
        let last = self.last.lock();
        last.filter(|(at, _)| at.elapsed() < Self::MEASUREMENT_TTL)
            .map(|(_, space)| space)
    }

    /// The used share in percent, as last measured, if clients are to be warned of it.
    pub(crate) fn filling(&self) -> Option<u8> {
        let last = self.last.lock();
        last.map(|(_, space)| space.used_percent())
            .filter(|used| *used >= self.limits.warn_used_percent)
    }

    /// Space was freed: the next write measures it again.
    pub(crate) fn forget(&self) {
        *self.last.lock() = None;
    }

    pub(crate) fn remember(&self, space: Space) {
        *self.last.lock() = Some((Instant::now(), space));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(used_percent: u64, available_bytes: u64, bytes: u64, expect: bool) {
        let gate = WriteGate::new(
            "/".into(),
            WriteLimits {
                max_used_percent: 95,
                reserve_bytes: 10,
                ..WriteLimits::default()
            },
        );
        let total_bytes = if used_percent == 100 {
            u64::MAX / 200
        } else {
            available_bytes * 100 / (100 - used_percent)
        };
        let space = Space {
            total_bytes,
            available_bytes,
        };
        assert_eq!(
            gate.allows(space, bytes).is_ok(),
            expect,
            "{used_percent} % used, {available_bytes} left, {bytes} wanted"
        );
    }

    #[tokio::test]
    async fn room_that_is_given_back_is_seen_at_once() {
        let folder = tempfile::tempdir().unwrap();
        let options = crate::Options::unlimited();
        let store = crate::Store::open(folder.path(), options).await.unwrap();
        let digest = holdfast_core::Digest::from_sha256([7; 32]);
        let incoming = store.ingest_blob(&digest).await.unwrap();
        store.parts.gate.remember(Space {
            total_bytes: 1 << 40,
            available_bytes: 0,
        });
        assert!(store.check_write(1).await.is_err());
        incoming.discard().await.unwrap();
        store.check_write(1).await.unwrap();
    }

    #[test]
    fn writes_stop_before_the_volume_is_full() {
        check(50, 1000, 0, true);
        check(95, 1000, 0, true);
        check(96, 1000, 0, false);
        check(100, 0, 0, false);
        check(50, 1000, 990, true);
        check(50, 1000, 991, false);
        check(50, 9, 0, false);
    }
}
