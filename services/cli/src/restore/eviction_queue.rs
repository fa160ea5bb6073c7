//! The order and rate of evictions: one pod of an owner at a time, the next one when as many pods
//! are ready as before, and a limit of pods a minute over all owners. Pure: time and readiness are
//! arguments.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use super::plan::{Remedy, RewrittenPod};

/// How long an owner may take to recreate a pod. After that, its other pods stay unchanged.
const READY_TIMEOUT: Duration = Duration::from_secs(180);
/// Time until the eviction of a pod that its disruption budget protects is retried.
const RETRY_HELD: Duration = Duration::from_secs(10);

/// The pods of one owner. A pod without an owner is its own.
#[derive(Debug)]
struct Line {
    waiting: VecDeque<RewrittenPod>,
    /// How many of its pods were ready before anything was done.
    before: usize,
    /// The pod that was taken and when, while the one that follows is not ready.
    taken: Option<(Instant, RewrittenPod)>,
    not_before: Option<Instant>,
    held: Option<String>,
}

/// The pods of all owners.
#[derive(Debug)]
pub(super) struct EvictionQueue {
    lines: BTreeMap<String, Line>,
    interval: Duration,
    last: Option<Instant>,
    /// Pods that are left as they are, and why.
    left: Vec<(RewrittenPod, String)>,
}

/// What to do now.
#[derive(Debug, PartialEq)]
pub(super) enum Step {
    /// Restore this pod.
    Take(Box<RewrittenPod>),
    /// Wait for this time.
    Wait(Duration),
    /// Nothing is left to do.
    Done,
}

impl EvictionQueue {
    /// Work on `pods`, at most `per_minute` of them a minute; `ready` counts the ready pods of each
    /// owner.
    pub(super) fn new(
        pods: Vec<RewrittenPod>,
        per_minute: u32,
        ready: &BTreeMap<String, usize>,
    ) -> Self {
        let mut queue = Self {
            lines: BTreeMap::new(),
            interval: Duration::from_secs(60) / per_minute.max(1),
            last: None,
            left: Vec::new(),
        };
        for pod in pods {
            if let Remedy::Leave(why) = &pod.remedy {
                let why = why.clone();
                queue.left.push((pod, why));
                continue;
            }
            let key = key(&pod);
            let before = ready.get(&key).copied().unwrap_or(0);
            let line = queue.lines.entry(key).or_insert_with(|| Line {
                waiting: VecDeque::new(),
                before,
                taken: None,
                not_before: None,
                held: None,
            });
            line.waiting.push_back(pod);
        }
        queue
    }

    /// The owners, by UID, whose pods are waited for: `next` needs to know how many of them are
    /// ready.
    pub(super) fn settling(&self) -> impl Iterator<Item = &str> {
        self.lines
            .iter()
            .filter(|(_, line)| line.taken.is_some())
            .map(|(key, _)| key.as_str())
    }

    /// How many pods wait for their turn.
    pub(super) fn waiting(&self) -> usize {
        self.lines.values().map(|line| line.waiting.len()).sum()
    }

    /// What to do at `now`; an owner that `ready` does not name has no ready pod. With `to_the_end`
    /// it is done only when the successors of the last pods are ready, too, or their time is
    /// over.
    pub(super) fn next(
        &mut self,
        ready: &BTreeMap<String, usize>,
        now: Instant,
        to_the_end: bool,
    ) -> Step {
        for (key, line) in &mut self.lines {
            let Some((taken, pod)) = line.taken.take() else {
                continue;
            };
            if ready.get(key).copied().unwrap_or(0) >= line.before {
                continue;
            }
            if now.duration_since(taken) < READY_TIMEOUT {
                line.taken = Some((taken, pod));
            } else {
                if to_the_end {
                    let why = format!(
                        "evicted; the new pod is not ready after {} s",
                        READY_TIMEOUT.as_secs()
                    );
                    self.left.push((pod, why));
                }
                let why = format!(
                    "unchanged, because the previous new pod of its owner is not ready after {} s",
                    READY_TIMEOUT.as_secs()
                );
                self.left
                    .extend(line.waiting.drain(..).map(|pod| (pod, why.clone())));
            }
        }
        let settling = self.lines.values().any(|line| line.taken.is_some());
        if self.waiting() == 0 {
            return if settling && to_the_end {
                Step::Wait(READY_TIMEOUT)
            } else {
                Step::Done
            };
        }
        if let Some(rest) = self
            .last
            .and_then(|last| (last + self.interval).checked_duration_since(now))
            .filter(|rest| !rest.is_zero())
        {
            return Step::Wait(rest);
        }
        let may = |line: &Line| {
            line.taken.is_none() && line.not_before.is_none_or(|earliest| earliest <= now)
        };
        let next = self
            .lines
            .iter_mut()
            .find(|(_, line)| !line.waiting.is_empty() && may(line));
        let Some((_, line)) = next else {
            return Step::Wait(RETRY_HELD);
        };
        match line.waiting.pop_front() {
            Some(pod) => {
                self.last = Some(now);
                Step::Take(Box::new(pod))
            }
            None => Step::Wait(RETRY_HELD),
        }
    }

    /// The pod was evicted: the next pod of its owner waits for the successor.
    pub(super) fn evicted(&mut self, pod: &RewrittenPod, now: Instant) {
        if let Some(line) = self.lines.get_mut(&key(pod)) {
            (line.taken, line.held) = (Some((now, pod.clone())), None);
        }
    }

    /// The disruption budget of the pod refused the eviction, which is retried later.
    pub(super) fn held(&mut self, pod: RewrittenPod, why: String, now: Instant) {
        if let Some(line) = self.lines.get_mut(&key(&pod)) {
            (line.not_before, line.held) = (Some(now + RETRY_HELD), Some(why));
            line.waiting.push_front(pod);
        }
    }

    /// The pod stays as it is.
    pub(super) fn leave(&mut self, pod: RewrittenPod, why: String) {
        self.left.push((pod, why));
    }

    /// Ends the work; everything that was left, and why. With `to_the_end` also pods whose
    /// successors were still waited for.
    pub(super) fn end(mut self, to_the_end: bool) -> Vec<(RewrittenPod, String)> {
        for line in self.lines.into_values() {
            if let Some((_, pod)) = line.taken.filter(|_| to_the_end) {
                let why = "evicted; the new pod was not ready before the timeout";
                self.left.push((pod, why.to_owned()));
            }
            let why = line
                .held
                .unwrap_or_else(|| "not handled before the timeout".to_owned());
            self.left
                .extend(line.waiting.into_iter().map(|pod| (pod, why.clone())));
        }
        self.left
    }
}

/// The owner's UID, or the pod's own.
fn key(pod: &RewrittenPod) -> String {
    pod.owner
        .as_ref()
        .map_or_else(|| pod.uid.clone(), |owner| owner.uid.clone())
}

#[cfg(test)]
mod tests {
    use super::super::plan::Owner;
    use super::*;

    fn pod(name: &str, owner: &str) -> RewrittenPod {
        RewrittenPod {
            namespace: "shop".to_owned(),
            name: name.to_owned(),
            uid: format!("uid-{name}"),
            node: String::new(),
            pull_secrets: Vec::new(),
            service_account: String::new(),
            owner: Some(Owner {
                kind: "ReplicaSet".to_owned(),
                name: owner.to_owned(),
                uid: owner.to_owned(),
            }),
            images: Vec::new(),
            remedy: Remedy::Recreate,
        }
    }

    fn ready(counts: &[(&str, usize)]) -> BTreeMap<String, usize> {
        counts
            .iter()
            .map(|(owner, count)| ((*owner).to_owned(), *count))
            .collect()
    }

    /// Takes the next pod at this many seconds; its name, or the wait in seconds.
    fn next(
        queue: &mut EvictionQueue,
        start: Instant,
        second: u64,
        counts: &[(&str, usize)],
    ) -> String {
        let now = start + Duration::from_secs(second);
        match queue.next(&ready(counts), now, false) {
            Step::Take(pod) => {
                queue.evicted(&pod, now);
                pod.name
            }
            Step::Wait(time) => format!("wait {}", time.as_secs()),
            Step::Done => "done".to_owned(),
        }
    }

    #[test]
    fn one_pod_of_an_owner_at_a_time_and_so_many_a_minute() {
        let pods = vec![pod("a1", "a"), pod("a2", "a"), pod("b1", "b")];
        let mut queue = EvictionQueue::new(pods, 30, &ready(&[("a", 2), ("b", 1)]));
        let start = Instant::now();
        assert_eq!(next(&mut queue, start, 0, &[("a", 2), ("b", 1)]), "a1");
        assert_eq!(
            next(&mut queue, start, 0, &[("a", 1), ("b", 1)]),
            "wait 2",
            "the rate"
        );
        assert_eq!(
            next(&mut queue, start, 2, &[("a", 1), ("b", 1)]),
            "b1",
            "a waits for its successor"
        );
        assert_eq!(next(&mut queue, start, 4, &[("a", 1), ("b", 0)]), "wait 10");
        assert_eq!(queue.settling().collect::<Vec<_>>(), ["a", "b"]);
        assert_eq!(next(&mut queue, start, 9, &[("a", 2), ("b", 0)]), "a2");
        assert_eq!(next(&mut queue, start, 12, &[("a", 1), ("b", 0)]), "done");
        let now = start + Duration::from_secs(12);
        assert!(
            matches!(queue.next(&ready(&[("a", 1)]), now, true), Step::Wait(_)),
            "to the end"
        );
        assert_eq!(
            queue.next(&ready(&[("a", 2), ("b", 1)]), now, true),
            Step::Done
        );
        assert!(queue.end(false).is_empty());
    }

    #[test]
    fn an_owner_whose_new_pod_does_not_come_up_loses_no_other() {
        let mut queue = EvictionQueue::new(
            vec![pod("a1", "a"), pod("a2", "a")],
            60,
            &ready(&[("a", 2)]),
        );
        let start = Instant::now();
        assert_eq!(next(&mut queue, start, 0, &[("a", 2)]), "a1");
        assert_eq!(next(&mut queue, start, 179, &[("a", 1)]), "wait 10");
        assert_eq!(next(&mut queue, start, 180, &[("a", 1)]), "done");
        let left = queue.end(false);
        assert_eq!(left[0].0.name, "a2");
        assert!(left[0].1.contains("not ready after 180 s"));
    }

    #[test]
    fn who_waits_to_the_end_is_told_of_new_pods_that_do_not_come_up() {
        for (second, why) in [(180, "after 180 s"), (100, "before the timeout")] {
            let mut queue = EvictionQueue::new(vec![pod("a1", "a")], 60, &ready(&[("a", 1)]));
            let start = Instant::now();
            assert_eq!(next(&mut queue, start, 0, &[("a", 1)]), "a1");
            let now = start + Duration::from_secs(second);
            let step = queue.next(&ready(&[]), now, true);
            assert_eq!(step == Step::Done, second == 180);
            let left = queue.end(true);
            assert_eq!((left.len(), left[0].0.name.as_str()), (1, "a1"));
            assert!(left[0].1.contains(why), "{}", left[0].1);
        }
    }

    #[test]
    fn a_pod_that_a_budget_holds_is_tried_again_and_named_in_the_end() {
        let mut queue = EvictionQueue::new(vec![pod("a1", "a"), pod("b1", "b")], 60, &ready(&[]));
        let start = Instant::now();
        let Step::Take(held) = queue.next(&ready(&[]), start, false) else {
            panic!("a pod's turn");
        };
        queue.held(*held, "the budget says no".to_owned(), start);
        assert_eq!(next(&mut queue, start, 1, &[]), "b1", "others go on");
        assert_eq!(next(&mut queue, start, 5, &[]), "wait 10");
        let Step::Take(again) = queue.next(&ready(&[]), start + Duration::from_secs(11), false)
        else {
            panic!("it is tried again");
        };
        queue.held(*again, "the budget says no".to_owned(), start);
        let left = queue.end(false);
        assert_eq!(
            (left[0].0.name.as_str(), left[0].1.as_str()),
            ("a1", "the budget says no")
        );
    }

    #[test]
    fn what_is_to_be_left_has_no_turn() {
        let mut left = pod("a1", "a");
        left.remedy = Remedy::Leave("so it is".to_owned());
        let mut queue = EvictionQueue::new(vec![left], 60, &ready(&[]));
        assert_eq!(queue.next(&ready(&[]), Instant::now(), true), Step::Done);
        assert_eq!(queue.end(false)[0].1, "so it is");
    }
}
