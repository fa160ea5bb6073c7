//! Which sources keep their name because others would lose the image.
//!
//! Kubelets with pull records let every pod use an image that no kubelet pulled. The first pull of
//! the same image ID under another name makes a record of that name alone, and from then on pods
//! with the former names are refused. Pods that Holdfast leaves alone cannot be healed then.

use crate::Context;
use holdfast_api::delivery::{MAX_PROTECTED, SourceSet};
use holdfast_api::state::EVERY_SOURCE;
use holdfast_cluster_index::ClusterIndex;
use holdfast_core::Reference;
use holdfast_core::kubelet::listed_name;
use holdfast_healing::comparing_owners;
use holdfast_healing::exclusions::is_excluded;
use std::collections::{BTreeSet, HashSet};
use std::time::{Duration, Instant};

/// How often the names are computed. Every pod is looked at.
const INTERVAL: Duration = Duration::from_secs(10);

/// The protected names.
#[derive(Debug, Default)]
pub(super) struct Protected {
    computed: Option<Instant>,
    names: BTreeSet<String>,
}

impl Protected {
    /// All names of preloaded images of which a living pod or a template keeps one, as runtimes
    /// list them. Only those `on_all_nodes` matter at admission, and no single node can add one to
    /// these.
    pub(super) fn observe(
        &mut self,
        context: &Context,
        on_all_nodes: &[String],
        now: Instant,
    ) -> SourceSet {
        let is_recent = |at: Instant| now.saturating_duration_since(at) < INTERVAL;
        if !self.computed.is_some_and(is_recent) {
            let on_all_nodes: HashSet<&String> = on_all_nodes.iter().collect();
            self.names = context.reports.names_of_preloaded(&kept(context), now);
            self.names.retain(|name| on_all_nodes.contains(name));
            self.computed = Some(now);
        }
        self.set()
    }

    fn set(&self) -> SourceSet {
        let names = self.names.iter().map(String::as_str);
        names.take(MAX_PROTECTED).collect()
    }
}

/// The names of images that living pods and templates keep, whatever is known of them.
fn kept(context: &Context) -> HashSet<String> {
    let (index, mut kept) = (&context.index, HashSet::new());
    ClusterIndex::read(&index.namespaces, |namespaces| {
        let included = |namespace: &str| {
            let facts = namespaces.get(&(String::new(), namespace.to_owned()));
            facts.is_some_and(|facts| context.scope.includes(namespace, facts))
        };
        let mut add = |namespace: &str, owner: (&str, &str), names: &Names<'_>| {
            kept.extend(names.kept.iter().cloned());
            let all = !names.sources.is_empty()
                && (!included(namespace) || is_excluded_owner(context, namespace, owner));
            let sources = names
                .sources
                .iter()
                .filter(|source| all || is_excluded_source(context, namespace, source));
            let listed = sources.filter_map(|source| Reference::parse(source).ok());
            kept.extend(listed.map(|source| listed_name(&source)));
        };
        ClusterIndex::read(&index.pods, |pods| {
            for ((namespace, _), pod) in pods.iter().filter(|(_, pod)| pod.alive) {
                let owner = &pod.owner.reference;
                let owner = (owner.kind.as_str(), owner.name.as_str());
                let (sources, kept) = (&pod.sources, &pod.kept);
                add(namespace.as_str(), owner, &Names { sources, kept });
            }
        });
        index.owners.read(|owners| {
            for (kind, objects) in owners {
                let of_kind = objects.iter().filter(|(_, owner)| owner.may_start);
                for ((namespace, name), owner) in of_kind {
                    let (sources, kept) = (&owner.sources, &owner.kept);
                    let owner = (*kind, name.as_str());
                    add(namespace.as_str(), owner, &Names { sources, kept });
                }
            }
        });
    });
    kept
}

/// The images of a pod or of a template.
struct Names<'a> {
    /// Canonical references of those that it needs from the registry, if it is in scope.
    sources: &'a BTreeSet<String>,
    kept: &'a BTreeSet<String>,
}

fn is_excluded_owner(context: &Context, namespace: &str, (kind, name): (&str, &str)) -> bool {
    let excluded = context.healing.excluded_owners.borrow();
    let excluded = excluded.as_deref().unwrap_or_default();
    comparing_owners::exclusions::is_excluded(excluded, namespace, kind, name)
}

fn is_excluded_source(context: &Context, namespace: &str, source: &str) -> bool {
    let excluded = context.healing.excluded.borrow();
    let excluded = excluded.as_deref().unwrap_or_default();
    [source, EVERY_SOURCE]
        .iter()
        .any(|source| is_excluded(excluded, namespace, source))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::{context, sync};
    use holdfast_api::report::{NodeReport, ReportedImage};
    use holdfast_cluster_index::Change;
    use holdfast_cluster_model::{NamespaceFacts, PodFacts};
    use std::collections::BTreeMap;

    const OTHER: &str = "r.io/other:1";

    /// A context with a node that holds an image under two names, and the pods' namespace.
    fn with_node(image: ReportedImage) -> Context {
        let context = context();
        sync(&context.index);
        let namespaces = &context.index.namespaces;
        let facts = NamespaceFacts::default();
        let change = Change::Set((String::new(), "apps".to_owned()), facts);
        namespaces.write().apply(change);
        let report = NodeReport {
            node: "n".to_owned(),
            gate: true,
            image_ids: vec![ReportedImage {
                id: "sha256:aa".to_owned(),
                names: vec!["r.io/app:1".to_owned(), OTHER.to_owned()],
                ..image
            }],
            ..NodeReport::default()
        };
        let now = Instant::now();
        context.reports.keep(report, "digest", "uid", now).unwrap();
        context
    }

    fn run(context: &Context, namespace: &str, pod: PodFacts) {
        let key = (namespace.to_owned(), "pod".to_owned());
        context.index.pods.write().apply(Change::Set(key, pod));
    }

    fn set(texts: &[&str]) -> SourceSet {
        texts.iter().copied().collect()
    }

    fn names(texts: &[&str]) -> BTreeSet<String> {
        texts.iter().map(|&text| text.to_owned()).collect()
    }

    fn needs(source: &str) -> PodFacts {
        PodFacts {
            alive: true,
            sources: names(&[source]),
            ..PodFacts::default()
        }
    }

    fn keeps(source: &str) -> PodFacts {
        PodFacts {
            alive: true,
            kept: names(&[source]),
            ..PodFacts::default()
        }
    }

    #[test]
    fn protected_names_are_bounded() {
        let names = (0..=MAX_PROTECTED).map(|number| format!("r.io/app:{number}"));
        let protected = Protected {
            computed: None,
            names: names.collect(),
        };
        assert_eq!(protected.set().len(), MAX_PROTECTED);
    }

    #[tokio::test]
    async fn all_names_of_a_preloaded_image_are_protected_if_a_pod_keeps_one() {
        let both = &["r.io/app:1", OTHER][..];
        let all = names(both).into_iter().collect::<Vec<_>>();
        let ended = PodFacts {
            alive: false,
            ..keeps("r.io/app:1")
        };
        for (namespace, pod, expect) in [
            ("apps", keeps("r.io/app:1"), both),
            ("apps", keeps("r.io/else:1"), &[]),
            ("apps", ended, &[]),
            ("apps", needs("r.io/app:1"), &[]),
            // A namespace that is not known is not in scope, as kube-system.
            ("kube-system", needs("r.io/app:1"), both),
        ] {
            let context = with_node(ReportedImage::default());
            run(&context, namespace, pod.clone());
            let mut protected = Protected::default();
            let found = protected.observe(&context, &all, Instant::now());
            assert_eq!(found, set(expect), "{namespace} {pod:?}");
        }
        let context = with_node(ReportedImage::default());
        run(&context, "apps", needs("r.io/app:1"));
        let mut excluded = Vec::new();
        holdfast_healing::exclusions::add(
            &mut excluded,
            "apps",
            EVERY_SOURCE,
            "a policy",
            jiff::Timestamp::now(),
        );
        context.healing.excluded.send_replace(Some(excluded));
        let mut protected = Protected::default();
        let now = Instant::now();
        assert_eq!(protected.observe(&context, &all, now), set(both));
        context.healing.excluded.send_replace(None);
        assert_eq!(protected.observe(&context, &all, now), set(both), "not yet");
        assert_eq!(protected.observe(&context, &all, now + INTERVAL), set(&[]));

        // A kubelet pulled it: nobody loses anything.
        let pulled = ReportedImage {
            record: Some(BTreeMap::new()),
            ..ReportedImage::default()
        };
        let context = with_node(pulled);
        run(&context, "apps", keeps("r.io/app:1"));
        let mut protected = Protected::default();
        assert_eq!(protected.observe(&context, &all, now), set(&[]));

        // What one node reports is not on all of them.
        let context = with_node(ReportedImage::default());
        run(&context, "apps", keeps("r.io/app:1"));
        let mut protected = Protected::default();
        let found = protected.observe(&context, &all[..1], now);
        assert_eq!(found, set(&["r.io/app:1"]));
    }
}
