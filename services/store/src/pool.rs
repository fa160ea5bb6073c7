//! The bounded share of the blocking pool that touches the volume.
//!
//! A call to a hung network volume cannot be cancelled: it holds its thread. The bound keeps such
//! calls from using up all threads of the process. A caller that gets no slot within
//! [`Pool::SLOT_TIMEOUT`] gets [`Error::Busy`].

use std::{
    net::IpAddr,
    sync::{Arc, OnceLock},
    time::Duration,
};

use holdfast_core::FairSemaphore;
use tokio::{
    runtime::{Builder, Runtime},
    sync::{OwnedSemaphorePermit, Semaphore},
    task::JoinHandle,
};

use crate::{Error, Result};

/// What a thread adds to its nice value for work that strangers can ask for and that takes long: it
/// gets a tenth of the processor time of others that want it.
const NICE: i32 = 10;

/// Runs work that takes much processor time on a thread of low priority, so that it does not slow
/// down pulls. How much of it there is at a time is for the caller to bound.
pub fn spawn_low_priority<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> JoinHandle<T> {
    // Its threads keep their priority, so they are no others' threads.
    static THREADS: OnceLock<Option<Runtime>> = OnceLock::new();
    let threads = THREADS.get_or_init(|| {
        let mut builder = Builder::new_current_thread();
        // At worst they have the usual priority.
        builder.on_thread_start(|| {
            rustix::process::nice(NICE).ok();
        });
        builder.thread_name("low-priority").build().ok()
    });
    match threads {
        Some(threads) => threads.spawn_blocking(work),
        None => tokio::task::spawn_blocking(work),
    }
}

/// Runs blocking work on a bounded number of threads.
#[derive(Clone, Debug)]
pub struct Pool {
    slots: Arc<Semaphore>,
    /// By client.
    lists: FairSemaphore<Option<IpAddr>>,
    queue: Arc<Semaphore>,
    timeout: Duration,
    in_place: bool,
}

impl Pool {
    /// How long a call waits for a free thread before it is refused.
    pub const SLOT_TIMEOUT: Duration = Duration::from_secs(20);

    /// Bytes that wait for the volume in all files together.
    pub const QUEUE_BYTES: usize = 32 << 20;

    /// Lists that are read at a time, at least; as many as there are processors, where these are
    /// more.
    pub const LISTS: usize = 2;

    /// A pool of `threads` threads.
    pub fn new(threads: usize) -> Self {
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        let lists = processors.max(Self::LISTS);
        Self {
            slots: Arc::new(Semaphore::new(threads.max(1))),
            lists: FairSemaphore::new(lists),
            queue: Arc::new(Semaphore::new(Self::QUEUE_BYTES)),
            timeout: Self::SLOT_TIMEOUT,
            in_place: false,
        }
    }

    /// A pool without threads: work runs where it is asked for. For volumes that never block.
    pub(crate) fn in_place() -> Self {
        Self {
            in_place: true,
            ..Self::new(1)
        }
    }

    /// Runs work without waiting for it, also after its caller is gone.
    pub(crate) fn detach(&self, work: impl FnOnce() + Send + 'static) {
        match tokio::runtime::Handle::try_current() {
            Ok(runtime) if !self.in_place => drop(runtime.spawn_blocking(work)),
            _ => work(),
        }
    }

    /// Whether work can go on beside its caller. Where it cannot, what may be done later is left
    /// until it is needed.
    pub(crate) fn has_threads(&self) -> bool {
        !self.in_place
    }

    /// A share of [`Pool::QUEUE_BYTES`] for bytes that are to be written; it is given back when it
    /// is dropped. Waits while the volume is behind with what others brought.
    pub(crate) async fn queue(&self, bytes: usize) -> Result<OwnedSemaphorePermit> {
        let bytes = u32::try_from(bytes.min(Self::QUEUE_BYTES)).map_err(|_| Error::Busy)?;
        let share = Arc::clone(&self.queue).acquire_many_owned(bytes).await;
        share.map_err(|_| Error::Busy)
    }

    /// Runs `work` on the pool. A caller that goes away does not stop work that has begun.
    pub async fn run<T, F>(&self, work: F) -> Result<T>
    where
        T: Send + 'static,
        F: FnOnce() -> Result<T> + Send + 'static,
    {
        if self.in_place {
            return work();
        }
        let slot = self.slot().await?;
        let task = tokio::task::spawn_blocking(move || {
            let result = work();
            drop(slot);
            result
        });
        task.await.unwrap_or(Err(Error::Busy))
    }

    /// Reads a list, which may be long: few at a time, on threads of low priority. Clients take
    /// turns; what no client asked for is one of them.
    pub(crate) async fn list<T, F>(&self, client: Option<IpAddr>, work: F) -> Result<T>
    where
        T: Send + 'static,
        F: FnOnce() -> Result<T> + Send + 'static,
    {
        if self.in_place {
            return work();
        }
        let turn = tokio::time::timeout(self.timeout, self.lists.acquire(client));
        let turn = turn.await.map_err(|_| Error::Busy)?;
        let task = spawn_low_priority(move || {
            let result = work();
            drop(turn);
            result
        });
        task.await.unwrap_or(Err(Error::Busy))
    }

    async fn slot(&self) -> Result<OwnedSemaphorePermit> {
        if let Ok(slot) = Arc::clone(&self.slots).try_acquire_owned() {
            return Ok(slot);
        }
        let slot = Arc::clone(&self.slots).acquire_owned();
        let slot = tokio::time::timeout(self.timeout, slot).await;
        slot.map_err(|_| Error::Busy)?.map_err(|_| Error::Busy)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn lists_give_way_and_are_few_at_a_time() {
        let nice = || {
            let stat = std::fs::read_to_string("/proc/thread-self/stat").unwrap();
            let fields = stat.rsplit_once(')').unwrap().1;
            let nice = fields.split_whitespace().nth(16).unwrap().to_owned();
            Ok(nice.parse::<i32>().unwrap())
        };
        let pool = Pool::new(1);
        let before = pool.run(nice).await.unwrap();
        let during = pool.list(None, nice).await.unwrap();
        assert_eq!(during, (before + NICE).min(19));
        assert_eq!(pool.run(nice).await.unwrap(), before);
        // All of them hang: only lists wait.
        let mut all = Vec::new();
        for _ in 0..pool.lists.permits() {
            all.push(pool.lists.acquire(None).await);
        }
        let next = Pool {
            timeout: Duration::from_millis(20),
            ..pool.clone()
        };
        assert!(matches!(next.list(None, || Ok(())).await, Err(Error::Busy)));
        next.run(|| Ok(())).await.unwrap();
        drop(all);
        next.list(None, || Ok(())).await.unwrap();
    }

    #[tokio::test]
    async fn a_client_that_asks_for_many_lists_delays_no_other_one() {
        let pool = Pool::new(1);
        let mut all = Vec::new();
        for _ in 0..pool.lists.permits() {
            all.push(pool.lists.acquire(None).await);
        }
        let order = Arc::new(std::sync::Mutex::new(Vec::new()));
        let mut lists = tokio::task::JoinSet::new();
        for last in std::iter::repeat_n(1, 100).chain([2]) {
            let (pool, order) = (pool.clone(), Arc::clone(&order));
            lists.spawn(async move {
                let work = move || {
                    order.lock().unwrap().push(last);
                    Ok(())
                };
                pool.list(Some([10, 0, 0, last].into()), work).await
            });
        }
        for _ in 0..lists.len() {
            tokio::task::yield_now().await;
        }
        drop(all);
        for outcome in lists.join_all().await {
            outcome.unwrap();
        }
        let order = order.lock().unwrap();
        let at = order.iter().position(|last| *last == 2).unwrap();
        assert!(at <= 2 * pool.lists.permits(), "{at} lists came before");
    }

    #[tokio::test]
    async fn hung_volume_refuses_instead_of_piling_up() {
        let pool = Pool {
            timeout: Duration::from_millis(20),
            ..Pool::new(1)
        };
        let (release, hung) = std::sync::mpsc::channel::<()>();
        let stuck = tokio::spawn({
            let pool = pool.clone();
            async move { pool.run(move || Ok(hung.recv().is_ok())).await }
        });
        tokio::task::yield_now().await;
        assert!(matches!(pool.run(|| Ok(())).await, Err(Error::Busy)));
        release.send(()).unwrap();
        assert!(stuck.await.unwrap().unwrap());
        pool.run(|| Ok(())).await.unwrap();
    }
}
