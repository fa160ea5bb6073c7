//! Which nodes cannot pull from the registry yet. Pure.
//!
//! A node that was prepared once stays so while its agent restarts: its host configuration stays. A
//! node that joins again has another UID, and is not prepared.

use crate::nodes::decide::Node;
use holdfast_api::delivery::MAX_UNPREPARED;
use std::collections::HashSet;
use std::time::Duration;

/// A node that is older than this when a leader first sees it, and that the earlier leader did not
/// list, was prepared before.
const MAX_JOINING_AGE: Duration = Duration::from_secs(600);

/// The nodes that were prepared at some time, by UID.
#[derive(Debug, Default)]
pub(super) struct PreparedNodes {
    once: HashSet<String>,
    seen: HashSet<String>,
}

impl PreparedNodes {
    /// The names of the nodes that are not prepared, in order. `earlier` is the list that was
    /// written last; `None` if there is none.
    pub(super) fn observe(&mut self, nodes: &[Node], earlier: Option<&[String]>) -> Vec<String> {
        let living: HashSet<&str> = nodes.iter().map(|node| node.uid.as_str()).collect();
        self.once.retain(|uid| living.contains(uid.as_str()));
        self.seen.retain(|uid| living.contains(uid.as_str()));
        for node in nodes {
            let is_first_look = self.seen.insert(node.uid.clone());
            let was_prepared = is_first_look
                && node.age >= MAX_JOINING_AGE
                && earlier.is_some_and(|list| !list.contains(&node.name));
            if node.prepared || was_prepared {
                self.once.insert(node.uid.clone());
            }
        }
        // No agent is expected on nodes out of scope.
        let unprepared = nodes
            .iter()
            .filter(|node| node.in_scope && !self.once.contains(&node.uid));
        let mut names: Vec<String> = unprepared.map(|node| node.name.clone()).collect();
        names.sort_unstable();
        names.truncate(MAX_UNPREPARED);
        names
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(name: &str, uid: &str, prepared: bool, age: u64) -> Node {
        Node {
            name: name.to_owned(),
            uid: uid.to_owned(),
            prepared,
            in_scope: true,
            age: Duration::from_secs(age),
            ..Node::default()
        }
    }

    #[test]
    fn a_node_stays_prepared_until_it_joins_again() {
        let mut nodes = PreparedNodes::default();
        let mut look = |node: Node| nodes.observe(&[node], Some(&[])).len();
        assert_eq!(look(node("a", "1", false, 5)), 1);
        assert_eq!(look(node("a", "1", true, 9)), 0);
        assert_eq!(look(node("a", "1", false, 900)), 0, "its agent restarts");
        assert_eq!(look(node("a", "2", false, 1)), 1, "it joined again");
        let out_of_scope = Node {
            in_scope: false,
            ..node("b", "3", false, 1)
        };
        assert_eq!(look(out_of_scope), 0);
    }

    #[test]
    fn a_new_leader_believes_the_list_of_the_earlier_one() {
        let listed = ["b".to_owned()];
        for (name, age, earlier, expect) in [
            ("a", 900, Some(listed.as_slice()), 0),
            ("b", 900, Some(listed.as_slice()), 1),
            ("a", 5, Some(listed.as_slice()), 1),
            ("a", 900, None, 1),
        ] {
            let found = PreparedNodes::default().observe(&[node(name, "1", false, age)], earlier);
            assert_eq!(found.len(), expect, "{name} {age} {earlier:?}");
        }
    }

    #[test]
    fn the_list_is_bounded() {
        let nodes: Vec<Node> = (0..=MAX_UNPREPARED)
            .map(|number| node(&format!("{number:04}"), &number.to_string(), false, 1))
            .collect();
        let found = PreparedNodes::default().observe(&nodes, None);
        assert_eq!(found.len(), MAX_UNPREPARED);
        assert_eq!(found[0], "0000");
    }
}
