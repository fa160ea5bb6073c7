//! Which originals the nodes have to pull again when pods get them back: the kubelet's pull records
//! have the registry's name only (KEP-2535), or the node never had the image. Pure.

use std::collections::{BTreeMap, BTreeSet};

use holdfast_api::delivery::{Answer, Delivery};
use holdfast_cli_kit::leader::{Answer as Said, Question};
use holdfast_core::Reference;
use serde::Serialize;

use super::plan::{Remedy, RewrittenPod};

/// Originals that are named in a text.
const NAMED: usize = 20;

/// What the leading controller knows.
#[derive(Debug, Default)]
pub(crate) struct Known {
    /// Whether originals start on nodes without a pull.
    pub(crate) starts: BTreeMap<Question, Said>,
    /// Why it could not be asked.
    pub(crate) silent: Option<String>,
    /// Whether upstreams answer.
    pub(crate) delivery: Option<Delivery>,
}

/// An original that a node pulls again.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Pull {
    pub(crate) node: String,
    pub(crate) image: String,
    /// Whether this is certain; else the node's agent did not tell.
    pub(crate) certain: bool,
    /// Whether its upstream is away.
    pub(crate) away: bool,
}

/// The questions about the originals of pods that are restored.
pub(crate) fn questions(pods: &[RewrittenPod]) -> BTreeSet<Question> {
    restored(pods)
        .filter(|(_, _, always)| !always)
        .map(|(pod, image, _)| question(pod, image))
        .collect()
}

/// The originals that are pulled again, by node.
pub(crate) fn pulls(pods: &[RewrittenPod], known: &Known) -> BTreeSet<Pull> {
    restored(pods)
        .filter_map(|(pod, image, always)| {
            let starts = known.starts.get(&question(pod, image));
            let certain = match starts {
                _ if always => true,
                Some(Said::Yes) => return None,
                Some(Said::No) => true,
                Some(Said::Unknown) | None => false,
            };
            Some(Pull {
                node: pod.node.clone(),
                image: image.to_owned(),
                certain,
                away: is_away(image, known.delivery.as_ref()),
            })
        })
        .collect()
}

/// Why pods should not be restored now, if they should not.
pub(crate) fn objection(pulls: &BTreeSet<Pull>) -> Option<String> {
    let away: BTreeSet<&str> = pulls
        .iter()
        .filter(|pull| pull.away)
        .map(|pull| pull.image.as_str())
        .collect();
    (!away.is_empty()).then(|| {
        format!(
            "nodes would have to pull originals whose upstream is away: {}; --anyway restores \
             these pods all the same",
            named(away.into_iter())
        )
    })
}

/// What is pulled again, a line for each node.
pub(crate) fn lines(pulls: &BTreeSet<Pull>, known: &Known) -> Vec<String> {
    let mut nodes: BTreeMap<(&str, bool), Vec<&str>> = BTreeMap::new();
    for pull in pulls {
        let key = (pull.node.as_str(), pull.certain);
        nodes.entry(key).or_default().push(&pull.image);
    }
    let mut lines: Vec<String> = nodes
        .into_iter()
        .map(|((node, certain), images)| {
            let verb = if certain { "pulls" } else { "may pull" };
            format!("node {node} {verb} again: {}", named(images.into_iter()))
        })
        .collect();
    if let Some(why) = known.silent.as_ref().filter(|_| !pulls.is_empty()) {
        lines.push(format!(
            "which originals the nodes have is not known: {why}"
        ));
    }
    lines
}

/// Each image of bound pods that are not left: the pod, the original, and whether the kubelet pulls
/// it at each start.
fn restored(pods: &[RewrittenPod]) -> impl Iterator<Item = (&RewrittenPod, &str, bool)> {
    let pods = pods.iter();
    let pods = pods.filter(|pod| !matches!(pod.remedy, Remedy::Leave(_)) && !pod.node.is_empty());
    pods.flat_map(|pod| {
        let images = pod.images.iter();
        images.map(move |image| (pod, image.original.as_str(), image.always))
    })
}

fn question(pod: &RewrittenPod, image: &str) -> Question {
    Question {
        node: pod.node.clone(),
        image: image.to_owned(),
        namespace: pod.namespace.clone(),
        secrets: pod.pull_secrets.clone(),
        service_account: pod.service_account.clone(),
    }
}

fn is_away(image: &str, delivery: Option<&Delivery>) -> bool {
    let answer = delivery.and_then(|delivery| {
        let reference = Reference::parse(image).ok()?;
        delivery.answer(&reference.host().to_string())
    });
    answer == Some(Answer::Away)
}

fn named<'a>(images: impl ExactSizeIterator<Item = &'a str>) -> String {
    let more = images.len().saturating_sub(NAMED);
    let text = images.take(NAMED).collect::<Vec<_>>().join(", ");
    if more > 0 {
        format!("{text} and {more} more")
    } else {
        text
    }
}

#[cfg(test)]
mod tests {
    use super::super::plan::Rewritten;
    use super::*;
    use holdfast_api::delivery::{DeliveryState, HostState};
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

    fn pod(node: &str, original: &str, always: bool, remedy: Remedy) -> RewrittenPod {
        RewrittenPod {
            namespace: "shop".to_owned(),
            name: "web".to_owned(),
            uid: "u".to_owned(),
            owner: None,
            node: node.to_owned(),
            pull_secrets: vec!["pull".to_owned()],
            service_account: "default".to_owned(),
            images: vec![Rewritten {
                key: "containers/c".to_owned(),
                now: format!("10.96.0.50/{original}"),
                original: original.to_owned(),
                always,
            }],
            remedy,
        }
    }

    fn known(pods: &[RewrittenPod], said: Said) -> Known {
        let host = HostState {
            host: "away.example".to_owned(),
            state: Answer::Away,
            confirmed: Time(k8s_openapi::jiff::Timestamp::UNIX_EPOCH),
        };
        Known {
            starts: questions(pods).into_iter().map(|it| (it, said)).collect(),
            silent: None,
            delivery: Some(Delivery {
                state: DeliveryState {
                    hosts: vec![host],
                    ..DeliveryState::default()
                },
                ..Delivery::default()
            }),
        }
    }

    #[test]
    fn what_a_node_lacks_is_pulled_again_and_stops_while_its_upstream_is_away() {
        let leave = || Remedy::Leave("a Job".to_owned());
        for (node, image, always, remedy, said, line, stops) in [
            (
                "one",
                "r.io/a:1",
                false,
                Remedy::Recreate,
                Said::Yes,
                None,
                false,
            ),
            (
                "one",
                "r.io/a:1",
                false,
                Remedy::Recreate,
                Said::No,
                Some("pulls"),
                false,
            ),
            (
                "one",
                "r.io/a:1",
                true,
                Remedy::Recreate,
                Said::Yes,
                Some("pulls"),
                false,
            ),
            (
                "one",
                "r.io/a:1",
                false,
                Remedy::Recreate,
                Said::Unknown,
                Some("may pull"),
                false,
            ),
            (
                "one",
                "away.example/a:1",
                false,
                Remedy::Recreate,
                Said::Yes,
                None,
                false,
            ),
            (
                "one",
                "away.example/a:1",
                false,
                Remedy::Recreate,
                Said::No,
                Some("pulls"),
                true,
            ),
            (
                "one",
                "away.example/a:1",
                false,
                Remedy::Recreate,
                Said::Unknown,
                Some("may pull"),
                true,
            ),
            (
                "one",
                "away.example/a:1",
                false,
                leave(),
                Said::No,
                None,
                false,
            ),
            (
                "",
                "away.example/a:1",
                false,
                Remedy::Recreate,
                Said::No,
                None,
                false,
            ),
        ] {
            let pods = [pod(node, image, always, remedy)];
            let known = known(&pods, said);
            let found = pulls(&pods, &known);
            let lines = lines(&found, &known);
            let expect = line.map(|verb| format!("node one {verb} again: {image}"));
            assert_eq!(lines, Vec::from_iter(expect), "{pods:?} {said:?}");
            assert_eq!(objection(&found).is_some(), stops, "{pods:?} {said:?}");
        }
    }

    #[test]
    fn a_controller_that_cannot_be_asked_is_named_once() {
        let pods = [
            pod("one", "r.io/a:1", false, Remedy::Recreate),
            pod("two", "r.io/a:1", false, Remedy::Recreate),
        ];
        let known = Known {
            silent: Some("no controller leads".to_owned()),
            ..Known::default()
        };
        let lines = lines(&pulls(&pods, &known), &known);
        assert_eq!(
            lines,
            [
                "node one may pull again: r.io/a:1",
                "node two may pull again: r.io/a:1",
                "which originals the nodes have is not known: no controller leads"
            ]
        );
        assert!(super::lines(&BTreeSet::new(), &known).is_empty());
    }

    #[test]
    fn a_text_names_some_images_and_counts_the_rest() {
        let images: Vec<String> = (0..22).map(|n| format!("i{n}")).collect();
        let text = named(images.iter().map(String::as_str));
        assert!(text.ends_with("i19 and 2 more"), "{text}");
    }
}
