//! Findings of the facts, each with its fix. Pure.

use std::collections::{BTreeMap, BTreeSet};

use holdfast_api::labels;
use holdfast_api::state::{ClusterState, EVERY_SOURCE};
use holdfast_cli_kit::finding::Code;
use holdfast_cli_kit::terminal;

use super::fetch::{Facts, NodeReadiness};
use super::policy_dry_run::Outcome;
use super::report::Report;
use super::{
    access, credential_checks, pull_records, quotas, scaling, upstreams, verifiers, volume, webhook,
};

/// Judges everything.
pub(super) fn diagnose(facts: &Facts) -> Report {
    let mut report = Report {
        unknown: facts.unknown.clone(),
        ..Report::default()
    };
    rewriting(facts, &mut report);
    parts(facts, &mut report);
    volume::diagnose(&facts.status.volume, &mut report);
    claim(facts, &mut report);
    webhook::diagnose(facts, &mut report);
    nodes(facts, &mut report);
    policies(facts, &mut report);
    scaling::diagnose(&facts.scaling, &mut report);
    quotas::diagnose(&facts.quotas, &mut report);
    let by_namespace = facts.unproved.is_some();
    pull_records::diagnose(&facts.policies, &facts.risks, &mut report);
    let kubelet = pull_records::first_policy(&facts.policies);
    credential_checks::diagnose(&facts.dry_runs, kubelet, by_namespace, &mut report);
    if let Ok(artifacts) = &facts.status.artifacts {
        access::diagnose(facts.unproved.as_ref(), artifacts, &mut report);
        upstreams::diagnose(artifacts, &mut report);
        if let Some(address) = address(facts) {
            let sources = artifacts.iter().map(|artifact| {
                let namespace = artifact.metadata.namespace.as_deref().unwrap_or_default();
                (namespace, artifact.spec.source_artifact.as_str())
            });
            verifiers::diagnose(&facts.verifiers, sources, address, &mut report);
        }
    }
    report
}

/// The registry's address, once there is one.
fn address(facts: &Facts) -> Option<&str> {
    let state = facts.status.state.as_ref().ok()?.as_ref()?;
    Some(state.registry_address.as_str()).filter(|address| !address.is_empty())
}

/// What one policy refuses.
#[derive(Default)]
struct Refused<'a> {
    namespaces: BTreeSet<&'a str>,
    /// The policy's message; empty if none was received.
    message: &'a str,
    /// Images that it allows under their upstream's name.
    sources: BTreeSet<&'a str>,
}

fn rewriting(facts: &Facts, report: &mut Report) {
    match &facts.status.state {
        Ok(Some(state)) if state.rewrite => report
            .ok
            .push(format!("pods are rewritten: {}", state.reason)),
        Ok(state) => {
            let reason = state
                .as_ref()
                .map_or("the controller has not said anything yet", |state| {
                    &state.reason
                });
            report.find(
                Code::RewritingOff,
                format!("new pods are not rewritten, they pull from their upstreams: {reason}"),
                "see the nodes and parts below; webhook.waitForNodes=false begins without waiting \
                 for nodes",
            );
        }
        Err(why) => report.unknown.push(why.clone()),
    }
}

fn parts(facts: &Facts, report: &mut Report) {
    let namespace = &facts.status.namespace;
    for part in &facts.status.parts {
        // Nodes are checked one by one.
        if part.name == "nodes" {
            continue;
        }
        match (part.wanted, part.ready) {
            (Some(wanted), Some(ready)) if ready < wanted || wanted == 0 => report.find(
                Code::PodsNotReady,
                format!("{}: {ready} of {wanted} pods are ready", part.name),
                format!(
                    "kubectl describe pods -n {namespace} -l {}={}",
                    labels::COMPONENT,
                    part.name
                ),
            ),
            (Some(_), Some(ready)) => report.ok.push(format!("{}: {ready} ready", part.name)),
            _ => report.unknown.push(format!(
                "{}: {}",
                part.name,
                part.problem.clone().unwrap_or_default()
            )),
        }
    }
}

fn claim(facts: &Facts, report: &mut Report) {
    match &facts.claim {
        Ok(Some(claim)) if claim.phase == "Bound" => {
            report.ok.push("the volume's claim is bound".to_owned());
        }
        Ok(Some(claim)) => report.find(
            Code::ClaimNotBound,
            format!("the volume's claim is {}: {}", claim.phase, claim.event),
            "name a storage class that gives such volumes (clusterRegistry.storageClassName); with \
             highAvailability it has to be ReadWriteMany",
        ),
        Ok(None) => report.find(
            Code::ClaimMissing,
            "the volume's claim does not exist",
            "helm upgrade makes it again",
        ),
        Err(why) => report.unknown.push(format!("the volume's claim: {why}")),
    }
}

fn nodes(facts: &Facts, report: &mut Report) {
    let namespace = &facts.status.namespace;
    let nodes = match &facts.nodes {
        Ok(nodes) => nodes,
        Err(why) => return report.unknown.push(format!("the nodes: {why}")),
    };
    let mut prepared = 0;
    for (node, state) in nodes {
        match state {
            NodeReadiness::WithAgent(agent) if agent.ready => prepared += 1,
            NodeReadiness::WithAgent(agent) => report.find(
                Code::NodeNotPrepared,
                format!("node {node} is not prepared: {}", agent.why),
                format!("kubectl logs -n {namespace} {} says why", agent.pod),
            ),
            NodeReadiness::WithoutAgent => report.find(
                Code::NodeWithoutAgent,
                format!("node {node} is not prepared: no node agent runs there"),
                "nodeAgent.tolerations lets it onto tainted nodes; \
                 webhook.scope.nodeSelector leaves nodes out",
            ),
            NodeReadiness::NotReady(why) => report.find(
                Code::NodeNotReady,
                format!("node {node} is not Ready: {why}"),
                format!(
                    "kubectl describe node {node} shows its conditions; repair the node or its \
                     kubelet, or delete the node if it is gone for good"
                ),
            ),
        }
    }
    report.ok.push(format!(
        "{prepared} of {} prepared",
        terminal::count(nodes.len() as u64, "node", "nodes")
    ));
}

fn policies(facts: &Facts, report: &mut Report) {
    let state = facts.status.state.as_ref().ok().and_then(Option::as_ref);
    let address = address(facts).unwrap_or_default();
    // By who refuses.
    let mut refused: BTreeMap<&str, Refused<'_>> = BTreeMap::new();
    let mut passed = 0;
    for dry_run in &facts.dry_runs {
        match &dry_run.outcome {
            Outcome::Passes => passed += 1,
            Outcome::Refused { by, message } => {
                let refused = refused.entry(by).or_default();
                refused.message = message;
                refused.namespaces.insert(&dry_run.namespace);
                refused.sources.insert(&dry_run.source);
            }
            Outcome::Unknown(why) => report.unknown.push(format!(
                "whether a policy refuses pods of {} in namespace {}: {why}",
                dry_run.source, dry_run.namespace
            )),
        }
    }
    for (namespace, by) in excluded_namespaces(state) {
        // A dry run that says the same says it with the message.
        if !refused
            .values()
            .any(|refused| refused.namespaces.contains(namespace))
        {
            let refused = refused.entry(by).or_default();
            refused.namespaces.insert(namespace);
            let artifacts = facts.status.artifacts.iter().flatten();
            refused
                .sources
                .extend(upstreams::wanted_in(artifacts, namespace));
        }
    }
    for (
        by,
        Refused {
            namespaces,
            message,
            sources,
        },
    ) in refused
    {
        let namespaces: Vec<_> = namespaces.into_iter().collect();
        let mut what = format!(
            "{by} refuses pods with the registry's references in {}",
            namespaces.join(", ")
        );
        if !message.is_empty() {
            what = format!("{what} ({message})");
        }
        report.find(
            Code::PolicyRefuses,
            what,
            format!(
                "let it allow images that begin with {}, never {address}/ alone, below which lies \
                 every upstream; or opt out with kubectl label namespace {} {}={}; until then such \
                 pods keep their images and need the uplink",
                upstreams::allowed(sources, address),
                namespaces.join(" "),
                labels::REWRITE,
                labels::REWRITE_DISABLED
            ),
        );
    }
    if passed > 0 {
        report.ok.push(format!(
            "policies let the registry's references pass ({passed} dry runs)"
        ));
    }
    for entry in state
        .iter()
        .flat_map(|state| &state.excluded)
        .filter(|entry| entry.source != EVERY_SOURCE)
    {
        report.find(
            Code::SourceExcluded,
            format!(
                "pods of namespace {} get {} from its upstream: {}",
                entry.namespace, entry.source, entry.reason
            ),
            "give the registry what it needs, for example a pull secret; kubectl describe \
             artifacts there shows what is missing",
        );
    }
    excluded_owners(state, report);
}

/// Owners that compare images.
fn excluded_owners(state: Option<&ClusterState>, report: &mut Report) {
    let owners = state.into_iter().flat_map(|state| &state.excluded_owners);
    for entry in owners.filter(|entry| !entry.ended) {
        report.find(
            Code::OwnerExcluded,
            format!(
                "{} {} of namespace {} deletes its pods when their images are rewritten; they \
                 keep their images and need the uplink",
                entry.kind, entry.name, entry.namespace
            ),
            format!(
                "set the label {}={} in its template of pods, or wait: they are rewritten again \
                 from {} on",
                labels::REWRITE,
                labels::REWRITE_DISABLED,
                entry.until.0
            ),
        );
    }
}

fn excluded_namespaces(state: Option<&ClusterState>) -> impl Iterator<Item = (&str, &str)> {
    state
        .into_iter()
        .flat_map(|state| &state.excluded)
        .filter(|entry| entry.source == EVERY_SOURCE)
        .map(|entry| (entry.namespace.as_str(), entry.reason.as_str()))
}

#[cfg(test)]
mod tests {
    use super::super::fetch::{Agent, Claim, Webhook};
    use super::super::policy_dry_run::DryRun;
    use super::*;
    use crate::status::diagnose::tests::part;
    use crate::status::diagnose::{Facts as StatusFacts, Part, Volume};
    use holdfast_cli_kit::exit_status::Answer;
    use serde_json::json;

    const CA: &str = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----";
    const OLD: &str = "-----BEGIN CERTIFICATE-----\nBBBB\n-----END CERTIFICATE-----";

    fn agent(ready: bool) -> Agent {
        Agent {
            pod: "agent-x".to_owned(),
            ready,
            why: "no pull yet".to_owned(),
        }
    }

    fn healthy() -> Facts {
        let state = json!({"registryAddress": "10.96.0.50", "rewrite": true, "reason": "every node is prepared"});
        Facts {
            status: StatusFacts {
                release: "holdfast".to_owned(),
                namespace: "sys".to_owned(),
                version: "0.1.0".to_owned(),
                state: Ok(Some(serde_json::from_value(state).unwrap())),
                parts: vec![part("registry", 3), part("webhook", 3)],
                volume: Ok(Volume {
                    level: "enough",
                    available_bytes: 1,
                    total_bytes: 2,
                }),
                artifacts: Ok(Vec::new()),
            },
            claim: Ok(Some(Claim {
                phase: "Bound".to_owned(),
                event: String::new(),
            })),
            webhook: Ok(Some(Webhook {
                bundles: vec![CA.to_owned()],
                authority: Some(Ok(format!("{OLD}\n{CA}\n"))),
            })),
            nodes: Ok([("one".to_owned(), NodeReadiness::WithAgent(agent(true)))].into()),
            dry_runs: vec![dry_run("apps", Outcome::Passes)],
            rewrites: Some(Ok(true)),
            client_ca: false,
            scaling: Ok(scaling::Scaling::default()),
            quotas: Ok(Vec::new()),
            verifiers: Ok(Vec::new()),
            policies: BTreeMap::new(),
            risks: Ok(BTreeMap::new()),
            unproved: None,
            unknown: Vec::new(),
        }
    }

    fn dry_run(namespace: &str, outcome: Outcome) -> DryRun {
        DryRun {
            namespace: namespace.to_owned(),
            source: "r.io/a:1".to_owned(),
            outcome,
            pulls_always: false,
        }
    }

    fn refused(namespace: &str) -> DryRun {
        let by = "ValidatingAdmissionPolicy ours".to_owned();
        dry_run(
            namespace,
            Outcome::Refused {
                by,
                message: "only ours".to_owned(),
            },
        )
    }

    /// A cluster with this change has one line that contains all these parts, and this exit status.
    fn check(what: &str, change: impl FnOnce(&mut Facts), expect: Answer, parts: &[&str]) {
        let mut facts = healthy();
        change(&mut facts);
        let report = diagnose(&facts);
        assert_eq!(report.answer(), expect, "{what}: {report}");
        let text = report.to_string();
        let found = text
            .lines()
            .any(|line| parts.iter().all(|part| line.contains(part)));
        assert!(found, "{what}: {text}");
        assert!(
            report
                .findings
                .iter()
                .all(|finding| !finding.fix.is_empty())
        );
    }

    #[test]
    fn every_problem_has_a_line_with_its_fix() {
        check("ok", |_| {}, Answer::Yes, &["nothing is wrong"]);
        check(
            "not rewriting",
            |facts| facts.status.state = Ok(None),
            Answer::No,
            &["PROBLEM", "has not said anything yet"],
        );
        check(
            "parts",
            |facts| facts.status.parts[1].ready = Some(2),
            Answer::No,
            &["webhook: 2 of 3", "kubectl describe pods -n sys"],
        );
        check(
            "scaled to zero",
            |facts| {
                facts.status.parts[1] = Part {
                    wanted: Some(0),
                    ready: Some(0),
                    ..part("webhook", 0)
                }
            },
            Answer::No,
            &["webhook: 0 of 0"],
        );
        check(
            "claim",
            |facts| {
                facts.claim = Ok(Some(Claim {
                    phase: "Pending".to_owned(),
                    event: "no class".to_owned(),
                }));
            },
            Answer::No,
            &["Pending: no class", "storageClassName"],
        );
        check(
            "no configuration",
            |facts| facts.webhook = Ok(None),
            Answer::No,
            &["does not exist", "helm upgrade"],
        );
        check(
            "no bundle",
            |facts| {
                facts.webhook = Ok(Some(Webhook {
                    bundles: vec![String::new()],
                    authority: None,
                }));
            },
            Answer::No,
            &["no caBundle"],
        );
        check(
            "another CA",
            |facts| {
                facts.webhook = Ok(Some(Webhook {
                    bundles: vec![CA.to_owned()],
                    authority: Some(Ok(OLD.to_owned())),
                }));
            },
            Answer::No,
            &["another CA"],
        );
        check(
            "no answer",
            |facts| facts.rewrites = Some(Ok(false)),
            Answer::No,
            &["without rewriting it"],
        );
        check(
            "no answer to API servers without a certificate",
            |facts| {
                facts.rewrites = Some(Ok(false));
                facts.client_ca = true;
            },
            Answer::No,
            &[
                "without rewriting it",
                "webhook.clientCaSecret is set: every API server must show a certificate of that CA",
            ],
        );
        check(
            "a node",
            |facts| {
                facts.nodes =
                    Ok([("two".to_owned(), NodeReadiness::WithAgent(agent(false)))].into());
            },
            Answer::No,
            &[
                "node two is not prepared: no pull yet",
                "kubectl logs -n sys agent-x",
            ],
        );
        check(
            "a node without agent",
            |facts| facts.nodes = Ok([("two".to_owned(), NodeReadiness::WithoutAgent)].into()),
            Answer::No,
            &["node two", "tolerations"],
        );
        check(
            "a node that is not Ready",
            |facts| {
                let why = "NodeStatusUnknown Kubelet stopped posting node status.";
                let nodes = facts.nodes.as_mut().unwrap();
                nodes.insert("two".to_owned(), NodeReadiness::NotReady(why.to_owned()));
            },
            Answer::No,
            &[
                "node two is not Ready: NodeStatusUnknown Kubelet stopped posting",
                "kubectl describe node two",
            ],
        );
        check(
            "not seen",
            |facts| facts.nodes = Err("nodes may not be listed".to_owned()),
            Answer::Unknown,
            &["unknown", "may not"],
        );
        check(
            "full",
            |facts| facts.status.volume.as_mut().unwrap().level = "full",
            Answer::No,
            &[
                "volume is full",
                "clusterRegistry.storageSize",
                "registry.storage.existingClaim",
                "frees no space",
            ],
        );
        check(
            "filling",
            |facts| facts.status.volume.as_mut().unwrap().level = "filling",
            Answer::No,
            &[
                "volume is filling",
                "clusterRegistry.storageSize",
                "registry.storage.existingClaim",
                "frees no space",
            ],
        );
    }

    #[test]
    fn a_policy_is_named_once_with_all_its_namespaces() {
        check(
            "refused",
            |facts| {
                facts.dry_runs = vec![refused("a"), refused("b"), dry_run("c", Outcome::Passes)];
            },
            Answer::No,
            &[
                "ValidatingAdmissionPolicy ours",
                "a, b",
                "only ours",
                "that begin with 10.96.0.50/r.io/, never 10.96.0.50/ alone",
                "label namespace a b",
            ],
        );
        check(
            "the dry run has no answer",
            |facts| {
                facts.dry_runs = vec![dry_run("a", Outcome::Unknown("exceeded quota".to_owned()))];
            },
            Answer::Unknown,
            &["namespace a", "exceeded quota"],
        );
        let excluded = |source: &str| json!([{"namespace": "a", "source": source, "reason": "admission webhook w", "since": "2026-01-01T00:00:00Z"}]);
        for (source, part) in [
            ("*", "admission webhook w refuses"),
            ("r.io/x:1", "get r.io/x:1 from its upstream"),
        ] {
            check(
                "the controller knows",
                |facts| {
                    if let Ok(Some(state)) = &mut facts.status.state {
                        state.excluded = serde_json::from_value(excluded(source)).unwrap();
                    }
                },
                Answer::No,
                &[part],
            );
        }
        let owner = |ended: bool| json!([{"namespace": "a", "kind": "Cluster", "name": "db", "since": "2026-01-01T00:00:00Z", "until": "2026-01-02T00:00:00Z", "ended": ended}]);
        for (ended, answer, parts) in [
            (
                false,
                Answer::No,
                &[
                    "Cluster db of namespace a deletes",
                    "2026-01-02T00:00:00Z on",
                ][..],
            ),
            (true, Answer::Yes, &[]),
        ] {
            check(
                "an owner compares images",
                |facts| {
                    if let Ok(Some(state)) = &mut facts.status.state {
                        state.excluded_owners = serde_json::from_value(owner(ended)).unwrap();
                    }
                },
                answer,
                parts,
            );
        }
    }
}
