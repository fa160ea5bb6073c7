//! Buffers of streams: one budget for the process, and buffers that are used again instead of being
//! made and cleared for every read.

use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Bytes of one read on a machine with room: it stays in the processor's cache between the file and
/// the socket, and 128 slow clients hold 16 MiB.
pub const READ_CHUNK_BYTES: usize = 128 << 10;

/// Unit in which the budget is counted.
const UNIT_BYTES: usize = 64 << 10;

/// Read size when the budget is used up: small, but a stream never starves.
const SMALL_BYTES: usize = 16 << 10;

/// Unused whole buffers that are kept.
const MAX_FREE_BUFFERS: usize = 16;

/// The budget. Clones share it.
#[derive(Clone, Debug)]
pub(crate) struct Buffers {
    budget: Arc<Semaphore>,
    free: Arc<Free>,
}

type Free = Mutex<Vec<Vec<u8>>>;

impl Buffers {
    /// A budget of `bytes`.
    pub(crate) fn new(bytes: usize) -> Self {
        Self {
            budget: Arc::new(Semaphore::new(bytes / UNIT_BYTES)),
            free: Arc::default(),
        }
    }

    /// A buffer for a read of up to `limit` bytes; smaller when the budget is used up.
    pub(crate) fn take(&self, limit: u64) -> Buffer {
        let limit = usize::try_from(limit)
            .unwrap_or(usize::MAX)
            .min(READ_CHUNK_BYTES);
        let units = u32::try_from(limit.div_ceil(UNIT_BYTES)).unwrap_or(1);
        let (size, share) = match Arc::clone(&self.budget).try_acquire_many_owned(units) {
            Ok(share) => (limit, Some(share)),
            Err(_) => match Arc::clone(&self.budget).try_acquire_owned() {
                Ok(share) => (limit.min(UNIT_BYTES), Some(share)),
                Err(_) => (limit.min(SMALL_BYTES), None),
            },
        };
        // Only whole ones are kept: small ones cost little, and others would lie in their place.
        let kept = (size == READ_CHUNK_BYTES)
            .then(|| self.free.lock().pop())
            .flatten();
        Buffer {
            bytes: kept.unwrap_or_else(|| vec![0; size]),
            filled: 0,
            _share: share,
            home: Arc::clone(&self.free),
        }
    }
}

/// Room for one read. It gives its share of the budget back when its last reader drops it.
pub(crate) struct Buffer {
    bytes: Vec<u8>,
    filled: usize,
    _share: Option<OwnedSemaphorePermit>,
    home: Arc<Free>,
}

impl Buffer {
    /// Where to read into.
    pub(crate) fn room(&mut self) -> &mut [u8] {
        &mut self.bytes
    }

    /// The first `filled` bytes of it.
    pub(crate) fn into_bytes(mut self, filled: usize) -> Bytes {
        self.filled = filled.min(self.bytes.len());
        if self.filled == 0 {
            return Bytes::new();
        }
        Bytes::from_owner(self)
    }
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        self.bytes.get(..self.filled).unwrap_or_default()
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if self.bytes.len() == READ_CHUNK_BYTES {
            let mut free = self.home.lock();
            if free.len() < MAX_FREE_BUFFERS {
                free.push(std::mem::take(&mut self.bytes));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_budget_that_is_used_up_makes_buffers_smaller_and_none_missing() {
        let buffers = Buffers::new(READ_CHUNK_BYTES + UNIT_BYTES);
        let sizes: Vec<usize> = (0..4)
            .scan(Vec::new(), |held, _| {
                let mut buffer = buffers.take(u64::MAX);
                let size = buffer.room().len();
                held.push(buffer);
                Some(size)
            })
            .collect();
        // What was dropped gave its share back.
        assert_eq!(sizes.first(), Some(&READ_CHUNK_BYTES));
        let first = buffers.take(u64::MAX).into_bytes(3);
        let mut second = buffers.take(u64::MAX);
        let mut third = buffers.take(u64::MAX);
        assert_eq!(second.room().len(), UNIT_BYTES);
        assert_eq!(third.room().len(), SMALL_BYTES);
        drop(first);
        assert_eq!(buffers.take(u64::MAX).room().len(), READ_CHUNK_BYTES);
        assert_eq!(buffers.take(10).room().len(), 10);
    }
}
