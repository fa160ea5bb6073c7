//! What is known of a cluster's objects at one moment.

use crate::owner::Owner;
use crate::templates::OwnerFacts;
use std::collections::{BTreeMap, HashMap};

/// The longest chain of controllers that is followed.
const MAX_CHAIN: usize = 8;

/// Namespace (empty for cluster-wide objects) and name.
pub type Key = (String, String);

/// The facts of the objects of one kind.
pub type Objects<V> = HashMap<Key, V>;

/// The facts of the owners of each kind.
pub type OwnerView<'a> = BTreeMap<&'static str, &'a Objects<OwnerFacts>>;

/// The facts of an owner when it is known and still the same object.
pub fn find_owner<'a>(
    view: &OwnerView<'a>,
    namespace: &str,
    owner: &Owner,
) -> Option<&'a OwnerFacts> {
    view.get(owner.reference.kind.as_str())?
        .get(&(namespace.to_owned(), owner.reference.name.clone()))
        .filter(|facts| facts.uid == owner.uid)
}

/// The uppermost controller that is known of, from `owner` up: the Deployment of a ReplicaSet, the
/// CronJob of a Job, the operator's resource where one controls a workload. What is not known is
/// its own top.
pub fn top_owner(view: &OwnerView<'_>, namespace: &str, owner: &Owner) -> Owner {
    let mut owner = owner;
    for _ in 0..MAX_CHAIN {
        match find_owner(view, namespace, owner).and_then(|facts| facts.controller.as_ref()) {
            Some(above) => owner = above,
            None => break,
        }
    }
    owner.clone()
}

#[cfg(test)]
mod tests {
    use super::*;
    use holdfast_api::artifact::Reference;

    #[test]
    fn the_chain_of_owners_ends_at_the_last_known_one() {
        let owner = |kind: &str, name: &str, uid: &str| Owner {
            reference: Reference {
                kind: kind.to_owned(),
                name: name.to_owned(),
            },
            uid: uid.to_owned(),
        };
        let mut sets: Objects<OwnerFacts> = Objects::new();
        let mut add = |name: &str, above: Option<Owner>| {
            let facts = OwnerFacts {
                uid: name.to_owned(),
                controller: above,
                ..OwnerFacts::default()
            };
            sets.insert(("apps".to_owned(), name.to_owned()), facts);
        };
        add("web-1", Some(owner("Deployment", "web", "d")));
        add("loop", Some(owner("ReplicaSet", "loop", "loop")));
        let view: OwnerView<'_> = [("ReplicaSet", &sets)].into();
        for (from, expect) in [
            (owner("ReplicaSet", "web-1", "web-1"), "Deployment/web"),
            (
                owner("ReplicaSet", "web-1", "of an earlier one"),
                "ReplicaSet/web-1",
            ),
            (owner("ReplicaSet", "loop", "loop"), "ReplicaSet/loop"),
            (owner("Pod", "p", "p"), "Pod/p"),
        ] {
            let top = top_owner(&view, "apps", &from).reference;
            assert_eq!(format!("{}/{}", top.kind, top.name), expect);
        }
        let elsewhere = owner("ReplicaSet", "web-1", "web-1");
        assert_eq!(top_owner(&view, "other", &elsewhere), elsewhere);
    }
}
