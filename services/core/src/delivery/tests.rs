//! The full product of states against the rule, a case for each rule, and inputs that flap.

use super::*;

const COPIES: [Copy; 3] = [Copy::Held, Copy::Arriving, Copy::Absent];
const UPSTREAMS: [Upstream; 5] = [
    Upstream::Answers,
    Upstream::Unknown,
    Upstream::Refuses,
    Upstream::Unresolvable,
    Upstream::Away,
];
const ON_NODES: [OnNodes; 4] = [OnNodes::All, OnNodes::Some, OnNodes::None, OnNodes::Unknown];
const POLICIES: [PullPolicy; 3] = [
    PullPolicy::IfNotPresent,
    PullPolicy::Always,
    PullPolicy::Never,
];

/// The state in which nothing is known and the nodes are prepared.
const UNKNOWN: State = State {
    copy: Copy::Absent,
    upstream: Upstream::Unknown,
    original: OnNodes::None,
    local: OnNodes::None,
    prepared: true,
    mirrored: false,
    foreign: false,
    protect: false,
    policy: PullPolicy::IfNotPresent,
    kind: Kind::Container,
    placeholder: false,
};

const HELD: State = State {
    copy: Copy::Held,
    ..UNKNOWN
};
const AWAY: State = State {
    upstream: Upstream::Away,
    ..UNKNOWN
};
const ANSWERS: State = State {
    upstream: Upstream::Answers,
    ..UNKNOWN
};

/// The full product of states.
fn each(mut check: impl FnMut(&State)) -> usize {
    let mut count = 0;
    for copy in COPIES {
        for upstream in UPSTREAMS {
            for original in ON_NODES {
                for local in ON_NODES {
                    for policy in POLICIES {
                        for kind in Kind::ALL {
                            for bits in 0..32 {
                                let bit = |number: u32| bits >> number & 1 == 1;
                                let state = State {
                                    copy,
                                    upstream,
                                    original,
                                    local,
                                    prepared: bit(0),
                                    mirrored: bit(1),
                                    foreign: bit(2),
                                    protect: bit(3),
                                    policy,
                                    kind,
                                    placeholder: bit(4),
                                };
                                check(&state);
                                count += 1;
                            }
                        }
                    }
                }
            }
        }
    }
    count
}

#[test]
fn no_choice_is_less_likely_to_start_than_the_original() {
    let count = each(|state| {
        let chosen = choose(state).name();
        assert!(
            state.level(chosen) >= state.level(Name::Original),
            "{state:?}"
        );
    });
    assert_eq!(count, 3 * 5 * 4 * 4 * 3 * 4 * 32);
}

/// What healing leaves behind: no switch leads to a name that is less likely to start, and a stuck
/// name whose other name is sure or expected does not stay.
#[test]
fn no_switch_leads_to_a_less_likely_name() {
    let free = Switches::default();
    each(|state| {
        for written in [Name::Original, Name::Local] {
            let other = state.level(written.other());
            for progress in [
                Progress::Settled,
                Progress::Waiting { due: false },
                Progress::Waiting { due: true },
                Progress::Stuck {
                    failures: 1,
                    news: true,
                },
                Progress::Stuck {
                    failures: 1,
                    news: false,
                },
                Progress::Stuck {
                    failures: 2,
                    news: false,
                },
            ] {
                let act = heal(state, written, progress, &free, 0);
                match act {
                    Act::Switch(name) | Act::Recreate(name) => {
                        assert_eq!(name, written.other());
                        assert_ne!(progress, Progress::Settled);
                        assert_ne!(progress, Progress::Waiting { due: false });
                        assert!(other > Level::No, "{state:?} {written:?} {progress:?}");
                        let capped = state.level(written).min(Level::Possible);
                        assert!(other > capped, "{state:?} {written:?} {progress:?}");
                        assert_ne!(state.kind, Kind::Ephemeral);
                    }
                    Act::Nothing | Act::Tell => {
                        let failed = progress
                            == Progress::Stuck {
                                failures: 2,
                                news: false,
                            };
                        let can_change = state.kind != Kind::Ephemeral;
                        let is_held = written == Name::Local && state.level(written) == Level::Sure;
                        let is_better =
                            other == Level::Sure || other >= Level::Expected && !is_held;
                        assert!(!(failed && can_change && is_better), "{state:?}");
                    }
                }
            }
        }
    });
}

#[test]
fn each_rule_of_admission_has_its_case() {
    let [held, away, answers] = [HELD, AWAY, ANSWERS];
    for (state, rule) in [
        (
            State {
                policy: PullPolicy::Never,
                ..held
            },
            Rule::Never,
        ),
        (
            State {
                protect: true,
                original: OnNodes::All,
                ..held
            },
            Rule::Protected,
        ),
        // Each start pulls, so the image is taken away in any case.
        (
            State {
                protect: true,
                original: OnNodes::All,
                policy: PullPolicy::Always,
                ..held
            },
            Rule::Held,
        ),
        // Where the original does not start, the copy that the registry has is better.
        (
            State {
                protect: true,
                original: OnNodes::Some,
                ..held
            },
            Rule::Held,
        ),
        (
            State {
                kind: Kind::Volume,
                ..UNKNOWN
            },
            Rule::Unknown,
        ),
        (
            State {
                kind: Kind::Volume,
                ..answers
            },
            Rule::Expected,
        ),
        (
            State {
                placeholder: true,
                ..answers
            },
            Rule::Placeholder,
        ),
        (
            State {
                kind: Kind::Volume,
                ..held
            },
            Rule::Held,
        ),
        (
            State {
                placeholder: true,
                ..held
            },
            Rule::Held,
        ),
        (held, Rule::Held),
        (
            State {
                policy: PullPolicy::Always,
                ..held
            },
            Rule::Held,
        ),
        (
            State {
                prepared: false,
                ..held
            },
            Rule::NotBetter,
        ),
        (
            State {
                original: OnNodes::All,
                ..answers
            },
            Rule::OnNodes,
        ),
        (
            State {
                original: OnNodes::Some,
                ..answers
            },
            Rule::OnNodes,
        ),
        (answers, Rule::Expected),
        (
            State {
                copy: Copy::Arriving,
                ..away
            },
            Rule::Expected,
        ),
        (UNKNOWN, Rule::Unknown),
        (
            State {
                original: OnNodes::Unknown,
                ..UNKNOWN
            },
            Rule::Unknown,
        ),
        (
            State {
                foreign: true,
                ..UNKNOWN
            },
            Rule::NotBetter,
        ),
        (
            State {
                original: OnNodes::Some,
                ..UNKNOWN
            },
            Rule::NotBetter,
        ),
        (away, Rule::NotBetter),
        (
            State {
                original: OnNodes::All,
                ..away
            },
            Rule::NotBetter,
        ),
        (
            State {
                upstream: Upstream::Unresolvable,
                ..UNKNOWN
            },
            Rule::NotBetter,
        ),
        (
            State {
                upstream: Upstream::Refuses,
                ..UNKNOWN
            },
            Rule::NotBetter,
        ),
    ] {
        assert_eq!(choose(&state), rule, "{state:?}");
    }
}

fn stuck(failures: u32) -> Progress {
    Progress::Stuck {
        failures,
        news: false,
    }
}

#[test]
fn each_rule_of_healing_has_its_case() {
    use Name::{Local, Original};
    let [held, away, answers] = [HELD, AWAY, ANSWERS];
    let on_node = State {
        original: OnNodes::All,
        ..away
    };
    let due = Progress::Waiting { due: true };
    let news = Progress::Stuck {
        failures: 3,
        news: true,
    };
    for (state, written, progress, act) in [
        (held, Original, Progress::Settled, Act::Nothing),
        (held, Original, stuck(1), Act::Switch(Local)),
        (held, Original, due, Act::Switch(Local)),
        (
            held,
            Original,
            Progress::Waiting { due: false },
            Act::Nothing,
        ),
        // It starts from the node as soon as something else lets it.
        (
            State {
                original: OnNodes::All,
                ..held
            },
            Original,
            due,
            Act::Nothing,
        ),
        // `ErrImageNeverPull`: the node has the image under its local name.
        (
            State {
                policy: PullPolicy::Never,
                local: OnNodes::All,
                ..away
            },
            Original,
            stuck(1),
            Act::Switch(Local),
        ),
        (
            State {
                policy: PullPolicy::Never,
                ..held
            },
            Original,
            stuck(9),
            Act::Tell,
        ),
        (answers, Original, stuck(1), Act::Nothing),
        (answers, Original, stuck(2), Act::Switch(Local)),
        (on_node, Local, stuck(1), Act::Switch(Original)),
        (away, Local, stuck(1), Act::Switch(Original)),
        (
            State {
                prepared: false,
                ..held
            },
            Local,
            stuck(1),
            Act::Switch(Original),
        ),
        (
            State {
                upstream: Upstream::Refuses,
                ..UNKNOWN
            },
            Local,
            stuck(1),
            Act::Switch(Original),
        ),
        (UNKNOWN, Local, stuck(5), Act::Tell),
        (away, Original, stuck(5), Act::Tell),
        (answers, Local, stuck(1), Act::Nothing),
        (answers, Local, stuck(2), Act::Switch(Original)),
        (answers, Local, news, Act::Nothing),
        (
            State {
                kind: Kind::Volume,
                ..on_node
            },
            Local,
            stuck(1),
            Act::Recreate(Original),
        ),
        (
            State {
                kind: Kind::Ephemeral,
                ..on_node
            },
            Local,
            stuck(1),
            Act::Tell,
        ),
    ] {
        let found = heal(&state, written, progress, &Switches::default(), 0);
        assert_eq!(found, act, "{state:?} {written:?} {progress:?}");
    }
}

#[test]
fn switches_of_one_image_are_damped() {
    let at = |count| Switches { count, last: 1000 }.next();
    assert!(at(0) < 0);
    assert_eq!(
        [at(1), at(2), at(3), at(7), at(99)],
        [1015, 1030, 1060, 1900, 1900]
    );
    let once = Switches::default().after(1000);
    assert_eq!(once.after(1015).count, 2);
    assert_eq!(once.after(1000 + SETTLED_SECONDS).count, 1);
}

/// A pod whose inputs change at random, for an hour, a thousand times.
#[test]
fn inputs_that_flap_switch_an_image_a_few_times_an_hour() {
    for seed in 0..1000 {
        let mut random = seed + 1;
        let mut draw = |count: usize| {
            // xorshift64
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            usize::try_from(random % count as u64).unwrap()
        };
        let (mut written, mut switches, mut state) = (Name::Local, Switches::default(), UNKNOWN);
        let mut failures = 1;
        for now in (0..3600).step_by(5) {
            match draw(8) {
                0 => state.copy = COPIES[draw(3)],
                1 => state.upstream = UPSTREAMS[draw(5)],
                2 => state.original = ON_NODES[draw(4)],
                3 => state.prepared = draw(2) == 0,
                _ => failures += 1,
            }
            let progress = Progress::Stuck {
                failures,
                news: false,
            };
            if let Act::Switch(name) = heal(&state, written, progress, &switches, now) {
                assert!(now >= switches.next());
                (written, failures) = (name, 1);
                switches = switches.after(now);
            }
        }
        assert!(switches.count <= 11, "seed {seed}: {}", switches.count);
        // The inputs rest: the last name is not the less likely one.
        let settled = Progress::Stuck {
            failures: 1,
            news: true,
        };
        let act = heal(
            &state,
            written,
            settled,
            &switches,
            3600 + MAX_SWITCH_SECONDS,
        );
        if let Act::Switch(name) = act {
            written = name;
        }
        let least = state.level(Name::Original).min(Level::Possible);
        assert!(
            state.level(written) >= least,
            "seed {seed}: {state:?} {written:?}"
        );
    }
}
