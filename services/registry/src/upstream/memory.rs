//! Manifests on their way, and their memory: a budget of bytes for the process, and a share of it for each
//! host, so that one that sends slowly holds back nobody else.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError, Weak},
};

use bytes::Bytes;
use holdfast_core::Digest;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::limits::{MANIFEST_MEMORY, MANIFEST_MEMORY_PER_HOST};

/// The unit of the budget, bytes.
const UNIT: u64 = 1 << 10;

/// The budget. Who waits is served in order.
#[derive(Debug)]
pub(crate) struct Memory {
    all: Arc<Semaphore>,
    per_host: u64,
    hosts: Mutex<HashMap<String, Weak<Semaphore>>>,
}

/// Bytes of the budget that are in use until the last clone of this is dropped.
#[derive(Clone, Debug, Default)]
pub(crate) struct Reserved {
    _permits: Option<Arc<[OwnedSemaphorePermit; 2]>>,
}

/// A manifest whose bytes were verified.
#[derive(Debug, Clone)]
pub struct Manifest {
    /// Computed from the bytes, never echoed.
    pub digest: Digest,
    /// The exact bytes.
    pub bytes: Bytes,
    /// What it takes of the memory of manifests.
    pub(crate) _reserved: Reserved,
}

impl PartialEq for Manifest {
    fn eq(&self, other: &Self) -> bool {
        self.digest == other.digest && self.bytes == other.bytes
    }
}

impl Eq for Manifest {}

impl Manifest {
    /// A manifest that is here already.
    pub(crate) fn known(digest: Digest, bytes: Bytes) -> Self {
        Self {
            digest,
            bytes,
            _reserved: Reserved::default(),
        }
    }
}

impl Default for Memory {
    fn default() -> Self {
        Self::new(MANIFEST_MEMORY, MANIFEST_MEMORY_PER_HOST)
    }
}

impl Memory {
    /// A budget of `all` bytes, `per_host` of them for one host.
    pub(crate) fn new(all: u64, per_host: u64) -> Self {
        Self {
            all: Arc::new(Semaphore::new(units(all) as usize)),
            per_host,
            hosts: Mutex::default(),
        }
    }

    fn share(&self, host: &str) -> Arc<Semaphore> {
        let mut hosts = self.hosts.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(share) = hosts.get(host).and_then(Weak::upgrade) {
            return share;
        }
        hosts.retain(|_, share| share.strong_count() > 0);
        let share = Arc::new(Semaphore::new(units(self.per_host) as usize));
        hosts.insert(host.to_owned(), Arc::downgrade(&share));
        share
    }

    /// Waits for `most` bytes of the budget and of the host's share of it, reads, and gives back
    /// what the outcome's length leaves over.
    ///
    /// # Errors
    /// What `read` says.
    pub(crate) async fn hold<E>(
        &self,
        host: &str,
        most: u64,
        read: impl Future<Output = Result<Bytes, E>>,
    ) -> Result<(Bytes, Reserved), E> {
        let wanted = units(most.min(self.per_host));
        // The share first: who waits for it holds nothing that others wait for.
        let of_host = self.share(host).acquire_many_owned(wanted).await;
        let of_all = Arc::clone(&self.all).acquire_many_owned(wanted).await;
        let bytes = read.await?;
        let spare = wanted.saturating_sub(units(bytes.len() as u64)) as usize;
        // Neither semaphore is ever closed.
        let permits = of_host.ok().zip(of_all.ok());
        let reserved = permits.map(|(mut of_host, mut of_all)| {
            drop((of_host.split(spare), of_all.split(spare)));
            Arc::new([of_host, of_all])
        });
        Ok((bytes, Reserved { _permits: reserved }))
    }
}

fn units(bytes: u64) -> u32 {
    u32::try_from(bytes.div_ceil(UNIT)).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt as _;

    async fn hold(memory: &Memory, host: &str, most: u64, bytes: usize) -> Reserved {
        let read = async { Ok::<_, ()>(Bytes::from(vec![0; bytes])) };
        memory.hold(host, most, read).await.unwrap().1
    }

    #[tokio::test]
    async fn a_host_takes_its_share_and_all_hosts_the_whole() {
        let memory = Memory::new(8 * UNIT, 4 * UNIT);
        let unit = usize::try_from(UNIT).unwrap();
        let first = hold(&memory, "one", 4 * UNIT, 4 * unit).await;
        let mut next = std::pin::pin!(hold(&memory, "one", 1, 1));
        assert!(
            next.as_mut().now_or_never().is_none(),
            "the share is used up"
        );
        // What was announced and did not come is free again.
        let other = hold(&memory, "two", 4 * UNIT, unit).await;
        let third = hold(&memory, "two", 3 * UNIT, 3 * unit).await;
        assert!(
            hold(&memory, "three", 1, 1).now_or_never().is_none(),
            "all is used up"
        );
        drop(first.clone());
        assert!(
            hold(&memory, "three", 1, 1).now_or_never().is_none(),
            "a clone is left"
        );
        drop(first);
        next.await;
        drop((other, third));
        hold(&memory, "three", 4 * UNIT, 0).await;
    }

    #[tokio::test]
    async fn what_is_larger_than_a_share_waits_for_all_of_it() {
        let memory = Memory::new(4 * UNIT, 2 * UNIT);
        let small = hold(&memory, "one", 1, 1).await;
        assert!(hold(&memory, "one", 100 * UNIT, 1).now_or_never().is_none());
        drop(small);
        hold(&memory, "one", 100 * UNIT, 1).await;
    }
}
