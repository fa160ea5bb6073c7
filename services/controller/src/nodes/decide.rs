//! Decides which nodes get or lose the startup taint, and which events to publish. Pure except for
//! its memory; time is an argument.

use holdfast_config::StartupTaint;
use std::collections::{HashMap, HashSet};
use std::time::Duration;

/// How long a Ready node may be unprepared before an event reports it: images are pulled and the
/// registry starts first.
pub const UNPREPARED_GRACE: Duration = Duration::from_secs(120);
/// A node that is older joined before it could get the taint: pods run on it.
const MAX_JOINING_AGE: Duration = Duration::from_secs(600);
/// Most nodes that one round reports; the others follow.
const MAX_EVENTS_PER_ROUND: usize = 20;

/// A node as it is seen.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Node {
    /// Its name.
    pub name: String,
    /// Its UID: a node that joins again under an old name is another one.
    pub uid: String,
    /// Its Ready condition.
    pub ready: bool,
    /// Whether its agent has made a real pull.
    pub prepared: bool,
    /// Whether it carries the taint, set by any program.
    pub held: bool,
    /// Whether rewriting concerns it.
    pub in_scope: bool,
    /// How long its object exists.
    pub age: Duration,
}

/// What the values say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Whether nodes that join get the taint.
    pub enabled: bool,
    /// After which time the taint is removed in any case.
    pub timeout: Option<Duration>,
}

impl Policy {
    /// The policy of a configuration.
    pub fn of(values: StartupTaint) -> Self {
        let seconds = u64::from(values.timeout_seconds);
        Self {
            enabled: values.enabled,
            timeout: (seconds > 0).then(|| Duration::from_secs(seconds)),
        }
    }
}

/// The action on a node's taint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Act {
    /// Add it.
    Hold,
    /// Remove it.
    LetGo(Why),
}

/// Why the taint is removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// It can pull.
    Prepared,
    /// The value is off.
    SwitchedOff,
    /// Rewriting does not wait for it.
    OutOfScope,
    /// It took too long: what would prepare it may itself wait for pods on this node.
    TimedOut,
}

/// What an event reports of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Told {
    /// It is Ready and has not been prepared for [`UNPREPARED_GRACE`].
    Unprepared,
    /// It was reported, and is prepared now.
    Prepared,
}

/// What this process has seen of the nodes, by UID. A new leader starts with none: then a node
/// keeps the taint, or stays unreported, a little longer.
#[derive(Debug, Default)]
pub struct Memory {
    held_since: HashMap<String, Duration>,
    was_prepared: HashSet<String>,
    unprepared_since: HashMap<String, Duration>,
    told: HashSet<String>,
}

impl Memory {
    /// The nodes that get or lose the taint, at `now` since the start of the process.
    pub fn decide<'a>(
        &mut self,
        nodes: &'a [Node],
        policy: Policy,
        rewriting: bool,
        now: Duration,
    ) -> Vec<(&'a Node, Act)> {
        let alive: HashSet<&String> = nodes.iter().map(|node| &node.uid).collect();
        self.held_since.retain(|uid, _| alive.contains(uid));
        self.was_prepared.retain(|uid| alive.contains(uid));
        let mut acts = Vec::new();
        for node in nodes {
            if node.prepared {
                self.was_prepared.insert(node.uid.clone());
            }
            if node.held {
                let since = *self.held_since.entry(node.uid.clone()).or_insert(now);
                let over = policy
                    .timeout
                    .is_some_and(|timeout| now.saturating_sub(since) >= timeout);
                let why = match () {
                    () if !policy.enabled => Why::SwitchedOff,
                    () if !node.in_scope => Why::OutOfScope,
                    () if node.prepared => Why::Prepared,
                    () if over => Why::TimedOut,
                    () => continue,
                };
                acts.push((node, Act::LetGo(why)));
                continue;
            }
            // A node that lost the taint does not get it again: a restart of the agent says nothing
            // against its node.
            let was =
                self.was_prepared.contains(&node.uid) || self.held_since.contains_key(&node.uid);
            let joins = node.age
                < policy
                    .timeout
                    .unwrap_or(MAX_JOINING_AGE)
                    .min(MAX_JOINING_AGE);
            if policy.enabled && rewriting && node.in_scope && joins && !was {
                acts.push((node, Act::Hold));
            }
        }
        acts
    }

    /// What is worth telling at `now`; each thing once.
    pub fn tell<'a>(&mut self, nodes: &'a [Node], now: Duration) -> Vec<(&'a Node, Told)> {
        let alive: HashSet<&String> = nodes.iter().map(|node| &node.uid).collect();
        self.unprepared_since.retain(|uid, _| alive.contains(uid));
        self.told.retain(|uid| alive.contains(uid));
        let mut tell = Vec::new();
        for node in nodes.iter().filter(|node| node.in_scope) {
            if node.prepared {
                self.unprepared_since.remove(&node.uid);
                if self.told.remove(&node.uid) {
                    tell.push((node, Told::Prepared));
                }
            } else if node.ready {
                let since = *self.unprepared_since.entry(node.uid.clone()).or_insert(now);
                let long = now.saturating_sub(since) >= UNPREPARED_GRACE;
                if long && tell.len() < MAX_EVENTS_PER_ROUND && self.told.insert(node.uid.clone()) {
                    tell.push((node, Told::Unprepared));
                }
            } else {
                // A node that is not Ready is told of by others.
                self.unprepared_since.remove(&node.uid);
            }
        }
        tell
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ON: Policy = Policy {
        enabled: true,
        timeout: Some(Duration::from_secs(600)),
    };
    const OFF: Policy = Policy {
        enabled: false,
        ..ON
    };

    fn node() -> Node {
        Node {
            name: "n".to_owned(),
            uid: "u".to_owned(),
            in_scope: true,
            age: Duration::from_secs(5),
            ..Node::default()
        }
    }

    fn check(name: &str, policy: Policy, rewriting: bool, node: &Node, expect: Option<Act>) {
        let nodes = std::slice::from_ref(node);
        let acts = Memory::default().decide(nodes, policy, rewriting, Duration::ZERO);
        assert_eq!(acts.first().map(|(_, act)| *act), expect, "{name}");
    }

    #[test]
    fn a_node_is_held_while_it_joins_and_let_go_when_it_can_pull() {
        let held = Node {
            held: true,
            ..node()
        };
        let let_go = |why| Some(Act::LetGo(why));
        check("it joins", ON, true, &node(), Some(Act::Hold));
        check("nothing is rewritten", ON, false, &node(), None);
        check("the value is off", OFF, true, &node(), None);
        let outside = |node: &Node| Node {
            in_scope: false,
            ..node.clone()
        };
        check("nobody waits for it", ON, true, &outside(&node()), None);
        let old = Node {
            age: Duration::from_secs(600),
            ..node()
        };
        check("it is old", ON, true, &old, None);
        let prepared = |node: &Node| Node {
            prepared: true,
            ..node.clone()
        };
        check("it can pull", ON, true, &prepared(&node()), None);
        check("held, not yet prepared", ON, true, &held, None);
        check(
            "held and prepared",
            ON,
            true,
            &prepared(&held),
            let_go(Why::Prepared),
        );
        check(
            "by its kubelet, while nothing is rewritten",
            ON,
            false,
            &held,
            None,
        );
        check(
            "held when the value went off",
            OFF,
            true,
            &held,
            let_go(Why::SwitchedOff),
        );
        check(
            "held out of scope",
            ON,
            true,
            &outside(&held),
            let_go(Why::OutOfScope),
        );
    }

    #[test]
    fn time_runs_out_for_a_held_node_but_for_a_timeout_of_none() {
        let held = [Node {
            held: true,
            ..node()
        }];
        let at = |policy, seconds: &[u64]| -> Vec<bool> {
            let mut memory = Memory::default();
            seconds
                .iter()
                .map(|now| {
                    !memory
                        .decide(&held, policy, true, Duration::from_secs(*now))
                        .is_empty()
                })
                .collect()
        };
        assert_eq!(at(ON, &[100, 699, 700]), [false, false, true]);
        let stuck_pod = Policy {
            timeout: None,
            ..ON
        };
        assert_eq!(at(stuck_pod, &[0, 1_000_000]), [false, false]);
    }

    #[test]
    fn who_was_let_go_is_not_held_again() {
        let mut memory = Memory::default();
        let held = [Node {
            held: true,
            ..node()
        }];
        let free = [node()];
        memory.decide(&held, ON, true, Duration::ZERO);
        assert_eq!(memory.decide(&free, ON, true, Duration::from_secs(9)), []);
        let mut memory = Memory::default();
        let prepared = [Node {
            prepared: true,
            ..node()
        }];
        memory.decide(&prepared, ON, true, Duration::ZERO);
        assert_eq!(memory.decide(&free, ON, true, Duration::from_secs(9)), []);
        let anew = [Node {
            uid: "another".to_owned(),
            ..node()
        }];
        assert_eq!(
            memory.decide(&anew, ON, true, Duration::from_secs(9)).len(),
            1
        );
    }

    #[test]
    fn an_unprepared_node_is_told_of_once_and_so_is_its_end() {
        let mut memory = Memory::default();
        let waits = [Node {
            ready: true,
            ..node()
        }];
        let prepared = [Node {
            prepared: true,
            ..waits[0].clone()
        }];
        let mut told = |nodes: &[Node], now| -> Vec<Told> {
            let told = memory.tell(nodes, Duration::from_secs(now));
            told.into_iter().map(|(_, told)| told).collect()
        };
        assert_eq!(told(&waits, 0), []);
        assert_eq!(told(&waits, 119), []);
        assert_eq!(told(&waits, 120), [Told::Unprepared]);
        assert_eq!(told(&waits, 9999), []);
        assert_eq!(told(&prepared, 10_000), [Told::Prepared]);
        assert_eq!(told(&waits, 10_001), [], "it may be a restart");
    }
}
