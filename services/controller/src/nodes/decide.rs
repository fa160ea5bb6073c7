//! Decides which nodes get or lose the startup taint, and which events to publish. Time is an
//! argument.

use holdfast_config::StartupTaint;
use std::collections::{HashMap, HashSet};
use std::time::Duration;

/// How long a Ready node may be unprepared before an event reports it: images are pulled and the
/// registry starts first.
pub const UNPREPARED_GRACE: Duration = Duration::from_secs(120);
/// An older node joined without the taint, and pods run on it.
const MAX_JOINING_AGE: Duration = Duration::from_secs(600);
/// Nodes that one round reports at most; the others follow.
const MAX_EVENTS_PER_ROUND: usize = 20;

/// A node of the index.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Node {
    /// Its name.
    pub name: String,
    /// Its UID, which differs for a node that joins again under the same name.
    pub uid: String,
    /// Its Ready condition.
    pub ready: bool,
    /// Whether its agent completed a test pull.
    pub prepared: bool,
    /// Whether it has the startup taint, from any client.
    pub tainted: bool,
    /// Whether no pod is scheduled on it (`kubectl cordon`).
    pub cordoned: bool,
    /// Whether it is in `webhook.scope`.
    pub in_scope: bool,
    /// The age of its object.
    pub age: Duration,
}

/// The settings of `nodeAgent.startupTaint`.
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
    AddTaint,
    /// Remove it.
    RemoveTaint(Why),
}

/// Why the taint is removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// The node can pull.
    Prepared,
    /// `nodeAgent.startupTaint` is disabled.
    SwitchedOff,
    /// The node is out of scope.
    OutOfScope,
    /// It took too long. The agent may itself depend on pods of this node.
    TimedOut,
}

/// What an event reports about a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Report {
    /// The node has been Ready but not prepared for [`UNPREPARED_GRACE`].
    Unprepared,
    /// It was reported as not prepared, and is prepared now.
    Prepared,
}

/// What this process observed of the nodes, by UID. With a new leader, timeouts start over.
#[derive(Debug, Default)]
pub struct Memory {
    tainted_since: HashMap<String, Duration>,
    was_prepared: HashSet<String>,
    unprepared_since: HashMap<String, Duration>,
    reported: HashSet<String>,
}

impl Memory {
    /// The nodes that get or lose the taint. `now` is the time since the start of the process.
    pub fn decide<'a>(
        &mut self,
        nodes: &'a [Node],
        policy: Policy,
        rewriting: bool,
        now: Duration,
    ) -> Vec<(&'a Node, Act)> {
        let alive: HashSet<&String> = nodes.iter().map(|node| &node.uid).collect();
        self.tainted_since.retain(|uid, _| alive.contains(uid));
        self.was_prepared.retain(|uid| alive.contains(uid));
        let mut acts = Vec::new();
        for node in nodes {
            if node.prepared {
                self.was_prepared.insert(node.uid.clone());
            }
            if node.tainted {
                let since = *self.tainted_since.entry(node.uid.clone()).or_insert(now);
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
                acts.push((node, Act::RemoveTaint(why)));
                continue;
            }
            // A node that lost the taint does not get it again, because a restart of its agent
            // leaves the host's configuration in place.
            let was =
                self.was_prepared.contains(&node.uid) || self.tainted_since.contains_key(&node.uid);
            let joins = node.age
                < policy
                    .timeout
                    .unwrap_or(MAX_JOINING_AGE)
                    .min(MAX_JOINING_AGE);
            if policy.enabled && rewriting && node.in_scope && joins && !was {
                acts.push((node, Act::AddTaint));
            }
        }
        acts
    }

    /// The events to publish at `now`, each once.
    pub fn reports<'a>(&mut self, nodes: &'a [Node], now: Duration) -> Vec<(&'a Node, Report)> {
        let alive: HashSet<&String> = nodes.iter().map(|node| &node.uid).collect();
        self.unprepared_since.retain(|uid, _| alive.contains(uid));
        self.reported.retain(|uid| alive.contains(uid));
        let mut events = Vec::new();
        for node in nodes.iter().filter(|node| node.in_scope) {
            if node.prepared {
                self.unprepared_since.remove(&node.uid);
                if self.reported.remove(&node.uid) {
                    events.push((node, Report::Prepared));
                }
            } else if node.ready {
                let since = *self.unprepared_since.entry(node.uid.clone()).or_insert(now);
                let long = now.saturating_sub(since) >= UNPREPARED_GRACE;
                if long
                    && events.len() < MAX_EVENTS_PER_ROUND
                    && self.reported.insert(node.uid.clone())
                {
                    events.push((node, Report::Unprepared));
                }
            } else {
                // Kubernetes reports nodes that are not Ready.
                self.unprepared_since.remove(&node.uid);
            }
        }
        events
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
    fn a_node_has_the_taint_from_joining_until_it_can_pull() {
        let tainted = Node {
            tainted: true,
            ..node()
        };
        let removed = |why| Some(Act::RemoveTaint(why));
        check("it joins", ON, true, &node(), Some(Act::AddTaint));
        check("nothing is rewritten", ON, false, &node(), None);
        check("the value is off", OFF, true, &node(), None);
        let outside = |node: &Node| Node {
            in_scope: false,
            ..node.clone()
        };
        check("it is out of scope", ON, true, &outside(&node()), None);
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
        check("tainted, not yet prepared", ON, true, &tainted, None);
        check(
            "held and prepared",
            ON,
            true,
            &prepared(&tainted),
            removed(Why::Prepared),
        );
        check(
            "by its kubelet, while nothing is rewritten",
            ON,
            false,
            &tainted,
            None,
        );
        check(
            "held when the value went off",
            OFF,
            true,
            &tainted,
            removed(Why::SwitchedOff),
        );
        check(
            "held out of scope",
            ON,
            true,
            &outside(&tainted),
            removed(Why::OutOfScope),
        );
    }

    #[test]
    fn the_taint_times_out_unless_the_timeout_is_off() {
        let tainted = [Node {
            tainted: true,
            ..node()
        }];
        let at = |policy, seconds: &[u64]| -> Vec<bool> {
            let mut memory = Memory::default();
            seconds
                .iter()
                .map(|now| {
                    !memory
                        .decide(&tainted, policy, true, Duration::from_secs(*now))
                        .is_empty()
                })
                .collect()
        };
        assert_eq!(at(ON, &[100, 699, 700]), [false, false, true]);
        let unlimited = Policy {
            timeout: None,
            ..ON
        };
        assert_eq!(at(unlimited, &[0, 1_000_000]), [false, false]);
    }

    #[test]
    fn a_node_that_lost_the_taint_does_not_get_it_again() {
        let mut memory = Memory::default();
        let tainted = [Node {
            tainted: true,
            ..node()
        }];
        let free = [node()];
        memory.decide(&tainted, ON, true, Duration::ZERO);
        assert_eq!(memory.decide(&free, ON, true, Duration::from_secs(9)), []);
        let mut memory = Memory::default();
        let prepared = [Node {
            prepared: true,
            ..node()
        }];
        memory.decide(&prepared, ON, true, Duration::ZERO);
        assert_eq!(memory.decide(&free, ON, true, Duration::from_secs(9)), []);
        let rejoined = [Node {
            uid: "another".to_owned(),
            ..node()
        }];
        assert_eq!(
            memory
                .decide(&rejoined, ON, true, Duration::from_secs(9))
                .len(),
            1
        );
    }

    #[test]
    fn an_unprepared_node_is_reported_once_and_so_is_its_end() {
        let mut memory = Memory::default();
        let waits = [Node {
            ready: true,
            ..node()
        }];
        let prepared = [Node {
            prepared: true,
            ..waits[0].clone()
        }];
        let mut reports = |nodes: &[Node], now| -> Vec<Report> {
            let events = memory.reports(nodes, Duration::from_secs(now));
            events.into_iter().map(|(_, event)| event).collect()
        };
        assert_eq!(reports(&waits, 0), []);
        assert_eq!(reports(&waits, 119), []);
        assert_eq!(reports(&waits, 120), [Report::Unprepared]);
        assert_eq!(reports(&waits, 9999), []);
        assert_eq!(reports(&prepared, 10_000), [Report::Prepared]);
        assert_eq!(reports(&waits, 10_001), [], "it may be a restart");
    }
}
