//! Limits the requests to one host per second. A request that must wait has a place in a queue of
//! limited length; its place is free again as soon as its clients are gone.
//!
//! Requests that pods wait for go first. Then the requesters (clients by address, and the
//! controller) take turns, and so do the repositories of each of them. A request that several
//! clients wait for is sent when the first of them has its turn. When the queue is full,
//! `requester` decides whose place a newcomer gets.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    hash::Hash,
    sync::Arc,
    time::Duration,
};

use holdfast_api::fill::Priority;
use parking_lot::{Mutex, MutexGuard};
use tokio::{sync::Notify, time::Instant};

use super::{Error, Requester, Result, SharedPriority, requester};
use crate::limits::UPSTREAM_REQUESTS_WAITING as PLACES;

/// A place in the queue.
#[derive(Debug)]
struct Place {
    repository: String,
    priority: SharedPriority,
    /// Notified when it is the first, and when it has lost its place.
    wake: Arc<Notify>,
}

/// Turns by key: each gets one a round. A key that had none lately joins the round after the one
/// that is served, so newcomers never starve another key.
#[derive(Debug)]
struct Rounds<K> {
    served: u64,
    next: HashMap<K, u64>,
}

impl<K> Default for Rounds<K> {
    fn default() -> Self {
        Self {
            served: 0,
            next: HashMap::new(),
        }
    }
}

impl<K: Clone + Eq + Hash> Rounds<K> {
    /// The round of a key's next turn.
    fn round(&mut self, key: &K) -> u64 {
        if let Some(round) = self.next.get(key) {
            return *round;
        }
        self.next.insert(key.clone(), self.served + 1);
        self.served + 1
    }

    /// A key has its turn. Keys that want no further turn are soon forgotten.
    fn serve(&mut self, key: &K, wants: impl Fn(&K) -> bool) {
        let round = self.round(key);
        self.served = self.served.max(round);
        self.next.insert(key.clone(), round + 1);
        self.next
            .retain(|key, next| *next > self.served || wants(key));
    }
}

#[derive(Debug, Default)]
struct Queue {
    /// When the next request may leave.
    free_at: Option<Instant>,
    places: BTreeMap<u64, Place>,
    arrivals: u64,
    /// One order for each priority: what pods wait for takes no turns from the rest.
    orders: HashMap<Priority, Order>,
}

/// The turns of places of one need.
#[derive(Debug, Default)]
struct Order {
    requesters: Rounds<Requester>,
    repositories: HashMap<Requester, Rounds<String>>,
}

/// The pace of requests to one host; 0 a second is no cap.
#[derive(Debug)]
pub(super) struct Pace {
    per_second: u64,
    queue: Mutex<Queue>,
}

impl Queue {
    /// Whose turn a place takes, with the rounds of that requester and of its repository.
    fn turn(&mut self, at: u64) -> Option<((u64, u64), Requester)> {
        let place = self.places.get(&at)?;
        let Order {
            requesters,
            repositories,
        } = self.orders.entry(place.priority.level()).or_default();
        let each = place.priority.requesters().into_iter().map(|requester| {
            let own = repositories.entry(requester).or_default();
            let rounds = (requesters.round(&requester), own.round(&place.repository));
            (rounds, requester)
        });
        each.min()
    }

    /// The place that is next.
    fn first(&mut self) -> Option<u64> {
        let all: Vec<u64> = self.places.keys().copied().collect();
        let scheduler = all.into_iter().filter_map(|at| {
            let (rounds, _) = self.turn(at)?;
            let level = self.places.get(&at)?.priority.level();
            Some((level, rounds, at))
        });
        scheduler.min().map(|(.., at)| at)
    }

    fn wake_first(&mut self) {
        if let Some(place) = self.first().and_then(|at| self.places.get(&at)) {
            place.wake.notify_one();
        }
    }

    /// A place has its turn.
    fn serve(&mut self, at: u64) {
        let turn = self.turn(at);
        let Some((place, (_, requester))) = self.places.remove(&at).zip(turn) else {
            return;
        };
        let level = place.priority.level();
        let mut wanted: HashMap<Requester, HashSet<&String>> = HashMap::new();
        let same = self.places.values();
        for other in same.filter(|other| other.priority.level() == level) {
            for requester in other.priority.requesters() {
                let of_requester = wanted.entry(requester).or_default();
                of_requester.insert(&other.repository);
            }
        }
        let order = self.orders.entry(level).or_default();
        let own = wanted.get(&requester);
        let wants = |repository: &String| own.is_some_and(|own| own.contains(repository));
        if let Some(rounds) = order.repositories.get_mut(&requester) {
            rounds.serve(&place.repository, wants);
        }
        order
            .requesters
            .serve(&requester, |other| wanted.contains_key(other));
        let known = &order.requesters.next;
        order
            .repositories
            .retain(|other, _| known.contains_key(other));
    }

    /// Frees a place for one more; false when the new one is refused instead.
    fn make_room(&mut self, repository: &str, priority: &SharedPriority) -> bool {
        if self.places.len() < PLACES {
            return true;
        }
        let held = self.places.iter();
        let held = held.map(|(at, place)| (*at, place.repository.as_str(), &place.priority));
        let greediest = requester::greediest(held, (repository, priority));
        let Some(place) = greediest.and_then(|at| self.places.remove(&at)) else {
            return false;
        };
        place.wake.notify_one();
        true
    }

    fn enter(&mut self, repository: &str, priority: &SharedPriority) -> Option<(u64, Arc<Notify>)> {
        if !self.make_room(repository, priority) {
            return None;
        }
        self.arrivals += 1;
        let wake = Arc::new(Notify::new());
        let place = Place {
            repository: repository.to_owned(),
            priority: priority.clone(),
            wake: Arc::clone(&wake),
        };
        self.places.insert(self.arrivals, place);
        // Its turn is counted from now on.
        self.turn(self.arrivals);
        Some((self.arrivals, wake))
    }
}

/// Gives a place up when its request ends.
struct PlaceGuard<'a> {
    pace: &'a Pace,
    at: u64,
}

impl Drop for PlaceGuard<'_> {
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
    /// This many requests a second; after a pause, one second's worth may leave at once.
    pub(super) fn new(per_second: u64) -> Self {
        Self {
            per_second,
            queue: Mutex::default(),
        }
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock()
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
        queue.serve(at);
        queue.wake_first();
        Step::Go
    }

    /// Waits until a request for `repository` may leave.
    ///
    /// # Errors
    /// [`Error::Busy`] when too many wait already, or the clients of this one are gone.
    pub(super) async fn take(&self, repository: &str, priority: &SharedPriority) -> Result<()> {
        if self.per_second == 0 {
            return Ok(());
        }
        let entered = self.queue().enter(repository, priority);
        let busy = || Error::Busy("too many requests wait for this upstream".to_owned());
        let (at, wake) = entered.ok_or_else(busy)?;
        let _held = PlaceGuard { pace: self, at };
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
                    return Err(Error::Busy("its clients are gone".to_owned()));
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

    #[tokio::test(start_paused = true)]
    async fn one_seconds_worth_leaves_at_once_and_the_rest_in_step() {
        let (pace, priority) = (Pace::new(10), SharedPriority::default());
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
        let (pace, priority) = (Pace::new(1), SharedPriority::default());
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
        pace.take("a", &SharedPriority::default()).await.unwrap();
        let (pull, watched) = SharedPriority::default().watched();
        let mut waits = Box::pin(pace.take("a", &watched));
        let held = pull.hold();
        assert!(poll!(&mut waits).is_pending());
        drop(held);
        assert!(matches!(waits.await, Err(Error::Busy(_))));
        assert_eq!(pace.waiting(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn repositories_take_turns_and_what_pods_wait_for_goes_first() {
        let (pace, ahead) = (Pace::new(1), SharedPriority::new(Priority::Prefetch));
        pace.take("a", &ahead).await.unwrap();
        let waiting = SharedPriority::default();
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
        let (pace, priority) = (Pace::new(1), SharedPriority::default());
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

    /// For a client.
    fn client(number: u8, level: Priority) -> SharedPriority {
        let address = std::net::Ipv4Addr::new(192, 0, 2, number);
        SharedPriority::new(level).on_behalf_of(Requester::Client(address.into()))
    }

    /// A request in a task of its own, once it has its place or was refused.
    async fn ask(
        pace: &Arc<Pace>,
        repository: String,
        priority: &SharedPriority,
    ) -> tokio::task::JoinHandle<Result<()>> {
        let (pace, priority) = (Arc::clone(pace), priority.clone());
        let asked = tokio::spawn(async move { pace.take(&repository, &priority).await });
        tokio::task::yield_now().await;
        asked
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_with_every_place_keeps_no_other_client_out() {
        let pace = Arc::new(Pace::new(1));
        let greedy = client(1, Priority::Blocking);
        pace.take("first", &greedy).await.unwrap();
        let (mut names, mut all) = ((0..).map(|number| format!("r{number}")), Vec::new());
        let begun = Instant::now();
        for _ in 0..3 {
            while pace.waiting() < PLACES {
                all.push(ask(&pace, names.next().unwrap(), &greedy).await);
            }
            let refused = ask(&pace, names.next().unwrap(), &greedy).await;
            assert!(matches!(refused.await.unwrap(), Err(Error::Busy(_))));
            let honest = ask(&pace, "app".to_owned(), &client(2, Priority::Blocking)).await;
            assert_eq!(pace.waiting(), PLACES);
            let last = all.pop().unwrap().await.unwrap();
            assert!(
                matches!(last, Err(Error::Busy(_))),
                "the newest of the greedy one"
            );
            honest.await.unwrap().unwrap();
        }
        // One of the others is served for each of these.
        assert!(begun.elapsed() <= Duration::from_secs(7));
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_that_a_second_client_joins_goes_in_its_turn_too() {
        let pace = Arc::new(Pace::new(1));
        pace.take("first", &client(1, Priority::Blocking))
            .await
            .unwrap();
        let mut all = Vec::new();
        for _ in 0..10 {
            all.push(ask(&pace, "other".to_owned(), &client(1, Priority::Blocking)).await);
        }
        let shared = client(1, Priority::Blocking);
        let joined = ask(&pace, "other".to_owned(), &shared).await;
        shared.join(&client(2, Priority::Blocking));
        joined.await.unwrap().unwrap();
        let served = all.iter().filter(|one| one.is_finished());
        assert!(served.count() <= 2);
    }
}
