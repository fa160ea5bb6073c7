//! Requests to one host, so many a second. Who must wait has a place in a queue of limited length, in
//! fair order by repository; a place is free again as soon as nobody waits for its answer.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{sync::Notify, time::Instant};

use super::{Error, Priority, Result};
use crate::limits::UPSTREAM_REQUESTS_WAITING as PLACES;

/// A place in the queue. The order is that of fair queueing: each repository's places get rounds one
/// after the other, beginning with the round that is served now.
#[derive(Debug)]
struct Place {
    repository: String,
    priority: Priority,
    round: u64,
    /// Told when it is the first, and when it has lost its place.
    wake: Arc<Notify>,
}

#[derive(Debug, Default)]
struct Queue {
    /// When the next request may leave.
    free_at: Option<Instant>,
    places: BTreeMap<u64, Place>,
    arrivals: u64,
    round: u64,
}

/// The pace of requests to one host; 0 a second is no cap.
#[derive(Debug)]
pub(super) struct Pace {
    per_second: u64,
    queue: Mutex<Queue>,
}

impl Queue {
    /// Who goes next.
    fn first(&self) -> Option<u64> {
        self.places
            .iter()
            .min_by_key(|(at, place)| (place.priority.need(), place.round, **at))
            .map(|(at, _)| *at)
    }

    fn wake_first(&self) {
        if let Some(place) = self.first().and_then(|at| self.places.get(&at)) {
            place.wake.notify_one();
        }
    }

    /// Makes room for one more of `repository`; false when it has to go instead.
    fn make_room(&mut self, repository: &str) -> bool {
        if self.places.len() < PLACES {
            return true;
        }
        let mut held: HashMap<&str, usize> = HashMap::new();
        for place in self.places.values() {
            *held.entry(&place.repository).or_default() += 1;
        }
        let own = held.get(repository).copied().unwrap_or(0);
        let most = held.into_iter().max_by_key(|(_, places)| *places);
        let Some((greedy, _)) = most.filter(|(_, places)| *places > own + 1) else {
            return false;
        };
        let last = self
            .places
            .iter()
            .rev()
            .find(|(_, place)| place.repository == greedy)
            .map(|(at, _)| *at);
        if let Some(place) = last.and_then(|at| self.places.remove(&at)) {
            place.wake.notify_one();
        }
        true
    }

    fn enter(&mut self, repository: &str, priority: &Priority) -> Option<(u64, Arc<Notify>)> {
        if !self.make_room(repository) {
            return None;
        }
        let same = self.places.values();
        let last = same
            .filter(|place| place.repository == repository)
            .map(|place| place.round)
            .max();
        let round = last.map_or(self.round, |last| last + 1);
        self.arrivals += 1;
        let wake = Arc::new(Notify::new());
        let place = Place {
            repository: repository.to_owned(),
            priority: priority.clone(),
            round,
            wake: Arc::clone(&wake),
        };
        self.places.insert(self.arrivals, place);
        Some((self.arrivals, wake))
    }
}

/// Gives a place up when its owner leaves.
struct Held<'a> {
    pace: &'a Pace,
    at: u64,
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        let mut queue = self.pace.queue();
        if queue.places.remove(&self.at).is_some() {
            queue.wake_first();
        }
    }
}

enum Step {
    Go,
    Lost,
    Sleep(Instant),
    Wait,
}

impl Pace {
    /// So many requests a second; after a pause, one second's worth may leave at once.
    pub(super) fn new(per_second: u64) -> Self {
        Self {
            per_second,
            queue: Mutex::default(),
        }
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// When the next request may leave; in the past when one may leave now.
    fn next(&self, queue: &Queue, now: Instant) -> Instant {
        let burst = now.checked_sub(Duration::from_secs(1)).unwrap_or(now);
        let cost = Duration::from_secs(1) / u32::try_from(self.per_second).unwrap_or(u32::MAX);
        queue.free_at.map_or(burst, |at| at.max(burst)) + cost
    }

    fn step(&self, at: u64) -> Step {
        let now = Instant::now();
        let mut queue = self.queue();
        if !queue.places.contains_key(&at) {
            return Step::Lost;
        }
        if queue.first() != Some(at) {
            // A place may have become more urgent since the first one was told.
            queue.wake_first();
            return Step::Wait;
        }
        let next = self.next(&queue, now);
        if next > now {
            return Step::Sleep(next);
        }
        queue.free_at = Some(next);
        if let Some(place) = queue.places.remove(&at) {
            queue.round = queue.round.max(place.round);
        }
        queue.wake_first();
        Step::Go
    }

    /// Waits until a request for `repository` may leave.
    ///
    /// # Errors
    /// [`Error::Busy`] when too many wait already, or nobody waits for this one any more.
    pub(super) async fn take(&self, repository: &str, priority: &Priority) -> Result<()> {
        if self.per_second == 0 {
            return Ok(());
        }
        let entered = self.queue().enter(repository, priority);
        let busy = || Error::Busy("too many requests wait for this upstream".to_owned());
        let (at, wake) = entered.ok_or_else(busy)?;
        let _held = Held { pace: self, at };
        loop {
            let until = match self.step(at) {
                Step::Go => return Ok(()),
                Step::Lost => return Err(busy()),
                Step::Sleep(until) => Some(until),
                Step::Wait => None,
            };
            let due = async {
                match until {
                    Some(until) => tokio::time::sleep_until(until).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = wake.notified() => {}
                () = due => {}
                () = priority.abandoned() => {
                    return Err(Error::Busy("nobody waits for it any more".to_owned()));
                }
            }
        }
    }

    /// Requests that wait.
    #[cfg(test)]
    pub(super) fn waiting(&self) -> usize {
        self.queue().places.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::{FutureExt, poll};
    use holdfast_api::fill::Need;

    #[tokio::test(start_paused = true)]
    async fn one_seconds_worth_leaves_at_once_and_the_rest_in_step() {
        let (pace, priority) = (Pace::new(10), Priority::default());
        let begun = Instant::now();
        for _ in 0..10 {
            pace.take("a", &priority).await.unwrap();
        }
        assert!(begun.elapsed() < Duration::from_millis(10));
        for _ in 0..10 {
            pace.take("a", &priority).await.unwrap();
        }
        let took = begun.elapsed().as_millis();
        assert!((950..1100).contains(&took), "{took}");
        Pace::new(0).take("a", &priority).await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn who_leaves_frees_the_place() {
        let (pace, priority) = (Pace::new(1), Priority::default());
        pace.take("a", &priority).await.unwrap();
        let mut left: Vec<_> = (0..100)
            .map(|_| Box::pin(pace.take("a", &priority)))
            .collect();
        for one in &mut left {
            assert!(poll!(one).is_pending());
        }
        drop(left);
        assert_eq!(pace.waiting(), 0);
        let begun = Instant::now();
        pace.take("a", &priority).await.unwrap();
        assert!(begun.elapsed() <= Duration::from_millis(1100));
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_that_nobody_waits_for_leaves_by_itself() {
        let pace = Pace::new(1);
        pace.take("a", &Priority::default()).await.unwrap();
        let (pull, watched) = Priority::default().watched();
        let mut waits = Box::pin(pace.take("a", &watched));
        let held = pull.hold();
        assert!(poll!(&mut waits).is_pending());
        drop(held);
        assert!(matches!(waits.await, Err(Error::Busy(_))));
        assert_eq!(pace.waiting(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn repositories_take_turns_and_what_pods_wait_for_goes_first() {
        let (pace, ahead) = (Pace::new(1), Priority::new(Need::Ahead));
        pace.take("a", &ahead).await.unwrap();
        let waiting = Priority::default();
        let mut a: Vec<_> = (0..3).map(|_| Box::pin(pace.take("a", &ahead))).collect();
        for one in &mut a {
            assert!(poll!(one).is_pending());
        }
        let mut b = Box::pin(pace.take("b", &ahead));
        assert!(poll!(&mut b).is_pending());
        let mut urgent = Box::pin(pace.take("a", &waiting));
        assert!(poll!(&mut urgent).is_pending());
        urgent.await.unwrap();
        a.remove(0).await.unwrap();
        b.await.unwrap();
        assert!(a.remove(0).now_or_never().is_none(), "the others wait");
    }

    #[tokio::test(start_paused = true)]
    async fn a_full_queue_refuses_and_makes_room_for_another_repository() {
        let (pace, priority) = (Pace::new(1), Priority::default());
        pace.take("a", &priority).await.unwrap();
        let mut all: Vec<_> = (0..PLACES)
            .map(|_| Box::pin(pace.take("a", &priority)))
            .collect();
        for one in &mut all {
            assert!(poll!(one).is_pending());
        }
        assert_eq!(pace.waiting(), PLACES);
        let refused = pace.take("a", &priority).await;
        assert!(matches!(refused, Err(Error::Busy(_))));
        let mut other = Box::pin(pace.take("b", &priority));
        assert!(poll!(&mut other).is_pending());
        assert_eq!(pace.waiting(), PLACES, "the last of the greedy one went");
        let last = all.pop().map(FutureExt::now_or_never);
        assert!(matches!(last, Some(Some(Err(Error::Busy(_))))));
    }
}
