//! Whether Holdfast itself starts after a power cut: its registry, without which no local name can
//! be pulled, and its controller, which heals pods. Pure. One replica of each is enough.

use std::collections::BTreeSet;

use holdfast_api::labels;
use holdfast_cli_kit::leader::Question;
use holdfast_core::delivery::PullPolicy;
use holdfast_core::pod::{self, Kind};
use holdfast_core::workload::{may_start, text};
use serde_json::Value;

use crate::answers::Answers;
use crate::judge::Known;

/// Whether parts of Holdfast start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Own {
    pub(crate) registry: Known,
    pub(crate) controller: Known,
}

/// What was found of Holdfast's pods in its namespace.
#[derive(Debug, Default)]
pub(crate) struct OwnPods {
    /// `None` where they may not be listed.
    pub(crate) pods: Option<Vec<Value>>,
    /// The claims of volumes; `None` where they may not be listed.
    pub(crate) claims: Option<Vec<Value>>,
}

impl OwnPods {
    /// What has to be asked about their nodes.
    pub(crate) fn questions(&self) -> BTreeSet<Question> {
        let components = [labels::COMPONENT_REGISTRY, labels::COMPONENT_CONTROLLER];
        let pods = components.into_iter().flat_map(|it| self.bound(it, None));
        pods.flat_map(|pod| questions(pod).into_iter().flatten())
            .collect()
    }

    /// Judges the parts, if the node `lost` is lost.
    pub(crate) fn judge(&self, answers: &Answers, lost: Option<&str>) -> Own {
        let part = |component: &str| {
            if self.pods.is_none() {
                return Known::Unknown;
            }
            let pods = self.bound(component, lost);
            let starts = pods.map(|pod| starts(pod, answers).min(self.has_claims(pod)));
            // Without a bound pod the scheduler decides where the next one starts.
            starts.max().unwrap_or(Known::Unknown)
        };
        Own {
            registry: part(labels::COMPONENT_REGISTRY),
            controller: part(labels::COMPONENT_CONTROLLER),
        }
    }

    /// The living pods of a part that are bound to a node other than `lost`.
    fn bound(&self, component: &str, lost: Option<&str>) -> impl Iterator<Item = &Value> {
        self.pods.iter().flatten().filter(move |pod| {
            let labels = pod.pointer("/metadata/labels");
            let label = labels.and_then(|labels| labels.get(labels::COMPONENT)?.as_str());
            let node = text(pod, "/spec/nodeName");
            label == Some(component)
                && may_start("Pod", pod)
                && !node.is_empty()
                && Some(node) != lost
        })
    }

    /// Whether the claims of a pod are bound to volumes.
    fn has_claims(&self, pod: &Value) -> Known {
        let volumes = pod.pointer("/spec/volumes").and_then(Value::as_array);
        let claims = volumes
            .into_iter()
            .flatten()
            .filter_map(|volume| volume.pointer("/persistentVolumeClaim/claimName")?.as_str());
        let is_bound = |name: &str| {
            let Some(known) = &self.claims else {
                return Known::Unknown;
            };
            let claim = known
                .iter()
                .find(|claim| text(claim, "/metadata/name") == name);
            claim
                .is_some_and(|claim| text(claim, "/status/phase") == "Bound")
                .into()
        };
        claims.map(is_bound).min().unwrap_or(Known::Yes)
    }
}

/// The question for each image of a bound pod; `None` for an image that is pulled at each start.
fn questions(pod: &Value) -> Vec<Option<Question>> {
    let images = pod::images(pod).into_iter();
    images
        .filter(|image| image.kind != Kind::Ephemeral)
        .map(|image| {
            let policy = PullPolicy::of(image.pull_policy.as_deref());
            (policy != PullPolicy::Always).then(|| Question {
                node: text(pod, "/spec/nodeName").to_owned(),
                image: image.image,
                namespace: text(pod, "/metadata/namespace").to_owned(),
                secrets: pod::pull_secret_names(pod),
                service_account: pod::service_account_name(pod).to_owned(),
            })
        })
        .collect()
}

fn starts(pod: &Value, answers: &Answers) -> Known {
    let starts = questions(pod).into_iter().map(|question| {
        let Some(question) = question else {
            return Known::No;
        };
        answers.starts(&question).unwrap_or(Known::Unknown)
    });
    starts.min().unwrap_or(Known::Unknown)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod(component: &str, node: &str, policy: &str) -> Value {
        json!({
            "metadata": {
                "name": "p", "namespace": "h", "uid": "u",
                "labels": {"app.kubernetes.io/component": component},
            },
            "spec": {
                "nodeName": node,
                "containers": [{"name": "c", "image": "r.io/h:1", "imagePullPolicy": policy}],
                "volumes": [{"name": "v", "persistentVolumeClaim": {"claimName": "data"}}],
            },
        })
    }

    fn claim(phase: &str) -> Value {
        json!({"metadata": {"name": "data"}, "status": {"phase": phase}})
    }

    /// Answers for the nodes by name.
    fn answers(own: &OwnPods) -> Answers {
        let answer = |question: Question| {
            let known = match question.node.as_str() {
                "has" => Known::Yes,
                "lacks" => Known::No,
                _ => Known::Unknown,
            };
            (question, known)
        };
        Answers {
            starts: own.questions().into_iter().map(answer).collect(),
            ..Answers::default()
        }
    }

    #[test]
    fn one_replica_that_starts_is_enough() {
        let policy = "IfNotPresent";
        for (nodes, phase, lost, expect) in [
            (&["has", "lacks"][..], "Bound", None, Known::Yes),
            (&["lacks"], "Bound", None, Known::No),
            (&["lacks", "new"], "Bound", None, Known::Unknown),
            (&["has"], "Lost", None, Known::No),
            (&["has", "lacks"], "Bound", Some("has"), Known::No),
            (&["has"], "Bound", Some("lacks"), Known::Yes),
            (&[], "Bound", None, Known::Unknown),
            (&[""], "Bound", None, Known::Unknown),
        ] {
            let pods = nodes.iter().map(|node| pod("registry", node, policy));
            let own = OwnPods {
                pods: Some(pods.collect()),
                claims: Some(vec![claim(phase)]),
            };
            let judged = own.judge(&answers(&own), lost);
            assert_eq!(judged.registry, expect, "{nodes:?} {phase} {lost:?}");
            assert_eq!(judged.controller, Known::Unknown);
        }
    }

    #[test]
    fn what_may_not_be_listed_is_unknown_and_a_pull_at_each_start_a_no() {
        let own = OwnPods::default();
        assert_eq!(own.judge(&answers(&own), None).registry, Known::Unknown);
        let own = OwnPods {
            pods: Some(vec![
                pod("registry", "has", "IfNotPresent"),
                pod("controller", "has", "Always"),
            ]),
            claims: None,
        };
        let judged = own.judge(&answers(&own), None);
        assert_eq!(judged.registry, Known::Unknown, "its claim is not known");
        assert_eq!(judged.controller, Known::No);
    }
}
