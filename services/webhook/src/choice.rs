//! The state on which the choice between the names of an image depends, as the webhook knows it.
//! Pure. `core::delivery` decides.

use holdfast_api::delivery::{Answer, Delivery};
use holdfast_core::Reference;
use holdfast_core::delivery::{Copy, OnNodes, PullPolicy, State, Upstream};
use holdfast_core::pod::{self, PodImage};
use serde_json::Value;

/// The state of an image of a pod. `prepared` is [`can_pull`] of the pod.
pub(crate) fn state(
    image: &PodImage,
    source: &Reference,
    is_placeholder: bool,
    prepared: bool,
    known: &Delivery,
) -> State {
    let host = source.host().to_string();
    let (is_held, original) = known.source(source);
    State {
        copy: if is_held { Copy::Held } else { Copy::Absent },
        upstream: match known.answer(&host) {
            Some(Answer::Answers) => Upstream::Answers,
            Some(Answer::Away) => Upstream::Away,
            None => Upstream::Unknown,
        },
        original,
        local: OnNodes::Unknown,
        prepared,
        mirrored: false,
        foreign: known.is_foreign(&host),
        protect: known.is_protected(source),
        policy: PullPolicy::of(image.pull_policy.as_deref()),
        kind: image.kind,
        placeholder: is_placeholder,
    }
}

/// Whether the nodes where a pod may run can pull from the registry.
///
/// The node of a bound pod and that of a `DaemonSet`'s pod decide alone. A pod that the cluster
/// may need before its nodes are prepared (a network or storage plug-in) must not wait for them,
/// so it needs all nodes prepared. All other pods may: the scheduler has the startup taint.
pub(crate) fn can_pull(pod: &Value, known: &Delivery) -> bool {
    let unprepared = &known.state.unprepared;
    match pod::bound_node(pod) {
        Some(node) => unprepared
            .binary_search_by(|name| name.as_str().cmp(node))
            .is_err(),
        None => unprepared.is_empty() || !pod::precedes_nodes(pod),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use holdfast_api::delivery::{DeliveryState, HostState, SourceSet};
    use holdfast_core::delivery::{Rule, choose};
    use holdfast_core::pod::Kind;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
    use serde_json::json;

    /// Hosts, sources and nodes of each kind.
    pub(crate) fn known() -> Delivery {
        let host = |host: &str, state| HostState {
            host: host.to_owned(),
            state,
            confirmed: Time(jiff::Timestamp::UNIX_EPOCH),
        };
        Delivery {
            state: DeliveryState {
                hosts: vec![
                    host("away.example", Answer::Away),
                    host("up.example", Answer::Answers),
                ],
                foreign: vec!["node.example".to_owned()],
                unprepared: vec!["new".to_owned()],
                nodes_known: false,
            },
            held: ["away.example/held:1"].into_iter().collect(),
            on_all_nodes: [
                "away.example/nodes:1",
                "new.example/all:1",
                "up.example/all:1",
            ]
            .into_iter()
            .collect(),
            on_some_nodes: ["new.example/some:1", "up.example/some:1"]
                .into_iter()
                .collect(),
            protect: SourceSet::default(),
        }
    }

    #[test]
    fn what_is_known_becomes_the_state_of_an_image() {
        for (source, copy, upstream, original, foreign) in [
            (
                "away.example/held:1",
                Copy::Held,
                Upstream::Away,
                OnNodes::Unknown,
                false,
            ),
            (
                "away.example/nodes:1",
                Copy::Absent,
                Upstream::Away,
                OnNodes::All,
                false,
            ),
            (
                "up.example/some:1",
                Copy::Absent,
                Upstream::Answers,
                OnNodes::Some,
                false,
            ),
            (
                "node.example/x:1",
                Copy::Absent,
                Upstream::Unknown,
                OnNodes::Unknown,
                true,
            ),
        ] {
            let image = PodImage {
                kind: Kind::Container,
                name: "c".to_owned(),
                image: source.to_owned(),
                pull_policy: Some("Always".to_owned()),
                pointer: String::new(),
            };
            let reference = Reference::parse(source).unwrap();
            let state = state(&image, &reference, false, true, &known());
            assert_eq!(
                (state.copy, state.upstream, state.original, state.foreign),
                (copy, upstream, original, foreign),
                "{source}"
            );
            assert_eq!(state.policy, PullPolicy::Always);
        }
    }

    #[test]
    fn where_all_nodes_reported_what_none_named_is_on_none() {
        let image = PodImage {
            kind: Kind::Container,
            name: "c".to_owned(),
            image: "new.example/first:1".to_owned(),
            pull_policy: None,
            pointer: String::new(),
        };
        let source = Reference::parse(&image.image).unwrap();
        let mut known = known();
        for (nodes_known, expect) in [(false, OnNodes::Unknown), (true, OnNodes::None)] {
            known.state.nodes_known = nodes_known;
            let state = state(&image, &source, false, true, &known);
            assert_eq!(state.original, expect);
            assert_eq!(choose(&state), Rule::Unknown, "a first pod is rewritten");
        }
    }

    #[test]
    fn what_others_would_lose_keeps_its_name_where_all_nodes_have_it() {
        let mut known = known();
        let all = ["up.example/all:1", "up.example/some:1", "new.example/all:1"];
        known.held = all.into_iter().collect();
        let protect = ["up.example/all:1", "up.example/some:1"];
        known.protect = protect.into_iter().collect();
        for (text, expect) in [
            ("up.example/all:1", Rule::Protected),
            ("up.example/some:1", Rule::Held),
            ("new.example/all:1", Rule::Held),
        ] {
            let source = Reference::parse(text).unwrap();
            let image = PodImage {
                kind: Kind::Container,
                name: "c".to_owned(),
                image: text.to_owned(),
                pull_policy: Some("IfNotPresent".to_owned()),
                pointer: String::new(),
            };
            let state = state(&image, &source, false, true, &known);
            assert_eq!(choose(&state), expect, "{text}");
        }
    }

    #[test]
    fn a_pod_can_pull_where_its_nodes_are_prepared() {
        for (pod, expect) in [
            (json!({"spec": {}}), true),
            (json!({"spec": {"nodeName": "old"}}), true),
            (json!({"spec": {"nodeName": "new"}}), false),
            (json!({"spec": {"hostNetwork": true}}), false),
            (
                json!({"spec": {"hostNetwork": true, "nodeName": "old"}}),
                true,
            ),
        ] {
            assert_eq!(can_pull(&pod, &known()), expect, "{pod}");
        }
        assert!(can_pull(
            &json!({"spec": {"hostNetwork": true}}),
            &Delivery::default()
        ));
    }
}
