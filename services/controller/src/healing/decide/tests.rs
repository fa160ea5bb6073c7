//! The table of decisions.

use super::Copy;
use super::*;
use holdfast_cluster_model::Owner;

const LOCAL: &str = "10.96.0.50/r.io/app:1";
const SOURCE: &str = "r.io/app:1";

fn snapshot() -> Snapshot {
    Snapshot {
        address: Some("10.96.0.50".to_owned()),
        grace: 20,
        now: 1000,
        recreates: true,
    }
}

fn image(kind: Kind, rewritten: bool, progress: Progress) -> Image {
    Image {
        kind,
        name: "x".to_owned(),
        pointer: format!("/spec/{}/0/image", kind.field()),
        written: if rewritten { LOCAL } else { SOURCE }.to_owned(),
        source: SOURCE.to_owned(),
        original: None,
        rewritten,
        local: rewritten,
        pulls: true,
        progress,
    }
}

fn stuck_pod(image: Image) -> StuckPod {
    StuckPod {
        uid: "u".to_owned(),
        created: 900,
        owner: Some(Owner {
            uid: "o".to_owned(),
            ..Owner::default()
        }),
        wanted: true,
        images: vec![image],
        history: ImageHistory::default(),
    }
}

fn act(stuck_pod: &StuckPod, copy: Copy, recreated: usize, snapshot: &Snapshot) -> Act {
    decide(stuck_pod, &stuck_pod.history, |_| copy, recreated, snapshot)
}

/// The word of the decision, and what the image becomes.
fn check(what: &str, stuck_pod: &StuckPod, copy: Copy, expect: (&str, &str)) {
    let act = act(stuck_pod, copy, 0, &snapshot());
    let to = match &act {
        Act::Heal(changes) | Act::Restore(changes) | Act::Recreate(changes) => {
            changes.iter().map(|change| change.to.as_str()).collect()
        }
        _ => Vec::new(),
    };
    assert_eq!((act.label(), to.join(" ").as_str()), expect, "{what}");
}

#[test]
fn the_copy_and_the_containers_progress_decide() {
    use super::Copy::{Held, Pending, Refused};
    use Kind::{Container, Init, Volume};
    use Progress::{NotStarted, Settled, Stuck};
    let (heal, back) = (("heal", LOCAL), ("restore", SOURCE));
    let (recreated, original, nothing) =
        (("recreate", LOCAL), ("recreate", SOURCE), ("nothing", ""));
    for (kind, rewritten, progress, copy, expect) in [
        (Container, false, Stuck, Held, heal),
        (Init, false, Stuck, Held, heal),
        (Container, false, NotStarted, Held, heal),
        (Container, false, Settled, Held, nothing),
        (Container, false, Stuck, Pending, nothing),
        (Container, false, Stuck, Refused, nothing),
        (Container, true, Stuck, Refused, back),
        (Init, true, Stuck, Refused, back),
        (Container, true, NotStarted, Refused, nothing),
        (Container, true, Settled, Refused, nothing),
        (Container, true, Stuck, Pending, nothing),
        (Container, true, Stuck, Held, nothing),
        (Volume, false, Stuck, Held, recreated),
        (Volume, false, NotStarted, Held, nothing),
        (Volume, false, Stuck, Pending, nothing),
        (Volume, true, Stuck, Refused, original),
        (Volume, true, Stuck, Held, nothing),
    ] {
        let what = format!("{kind:?} rewritten={rewritten} {progress:?} {copy:?}");
        check(
            &what,
            &stuck_pod(image(kind, rewritten, progress)),
            copy,
            expect,
        );
    }
}

#[test]
fn a_pod_of_another_cluster_gets_the_local_image_or_its_original() {
    use super::Copy::{Held, Pending, Refused};
    use Progress::{NotStarted, Settled, Stuck};
    for (progress, copy, expect) in [
        (Stuck, Held, ("heal", LOCAL)),
        (NotStarted, Held, ("heal", LOCAL)),
        (Stuck, Refused, ("restore", SOURCE)),
        (Stuck, Pending, ("nothing", "")),
        // Whatever its annotation says, a container that runs is not touched.
        (Settled, Held, ("nothing", "")),
        (Settled, Refused, ("nothing", "")),
    ] {
        let mut restored = image(Kind::Container, true, progress);
        restored.written = "10.1.2.3/r.io/app:1".to_owned();
        restored.local = false;
        let what = format!("{progress:?} {copy:?}");
        check(&what, &stuck_pod(restored), copy, expect);
    }
}

#[test]
fn a_pod_that_just_came_may_start_by_itself() {
    let mut young = stuck_pod(image(Kind::Container, false, Progress::NotStarted));
    young.created = 981;
    check("19 s old", &young, Copy::Held, ("nothing", ""));
    young.created = 980;
    check("20 s old", &young, Copy::Held, ("heal", LOCAL));
    young.created = 1000;
    young.images[0].progress = Progress::Stuck;
    check("stuck at once", &young, Copy::Held, ("heal", LOCAL));
}

#[test]
fn what_the_webhook_would_leave_alone_is_not_healed() {
    let mut unwanted = stuck_pod(image(Kind::Container, false, Progress::Stuck));
    unwanted.wanted = false;
    check("out of scope", &unwanted, Copy::Held, ("nothing", ""));
    let mut never = stuck_pod(image(Kind::Container, false, Progress::Stuck));
    never.images[0].pulls = false;
    check("never pulled", &never, Copy::Held, ("nothing", ""));
    let stuck = stuck_pod(image(Kind::Container, false, Progress::Stuck));
    let off = Snapshot {
        address: None,
        ..snapshot()
    };
    assert_eq!(act(&stuck, Copy::Held, 0, &off), Act::Nothing);
    let rewritten = stuck_pod(image(Kind::Container, true, Progress::Stuck));
    assert_eq!(
        act(&rewritten, Copy::Refused, 0, &off).label(),
        "restore",
        "originals come back also while nothing is rewritten"
    );
}

#[test]
fn a_pod_without_an_owner_is_never_evicted() {
    let mut bare = stuck_pod(image(Kind::Volume, false, Progress::Stuck));
    bare.owner = None;
    check("bare", &bare, Copy::Held, ("unfixable", ""));
    bare.images[0].rewritten = true;
    check("bare and refused", &bare, Copy::Refused, ("unfixable", ""));
}

#[test]
fn pods_of_an_owner_are_evicted_three_times_an_hour_at_most() {
    let owned = stuck_pod(image(Kind::Volume, false, Progress::Stuck));
    for (recreated, expect) in [(0, "recreate"), (2, "recreate"), (3, "unfixable")] {
        assert_eq!(
            act(&owned, Copy::Held, recreated, &snapshot()).label(),
            expect
        );
    }
}

#[test]
fn the_reason_why_a_pod_is_not_evicted_is_reported() {
    let owned = stuck_pod(image(Kind::Volume, false, Progress::Stuck));
    let bare = StuckPod {
        owner: None,
        ..owned.clone()
    };
    for (stuck_pod, recreates, recreated, expect) in [
        (&owned, false, 0, Why::NotAllowed),
        (&owned, true, 3, Why::TooOften),
        (&bare, false, 0, Why::NoOwner),
    ] {
        let snapshot = Snapshot {
            recreates,
            ..snapshot()
        };
        let keys = vec!["volumes/x".to_owned()];
        assert_eq!(
            act(stuck_pod, Copy::Held, recreated, &snapshot),
            Act::Unfixable { keys, why: expect }
        );
    }
}

#[test]
fn who_insists_is_left_alone() {
    let mut healed = stuck_pod(image(Kind::Container, false, Progress::Stuck));
    let key = "containers/x".to_owned();
    for (count, expect) in [(2, "heal"), (3, "exclude")] {
        healed.history.healed = [(key.clone(), count)].into();
        assert_eq!(act(&healed, Copy::Held, 0, &snapshot()).label(), expect);
    }
    healed.history.healed = [("containers/other".to_owned(), 9)].into();
    assert_eq!(act(&healed, Copy::Held, 0, &snapshot()).label(), "heal");
    healed.history.healed = [(key, MAX_HEALS_OF_IMAGE)].into();
    let remembered = std::mem::take(&mut healed.history);
    assert_eq!(
        decide(&healed, &remembered, |_| Copy::Held, 0, &snapshot()),
        Act::Exclude,
        "somebody took the annotation away"
    );
}

#[test]
fn the_authors_spelling_comes_back_where_it_means_the_same() {
    for (original, expect) in [
        (None, SOURCE),
        (Some("R.io/app:1"), "R.io/app:1"),
        (Some("evil.example/app:1"), SOURCE),
        (Some("not a reference"), SOURCE),
    ] {
        let mut stuck = stuck_pod(image(Kind::Container, true, Progress::Stuck));
        stuck.images[0].original = original.map(str::to_owned);
        check("spelling", &stuck, Copy::Refused, ("restore", expect));
    }
}

#[test]
fn only_what_needs_it_changes() {
    let mut two = stuck_pod(image(Kind::Container, false, Progress::Settled));
    let mut other = image(Kind::Container, false, Progress::Stuck);
    other.name = "y".to_owned();
    other.pointer = "/spec/containers/1/image".to_owned();
    two.images.push(other);
    let Act::Heal(changes) = act(&two, Copy::Held, 0, &snapshot()) else {
        panic!("the second is healed");
    };
    let keys: Vec<_> = changes.iter().map(|change| change.key.as_str()).collect();
    assert_eq!(
        keys,
        ["containers/y"],
        "a container that runs is not restarted"
    );
}

#[test]
fn the_rest_of_a_stuck_pod_is_healed_with_it() {
    let mut young = stuck_pod(image(Kind::Init, false, Progress::Stuck));
    young.created = 1000;
    young
        .images
        .push(image(Kind::Container, false, Progress::NotStarted));
    let Act::Heal(changes) = act(&young, Copy::Held, 0, &snapshot()) else {
        panic!("it is healed");
    };
    assert_eq!(changes.len(), 2);
}

#[test]
fn only_an_act_that_leads_to_the_registry_relies_on_it() {
    use Kind::{Container, Volume};
    for (kind, rewritten, copy, expect) in [
        (Container, false, Copy::Held, &[SOURCE][..]),
        (Volume, false, Copy::Held, &[SOURCE]),
        (Container, true, Copy::Refused, &[]),
        (Volume, true, Copy::Refused, &[]),
        (Container, false, Copy::Pending, &[]),
    ] {
        let stuck_pod = stuck_pod(image(kind, rewritten, Progress::Stuck));
        let act = act(&stuck_pod, copy, 0, &snapshot());
        assert_eq!(relies_on(&act, |_| copy), expect, "{kind:?} {copy:?}");
    }
    assert!(relies_on(&Act::Exclude, |_| Copy::Held).is_empty());
}
