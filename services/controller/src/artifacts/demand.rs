//! Which images are needed, in which namespace, by whom: pure.

use crate::world::{Key, Mirror, NamespaceFacts, PodFacts, Scope};
use holdfast_api::artifact::Reference;
use holdfast_api::artifact_name;
use std::collections::{BTreeMap, BTreeSet};

/// Who needs one image in one namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Demand {
    /// The upstream's reference.
    pub source: String,
    /// Distinct owners, also of finished pods.
    pub owners: BTreeSet<Reference>,
    /// Whether a living pod has not started yet.
    pub waiting: bool,
    /// One of the living pods, name and UID, for events.
    pub pod: Option<(String, String)>,
    /// Pull secrets of the living pods.
    pub pull_secrets: BTreeSet<String>,
    /// Service accounts of the living pods.
    pub service_accounts: BTreeSet<String>,
}

impl Demand {
    /// Whether living pods bring credentials, or may, that those of `before` did not.
    pub fn brings_more_than(&self, before: Option<&Self>) -> bool {
        self.pod.is_some()
            && before
                .filter(|before| before.pod.is_some())
                .is_none_or(|before| {
                    !self.pull_secrets.is_subset(&before.pull_secrets)
                        || !self.service_accounts.is_subset(&before.service_accounts)
                })
    }
}

/// The demand by namespace and Artifact name, of pods in scope. Finished pods count as references.
pub fn demand(
    pods: &Mirror<PodFacts>,
    namespaces: &Mirror<NamespaceFacts>,
    scope: &Scope,
) -> BTreeMap<Key, Demand> {
    let mut all: BTreeMap<Key, Demand> = BTreeMap::new();
    for ((namespace, name), pod) in pods.iter() {
        if pod.sources.is_empty() {
            continue;
        }
        let included = namespaces
            .get(&(String::new(), namespace.clone()))
            .is_some_and(|facts| !facts.terminating && scope.includes(namespace, facts));
        if !included {
            continue;
        }
        for source in &pod.sources {
            let demand = all
                .entry((namespace.clone(), artifact_name(source)))
                .or_default();
            demand.source.clone_from(source);
            demand.owners.insert(pod.owner.clone());
            if pod.alive {
                demand.waiting |= pod.waiting;
                let this = (name.clone(), pod.uid.clone());
                // The first by name, so that the answer does not depend on the order of the map.
                if demand.pod.as_ref().is_none_or(|other| this < *other) {
                    demand.pod = Some(this);
                }
                demand.pull_secrets.extend(pod.pull_secrets.iter().cloned());
                demand.service_accounts.insert(pod.service_account.clone());
            }
        }
    }
    all
}

/// Whether an Artifact is to be made when there is none: only living pods ask for a copy.
pub fn asks_for_copy(demand: &Demand) -> bool {
    demand.pod.is_some()
}

#[cfg(test)]
mod tests {
    use super::*;
    use holdfast_config::Config;
    use k8s_openapi::api::core::v1::{Namespace, Pod};
    use kube::api::ObjectMeta;
    use kube::runtime::watcher::Event;
    use serde_json::json;

    fn scope() -> Scope {
        let document = json!({
            "release": {"name": "holdfast", "namespace": "holdfast-system", "fullname": "holdfast", "version": "0.1.0"},
            "values": {},
        });
        Scope::new(&Config::parse(&document.to_string()).unwrap()).unwrap()
    }

    fn pods(list: Vec<(&str, &str, PodFacts)>) -> Mirror<PodFacts> {
        let mut mirror = Mirror::default();
        for (namespace, name, facts) in list {
            let pod = Pod {
                metadata: ObjectMeta {
                    name: Some(name.to_owned()),
                    namespace: Some(namespace.to_owned()),
                    ..ObjectMeta::default()
                },
                ..Pod::default()
            };
            mirror.apply(Event::Apply(pod), &mut |_| facts.clone());
        }
        mirror
    }

    fn namespaces(names: &[&str]) -> Mirror<NamespaceFacts> {
        let mut mirror = Mirror::default();
        for name in names {
            let namespace = Namespace {
                metadata: ObjectMeta {
                    name: Some((*name).to_owned()),
                    ..ObjectMeta::default()
                },
                ..Namespace::default()
            };
            mirror.apply(Event::Apply(namespace), &mut |_| NamespaceFacts::default());
        }
        mirror
    }

    fn pod(owner: &str, alive: bool, secret: &str) -> PodFacts {
        PodFacts {
            uid: format!("uid-{owner}"),
            sources: [String::from("registry.example/app:1")].into(),
            alive,
            owner: Reference {
                kind: "ReplicaSet".to_owned(),
                name: owner.to_owned(),
            },
            pull_secrets: vec![secret.to_owned()],
            service_account: "default".to_owned(),
            ..PodFacts::default()
        }
    }

    // SPEC 6, SPEC 35, SPEC 41
    #[test]
    fn one_image_in_one_namespace_is_one_demand_with_everybodys_secrets() {
        let pods = pods(vec![
            ("apps", "b", pod("one", true, "s1")),
            ("apps", "a", pod("one", true, "s2")),
            ("apps", "done", pod("job", false, "s3")),
            ("other", "a", pod("one", true, "s1")),
            ("holdfast-system", "a", pod("own", true, "s1")),
            ("unknown", "a", pod("own", true, "s1")),
        ]);
        let demand = demand(
            &pods,
            &namespaces(&["apps", "other", "holdfast-system"]),
            &scope(),
        );
        let found: Vec<_> = demand
            .keys()
            .map(|(namespace, _)| namespace.as_str())
            .collect();
        assert_eq!(found, ["apps", "other"]);
        let apps = demand.values().next().unwrap();
        assert_eq!(apps.owners.len(), 2, "a ReplicaSet and a finished Job");
        assert_eq!(
            apps.pull_secrets.iter().collect::<Vec<_>>(),
            ["s1", "s2"],
            "a finished pod brings none"
        );
        assert_eq!(apps.pod.as_ref().unwrap().0, "a");
        assert!(asks_for_copy(apps));
    }

    #[test]
    fn only_living_pods_bring_more() {
        let living = |secret: &str| Demand {
            pod: Some(("pod".to_owned(), "uid".to_owned())),
            pull_secrets: [secret.to_owned()].into(),
            ..Demand::default()
        };
        let (one, two, finished) = (living("one"), living("two"), Demand::default());
        let mut both = one.clone();
        both.pull_secrets.insert("two".to_owned());
        for (before, now, expect) in [
            (None, &one, true),
            (Some(&finished), &one, true),
            (Some(&one), &two, true),
            (Some(&one), &both, true),
            (Some(&both), &one, false),
            (Some(&one), &one, false),
            (Some(&one), &finished, false),
            (None, &finished, false),
        ] {
            assert_eq!(now.brings_more_than(before), expect, "{before:?}, {now:?}");
        }
    }

    #[test]
    fn finished_pods_refer_but_ask_for_nothing() {
        let pods = pods(vec![("apps", "done", pod("job", false, "s"))]);
        let demand = demand(&pods, &namespaces(&["apps"]), &scope());
        assert!(!asks_for_copy(demand.values().next().unwrap()));
    }
}
