//! The table of decisions.

use super::*;
use holdfast_cluster_model::Owner;
use holdfast_core::delivery::{PullPolicy, Switches};

const LOCAL: &str = "10.96.0.50/r.io/app:1";
const SOURCE: &str = "r.io/app:1";

/// What is known of a source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Source {
    Held,
    Refused,
    /// Nothing is known.
    Pending,
    /// Its upstream does not answer, and nothing is held.
    Away,
    /// Its upstream answers, and nothing is held.
    Answers,
    Arriving,
}

impl Source {
    fn known(self) -> Known {
        let (copy, upstream) = match self {
            Self::Held => (Copy::Held, Upstream::Unknown),
            Self::Refused => (Copy::Absent, Upstream::Refuses),
            Self::Pending => (Copy::Absent, Upstream::Unknown),
            Self::Away => (Copy::Absent, Upstream::Away),
            Self::Answers => (Copy::Absent, Upstream::Answers),
            Self::Arriving => (Copy::Arriving, Upstream::Answers),
        };
        Known {
            copy,
            upstream,
            original: OnNodes::Unknown,
            local: OnNodes::Unknown,
            prepared: true,
            permitted: true,
            failures: 1,
        }
    }
}

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
        policy: PullPolicy::IfNotPresent,
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
        ..StuckPod::default()
    }
}

fn act(stuck_pod: &StuckPod, source: Source, recreated: usize, snapshot: &Snapshot) -> Act {
    decide(
        stuck_pod,
        &stuck_pod.history,
        |_| source.known(),
        recreated,
        snapshot,
    )
}

/// The word of the decision, and what the image becomes.
fn check(what: &str, stuck_pod: &StuckPod, copy: Source, expect: (&str, &str)) {
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
    use Kind::{Container, Init, Volume};
    use Progress::{NotStarted, Settled, Stuck};
    use Source::{Held, Pending, Refused};
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
    use Progress::{NotStarted, Settled, Stuck};
    use Source::{Held, Pending, Refused};
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
    check("19 s old", &young, Source::Held, ("nothing", ""));
    young.created = 980;
    check("20 s old", &young, Source::Held, ("heal", LOCAL));
    young.created = 1000;
    young.images[0].progress = Progress::Stuck;
    check("stuck at once", &young, Source::Held, ("heal", LOCAL));
}

#[test]
fn what_the_webhook_would_leave_alone_is_not_healed() {
    let mut unwanted = stuck_pod(image(Kind::Container, false, Progress::Stuck));
    unwanted.wanted = false;
    check("out of scope", &unwanted, Source::Held, ("nothing", ""));
    let mut never = stuck_pod(image(Kind::Container, false, Progress::Stuck));
    never.images[0].policy = PullPolicy::Never;
    check("never pulled", &never, Source::Held, ("nothing", ""));
    let stuck = stuck_pod(image(Kind::Container, false, Progress::Stuck));
    let off = Snapshot {
        address: None,
        ..snapshot()
    };
    assert_eq!(act(&stuck, Source::Held, 0, &off), Act::Nothing);
    let rewritten = stuck_pod(image(Kind::Container, true, Progress::Stuck));
    assert_eq!(
        act(&rewritten, Source::Refused, 0, &off).label(),
        "restore",
        "originals come back also while nothing is rewritten"
    );
}

#[test]
fn a_pod_without_an_owner_is_never_evicted() {
    let mut bare = stuck_pod(image(Kind::Volume, false, Progress::Stuck));
    bare.owner = None;
    check("bare", &bare, Source::Held, ("unfixable", ""));
    bare.images[0].rewritten = true;
    check(
        "bare and refused",
        &bare,
        Source::Refused,
        ("unfixable", ""),
    );
}

#[test]
fn pods_of_an_owner_are_evicted_three_times_an_hour_at_most() {
    let owned = stuck_pod(image(Kind::Volume, false, Progress::Stuck));
    for (recreated, expect) in [(0, "recreate"), (2, "recreate"), (3, "unfixable")] {
        assert_eq!(
            act(&owned, Source::Held, recreated, &snapshot()).label(),
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
            act(stuck_pod, Source::Held, recreated, &snapshot),
            Act::Unfixable { keys, why: expect }
        );
    }
}

#[test]
fn an_image_changes_at_growing_intervals() {
    let mut healed = stuck_pod(image(Kind::Container, false, Progress::Stuck));
    let key = "containers/x".to_owned();
    for (count, last, expect) in [
        (1, 986, "nothing"),
        (1, 985, "heal"),
        (3, 941, "nothing"),
        (3, 940, "heal"),
        (99, 101, "nothing"),
        (99, 100, "heal"),
    ] {
        healed.history.switches = [(key.clone(), Switches { count, last })].into();
        assert_eq!(
            act(&healed, Source::Held, 0, &snapshot()).label(),
            expect,
            "{count}"
        );
    }
    healed.history.switches = [(
        "containers/other".to_owned(),
        Switches {
            count: 9,
            last: 999,
        },
    )]
    .into();
    assert_eq!(act(&healed, Source::Held, 0, &snapshot()).label(), "heal");
    healed.history.switches = [(
        key,
        Switches {
            count: 1,
            last: 999,
        },
    )]
    .into();
    let remembered = std::mem::take(&mut healed.history);
    assert_eq!(
        decide(
            &healed,
            &remembered,
            |_| Source::Held.known(),
            0,
            &snapshot()
        ),
        Act::Nothing,
        "somebody took the annotation away"
    );
}

/// A registry that neither holds the image nor can get it gives the pod its original back, at the
/// first failure.
#[test]
fn a_pod_gets_its_original_back_where_the_registry_cannot_help() {
    use Source::{Answers, Arriving, Away, Held};
    let stuck = |rewritten| stuck_pod(image(Kind::Container, rewritten, Progress::Stuck));
    let decide = |rewritten, source: Source, known: fn(&mut Known)| {
        let stuck = stuck(rewritten);
        let known = |_: &Image| {
            let mut all = source.known();
            known(&mut all);
            all
        };
        decide(&stuck, &ImageHistory::default(), known, 0, &snapshot()).label()
    };
    let once = |_: &mut Known| {};
    assert_eq!(decide(true, Away, once), "restore");
    assert_eq!(decide(false, Away, once), "nothing");
    assert_eq!(decide(true, Answers, once), "nothing", "the copy may come");
    assert_eq!(decide(true, Answers, |known| known.failures = 2), "restore");
    assert_eq!(decide(false, Answers, |known| known.failures = 2), "heal");
    assert_eq!(
        decide(true, Arriving, |known| known.failures = 9),
        "nothing"
    );
    // Nothing is better than a held copy, whatever the registry does for now.
    assert_eq!(
        decide(true, Held, |known| known.failures = 9),
        "cannot_pull"
    );
    // The node cannot pull from the registry yet.
    assert_eq!(
        decide(true, Held, |known| known.prepared = false),
        "restore"
    );
    // The node has it.
    let on_node = |known: &mut Known| known.original = OnNodes::All;
    assert_eq!(decide(true, Source::Pending, on_node), "restore");
    assert_eq!(decide(true, Held, on_node), "nothing", "it may start again");
    let twice = |known: &mut Known| {
        (known.original, known.failures) = (OnNodes::All, 2);
    };
    assert_eq!(decide(true, Held, twice), "restore");
    // Neither name starts.
    assert_eq!(
        decide(false, Away, |known| known.failures = 2),
        "cannot_pull"
    );
}

/// A node that has the local name starts it for every pod, so healing must not give it to a pod
/// that may not have it: neither by a report of the node, nor by a copy.
#[test]
fn a_pod_that_may_not_have_the_local_name_never_gets_it() {
    for source in [Source::Held, Source::Answers, Source::Pending, Source::Away] {
        for (wanted, permitted, address) in [
            (true, false, true),
            (false, true, true),
            (true, true, false),
        ] {
            for rewritten in [false, true] {
                let mut stuck = stuck_pod(image(Kind::Container, rewritten, Progress::Stuck));
                stuck.images[0].local = false;
                stuck.wanted = wanted;
                let known = |_: &Image| Known {
                    local: OnNodes::All,
                    permitted,
                    failures: 2,
                    ..source.known()
                };
                let mut snapshot = snapshot();
                snapshot.address = snapshot.address.filter(|_| address);
                let act = decide(&stuck, &ImageHistory::default(), known, 0, &snapshot);
                let what = (source, wanted, permitted, address, rewritten);
                assert_ne!(act.label(), "heal", "{what:?}");
            }
        }
    }
}

/// `ErrImageNeverPull`: another name of the image is on the node.
#[test]
fn an_image_that_is_never_pulled_gets_the_name_that_its_node_has() {
    let mut never = stuck_pod(image(Kind::Container, false, Progress::Stuck));
    never.images[0].policy = PullPolicy::Never;
    let known = |_: &Image| Known {
        local: OnNodes::All,
        ..Source::Away.known()
    };
    let act = decide(&never, &ImageHistory::default(), known, 0, &snapshot());
    assert_eq!(act.label(), "heal");
}

/// `CrashLoopBackOff` hides that the kubelet refuses the image.
#[test]
fn a_crashing_container_is_stuck_where_its_node_does_not_start_its_image() {
    for (written, policy, expect) in [
        (OnNodes::None, PullPolicy::Never, "heal"),
        (OnNodes::None, PullPolicy::IfNotPresent, "heal"),
        (OnNodes::All, PullPolicy::Never, "nothing"),
        (OnNodes::Unknown, PullPolicy::Never, "nothing"),
    ] {
        let mut crashing = stuck_pod(image(Kind::Container, false, Progress::Crashing));
        crashing.images[0].policy = policy;
        let known = |_: &Image| Known {
            original: written,
            local: OnNodes::All,
            ..Source::Away.known()
        };
        let act = decide(&crashing, &ImageHistory::default(), known, 0, &snapshot());
        assert_eq!(act.label(), expect, "{written:?} {policy:?}");
    }
}

/// An eviction is for a name that is expected to start, and not while other containers run.
#[test]
fn a_pod_is_not_evicted_for_a_name_that_only_may_start() {
    let mut owned = stuck_pod(image(Kind::Volume, true, Progress::Stuck));
    let label = |stuck: &StuckPod, source| act(stuck, source, 0, &snapshot()).label();
    assert_eq!(label(&owned, Source::Away), "cannot_pull");
    assert_eq!(label(&owned, Source::Refused), "recreate");
    owned.running = true;
    assert_eq!(label(&owned, Source::Refused), "unfixable");
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
        check("spelling", &stuck, Source::Refused, ("restore", expect));
    }
}

#[test]
fn only_what_needs_it_changes() {
    let mut two = stuck_pod(image(Kind::Container, false, Progress::Settled));
    let mut other = image(Kind::Container, false, Progress::Stuck);
    other.name = "y".to_owned();
    other.pointer = "/spec/containers/1/image".to_owned();
    two.images.push(other);
    let Act::Heal(changes) = act(&two, Source::Held, 0, &snapshot()) else {
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
    let Act::Heal(changes) = act(&young, Source::Held, 0, &snapshot()) else {
        panic!("it is healed");
    };
    assert_eq!(changes.len(), 2);
}

#[test]
fn only_an_act_that_leads_to_the_registry_relies_on_it() {
    use Kind::{Container, Volume};
    for (kind, rewritten, copy, expect) in [
        (Container, false, Source::Held, &[SOURCE][..]),
        (Volume, false, Source::Held, &[SOURCE]),
        (Container, true, Source::Refused, &[]),
        (Volume, true, Source::Refused, &[]),
        (Container, false, Source::Pending, &[]),
    ] {
        let stuck_pod = stuck_pod(image(kind, rewritten, Progress::Stuck));
        let act = act(&stuck_pod, copy, 0, &snapshot());
        let is_held = |_: &str| copy == Source::Held;
        assert_eq!(relies_on(&act, is_held), expect, "{kind:?} {copy:?}");
    }
    assert!(relies_on(&Act::Nothing, |_| true).is_empty());
}
