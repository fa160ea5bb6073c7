//! The pull records of kubelets (KEP-2535): the policy of each node, and running pods with original
//! names that need a pull at the next start of a container. Pure, but for the questions.

use std::collections::{BTreeMap, BTreeSet};

use futures::stream::{self, StreamExt as _};
use holdfast_cli_kit::cluster::Resource;
use holdfast_cli_kit::finding::Code;
use holdfast_cli_kit::leader::{Answer, Question};
use holdfast_cli_kit::terminal;
use holdfast_core::Reference;
use holdfast_core::delivery::PullPolicy;
use holdfast_core::kubelet::{self, Credentials, Node, NodeImage, Policy};
use holdfast_core::meaning;
use holdfast_core::pod;
use holdfast_core::workload::{may_start, text};
use kube::Client;
use serde_json::Value;

use super::api::{Fetched, object};
use super::report::Report;

/// Kubelets that are asked at the same time.
const PARALLEL: usize = 8;
/// Nodes that are asked; of more, the rest counts as not asked.
const MAX_NODES: usize = 200;
/// Nodes, pods and images that a text names.
const NAMED: usize = 5;

/// The policies of kubelets by node.
pub(super) type Policies = BTreeMap<String, Fetched<KubeletPolicy>>;

/// How a kubelet verifies images that it did not pull.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct KubeletPolicy {
    /// Its name; empty where the kubelet has none.
    pub(super) name: String,
    allowlist: Vec<String>,
}

impl KubeletPolicy {
    fn of(configz: &Value) -> Self {
        let list = configz.pointer("/kubeletconfig/preloadedImagesVerificationAllowlist");
        let list = list.and_then(Value::as_array).into_iter().flatten();
        let name = "/kubeletconfig/imagePullCredentialsVerificationPolicy";
        Self {
            name: text(configz, name).to_owned(),
            allowlist: list.filter_map(Value::as_str).map(str::to_owned).collect(),
        }
    }

    /// Whether the kubelet starts an image without its record.
    fn opens(&self, image: &str) -> bool {
        let policy = match self.name.as_str() {
            "NeverVerify" => Policy::NeverVerify,
            "NeverVerifyAllowlistedImages" => {
                Policy::NeverVerifyAllowlistedImages(self.allowlist.clone())
            }
            _ => return false,
        };
        let Ok(reference) = Reference::parse(image) else {
            return false;
        };
        let held = NodeImage {
            names: [kubelet::listed_name(&reference)].into(),
            record: Some(BTreeMap::new()),
            intent: false,
        };
        let node = Node {
            keeps_records: true,
            policy,
        };
        kubelet::starts(&reference, &held, &node, &Credentials::default())
    }
}

/// Asks the kubelets of these nodes.
pub(super) async fn policies(client: &Client, nodes: Vec<String>) -> Policies {
    let proxied = Resource {
        group: "",
        version: "v1",
        plural: "nodes",
    };
    stream::iter(nodes.into_iter().take(MAX_NODES))
        .map(|node| async move {
            let found = object(client, proxied, None, &format!("{node}/proxy/configz")).await;
            let policy = found.map(|it| KubeletPolicy::of(&it.unwrap_or_default()));
            (node, policy)
        })
        .buffer_unordered(PARALLEL)
        .collect()
        .await
}

/// The policy of the first kubelet that could be asked.
pub(super) fn first_policy(policies: &Policies) -> Option<&str> {
    let mut known = policies.values().filter_map(|policy| policy.as_ref().ok());
    known.next().map(|policy| policy.name.as_str())
}

/// The questions about running pods with original names: the pod of each.
pub(super) fn questions(
    pods: &[Value],
    addresses: &[String],
) -> BTreeMap<Question, BTreeSet<String>> {
    let mut questions: BTreeMap<Question, BTreeSet<String>> = BTreeMap::new();
    let is_running =
        |pod: &&Value| text(pod, "/status/phase") == "Running" && may_start("Pod", pod);
    for pod in pods.iter().filter(is_running) {
        let (namespace, name) = (
            text(pod, "/metadata/namespace"),
            text(pod, "/metadata/name"),
        );
        for found in meaning::of_pod(pod, addresses) {
            let image = found.image;
            let policy = PullPolicy::of(image.pull_policy.as_deref());
            let is_ephemeral = image.kind == pod::Kind::Ephemeral;
            if found.meaning.is_at_registry() || policy == PullPolicy::Always || is_ephemeral {
                continue;
            }
            let question = Question {
                node: text(pod, "/spec/nodeName").to_owned(),
                image: image.image,
                namespace: namespace.to_owned(),
                secrets: pod::pull_secret_names(pod),
                service_account: pod::service_account_name(pod).to_owned(),
            };
            let asking = questions.entry(question).or_default();
            asking.insert(format!("{namespace}/{name}"));
        }
    }
    questions
}

/// An image that running pods need, and that their nodes pull at the next start.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Risk {
    pods: BTreeSet<String>,
    nodes: BTreeSet<String>,
}

/// The images at risk.
pub(super) fn risks(
    asked: BTreeMap<Question, BTreeSet<String>>,
    said: &[Answer],
    policies: &Policies,
) -> BTreeMap<String, Risk> {
    let mut risks: BTreeMap<String, Risk> = BTreeMap::new();
    for ((question, pods), said) in asked.into_iter().zip(said) {
        let policy = policies.get(&question.node).and_then(|it| it.as_ref().ok());
        let is_open = policy.is_some_and(|policy| policy.opens(&question.image));
        if *said == Answer::No && !is_open {
            let risk = risks.entry(question.image).or_default();
            risk.pods.extend(pods);
            risk.nodes.insert(question.node);
        }
    }
    risks
}

/// Says which policies kubelets have, and which images are at risk.
pub(super) fn diagnose(
    policies: &Policies,
    risks: &Result<BTreeMap<String, Risk>, String>,
    report: &mut Report,
) {
    let mut by_policy: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for (node, policy) in policies {
        let name = match policy {
            Ok(policy) if policy.name.is_empty() => "none",
            Ok(policy) => policy.name.as_str(),
            Err(_) => "not known, NeverVerifyPreloadedImages is assumed",
        };
        by_policy.entry(name).or_default().push(node);
    }
    for (policy, nodes) in by_policy {
        report.notes.push(format!(
            "policy of kubelets for images that they did not pull: {policy} (nodes {})",
            named(nodes.into_iter())
        ));
    }
    let risks = match risks {
        Ok(risks) => risks,
        Err(why) => {
            let line = format!("which images need a pull at the next restart is not known: {why}");
            return report.notes.push(line);
        }
    };
    for (image, risk) in risks {
        let host = Reference::parse(image).map_or_else(
            |_| "the host of the image".to_owned(),
            |reference| format!("{}/*", reference.host()),
        );
        let pods = terminal::count(risk.pods.len() as u64, "pod runs", "pods run");
        report.find(
            Code::ImageNeedsPull,
            format!(
                "{pods} with {image} ({}), and nodes {} pull it at the next restart of a \
                 container: the kubelet has no pull record of this name",
                named(risk.pods.iter().map(String::as_str)),
                named(risk.nodes.iter().map(String::as_str)),
            ),
            format!(
                "let Holdfast rewrite these pods, so that they use the registry's name; or set \
                 imagePullCredentialsVerificationPolicy: NeverVerifyAllowlistedImages with {host} \
                 in preloadedImagesVerificationAllowlist on the kubelets"
            ),
        );
    }
}

fn named<'a>(names: impl ExactSizeIterator<Item = &'a str>) -> String {
    let more = names.len().saturating_sub(NAMED);
    let text = names.take(NAMED).collect::<Vec<_>>().join(", ");
    if more > 0 {
        format!("{text} and {more} more")
    } else {
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use holdfast_cli_kit::exit_status;
    use serde_json::json;

    fn pod(image: &str, policy: &str, phase: &str) -> Value {
        json!({
            "metadata": {"namespace": "shop", "name": "web", "uid": "u"},
            "spec": {
                "nodeName": "one",
                "containers": [{"name": "c", "image": image, "imagePullPolicy": policy}],
            },
            "status": {"phase": phase},
        })
    }

    fn configz(policy: &str, list: &[&str]) -> KubeletPolicy {
        KubeletPolicy::of(&json!({"kubeletconfig": {
            "imagePullCredentialsVerificationPolicy": policy,
            "preloadedImagesVerificationAllowlist": list,
        }}))
    }

    #[test]
    fn running_pods_with_originals_are_asked_for() {
        let addresses = ["10.96.0.50".to_owned()];
        for (image, policy, phase, asked) in [
            ("r.io/a:1", "IfNotPresent", "Running", true),
            ("r.io/a:1", "Never", "Running", true),
            ("r.io/a:1", "Always", "Running", false),
            ("r.io/a:1", "IfNotPresent", "Pending", false),
            ("r.io/a:1", "IfNotPresent", "Succeeded", false),
            ("10.96.0.50/r.io/a:1", "IfNotPresent", "Running", false),
        ] {
            let found = questions(&[pod(image, policy, phase)], &addresses);
            assert_eq!(found.len(), usize::from(asked), "{image} {policy} {phase}");
            for (question, pods) in found {
                assert_eq!((question.node.as_str(), pods.len()), ("one", 1));
            }
        }
    }

    #[test]
    fn an_image_without_a_record_is_at_risk_unless_the_policy_opens_it() {
        let forbidden = || Err("nodes/proxy may not be read".to_owned());
        for (said, policy, expect) in [
            (Answer::Yes, Ok(KubeletPolicy::default()), false),
            (Answer::Unknown, Ok(KubeletPolicy::default()), false),
            (Answer::No, Ok(KubeletPolicy::default()), true),
            (Answer::No, forbidden(), true),
            (
                Answer::No,
                Ok(configz("NeverVerifyPreloadedImages", &[])),
                true,
            ),
            (Answer::No, Ok(configz("AlwaysVerify", &[])), true),
            (Answer::No, Ok(configz("NeverVerify", &[])), false),
            (
                Answer::No,
                Ok(configz("NeverVerifyAllowlistedImages", &["r.io/*"])),
                false,
            ),
            (
                Answer::No,
                Ok(configz("NeverVerifyAllowlistedImages", &["b.io/*"])),
                true,
            ),
        ] {
            let asked = questions(&[pod("r.io/a:1", "IfNotPresent", "Running")], &[]);
            let policies: Policies = [("one".to_owned(), policy.clone())].into();
            let risks = risks(asked, &[said], &policies);
            assert_eq!(!risks.is_empty(), expect, "{said:?} {policy:?}");
            let mut report = Report::default();
            diagnose(&policies, &Ok(risks), &mut report);
            assert_eq!(
                report.answer() == exit_status::Answer::No,
                expect,
                "{said:?} {policy:?}"
            );
            let assumed = report.notes[0].contains("is assumed");
            assert_eq!(assumed, policy.is_err(), "{:?}", report.notes);
            if let Some(finding) = report.findings.first() {
                assert!(finding.fix.contains("r.io/* in preloaded"), "{finding:?}");
            }
        }
    }

    #[test]
    fn what_cannot_be_asked_is_a_note() {
        let mut report = Report::default();
        diagnose(
            &Policies::new(),
            &Err("no controller leads".to_owned()),
            &mut report,
        );
        assert_eq!(report.answer(), exit_status::Answer::Yes);
        assert!(
            report.notes[0].ends_with("no controller leads"),
            "{report:?}"
        );
    }
}
