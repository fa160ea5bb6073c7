//! What each image of a pod that starts depends on: the name under which the pod starts, what the
//! registry holds, what its nodes hold, and whether healing may change the name.

use std::collections::{BTreeMap, BTreeSet};

use holdfast_api::artifact::Reason;
use holdfast_api::history::ImageHistory;
use holdfast_api::labels;
use holdfast_cli_kit::artifact_status::{CopyStatus, copy_status};
use holdfast_cluster_model::{advice, pod_facts};
use holdfast_config::{FailurePolicy, HealingMode};
use holdfast_core::delivery::{Copy, Name, OnNodes, PullPolicy};
use holdfast_core::meaning::{self, Meaning, PodImageMeaning};
use holdfast_core::pod::{self, Kind};
use holdfast_core::workload::{controller_of, text};
use holdfast_core::{Reference, rewrite};
use k8s_openapi::api::core::v1::Pod;
use serde_json::Value;

use crate::inventory::Inventory;
use crate::judge::{Candidate, Candidates, Case, Healing, Known, Start};
use crate::nodes::{self, Node};
use crate::outcome::{Image, Verdict};

/// Why pods of a namespace are not sent to the registry for an image.
const PRIVATE: &str = "it is not known that their namespace may have it (access.privateImages)";
/// Why pods of an owner are not sent to the registry.
const COMPARES: &str = "their owner deletes pods with other images than its own";
/// What to do about an image that Holdfast leaves to its upstream.
const FIX_EXCLUDED: &str = "let Holdfast rewrite its pods, or load the image on every node under \
                            this name";

/// A pod that starts: a living one, or one that a template becomes.
#[derive(Debug)]
pub(crate) struct Unit<'a> {
    pub(crate) namespace: &'a str,
    pub(crate) pod: &'a Value,
    /// Whether the pod exists.
    pub(crate) stored: bool,
    /// Whether its owner has living pods: these show the images that other webhooks put in the
    /// place of their words.
    pub(crate) has_pods: bool,
    /// Whether it runs on cordoned nodes, too.
    pub(crate) is_daemon: bool,
    /// Whether its pods keep their images, because its owner compares them.
    pub(crate) is_excluded: bool,
}

/// What is known of images.
pub(crate) struct Images<'a> {
    inventory: &'a Inventory,
    /// By canonical reference; what is local in one namespace is local for every node (SPEC 12).
    copies: BTreeMap<String, CopyStatus>,
    /// `None` where nodes may not be listed.
    nodes: Option<Vec<Node>>,
    /// Texts of images from which a container of a living pod started.
    started: BTreeSet<String>,
}

/// How an image starts, and the texts about it.
struct Plan {
    copy: Copy,
    written: Name,
    healing: Healing,
    covered: bool,
    /// The original as the node knows it; `None` if no runtime accepts it.
    original: Option<Reference>,
    local: Option<Reference>,
    /// Why it does not start, if it does not.
    why: String,
    fix: String,
}

impl<'a> Images<'a> {
    pub(crate) fn new(inventory: &'a Inventory) -> Self {
        let mut copies: BTreeMap<String, CopyStatus> = BTreeMap::new();
        for artifact in &inventory.artifacts {
            let source = &artifact.spec.source_artifact;
            let source =
                Reference::parse(source).map_or_else(|_| source.clone(), |r| r.to_string());
            let status = copy_status(artifact);
            if copies.get(&source).is_none_or(|known| !known.local) {
                copies.insert(source, status);
            }
        }
        let nodes = inventory.nodes.as_ref().map(|nodes| {
            let nodes = nodes.iter();
            nodes
                .filter_map(|node| Node::of(node, &inventory.scope))
                .collect()
        });
        let pods = inventory.objects.get("Pod").into_iter().flatten();
        Self {
            inventory,
            copies,
            nodes,
            started: pods.flat_map(started).collect(),
        }
    }

    /// The images of a pod that starts.
    pub(crate) fn of_unit(&self, unit: &Unit<'_>) -> Vec<Image> {
        let covered_sources = self.covered_sources(unit);
        meaning::of_pod(unit.pod, &self.inventory.addresses)
            .into_iter()
            // One for debugging is gone with its pod.
            .filter(|found| found.image.kind != Kind::Ephemeral)
            .filter(|found| unit.stored || !unit.has_pods || !found.meaning.is_reserved_word())
            .map(|found| self.image(unit, &found, &covered_sources))
            .collect()
    }

    fn image(
        &self,
        unit: &Unit<'_>,
        found: &PodImageMeaning,
        covered_sources: &Result<BTreeSet<String>, &'static str>,
    ) -> Image {
        let written = found.image.pull_policy.as_deref();
        let policy = written.unwrap_or_else(|| meaning::default_pull_policy(&found.image.image));
        let reference = found.meaning.reference();
        let mut image = Image {
            image: reference.map_or_else(|| found.image.image.clone(), ToString::to_string),
            pull_policy: policy.to_owned(),
            verdict: Verdict::Missing,
            start: Start::WouldNot,
            why: String::new(),
            fix: String::new(),
            covered: true,
            candidates: Candidates::default(),
        };
        let policy = match policy {
            "Always" => PullPolicy::Always,
            "Never" => PullPolicy::Never,
            _ => PullPolicy::IfNotPresent,
        };
        match self.plan(unit, found, policy, covered_sources) {
            Ok(plan) => self.judge(unit, found, policy, plan, &mut image),
            Err((start, why, fix)) => {
                (image.start, image.why, image.fix) = (start, why.to_owned(), fix.to_owned());
            }
        }
        if image.start == Start::Unknown {
            image.verdict = Verdict::NotJudged;
        }
        image
    }

    /// How an image starts; or the answer, where its text alone gives it.
    fn plan(
        &self,
        unit: &Unit<'_>,
        found: &PodImageMeaning,
        policy: PullPolicy,
        covered_sources: &Result<BTreeSet<String>, &'static str>,
    ) -> Result<Plan, (Start, &'static str, &'static str)> {
        let written = Reference::parse(&found.image.image).ok();
        let reference = match &found.meaning {
            Meaning::Unreadable(_) => {
                let why = "its reference cannot be read";
                return Err((Start::WouldNot, why, "correct the reference"));
            }
            Meaning::Own { .. } if self.started.contains(&found.image.image) => {
                return Ok(Plan {
                    copy: Copy::Held,
                    written: Name::Local,
                    healing: Healing::None,
                    covered: true,
                    original: None,
                    local: written,
                    why: "it was pushed to the registry, from which its node cannot pull"
                        .to_owned(),
                    fix: "holdfast doctor names what is wrong with the node".to_owned(),
                });
            }
            Meaning::Own { .. } => {
                let why = "no pod has started from this pushed image, and only the registry knows \
                           whether it holds it";
                return Err((Start::Unknown, why, "start a pod of it once"));
            }
            placeholder if placeholder.is_reserved_word() && unit.stored => {
                let why = "no webhook replaced this word by an image";
                return Err((Start::WouldNot, why, "create the pod again"));
            }
            placeholder if placeholder.is_reserved_word() => {
                let why = "another webhook replaces this word by an image when a pod is created";
                return Err((Start::Unknown, why, "start a pod of it once"));
            }
            Meaning::Local { reference } if unit.stored || self.permits(unit, reference) => {
                return Ok(self.local_plan(reference, written));
            }
            other => other.reference().ok_or((Start::Unknown, "", ""))?,
        };
        let original = if found.meaning.is_repaired() {
            // No runtime accepts it.
            None
        } else if found.meaning.is_at_registry() {
            Some(reference.clone())
        } else {
            written
        };
        let excluded = |why: &str| Plan {
            copy: Copy::Absent,
            written: Name::Original,
            healing: Healing::None,
            covered: false,
            original: original.clone(),
            local: None,
            why: format!("{why}: it would be pulled from {}", reference.host()),
            fix: FIX_EXCLUDED.to_owned(),
        };
        match covered_sources {
            Err(why) => Ok(excluded(why)),
            Ok(_) if policy == PullPolicy::Never => Ok(Plan {
                covered: true,
                why: "its pull policy is Never".to_owned(),
                fix: "load the image on every node under this name".to_owned(),
                ..excluded("")
            }),
            Ok(_) if matches!(found.meaning, Meaning::TooLong { .. }) => {
                Ok(excluded("its name is too long for the registry"))
            }
            Ok(sources) if sources.contains(&reference.to_string()) => {
                Ok(self.covered_plan(unit, found.image.kind, reference, original))
            }
            Ok(_) => Ok(excluded("the configuration leaves it out")),
        }
    }

    /// A pod that has the local name.
    fn local_plan(&self, reference: &Reference, local: Option<Reference>) -> Plan {
        let (copy, why, fix) = self.copy(reference);
        Plan {
            copy,
            written: Name::Local,
            healing: Healing::None,
            covered: true,
            original: Some(reference.clone()),
            local,
            why,
            fix,
        }
    }

    /// A pod of an image that Holdfast rewrites.
    ///
    /// Whether admission keeps the original of an image that the registry does not hold depends on
    /// what the webhook knows at that moment, so such a template counts as rewritten.
    fn covered_plan(
        &self,
        unit: &Unit<'_>,
        kind: Kind,
        reference: &Reference,
        original: Option<Reference>,
    ) -> Plan {
        let address = self.inventory.addresses.first();
        let local = address.and_then(|address| rewrite::rewrite(reference, address));
        let local = local.and_then(|text| Reference::parse(&text).ok());
        let (copy, mut why, mut fix) = self.copy(reference);
        let blocked = self.not_rewritten_because(unit, reference);
        if let (Some(reason), Copy::Held) = (&blocked, copy) {
            why = format!("it is local, but new pods are not sent to the registry: {reason}");
            "holdfast doctor names what is wrong".clone_into(&mut fix);
        }
        Plan {
            copy,
            written: if unit.stored || blocked.is_some() {
                Name::Original
            } else {
                Name::Local
            },
            healing: match blocked {
                Some(_) => Healing::None,
                None => self.healing(unit, kind),
            },
            covered: true,
            original,
            local,
            why,
            fix,
        }
    }

    /// How healing changes an image of a pod, or of one that was created without the webhook.
    fn healing(&self, unit: &Unit<'_>, kind: Kind) -> Healing {
        let values = &self.inventory.healing;
        // What was restored once is not counted on.
        let is_restored = !ImageHistory::of(unit.pod).restored.is_empty();
        if values.mode != HealingMode::Heal || is_restored {
            return Healing::None;
        }
        let has_owner = !unit.stored || controller_of(unit.pod).is_some();
        match kind {
            Kind::Container | Kind::Init => Healing::InPlace,
            Kind::Volume if has_owner && values.evictions_per_minute > 0 => Healing::ByNewPod,
            Kind::Volume | Kind::Ephemeral => Healing::None,
        }
    }

    /// Judges a plan, and a pod that is created while the webhook does not answer.
    fn judge(
        &self,
        unit: &Unit<'_>,
        found: &PodImageMeaning,
        policy: PullPolicy,
        plan: Plan,
        image: &mut Image,
    ) {
        let mut case = Case {
            copy: plan.copy,
            policy,
            kind: found.image.kind,
            written: plan.written,
            healing: match plan.written {
                Name::Original => plan.healing,
                Name::Local => Healing::None,
            },
            foreign: self.is_foreign(found.meaning.reference()),
            candidates: self.candidates(unit, &plan),
        };
        image.covered = plan.covered;
        (image.start, image.candidates) = case.judge();
        if image.start >= Start::StartsHealed {
            let is_pulled = case.written == Name::Local || image.start == Start::StartsHealed;
            image.verdict = if is_pulled && case.copy == Copy::Held {
                Verdict::Local
            } else {
                Verdict::OnNodes
            };
            if image.start == Start::StartsHealed {
                "after healing changed the pod's image to the registry's"
                    .clone_into(&mut image.why);
            }
            let is_new = !unit.stored && case.written == Name::Local;
            let has_upstream =
                !matches!(found.meaning, Meaning::Own { .. } | Meaning::Local { .. });
            if is_new && has_upstream && self.inventory.failure_policy == FailurePolicy::Ignore {
                (case.written, case.healing) = (Name::Original, plan.healing);
                without_webhook(&case, image);
            }
            return;
        }
        image.why = plan.why.clone();
        match image.start {
            Start::Unknown => {
                let doubt = self.doubt(&plan, &image.candidates);
                image.why = format!("{}; {doubt}", image.why);
            }
            Start::OnlyOn => {
                let nodes = image.candidates.starts.join(", ");
                image.why = format!("{}; it starts on {nodes} only", image.why);
            }
            _ => {}
        }
        image.fix = plan.fix;
    }

    /// Where a pod may start.
    fn candidates(&self, unit: &Unit<'_>, plan: &Plan) -> Vec<Candidate> {
        let delivery = self.inventory.delivery.as_ref();
        let rewriting = self.inventory.not_rewriting.is_none();
        let prepared = |node: &str| nodes::prepared(delivery, rewriting, node);
        let nameless = |known: Known, node: &str| Candidate {
            node: node.to_owned(),
            original: plan.original.as_ref().map_or(Known::No, |_| known),
            local: plan.local.as_ref().map_or(Known::No, |_| known),
            prepared: prepared(node),
        };
        let bound = pod::bound_node(unit.pod);
        let Some(nodes) = &self.nodes else {
            return vec![nameless(Known::Unknown, bound.unwrap_or_default())];
        };
        // The reports of the node agents say more than the nodes' status.
        let is_everywhere = delivery
            .zip(plan.original.as_ref())
            .is_some_and(|(delivery, it)| delivery.source(it).1 == OnNodes::All);
        let of_node = |node: &Node| {
            let is_reported = is_everywhere && node.ready && node.in_scope && !node.cordoned;
            let starts = |name: &Option<Reference>| {
                name.as_ref().map_or(Known::No, |name| node.starts(name))
            };
            Candidate {
                node: node.name.clone(),
                original: if is_reported {
                    Known::Yes
                } else {
                    starts(&plan.original)
                },
                local: starts(&plan.local),
                prepared: if node.in_scope {
                    prepared(&node.name)
                } else {
                    Known::No
                },
            }
        };
        if let Some(bound) = bound {
            let node = nodes.iter().find(|node| node.name == bound);
            return vec![node.map_or_else(|| nameless(Known::Unknown, bound), of_node)];
        }
        let takes = |node: &&Node| {
            node.ready && (unit.is_daemon || !node.cordoned) && (node.in_scope || !plan.covered)
        };
        let found: Vec<_> = nodes.iter().filter(takes).map(of_node).collect();
        if found.is_empty() {
            vec![nameless(Known::No, "")]
        } else {
            found
        }
    }

    /// What is not known, as the end of a sentence.
    fn doubt(&self, plan: &Plan, candidates: &Candidates) -> String {
        let name = match plan.written {
            Name::Original => &plan.original,
            Name::Local => &plan.local,
        };
        let Some(nodes) = &self.nodes else {
            return "whether nodes hold it: nodes may not be listed".to_owned();
        };
        let first = candidates.unknown.first().map_or("", String::as_str);
        if plan.healing == Healing::ByNewPod && plan.copy == Copy::Held {
            return "an image volume cannot change, and healing may not evict the pod in time"
                .into();
        }
        let node = nodes.iter().find(|node| node.name == first);
        match (node, name) {
            (None, _) => format!("node {first} is not known"),
            (Some(node), Some(name)) if node.starts(name) == Known::Unknown => node.doubt(name),
            (Some(_), _) => format!("what node {first} can pull is not known"),
        }
    }

    fn is_foreign(&self, reference: Option<&Reference>) -> bool {
        let delivery = self.inventory.delivery.as_ref();
        delivery
            .zip(reference)
            .is_some_and(|(delivery, it)| delivery.is_foreign(&it.host().to_string()))
    }

    fn permits(&self, unit: &Unit<'_>, reference: &Reference) -> bool {
        self.inventory.access.permits(unit.namespace, reference)
    }

    /// Why a new pod keeps the original, if it does.
    fn not_rewritten_because(&self, unit: &Unit<'_>, reference: &Reference) -> Option<String> {
        let refused = self
            .inventory
            .excluded
            .get(unit.namespace)
            .map(|by| format!("{by} refuses its references"));
        let is_private = !self.permits(unit, reference);
        self.inventory
            .not_rewriting
            .clone()
            .or(refused)
            .or_else(|| unit.is_excluded.then(|| COMPARES.to_owned()))
            .or_else(|| is_private.then(|| PRIVATE.to_owned()))
    }

    /// What the registry has of an image, by its Artifact, why it does not have it, and what to do.
    fn copy(&self, reference: &Reference) -> (Copy, String, String) {
        let Some(copy) = self.copies.get(&reference.to_string()) else {
            let fix = format!("holdfast preload {reference}");
            return (
                Copy::Absent,
                "there is no Artifact for it yet".to_owned(),
                fix,
            );
        };
        let state = if copy.local { Copy::Held } else { Copy::Absent };
        let why = if copy.local {
            "it is local, but its node cannot pull from the registry".to_owned()
        } else {
            format!("{}: {}", copy.reason, copy.message)
        };
        let mut reasons = Reason::ALL.into_iter();
        let reason = reasons.find(|reason| !copy.local && reason.as_str() == copy.reason);
        let fix = reason.map_or("holdfast doctor names what is wrong", advice::advice);
        (state, why, fix.to_owned())
    }

    /// The sources of a pod that Holdfast rewrites, or why it rewrites no image of the pod.
    fn covered_sources(&self, unit: &Unit<'_>) -> Result<BTreeSet<String>, &'static str> {
        let scope = &self.inventory.scope;
        if pod::is_mirror(unit.pod) {
            return Err("its kubelet starts it from a file on the node");
        }
        if let Some(facts) = self.inventory.namespaces.get(unit.namespace)
            && !scope.includes(unit.namespace, facts)
        {
            return Err("its namespace is left out");
        }
        if labels::opts_out(unit.pod) {
            return Err("its pods opt out");
        }
        let typed: Pod =
            serde_json::from_value(unit.pod.clone()).map_err(|_| "it cannot be read as a pod")?;
        Ok(pod_facts(&typed, &self.inventory.addresses, scope, false).sources)
    }
}

/// Judges a pod that is created while the webhook does not answer.
fn without_webhook(case: &Case, image: &mut Image) {
    let (start, candidates) = case.judge();
    if start >= Start::StartsHealed {
        return;
    }
    (image.start, image.candidates) = (Start::Unknown, candidates);
    "a pod that is created while the webhook does not answer keeps the upstream's name, and \
     healing may not change it in time"
        .clone_into(&mut image.why);
    "delete such a pod when the webhook answers again".clone_into(&mut image.fix);
}

/// The images from which containers of a pod started.
fn started(pod: &Value) -> Vec<String> {
    let statuses = ["containerStatuses", "initContainerStatuses"];
    let statuses = statuses
        .iter()
        .filter_map(|field| pod.pointer(&format!("/status/{field}"))?.as_array())
        .flatten();
    let names: BTreeSet<&str> = statuses
        .filter(|status| !text(status, "/imageID").is_empty())
        .map(|status| text(status, "/name"))
        .collect();
    pod::images(pod)
        .into_iter()
        .filter(|image| names.contains(image.name.as_str()))
        .map(|image| image.image)
        .collect()
}
