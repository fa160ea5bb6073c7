//! What bounds the bodies of reviews.

use super::*;
use bytes::Bytes;
use futures::stream;

const SLOW: Duration = Duration::from_millis(10);

type Parts = stream::BoxStream<'static, Result<Bytes, std::io::Error>>;

/// A body of this many bytes at once.
fn whole(bytes: usize) -> Parts {
    stream::once(async move { Ok(Bytes::from(vec![b' '; bytes])) }).boxed()
}

/// A byte at a time, a pause before each.
fn trickling() -> Parts {
    stream::repeat(())
        .then(async |()| {
            tokio::time::sleep(SLOW).await;
            Ok(Bytes::from_static(b" "))
        })
        .boxed()
}

fn held(bodies: &BodyBudget) -> usize {
    let state = bodies.shared.lock();
    state.small + state.large
}

const CLIENT: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1));
const OTHER: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 2));

async fn receive(
    bodies: &BodyBudget,
    client: IpAddr,
    length: Option<u64>,
    body: Parts,
) -> Result<Body, Refusal> {
    let deadline = Instant::now() + BODY_TIME;
    bodies.receive(client, (length, body), deadline).await
}

async fn refusal(bodies: &BodyBudget, length: Option<u64>, body: Parts) -> Option<Refusal> {
    receive(bodies, CLIENT, length, body).await.err()
}

#[tokio::test(start_paused = true)]
async fn a_body_is_taken_up_to_its_length_and_the_limit() {
    let bodies = BodyBudget::default();
    let most = MAX_BODY_BYTES as u64;
    for (length, bytes, expect) in [
        (Some(3), 3, None),
        (Some(0), 0, None),
        (None, 3, None),
        (Some(most), MAX_BODY_BYTES, None),
        (Some(3), 4, Some(Refusal::Broken)),
        (Some(most + 1), 0, Some(Refusal::TooLarge)),
        (Some(u64::MAX), 0, Some(Refusal::TooLarge)),
        (None, MAX_BODY_BYTES + 1, Some(Refusal::TooLarge)),
    ] {
        let found = refusal(&bodies, length, whole(bytes)).await;
        assert_eq!(found, expect, "{length:?}, {bytes} bytes");
        assert_eq!(held(&bodies), 0);
    }
    let slow = refusal(&bodies, Some(9999), trickling()).await;
    assert_eq!(slow, Some(Refusal::Slow));
}

#[tokio::test(start_paused = true)]
async fn bodies_in_memory_never_exceed_the_budget() {
    let bodies = BodyBudget::default();
    let mut kept = Vec::new();
    let large = MAX_BODY_BYTES as u64;
    while held(&bodies) + MAX_BODY_BYTES <= LARGE_BUDGET_BYTES {
        kept.push(
            receive(&bodies, CLIENT, Some(large), whole(MAX_BODY_BYTES))
                .await
                .unwrap(),
        );
    }
    let busy = refusal(&bodies, Some(large), whole(MAX_BODY_BYTES)).await;
    assert_eq!(busy, Some(Refusal::Busy), "large ones have a part of it");
    let small = SMALL_BODY_BYTES as u64;
    while held(&bodies) + SMALL_BODY_BYTES <= BUDGET_BYTES {
        kept.push(
            receive(&bodies, CLIENT, Some(small), whole(SMALL_BODY_BYTES))
                .await
                .unwrap(),
        );
    }
    assert!(held(&bodies) <= BUDGET_BYTES);
    let busy = refusal(&bodies, Some(small), whole(SMALL_BODY_BYTES)).await;
    assert_eq!(busy, Some(Refusal::Busy));
    let waits = |client: &Client| !client.small.is_empty() || !client.large.is_empty();
    assert!(!bodies.shared.lock().clients.values().any(waits));
    kept.pop();
    assert!(
        receive(&bodies, CLIENT, Some(small), whole(1))
            .await
            .is_ok()
    );
    kept.clear();
    assert_eq!(held(&bodies), 0);
}

#[tokio::test(start_paused = true)]
async fn small_bodies_leave_room_for_a_large_one() {
    let bodies = BodyBudget::default();
    let small = SMALL_BODY_BYTES as u64;
    let silent: Vec<_> = (0..2 * BUDGET_BYTES / SMALL_BODY_BYTES)
        .map(|_| {
            let bodies = bodies.clone();
            let body = stream::pending().boxed();
            tokio::spawn(async move { refusal(&bodies, Some(small), body).await })
        })
        .collect();
    tokio::time::sleep(Duration::from_millis(1)).await;
    let large = Some(MAX_BODY_BYTES as u64);
    let taken = receive(&bodies, OTHER, large, whole(MAX_BODY_BYTES)).await;
    assert!(taken.is_ok(), "{:?}", taken.err());
    silent.iter().for_each(tokio::task::JoinHandle::abort);
}

#[tokio::test(start_paused = true)]
async fn a_slow_body_is_cut_for_a_waiting_one() {
    let bodies = BodyBudget::default();
    for (length, all) in [
        (SMALL_BODY_BYTES, SMALL_BUDGET_BYTES),
        (MAX_BODY_BYTES, BUDGET_BYTES),
    ] {
        let slow: Vec<_> = (0..all / length)
            .map(|_| {
                let bodies = bodies.clone();
                tokio::spawn(
                    async move { refusal(&bodies, Some(length as u64), trickling()).await },
                )
            })
            .collect();
        tokio::time::sleep(Duration::from_millis(1)).await;
        let begun = Instant::now();
        let taken = receive(&bodies, CLIENT, Some(length as u64), whole(length)).await;
        assert!(taken.is_ok());
        assert!(
            begun.elapsed() < Duration::from_millis(100),
            "{:?}",
            begun.elapsed()
        );
        drop(taken);
        for slow in slow {
            let outcome = slow.await.unwrap();
            assert!(
                matches!(outcome, Some(Refusal::Slow | Refusal::Busy)),
                "{outcome:?}"
            );
        }
        assert_eq!(held(&bodies), 0);
    }
}

#[test]
fn the_document_lists_the_limits() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/LIMITS.md");
    let text = std::fs::read_to_string(path).unwrap();
    for (name, value) in [
        ("MAX_BODY_BYTES", MAX_BODY_BYTES),
        ("BUDGET_BYTES", BUDGET_BYTES),
        ("LARGE_BUDGET_BYTES", LARGE_BUDGET_BYTES),
        ("SMALL_BUDGET_BYTES", SMALL_BUDGET_BYTES),
        ("SMALL_BODY_BYTES", SMALL_BODY_BYTES),
        ("MAX_KEPT_VALUES", crate::review::MAX_KEPT_VALUES),
        ("MAX_IMAGES", crate::review::MAX_IMAGES),
        ("MAX_KEPT_BYTES", crate::review::MAX_KEPT_BYTES),
    ] {
        let cells = format!("| `{name}` | {value} |");
        assert!(text.contains(&cells), "{cells}");
    }
    let cells = format!("| `BODY_TIME` | {} |", BODY_TIME.as_secs());
    assert!(text.contains(&cells), "{cells}");
}

fn ticket(client: IpAddr, length: usize, id: u64) -> Ticket {
    Ticket { client, length, id }
}

/// Arriving bodies of these clients and lengths, numbered from 0.
fn arriving(begun: Instant, bodies: &[(IpAddr, usize)]) -> State {
    let mut state = State::default();
    for ((client, length), id) in bodies.iter().zip(0..) {
        state.take(ticket(*client, *length, id), begun);
    }
    state
}

fn cut(state: &State) -> Vec<u64> {
    let cut = state.arriving.iter().filter(|(_, body)| body.is_cut);
    cut.map(|(id, _)| *id).collect()
}

#[test]
fn the_slowest_is_cut_first_and_none_within_the_grace() {
    let begun = Instant::now();
    let length = LARGE_BUDGET_BYTES / 3;
    let mut state = arriving(begun, &[(CLIENT, length); 3]);
    for (id, received) in [(0, 5000), (1, 10), (2, 4000)] {
        state.arriving.get_mut(&id).unwrap().received = received;
    }
    state.cut_for(ticket(CLIENT, length, 9), begun + MIN_TIME_BEFORE_CUT / 2);
    assert!(cut(&state).is_empty());
    state.cut_for(ticket(CLIENT, length, 9), begun + MIN_TIME_BEFORE_CUT * 2);
    assert_eq!(cut(&state), [1]);
}

#[test]
fn clients_that_hold_more_are_cut_first() {
    let begun = Instant::now();
    let length = LARGE_BUDGET_BYTES / 3;
    let mut state = arriving(
        begun,
        &[(OTHER, length), (CLIENT, length), (CLIENT, length)],
    );
    // The other client's is the slowest, and all that it has.
    state.arriving.get_mut(&1).unwrap().received = 10;
    state.arriving.get_mut(&2).unwrap().received = 20;
    state.cut_for(ticket(OTHER, length, 9), begun + MIN_TIME_BEFORE_CUT * 2);
    assert_eq!(cut(&state), [1]);
}

#[test]
fn no_more_bodies_are_cut_than_the_one_that_waits_needs() {
    const MIB: usize = 1 << 20;
    let begun = Instant::now();
    let late = begun + MIN_TIME_BEFORE_CUT * 2;
    let mut state = arriving(begun, &[(CLIENT, 3 * MIB); 5]);
    state.cut_for(ticket(OTHER, MIB, 9), late);
    assert!(cut(&state).is_empty(), "it has room");
    // A MiB is free already.
    let waits = ticket(OTHER, 5 * MIB, 9);
    state.cut_for(waits, late);
    assert_eq!(cut(&state), [0, 1]);
    state.cut_for(waits, late);
    assert_eq!(cut(&state), [0, 1], "it looks again before they are gone");
    state.give_back(ticket(CLIENT, 3 * MIB, 0));
    assert!(!state.has_room(5 * MIB));
    state.cut_for(waits, late);
    assert_eq!(cut(&state), [1], "one of them is gone");
    state.give_back(ticket(CLIENT, 3 * MIB, 1));
    assert!(state.has_room(5 * MIB));
}

#[test]
fn no_body_is_cut_where_that_makes_no_room() {
    let begun = Instant::now();
    let late = begun + MIN_TIME_BEFORE_CUT * 2;
    let (small, large) = (SMALL_BODY_BYTES, 2 * SMALL_BODY_BYTES);
    // Small ones leave room for one large one, which is arriving.
    let mut bodies = vec![(CLIENT, small); (BUDGET_BYTES - large) / small];
    bodies.push((CLIENT, large));
    let mut state = arriving(begun, &bodies);
    state.cut_for(ticket(OTHER, 2 * large, 999), late);
    assert!(cut(&state).is_empty(), "the large one is not enough");
    state.cut_for(ticket(OTHER, large, 999), late);
    assert_eq!(cut(&state), [bodies.len() as u64 - 1], "it is enough");
    // Large ones are never cut for a small one.
    let mut state = arriving(begun, &[(CLIENT, LARGE_BUDGET_BYTES), (CLIENT, small)]);
    state.small = BUDGET_BYTES - LARGE_BUDGET_BYTES;
    state.cut_for(ticket(OTHER, small, 9), late);
    assert_eq!(cut(&state), [1]);
}

#[test]
fn a_body_that_was_cut_is_refused_even_if_it_completes() {
    let bodies = BodyBudget::default();
    let begun = Instant::now();
    let rooms = [0, 1].map(|id| {
        let large = ticket(CLIENT, LARGE_BUDGET_BYTES / 2, id);
        let cut = bodies.shared.lock().take(large, begun);
        Reservation {
            shared: Arc::clone(&bodies.shared),
            ticket: large,
            cut,
        }
    });
    let waits = ticket(OTHER, MAX_BODY_BYTES, 9);
    bodies
        .shared
        .lock()
        .cut_for(waits, begun + MIN_TIME_BEFORE_CUT);
    let arrived = rooms.each_ref().map(Reservation::arrived);
    assert_eq!(arrived, [false, true]);
    drop(rooms);
    assert_eq!(held(&bodies), 0);
    assert!(bodies.shared.lock().arriving.is_empty());
}

#[tokio::test(start_paused = true)]
async fn one_client_with_any_number_of_bodies_keeps_no_other_one_out() {
    let bodies = BodyBudget::default();
    // Smaller than the honest one, and more than ever get room.
    let hostile = 1 << 20;
    let hoard: Vec<_> = (0..3 * LARGE_BUDGET_BYTES / hostile)
        .map(|_| {
            let bodies = bodies.clone();
            tokio::spawn(async move { refusal(&bodies, Some(hostile as u64), trickling()).await })
        })
        .collect();
    tokio::time::sleep(Duration::from_millis(100)).await;
    let begun = Instant::now();
    let taken = receive(&bodies, OTHER, Some(2 << 20), whole(2 << 20)).await;
    assert!(taken.is_ok(), "{taken:?}");
    assert!(
        begun.elapsed() < Duration::from_millis(100),
        "{:?}",
        begun.elapsed()
    );
    for one in hoard {
        one.abort();
    }
}
