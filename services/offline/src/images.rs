//! Judges each image of a pod that starts, on each node where the pod may start.

use std::collections::BTreeSet;

use holdfast_cli_kit::leader::Question;
use holdfast_config::FailurePolicy;
use holdfast_core::Reference;
use holdfast_core::delivery::{Name, OnNodes, PullPolicy};
use holdfast_core::meaning::{self, PodImageMeaning};
use holdfast_core::pod::{self, Kind};

use crate::answers::Basis;
use crate::inventory::Inventory;
use crate::judge::{Candidate, Candidates, Case, Healing, Known, Start};
use crate::nodes::{self, Node};
use crate::outcome::{Image, Verdict};
use crate::plan::{Plan, Planner, Unit, policy_of};
use crate::scheduling;

/// Judges the images of pods.
pub(crate) struct Images<'a> {
    inventory: &'a Inventory,
    planner: Planner<'a>,
    /// `None` where nodes may not be listed.
    nodes: Option<Vec<Node>>,
}

/// A node where a pod may start.
struct Spot<'a> {
    /// Its name; empty where nodes are not known.
    name: &'a str,
    /// `None` where it is not known.
    node: Option<&'a Node>,
    /// Whether the pod may start there for certain.
    certain: bool,
}

/// What a pod brings to use private images of its node.
struct Credentials {
    pull_secrets: Vec<String>,
    /// Whether these are all.
    complete: bool,
}

impl<'a> Images<'a> {
    pub(crate) fn new(inventory: &'a Inventory) -> Self {
        let nodes = inventory.nodes.as_ref().map(|nodes| {
            let nodes = nodes.iter();
            nodes
                .filter_map(|node| Node::of(node, &inventory.scope))
                .collect()
        });
        Self {
            inventory,
            planner: Planner::new(inventory),
            nodes,
        }
    }

    /// The images of a pod that starts.
    pub(crate) fn of_unit(&self, unit: &Unit<'_>) -> Vec<Image> {
        let sources = self.planner.sources(unit);
        self.found(unit)
            .map(|found| {
                let policy = policy_of(&found);
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
                let policy = PullPolicy::of(Some(policy));
                match self.planner.plan(unit, &found, policy, &sources) {
                    Ok(plan) => self.judge(unit, &found, policy, plan, &mut image),
                    Err((start, why, fix)) => {
                        (image.start, image.why, image.fix) =
                            (start, why.to_owned(), fix.to_owned());
                    }
                }
                if image.start == Start::Unknown {
                    image.verdict = Verdict::NotJudged;
                }
                image
            })
            .collect()
    }

    /// What has to be asked about the nodes of a pod.
    pub(crate) fn questions(&self, unit: &Unit<'_>) -> BTreeSet<Question> {
        let sources = self.planner.sources(unit);
        let mut questions = BTreeSet::new();
        for found in self.found(unit) {
            let policy = PullPolicy::of(Some(policy_of(&found)));
            let Ok(plan) = self.planner.plan(unit, &found, policy, &sources) else {
                continue;
            };
            if policy == PullPolicy::Always {
                continue;
            }
            let is_asked = |spot: &&Spot<'_>| !spot.name.is_empty() && !self.is_lost(spot.name);
            for spot in self.spots(unit).iter().filter(is_asked) {
                let names = [&plan.original, &plan.local].into_iter().flatten();
                questions.extend(names.map(|name| self.question(unit, spot.name, name)));
            }
        }
        questions
    }

    /// The images of a pod that its start needs.
    fn found(&self, unit: &Unit<'_>) -> impl Iterator<Item = PodImageMeaning> {
        let is_shown = unit.stored || !unit.has_pods;
        meaning::of_pod(unit.pod, &self.inventory.addresses)
            .into_iter()
            // One for debugging is gone with its pod.
            .filter(|found| found.image.kind != Kind::Ephemeral)
            .filter(move |found| is_shown || !found.meaning.is_reserved_word())
    }

    /// Judges a plan under each name that the pod may get.
    fn judge(
        &self,
        unit: &Unit<'_>,
        found: &PodImageMeaning,
        policy: PullPolicy,
        plan: Plan,
        image: &mut Image,
    ) {
        let reference = found.meaning.reference();
        let spots = self.spots(unit);
        let case = |name: &dyn Fn(&Spot<'_>) -> Name| Case {
            held: plan.held,
            policy,
            kind: found.image.kind,
            to_local: plan.to_local,
            to_original: plan.to_original,
            foreign: self.is_foreign(reference),
            candidates: spots
                .iter()
                .map(|spot| self.candidate(unit, &plan, spot, name(spot)))
                .collect(),
        };
        image.covered = plan.covered;
        let (present, other) = match (plan.written, reference) {
            (None, Some(reference)) => {
                let chosen = |spot: &Spot<'_>| {
                    let prepared = self.webhook_expects_pulls(unit, spot.name);
                    let kind = found.image.kind;
                    self.planner.chosen(reference, policy, kind, prepared)
                };
                let later = case(&|spot| chosen(spot).later);
                (later, Some(case(&|spot| chosen(spot).now)))
            }
            (written, _) => (case(&|_| written.unwrap_or(Name::Original)), None),
        };
        (image.start, image.candidates) = present.judge();
        if let Some(other) = other.filter(|other| *other != present)
            && !agree(&other, image)
        {
            return;
        }
        if image.start >= Start::StartsHealed {
            describe_start(&present, image);
            if plan.written.is_none() && self.inventory.failure_policy == FailurePolicy::Ignore {
                without_webhook(&case(&|_| Name::Original), image);
            }
            return;
        }
        image.why = plan.why.clone();
        match image.start {
            Start::Unknown => {
                let doubt = self.doubt(unit, &plan, &present, &image.candidates);
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
    fn spots<'b>(&'b self, unit: &'b Unit<'_>) -> Vec<Spot<'b>> {
        let nodes = self.nodes.as_deref().unwrap_or_default();
        if let Some(name) = pod::bound_node(unit.pod) {
            let node = nodes.iter().find(|node| node.place.name == name);
            return vec![Spot {
                name,
                node,
                certain: true,
            }];
        }
        let is_free = scheduling::other_constraint(unit.pod).is_none() || unit.is_daemon;
        let takes = |node: &&Node| node.linux && node.ready && (unit.is_daemon || !node.cordoned);
        let found: Vec<Spot<'b>> = nodes
            .iter()
            .filter(takes)
            .map(|node| (node, node.place.admits(unit.pod)))
            .filter(|(_, admits)| *admits > Known::No)
            .map(|(node, admits)| Spot {
                name: &node.place.name,
                node: Some(node),
                certain: admits == Known::Yes && is_free,
            })
            .filter(|spot| {
                !unit.is_daemon || self.inventory.lost.is_none() || self.is_lost(spot.name)
            })
            .collect();
        if found.is_empty() {
            return vec![Spot {
                name: "",
                node: None,
                certain: true,
            }];
        }
        found
    }

    fn is_lost(&self, node: &str) -> bool {
        self.inventory.lost.as_deref() == Some(node)
    }

    fn candidate(&self, unit: &Unit<'_>, plan: &Plan, spot: &Spot<'_>, written: Name) -> Candidate {
        let (original, local, prepared) = if self.is_lost(spot.name) {
            // Empty, but prepared.
            (Known::No, Known::No, Known::Yes)
        } else {
            (
                self.starts(unit, spot, plan.original.as_deref(), true),
                self.starts(unit, spot, plan.local.as_deref(), false),
                self.prepared(spot),
            )
        };
        Candidate {
            node: spot.name.to_owned(),
            written,
            original,
            local,
            prepared: if plan.local.is_some() {
                prepared
            } else {
                Known::No
            },
            certain: spot.certain,
        }
    }

    /// Whether a name starts on a node without a pull.
    fn starts(
        &self,
        unit: &Unit<'_>,
        spot: &Spot<'_>,
        name: Option<&str>,
        original: bool,
    ) -> Known {
        let Some(name) = name else {
            return Known::No;
        };
        let question = self.question(unit, spot.name, name);
        if let Some(known) = self.inventory.answers.starts(&question) {
            return if known == Known::No && !self.credentials(unit).complete {
                Known::Unknown
            } else {
                known
            };
        }
        let (Ok(reference), Some(node)) = (Reference::parse(name), spot.node) else {
            let is_nowhere = self.nodes.is_some() && spot.name.is_empty();
            return if is_nowhere {
                Known::No
            } else {
                Known::Unknown
            };
        };
        // The last that the controller wrote of the nodes.
        let is_everywhere = original
            && self
                .inventory
                .delivery
                .as_ref()
                .is_some_and(|delivery| delivery.source(&reference).1 == OnNodes::All);
        if is_everywhere && node.ready && node.in_scope && !node.cordoned {
            return Known::Yes;
        }
        node.starts(&reference)
    }

    /// Whether a node can pull from the registry.
    fn prepared(&self, spot: &Spot<'_>) -> Known {
        let delivery = self.inventory.delivery.as_ref();
        let rewriting = self.inventory.not_rewriting.is_none();
        match spot.node {
            Some(node) if !node.in_scope => Known::No,
            _ => nodes::prepared(delivery, rewriting, spot.name),
        }
    }

    /// Whether the webhook takes it that the nodes of a new pod can pull from the registry.
    fn webhook_expects_pulls(&self, unit: &Unit<'_>, node: &str) -> bool {
        let Some(delivery) = &self.inventory.delivery else {
            return true;
        };
        let unprepared = &delivery.state.unprepared;
        if unit.is_daemon || pod::bound_node(unit.pod).is_some() {
            return !unprepared.iter().any(|name| name == node);
        }
        unprepared.is_empty() || !pod::precedes_nodes(unit.pod)
    }

    fn question(&self, unit: &Unit<'_>, node: &str, image: &str) -> Question {
        Question {
            node: node.to_owned(),
            image: image.to_owned(),
            namespace: unit.namespace.to_owned(),
            secrets: self.credentials(unit).pull_secrets,
            service_account: pod::service_account_name(unit.pod).to_owned(),
        }
    }

    /// The pull secrets of a pod. The API server gives those of its service account to a new pod
    /// that names none.
    fn credentials(&self, unit: &Unit<'_>) -> Credentials {
        let mut pull_secrets = pod::pull_secret_names(unit.pod);
        let mut complete = true;
        if !unit.stored && pull_secrets.is_empty() {
            let account = pod::service_account_name(unit.pod);
            match &self.inventory.account_secrets {
                Some(accounts) => {
                    let key = (unit.namespace.to_owned(), account.to_owned());
                    pull_secrets = accounts.get(&key).cloned().unwrap_or_default();
                }
                None => complete = false,
            }
        }
        Credentials {
            pull_secrets,
            complete,
        }
    }

    /// What is not known, as the end of a sentence.
    fn doubt(&self, unit: &Unit<'_>, plan: &Plan, case: &Case, found: &Candidates) -> String {
        let Some(nodes) = &self.nodes else {
            return "whether nodes hold it: nodes may not be listed".to_owned();
        };
        let is_volume = case.kind == Kind::Volume;
        let name = case.candidates.first().map(|it| it.written);
        if is_volume && plan.to_local == Healing::ByNewPod && plan.held == Known::Yes {
            return "an image volume cannot change, and healing may not evict the pod in time"
                .into();
        }
        let first = found.unknown.first().map_or("", String::as_str);
        let Some(node) = nodes.iter().find(|node| node.place.name == first) else {
            return format!("node {first} is not known");
        };
        if !self.credentials(unit).complete && self.inventory.basis == Basis::Asked {
            return "its pull secrets are not known, because service accounts may not be listed"
                .into();
        }
        if let Some(what) = scheduling::other_constraint(unit.pod)
            && !found.starts.is_empty()
        {
            return format!("it starts on some nodes only, and {what} may lead it to others");
        }
        let name = match name {
            Some(Name::Local) => &plan.local,
            _ => &plan.original,
        };
        match name.as_deref().and_then(|name| Reference::parse(name).ok()) {
            Some(_) if self.inventory.basis == Basis::Asked => {
                format!("the node agent of node {first} did not report it")
            }
            Some(name) if node.starts(&name) == Known::Unknown => node.doubt(&name),
            _ => format!("what node {first} can pull is not known"),
        }
    }

    fn is_foreign(&self, reference: Option<&Reference>) -> bool {
        let delivery = self.inventory.delivery.as_ref();
        delivery
            .zip(reference)
            .is_some_and(|(delivery, it)| delivery.is_foreign(&it.host().to_string()))
    }
}

/// Judges the name that the webhook chooses as long as it does not know that the upstream is
/// away. Returns whether the answer does not depend on that.
fn agree(other: &Case, image: &mut Image) -> bool {
    let (start, candidates) = other.judge();
    let is_yes = |start: Start| start >= Start::StartsHealed;
    let is_open = |start: Start| start == Start::Unknown;
    if is_yes(start) == is_yes(image.start) && is_open(start) == is_open(image.start) {
        if start < image.start {
            (image.start, image.candidates) = (start, candidates);
        }
        return true;
    }
    if is_open(image.start) {
        return true;
    }
    if !is_yes(start) {
        image.candidates = candidates;
    }
    image.start = Start::Unknown;
    "its name depends on whether the webhook knows already that the upstream is away, and it \
     starts under one name only"
        .clone_into(&mut image.why);
    "holdfast preload, so that it starts under both".clone_into(&mut image.fix);
    false
}

/// Says from where an image comes that starts.
fn describe_start(case: &Case, image: &mut Image) {
    let is_healed = image.start == Start::StartsHealed;
    let is_local = case.held == Known::Yes
        && case.candidates.iter().all(|it| match it.written {
            Name::Local => !is_healed,
            // The node has it, and may lose it.
            Name::Original => {
                is_healed || it.prepared == Known::Yes && case.to_local == Healing::InPlace
            }
        });
    image.verdict = if is_local {
        Verdict::Local
    } else {
        Verdict::OnNodes
    };
    if is_healed {
        let name = if is_local { "registry's" } else { "upstream's" };
        image.why = format!("after healing changed the pod's image to the {name}");
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
