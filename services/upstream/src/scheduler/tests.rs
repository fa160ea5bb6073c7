//! Which copy gets a slot, and which one gives its slot up.

use super::*;
use futures::{FutureExt, poll};

#[test]
fn shares_leave_room_for_what_pods_wait_for() {
    let check = |used: [usize; 3], slots: usize, expect: [bool; 3]| {
        let found = Priority::ALL.map(|level| SlotsInUse(used).takes(level, slots));
        assert_eq!(found, expect, "{used:?} of {slots}");
    };
    check([0, 0, 0], 16, [true, true, true]);
    check([0, 0, 8], 16, [true, true, false]);
    check([0, 4, 8], 16, [true, false, false]);
    check([4, 4, 8], 16, [false, false, false]);
    check([16, 0, 0], 16, [false, false, false]);
    check([0, 0, 0], 1, [true, true, true]);
    check([0, 0, 1], 1, [false, false, false]);
    check([0, 0, 1], 2, [true, false, false]);
}

#[tokio::test]
async fn the_most_urgent_goes_first_and_a_raised_one_overtakes() {
    let scheduler = FillScheduler::new(1, 1);
    let first = scheduler
        .take(("a", "r"), &SharedPriority::default(), 0)
        .await
        .unwrap();
    let [slow, raised] = [Priority::Prefetch, Priority::Prefetch].map(SharedPriority::new);
    let mut slow = Box::pin(scheduler.take(("a", "r"), &slow, 0));
    let mut joined = Box::pin(scheduler.take(("a", "r"), &raised, 0));
    let running = SharedPriority::new(Priority::Running);
    let mut running = Box::pin(scheduler.take(("b", "r"), &running, 0));
    assert!(poll!(&mut slow).is_pending());
    assert!(poll!(&mut joined).is_pending());
    assert!(poll!(&mut running).is_pending());
    scheduler.raise(&raised, Priority::Blocking);
    assert_eq!(scheduler.count(Priority::Blocking), (1, 1));
    drop(first);
    let slot = joined.now_or_never().flatten();
    assert!(slot.is_some(), "a pull joined it");
    assert!(poll!(&mut slow).is_pending() && poll!(&mut running).is_pending());
    drop(slot);
    assert!(running.now_or_never().flatten().is_some());
    assert!(slow.now_or_never().flatten().is_some(), "at last");
}

#[tokio::test]
async fn one_host_does_not_take_every_slot_and_who_leaves_is_forgotten() {
    let scheduler = FillScheduler::new(3, 2);
    let wait = SharedPriority::default();
    let a1 = scheduler.take(("a", "r"), &wait, 0).await;
    let a2 = scheduler.take(("a", "r"), &wait, 0).await;
    let mut a3 = Box::pin(scheduler.take(("a", "r"), &wait, 0));
    assert!(poll!(&mut a3).is_pending());
    let b = scheduler
        .take(("b", "r"), &wait, 0)
        .now_or_never()
        .flatten();
    assert!(b.is_some(), "another host's slot is free");
    drop(a3);
    drop((a1, a2));
    assert_eq!(scheduler.count(Priority::Blocking), (0, 1));
    assert!(scheduler.is_anybody_waiting());
}

#[tokio::test(start_paused = true)]
async fn what_nobody_waits_for_leaves_its_host_to_what_somebody_waits_for() {
    let scheduler = FillScheduler::new(8, 8);
    let image = SharedPriority::new(Priority::Running);
    let [first, second] = [image.part(), image.part()];
    let _first = scheduler.take(("a", "r"), &first, 0).await.unwrap();
    let slot = scheduler.take(("a", "r"), &second, 0).await.unwrap();
    let stood = async |priority: &SharedPriority| {
        let begun = Instant::now();
        slot.yield_to_waiters(priority).await;
        begun.elapsed()
    };
    assert_eq!(stood(&second).await, Duration::ZERO, "nobody waits");
    let elsewhere = scheduler.wait("b");
    assert_eq!(stood(&second).await, Duration::ZERO, "another host");
    drop(elsewhere);
    let elsewhere = scheduler.wait("a");
    assert_eq!(stood(&second).await, MAX_YIELD, "not for ever");
    drop(elsewhere);
    scheduler.raise(&first, Priority::Blocking);
    assert_eq!(stood(&second).await, MAX_YIELD, "the other part");
    scheduler.raise(&image, Priority::Blocking);
    assert_eq!(stood(&second).await, Duration::ZERO, "all of the image");
}

/// Slots for two hosts with trickling copies, all taken.
#[tokio::test(start_paused = true)]
async fn what_another_replica_copies_holds_no_slot_that_it_could_give_up() {
    let scheduler = FillScheduler::new(1, 1);
    let wait = SharedPriority::default();
    let only = scheduler.take(("a", "r"), &wait, 0).await;
    let elsewhere = scheduler.wait("b");
    let next = scheduler.take(("c", "r"), &wait, 0);
    let release = async {
        tokio::time::sleep(10 * PREEMPT_INTERVAL).await;
        drop(only);
    };
    let (slot, ()) = futures::future::join(next, release).await;
    assert!(slot.is_some());
    drop(elsewhere);
}

async fn all_taken(scheduler: &FillScheduler, hosts: &[&str], each: usize) -> Vec<Slot> {
    let mut taken = Vec::new();
    for host in hosts {
        for _ in 0..each {
            let slot = scheduler.take((host, "r"), &SharedPriority::default(), 0);
            taken.push(slot.await.unwrap());
        }
    }
    taken
}

#[tokio::test(start_paused = true)]
async fn a_slow_copy_gives_its_slot_to_a_host_that_has_fewer() {
    let scheduler = FillScheduler::new(4, 2);
    let taken = all_taken(&scheduler, &["a", "b"], 2).await;
    let fast = Arc::clone(taken[1].flow());
    let keeps_sending = tokio::spawn(async move {
        loop {
            fast.came(100_000);
            fast.waits();
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    });
    let waits = SharedPriority::default();
    let mut honest = Box::pin(scheduler.take(("c", "r"), &waits, 0));
    let begun = Instant::now();
    let preempted = async {
        loop {
            let victim = taken
                .iter()
                .position(|slot| slot.preempted().is_cancelled());
            if let Some(victim) = victim {
                return victim;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    let victim = tokio::select! {
        _ = &mut honest => panic!("no slot is free"),
        victim = preempted => victim,
    };
    assert_ne!(victim, 1, "it is not slow");
    assert!(begun.elapsed() <= Duration::from_secs(2));
    let mut taken: Vec<_> = taken.into_iter().map(Some).collect();
    taken[victim] = None;
    assert!(honest.await.is_some());
    let others = taken.iter().flatten();
    let cancelled = others.filter(|slot| slot.preempted().is_cancelled());
    assert_eq!(cancelled.count(), 0, "one slot for one that waits");
    keeps_sending.abort();
}

#[tokio::test(start_paused = true)]
async fn a_copy_that_yielded_and_one_of_its_repository_preempt_none_at_once() {
    let scheduler = FillScheduler::new(2, 2);
    let taken = all_taken(&scheduler, &["a"], 2).await;
    let waits = SharedPriority::default();
    let gone = || {
        let gone = taken.iter().filter(|slot| slot.preempted().is_cancelled());
        gone.count()
    };
    let mut same = Box::pin(scheduler.take(("a", "r"), &waits, 0));
    let mut yielded = Box::pin(scheduler.take(("b", "r"), &waits, 1));
    for (seconds, expect) in [(4, 0), (60, 1)] {
        tokio::select! {
            _ = &mut same => panic!("no slot is free"),
            _ = &mut yielded => panic!("no slot is free"),
            () = tokio::time::sleep(Duration::from_secs(seconds)) => {}
        }
        assert_eq!(gone(), expect, "for the host that has none, {seconds} s");
    }
    drop(taken);
    assert!(yielded.await.is_some() && same.await.is_some());
}

/// Has copies bring so much that they are not slow.
fn send_fast(scheduler: &[&Slot]) -> tokio::task::JoinHandle<()> {
    let flows: Vec<_> = scheduler
        .iter()
        .map(|slot| Arc::clone(slot.flow()))
        .collect();
    tokio::spawn(async move {
        loop {
            for flow in &flows {
                flow.came(10_000);
                flow.waits();
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    })
}

/// Which copy gives its slot up next, and after how many seconds.
async fn next_victim(taken: &[(&str, Slot)]) -> (usize, u64) {
    let begun = Instant::now();
    loop {
        let mut scheduler = taken.iter();
        if let Some(victim) = scheduler.position(|(_, slot)| slot.preempted().is_cancelled()) {
            return (victim, begun.elapsed().as_secs());
        }
        assert!(begun.elapsed() < Duration::from_secs(600), "nobody does");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Three of a kind share two slots: every time the longest running one gives its slot to the one
/// that waits. `seconds`: after which time each of them does.
async fn take_turns(places: [(&'static str, &'static str); 3], seconds: &[u64]) {
    let scheduler = FillScheduler::new(2, 2);
    let waits = SharedPriority::default();
    let (mut taken, mut senders) = (Vec::new(), Vec::new());
    let mut yielded = HashMap::<_, u32>::new();
    let name = |(host, repository): (&'static str, &'static str)| match repository {
        "r" => host,
        repository => repository,
    };
    for place in &places[..2] {
        let slot = scheduler.take(*place, &waits, 0).await.unwrap();
        senders.push(send_fast(&[&slot]));
        taken.push((name(*place), slot));
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let mut waiter = places[2];
    for expect in seconds {
        let before = *yielded.entry(name(waiter)).or_default();
        let mut waiting = Box::pin(scheduler.take(waiter, &waits, before));
        let (victim, after) = tokio::select! {
            _ = &mut waiting => panic!("no slot is free"),
            victim = next_victim(&taken) => victim,
        };
        assert_eq!(victim, 0, "{}: the longest running", name(waiter));
        assert!(
            (*expect..=expect + 1).contains(&after),
            "{after} s, not {expect}"
        );
        let (gone, slot) = taken.remove(0);
        drop(slot);
        let slot = waiting.await.unwrap();
        senders.push(send_fast(&[&slot]));
        taken.push((name(waiter), slot));
        *yielded.entry(gone).or_default() += 1;
        let mut all = places.iter();
        waiter = *all.find(|place| name(**place) == gone).unwrap();
    }
    senders.iter().for_each(tokio::task::JoinHandle::abort);
}

#[tokio::test(start_paused = true)]
async fn more_hosts_than_slots_take_turns() {
    // From the fourth turn on who gives and who gets ran before.
    let hosts = [("a", "r"), ("b", "r"), ("c", "r")];
    take_turns(hosts, &[4, 0, 4, 4, 4, 4, 14]).await;
}

#[tokio::test(start_paused = true)]
async fn more_repositories_than_slots_of_their_host_take_turns() {
    take_turns([("a", "x"), ("a", "y"), ("a", "z")], &[29, 0, 29]).await;
}

#[tokio::test(start_paused = true)]
async fn a_host_with_more_than_its_share_gives_slots_up_though_it_is_fast() {
    let scheduler = FillScheduler::new(4, 4);
    let taken = all_taken(&scheduler, &["a"], 4).await;
    let flows: Vec<_> = taken.iter().map(|slot| Arc::clone(slot.flow())).collect();
    let keeps_sending = tokio::spawn(async move {
        loop {
            for flow in &flows {
                flow.came(1_000_000);
                flow.waits();
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    });
    let waits = SharedPriority::default();
    let mut others: Vec<_> = (0..4)
        .map(|_| Box::pin(scheduler.take(("b", "r"), &waits, 0)))
        .collect();
    let all = futures::future::select_all(others.iter_mut());
    tokio::select! {
        _ = all => panic!("no slot is free"),
        () = tokio::time::sleep(Duration::from_secs(30)) => {}
    }
    let gone = taken.iter().filter(|slot| slot.preempted().is_cancelled());
    assert_eq!(gone.count(), 2, "half each");
    keeps_sending.abort();
}

#[tokio::test]
async fn hosts_and_then_repositories_take_turns() {
    let scheduler = FillScheduler::new(3, 3);
    let wait = SharedPriority::default();
    let mut held = all_taken(&scheduler, &["a"], 3).await;
    let mut same = Box::pin(scheduler.take(("a", "r"), &wait, 0));
    let mut other = Box::pin(scheduler.take(("a", "s"), &wait, 0));
    let mut host = Box::pin(scheduler.take(("b", "r"), &wait, 0));
    for one in [&mut same, &mut other] {
        assert!(poll!(one).is_pending());
    }
    assert!(poll!(&mut host).is_pending());
    held.pop();
    let host = host.now_or_never().flatten();
    assert!(host.is_some(), "it has no slot yet");
    held.pop();
    assert!(other.now_or_never().flatten().is_some(), "nor has this one");
    drop(host);
    assert!(same.now_or_never().flatten().is_some());
}

#[tokio::test]
async fn a_full_queue_of_copies_makes_room_for_another_client() {
    let scheduler = FillScheduler::new(1, 1);
    let client = |number: u8| {
        let address = std::net::Ipv4Addr::new(192, 0, 2, number);
        SharedPriority::default().on_behalf_of(crate::Requester::Client(address.into()))
    };
    let _runs = scheduler.take(("a", "r"), &client(1), 0).await.unwrap();
    let greedy = client(1);
    let queue = |number: usize| scheduler.take(("a", &format!("r{number}")), &greedy, 0);
    let mut all: Vec<_> = (0..COPIES_WAITING)
        .map(|number| Box::pin(queue(number)))
        .collect();
    let further = queue(COPIES_WAITING).now_or_never();
    assert!(matches!(further, Some(None)), "it is told so at once");
    let mut other = Box::pin(scheduler.take(("a", "app"), &client(2), 0));
    assert!(poll!(&mut other).is_pending());
    assert_eq!(scheduler.count(Priority::Blocking), (COPIES_WAITING, 1));
    let last = all.pop().map(FutureExt::now_or_never);
    assert!(
        matches!(last, Some(Some(None))),
        "the newest of the greedy one"
    );
    drop(all);
    assert_eq!(
        scheduler.count(Priority::Blocking),
        (1, 1),
        "who leaves is forgotten"
    );
}
