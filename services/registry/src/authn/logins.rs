//! Which passwords are checked, and in which order.
//!
//! A check takes a core for up to a second, so attackers could use up the CPU with checks. Failures
//! are counted by address, and by user from one address; beyond a limit, further attempts are
//! refused before their check. Waiting attempts are ordered by what is known of them: first
//! passwords that were right before, then addresses with the fewest failures, one attempt of each
//! address in turn.

use std::{collections::HashMap, hash::Hash, net::IpAddr, sync::Arc, time::Instant};

use tokio::sync::oneshot;

use crate::limits::{
    LOGIN_ADDRESSES, LOGIN_FAILURES_OF_ADDRESS, LOGIN_FAILURES_OF_USER, LOGIN_WINDOW,
    PASSWORDS_AT_ONCE, PASSWORDS_WAITING,
};

use parking_lot::{Mutex, MutexGuard};

/// Why a password was not checked: too many wait, or too many of this client were wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Overloaded;

/// What is known of a login before its password is checked.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Attempt {
    /// The client: an IPv4 address, or the first 64 bits of an IPv6 address.
    pub(crate) address: IpAddr,
    /// The user's name, hashed.
    pub(crate) user: [u8; 32],
    /// The same password was right before.
    pub(crate) was_right: bool,
}

/// The checks of a process. They outlive the files of users.
#[derive(Debug, Default)]
pub(crate) struct Logins {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    running: usize,
    waiting: Vec<Waiting>,
    of_address: Accounts<IpAddr>,
    of_user: Accounts<(IpAddr, [u8; 32])>,
    next: u64,
}

#[derive(Debug)]
struct Waiting {
    number: u64,
    attempt: Attempt,
    turn: oneshot::Sender<Turn>,
}

/// The right to check one password. Dropped without [`Turn::end`] it counts neither as right nor as
/// wrong.
#[derive(Debug)]
pub(crate) struct Turn {
    logins: Arc<Logins>,
    attempt: Attempt,
    right: Option<bool>,
}

impl Turn {
    /// The check has ended.
    pub(crate) fn end(mut self, right: bool) {
        self.right = Some(right);
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut state = self.logins.lock();
        state.running -= 1;
        state.leave(&self.attempt, self.right, Instant::now());
        drop(state);
        self.logins.serve();
    }
}

impl Logins {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }

    /// Waits for its turn to check a password.
    ///
    /// # Errors
    /// [`Overloaded`]
    pub(crate) async fn enter(self: &Arc<Self>, attempt: Attempt) -> Result<Turn, Overloaded> {
        let (turn, mine) = oneshot::channel();
        self.lock().enter(attempt, turn, Instant::now())?;
        self.serve();
        mine.await.map_err(|_| Overloaded)
    }

    /// Starts checks while there are free places.
    fn serve(self: &Arc<Self>) {
        loop {
            let Some(waiting) = self.lock().take_next(Instant::now()) else {
                return;
            };
            let turn = Turn {
                logins: Arc::clone(self),
                attempt: waiting.attempt,
                right: None,
            };
            // A client that left drops it, which frees the place for the next one.
            drop(waiting.turn.send(turn));
        }
    }
}

impl State {
    fn enter(
        &mut self,
        attempt: Attempt,
        turn: oneshot::Sender<Turn>,
        now: Instant,
    ) -> Result<(), Overloaded> {
        let pair = (attempt.address, attempt.user);
        let failed = LOGIN_FAILURES_OF_ADDRESS <= self.of_address.count(&attempt.address, now)
            || LOGIN_FAILURES_OF_USER <= self.of_user.count(&pair, now);
        if failed && !attempt.was_right {
            return Err(Overloaded);
        }
        let waiting = Waiting {
            number: self.next,
            attempt,
            turn,
        };
        self.next += 1;
        self.of_address.begin(attempt.address, now);
        self.of_user.begin(pair, now);
        self.waiting.push(waiting);
        if PASSWORDS_WAITING < self.running + self.waiting.len() {
            self.forget_gone(now);
        }
        if PASSWORDS_WAITING < self.running + self.waiting.len()
            && let Some(last) = self.ranked(now).max_by_key(|(rank, _)| *rank)
        {
            let last = self.waiting.swap_remove(last.1);
            self.leave(&last.attempt, None, now);
        }
        Ok(())
    }

    /// The next one to be served, if there is room for it.
    fn take_next(&mut self, now: Instant) -> Option<Waiting> {
        if PASSWORDS_AT_ONCE <= self.running {
            return None;
        }
        let (_, next) = self.ranked(now).min_by_key(|(rank, _)| *rank)?;
        self.running += 1;
        let next = self.waiting.swap_remove(next);
        self.of_address.serve(&next.attempt.address, self.next);
        self.next += 1;
        Some(next)
    }

    /// Those that wait, by their position in the list, with their rank: the lowest is served first.
    fn ranked(&self, now: Instant) -> impl Iterator<Item = (impl Ord + Copy + use<>, usize)> {
        let mut order: Vec<_> = self.waiting.iter().enumerate().collect();
        order.sort_by_key(|(_, waiting)| waiting.number);
        let mut before: HashMap<IpAddr, usize> = HashMap::new();
        let mut ranked = Vec::with_capacity(order.len());
        for (index, waiting) in order {
            let Attempt {
                address, was_right, ..
            } = waiting.attempt;
            let failures = self.of_address.failures(&address, now);
            let turns = before.entry(address).or_insert(0);
            let served = self.of_address.served(&address);
            let rank = (!was_right, failures, *turns, served, waiting.number);
            ranked.push((rank, index));
            *turns += 1;
        }
        ranked.into_iter()
    }

    fn forget_gone(&mut self, now: Instant) {
        let (gone, waiting) = std::mem::take(&mut self.waiting)
            .into_iter()
            .partition::<Vec<_>, _>(|waiting| waiting.turn.is_closed());
        self.waiting = waiting;
        for waiting in gone {
            self.leave(&waiting.attempt, None, now);
        }
    }

    fn leave(&mut self, attempt: &Attempt, right: Option<bool>, now: Instant) {
        let pair = (attempt.address, attempt.user);
        self.of_address.end(&attempt.address, right, now);
        self.of_user.end(&pair, right, now);
    }
}

/// Failures and attempts under way, of at most [`LOGIN_ADDRESSES`] clients.
#[derive(Debug)]
struct Accounts<K>(HashMap<K, Account>);

impl<K> Default for Accounts<K> {
    fn default() -> Self {
        Self(HashMap::new())
    }
}

#[derive(Clone, Copy, Debug)]
struct Account {
    since: Instant,
    failures: usize,
    under_way: usize,
    /// When it was served last: addresses take turns.
    served: u64,
}

impl Account {
    fn failures(&self, now: Instant) -> usize {
        let is_over = LOGIN_WINDOW <= now.saturating_duration_since(self.since);
        if is_over { 0 } else { self.failures }
    }
}

impl<K: Copy + Eq + Hash> Accounts<K> {
    fn failures(&self, key: &K, now: Instant) -> usize {
        self.0.get(key).map_or(0, |account| account.failures(now))
    }

    /// Failures, and attempts under way that may become some.
    fn count(&self, key: &K, now: Instant) -> usize {
        self.0
            .get(key)
            .map_or(0, |account| account.failures(now) + account.under_way)
    }

    fn served(&self, key: &K) -> u64 {
        self.0.get(key).map_or(0, |account| account.served)
    }

    fn serve(&mut self, key: &K, at: u64) {
        if let Some(account) = self.0.get_mut(key) {
            account.served = at;
        }
    }

    fn begin(&mut self, key: K, now: Instant) {
        if LOGIN_ADDRESSES <= self.0.len() && !self.0.contains_key(&key) {
            self.make_room(now);
        }
        let account = self.0.entry(key).or_insert(Account {
            since: now,
            failures: 0,
            under_way: 0,
            served: 0,
        });
        account.under_way += 1;
    }

    fn make_room(&mut self, now: Instant) {
        self.0
            .retain(|_, account| 0 < account.under_way || 0 < account.failures(now));
        if LOGIN_ADDRESSES <= self.0.len() {
            let idle = self.0.iter().filter(|(_, account)| account.under_way == 0);
            let oldest = idle.min_by_key(|(_, account)| account.since);
            if let Some(oldest) = oldest.map(|(key, _)| *key) {
                self.0.remove(&oldest);
            }
        }
    }

    fn end(&mut self, key: &K, right: Option<bool>, now: Instant) {
        let Some(account) = self.0.get_mut(key) else {
            return;
        };
        account.under_way = account.under_way.saturating_sub(1);
        if right == Some(false) {
            if account.failures(now) == 0 {
                account.failures = 0;
                account.since = now;
            }
            account.failures += 1;
        }
        if account.under_way == 0 && account.failures(now) == 0 {
            self.0.remove(key);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn attempt(address: [u8; 2], user: u8) -> Attempt {
        Attempt {
            address: IpAddr::from([10, 0, address[0], address[1]]),
            user: [user; 32],
            was_right: false,
        }
    }

    struct Queue {
        state: State,
        begin: Instant,
        mine: Vec<oneshot::Receiver<Turn>>,
    }

    impl Queue {
        fn new() -> Self {
            Self {
                state: State::default(),
                begin: Instant::now(),
                mine: Vec::new(),
            }
        }

        fn enter(&mut self, attempt: Attempt, second: u64) -> bool {
            let (turn, mine) = oneshot::channel();
            self.mine.push(mine);
            let now = self.begin + Duration::from_secs(second);
            self.state.enter(attempt, turn, now).is_ok()
        }

        /// Serves the next one, whose password is right or wrong; the last part of its address.
        fn serve(&mut self, right: bool, second: u64) -> Option<u8> {
            let now = self.begin + Duration::from_secs(second);
            let next = self.state.take_next(now)?;
            self.state.running -= 1;
            self.state.leave(&next.attempt, Some(right), now);
            match next.attempt.address {
                IpAddr::V4(address) => Some(address.octets()[3]),
                IpAddr::V6(_) => None,
            }
        }
    }

    #[test]
    fn failures_of_a_user_and_of_an_address_are_refused_before_their_check() {
        let mut queue = Queue::new();
        for _ in 0..LOGIN_FAILURES_OF_USER {
            assert!(queue.enter(attempt([0, 1], 0), 0));
        }
        assert!(!queue.enter(attempt([0, 1], 0), 0), "under way count, too");
        while queue.serve(false, 0).is_some() {}
        assert!(!queue.enter(attempt([0, 1], 0), 59));
        assert!(queue.enter(attempt([0, 2], 0), 59), "another address");
        for user in 1..=LOGIN_FAILURES_OF_ADDRESS - LOGIN_FAILURES_OF_USER {
            let user = u8::try_from(user).unwrap();
            assert!(queue.enter(attempt([0, 1], user), 59), "another user");
        }
        assert!(!queue.enter(attempt([0, 1], 99), 59), "the address");
        let known = Attempt {
            was_right: true,
            ..attempt([0, 1], 0)
        };
        assert!(queue.enter(known, 59), "a password that was right");
        while queue.serve(true, 59).is_some() {}
        assert!(queue.enter(attempt([0, 1], 0), 60), "a minute later");
    }

    #[test]
    fn who_failed_waits_behind_who_did_not_and_addresses_take_turns() {
        let mut queue = Queue::new();
        assert!(queue.enter(attempt([0, 9], 0), 0));
        queue.serve(false, 0);
        for (last, count) in [(9, 1), (1, 3), (2, 2)] {
            for user in 0..count {
                assert!(queue.enter(attempt([0, last], user), 1));
            }
        }
        let known = Attempt {
            was_right: true,
            ..attempt([0, 7], 0)
        };
        assert!(queue.enter(known, 1));
        let order: Vec<_> = std::iter::from_fn(|| queue.serve(true, 1)).collect();
        assert_eq!(order, [7, 1, 2, 1, 2, 1, 9]);
    }

    #[test]
    fn a_full_queue_lets_go_of_the_last_one_in_it() {
        let mut queue = Queue::new();
        let hoard = |number: usize| {
            let number = u8::try_from(number / LOGIN_FAILURES_OF_USER).unwrap();
            attempt([1, number], 0)
        };
        for number in 0..PASSWORDS_WAITING {
            assert!(queue.enter(hoard(number), 0));
        }
        assert!(queue.enter(attempt([0, 1], 0), 0));
        assert_eq!(queue.state.waiting.len(), PASSWORDS_WAITING);
        let refused = |mine: &mut oneshot::Receiver<Turn>| {
            mine.try_recv().err() == Some(oneshot::error::TryRecvError::Closed)
        };
        let lost: Vec<_> = (0..=PASSWORDS_WAITING)
            .filter(|number| refused(&mut queue.mine[*number]))
            .collect();
        assert_eq!(lost.len(), 1);
        assert_ne!(lost, [PASSWORDS_WAITING], "the address that waits once");
    }

    #[tokio::test]
    async fn few_passwords_are_checked_at_once_and_a_gone_client_holds_none() {
        let logins = Arc::new(Logins::default());
        let mut turns = Vec::new();
        for last in 0..PASSWORDS_AT_ONCE {
            let last = u8::try_from(last).unwrap();
            turns.push(logins.enter(attempt([0, last], 0)).await.unwrap());
        }
        let enter = |last| {
            let logins = Arc::clone(&logins);
            tokio::spawn(async move { logins.enter(attempt([1, last], 0)).await })
        };
        let (gone, waits) = (enter(1), enter(2));
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert_eq!(logins.lock().waiting.len(), 2);
        gone.abort();
        assert!(gone.await.is_err());
        turns.pop().unwrap().end(false);
        let turn = waits.await.unwrap().unwrap();
        assert_eq!(logins.lock().running, PASSWORDS_AT_ONCE);
        turn.end(true);
        drop(turns);
        let state = logins.lock();
        assert_eq!((state.running, state.waiting.len()), (0, 0));
        assert_eq!(state.of_address.0.len(), 1, "only a failure is remembered");
    }

    #[test]
    fn so_many_clients_are_remembered() {
        let mut queue = Queue::new();
        for number in 0..LOGIN_ADDRESSES + 10 {
            let [high, low] = u16::try_from(number).unwrap().to_be_bytes();
            assert!(queue.enter(attempt([high, low], 0), 0));
            queue.serve(false, 0);
        }
        assert_eq!(queue.state.of_address.0.len(), LOGIN_ADDRESSES);
        assert_eq!(queue.state.of_user.0.len(), LOGIN_ADDRESSES);
    }
}
