//! Under which names a pod starts, what the registry holds, and whether healing may change the
//! name: what an image depends on besides its nodes. Pure.

use std::collections::{BTreeMap, BTreeSet};

use holdfast_api::Artifact;
use holdfast_api::artifact::Reason;
use holdfast_api::delivery::{Answer, Delivery};
use holdfast_api::history::ImageHistory;
use holdfast_api::labels;
use holdfast_cli_kit::artifact_status::{CopyStatus, copy_status};
use holdfast_cluster_model::{advice, pod_facts};
use holdfast_config::HealingMode;
use holdfast_core::delivery::{self, Copy, Name, OnNodes, PullPolicy, State, Upstream};
use holdfast_core::meaning::{self, Meaning, PodImageMeaning};
use holdfast_core::pod::{self, Kind};
use holdfast_core::workload::{controller_of, text};
use holdfast_core::{Reference, rewrite};
use k8s_openapi::api::core::v1::Pod;
use serde_json::Value;

use crate::inventory::Inventory;
use crate::judge::{Healing, Known, Start};

/// Why pods of a namespace are not sent to the registry for an image.
const PRIVATE: &str = "it is not known that their namespace may have it (access.privateImages)";
/// Why pods of an owner are not sent to the registry.
const COMPARES: &str = "their owner deletes pods with other images than its own";
/// What to do about an image that Holdfast leaves to its upstream.
const FIX_EXCLUDED: &str = "let Holdfast rewrite its pods, or load the image on every node under \
                            this name";
/// What to do about an image that only its node lacks.
const FIX_NODE: &str = "holdfast doctor names what is wrong with the node";

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

/// The sources of a pod.
pub(crate) struct Sources {
    /// Those that healing looks at.
    healed: BTreeSet<String>,
    /// Those that Holdfast rewrites, or why it rewrites no image of the pod.
    covered: Result<BTreeSet<String>, &'static str>,
}

/// How an image starts, and the texts about it.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    /// Whether the registry holds it.
    pub(crate) held: Known,
    /// The name of a stored pod; of a new one, `None` if the webhook chooses ([`Planner::chosen`]).
    pub(crate) written: Option<Name>,
    pub(crate) to_local: Healing,
    pub(crate) to_original: Healing,
    pub(crate) covered: bool,
    /// The original as a pod names it; `None` if no runtime accepts it.
    pub(crate) original: Option<String>,
    /// The local name; `None` if the pod can get none.
    pub(crate) local: Option<String>,
    /// Why it does not start, if it does not.
    pub(crate) why: String,
    pub(crate) fix: String,
}

/// The names that the webhook may choose for a new pod on a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Chosen {
    /// Once it knows that the upstream is away.
    pub(crate) later: Name,
    /// By what it knows now, and still knows when the uplink fails.
    pub(crate) now: Name,
}

/// Makes plans.
pub(crate) struct Planner<'a> {
    inventory: &'a Inventory,
    /// By canonical reference; what is local in one namespace is local for every node (SPEC 12).
    copies: BTreeMap<String, Stored>,
    /// Texts of images from which a container of a living pod started.
    started: BTreeSet<String>,
}

/// What is known of a copy.
struct Stored {
    status: CopyStatus,
    held: Known,
    /// Whether the registry said so, not only the Artifact.
    asked: bool,
}

impl<'a> Planner<'a> {
    pub(crate) fn new(inventory: &'a Inventory) -> Self {
        let mut copies: BTreeMap<String, Stored> = BTreeMap::new();
        for artifact in &inventory.artifacts {
            let (source, status) = (source_of(artifact), copy_status(artifact));
            let said = inventory.answers.held.get(&source).copied();
            let found = Stored {
                held: said.unwrap_or_else(|| status.local.into()),
                asked: said.is_some(),
                status,
            };
            let is_better = |known: &Stored| {
                (known.held, known.status.local) < (found.held, found.status.local)
            };
            if copies.get(&source).is_none_or(is_better) {
                copies.insert(source, found);
            }
        }
        let pods = inventory.objects.get("Pod").into_iter().flatten();
        Self {
            inventory,
            copies,
            started: pods.flat_map(started).collect(),
        }
    }

    /// The sources of a pod.
    pub(crate) fn sources(&self, unit: &Unit<'_>) -> Sources {
        let (scope, pod) = (&self.inventory.scope, unit.pod);
        let facts = serde_json::from_value::<Pod>(pod.clone())
            .map(|pod| pod_facts(&pod, &self.inventory.addresses, scope, false).sources);
        let is_left_out = self.inventory.namespaces.get(unit.namespace);
        let is_left_out = is_left_out.is_some_and(|facts| !scope.includes(unit.namespace, facts));
        let is_untouchable =
            pod::is_mirror(pod) || labels::opts_out(pod) || labels::is_holdfasts(pod);
        Sources {
            healed: facts
                .as_ref()
                .ok()
                .filter(|_| !is_untouchable)
                .cloned()
                .unwrap_or_default(),
            covered: if pod::is_mirror(pod) {
                Err("its kubelet starts it from a file on the node")
            } else if is_left_out {
                Err("its namespace is left out")
            } else if labels::opts_out(pod) {
                Err("its pods opt out")
            } else {
                facts.map_err(|_| "it cannot be read as a pod")
            },
        }
    }

    /// How an image starts; or the answer, where its text alone gives it.
    pub(crate) fn plan(
        &self,
        unit: &Unit<'_>,
        found: &PodImageMeaning,
        policy: PullPolicy,
        sources: &Sources,
    ) -> Result<Plan, (Start, &'static str, &'static str)> {
        let text = &found.image.image;
        let reference = match &found.meaning {
            Meaning::Unreadable(_) => {
                let why = "its reference cannot be read";
                return Err((Start::WouldNot, why, "correct the reference"));
            }
            Meaning::Own { .. } if self.started.contains(text) => {
                return Ok(Plan {
                    held: Known::from(self.inventory.own.registry != Known::No),
                    written: Some(Name::Local),
                    to_local: Healing::None,
                    to_original: Healing::None,
                    covered: true,
                    original: None,
                    local: Some(text.clone()),
                    why: "it was pushed to the registry, from which its node cannot pull"
                        .to_owned(),
                    fix: FIX_NODE.to_owned(),
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
                return Ok(self.local_plan(unit, found, reference, sources));
            }
            other => other.reference().ok_or((Start::Unknown, "", ""))?,
        };
        let original = if found.meaning.is_repaired() {
            // No runtime accepts it.
            None
        } else if found.meaning.is_at_registry() {
            Some(reference.to_string())
        } else {
            Some(text.clone())
        };
        let excluded = |why: &str| Plan {
            held: Known::No,
            written: Some(Name::Original),
            to_local: Healing::None,
            to_original: Healing::None,
            covered: false,
            original: original.clone(),
            local: None,
            why: format!("{why}: it would be pulled from {}", reference.host()),
            fix: FIX_EXCLUDED.to_owned(),
        };
        match &sources.covered {
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
            Ok(covered) if covered.contains(&reference.to_string()) => {
                Ok(self.covered_plan(unit, found.image.kind, reference, original))
            }
            Ok(_) => Ok(excluded("the configuration leaves it out")),
        }
    }

    /// A pod that has the local name.
    fn local_plan(
        &self,
        unit: &Unit<'_>,
        found: &PodImageMeaning,
        reference: &Reference,
        sources: &Sources,
    ) -> Plan {
        let (held, why, fix) = self.copy(reference);
        let is_healed = sources.healed.contains(&reference.to_string());
        Plan {
            held,
            written: Some(Name::Local),
            to_local: Healing::None,
            to_original: if is_healed {
                self.healing(unit, found.image.kind)
            } else {
                Healing::None
            },
            covered: true,
            original: found.original_text(),
            local: Some(found.image.image.clone()),
            why,
            fix,
        }
    }

    /// A pod of an image that Holdfast rewrites.
    fn covered_plan(
        &self,
        unit: &Unit<'_>,
        kind: Kind,
        reference: &Reference,
        original: Option<String>,
    ) -> Plan {
        let address = self.inventory.addresses.first();
        let local = address.and_then(|address| rewrite::rewrite(reference, address));
        let (held, mut why, mut fix) = self.copy(reference);
        let blocked = self.not_rewritten_because(unit, reference);
        if let (Some(reason), Known::Yes) = (&blocked, held) {
            why = format!("it is local, but new pods are not sent to the registry: {reason}");
            "holdfast doctor names what is wrong".clone_into(&mut fix);
        }
        // What was restored once is not counted on.
        let is_restored = !ImageHistory::of(unit.pod).restored.is_empty();
        let may_heal = blocked.is_none() && !is_restored;
        Plan {
            held,
            written: if unit.stored || blocked.is_some() {
                Some(Name::Original)
            } else {
                None
            },
            to_local: if may_heal {
                self.healing(unit, kind)
            } else {
                Healing::None
            },
            to_original: if original.is_some() {
                self.healing(unit, kind)
            } else {
                Healing::None
            },
            covered: true,
            original,
            local,
            why,
            fix,
        }
    }

    /// The names that the webhook may choose for a new pod of an image that it rewrites, whose
    /// nodes are `prepared` as the webhook knows it.
    pub(crate) fn chosen(
        &self,
        reference: &Reference,
        policy: PullPolicy,
        kind: Kind,
        prepared: bool,
    ) -> Chosen {
        let none = Delivery::default();
        let delivery = self.inventory.delivery.as_ref().unwrap_or(&none);
        let host = reference.host().to_string();
        let (is_held, original) = delivery.source(reference);
        let name = |upstream| {
            let state = State {
                copy: if is_held { Copy::Held } else { Copy::Absent },
                upstream,
                original,
                local: OnNodes::Unknown,
                prepared,
                mirrored: false,
                foreign: delivery.is_foreign(&host),
                protect: false,
                policy,
                kind,
                placeholder: false,
            };
            delivery::choose(&state).name()
        };
        Chosen {
            later: name(Upstream::Away),
            now: name(match delivery.answer(&host) {
                Some(Answer::Answers) => Upstream::Answers,
                Some(Answer::Away) => Upstream::Away,
                None => Upstream::Unknown,
            }),
        }
    }

    /// How healing changes an image of a pod.
    fn healing(&self, unit: &Unit<'_>, kind: Kind) -> Healing {
        let values = &self.inventory.healing;
        if values.mode != HealingMode::Heal || self.inventory.own.controller == Known::No {
            return Healing::None;
        }
        let has_owner = !unit.stored || controller_of(unit.pod).is_some();
        match kind {
            Kind::Container | Kind::Init => Healing::InPlace,
            Kind::Volume if has_owner && values.evictions_per_minute > 0 => Healing::ByNewPod,
            Kind::Volume | Kind::Ephemeral => Healing::None,
        }
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

    /// Whether the registry can give an image, why it cannot, and what to do.
    fn copy(&self, reference: &Reference) -> (Known, String, String) {
        let Some(copy) = self.copies.get(&reference.to_string()) else {
            let why = "there is no Artifact for it yet".to_owned();
            return (Known::No, why, format!("holdfast preload {reference}"));
        };
        let status = &copy.status;
        if copy.held > Known::No && self.inventory.own.registry == Known::No {
            let why = "it is local, but the registry itself would not start";
            let fix = "holdfast diff offline -n NAMESPACE names what it lacks".to_owned();
            return (Known::No, why.to_owned(), fix);
        }
        let (why, fix) = match copy.held {
            Known::Yes => (
                "it is local, but its node cannot pull from the registry".to_owned(),
                FIX_NODE,
            ),
            Known::No if copy.asked && status.local => (
                "the registry does not hold it any more, though its Artifact is Ready".to_owned(),
                "wait until the registry copied it again",
            ),
            Known::Unknown => (
                "the registry did not say whether it holds it".to_owned(),
                "holdfast doctor names what is wrong",
            ),
            Known::No => {
                let mut reasons = Reason::ALL.into_iter();
                let reason = reasons.find(|reason| reason.as_str() == status.reason);
                let fix = reason.map_or("holdfast doctor names what is wrong", advice::advice);
                (format!("{}: {}", status.reason, status.message), fix)
            }
        };
        (copy.held, why, fix.to_owned())
    }
}

/// The source of an Artifact in canonical form.
pub(crate) fn source_of(artifact: &Artifact) -> String {
    let source = &artifact.spec.source_artifact;
    Reference::parse(source).map_or_else(|_| source.clone(), |reference| reference.to_string())
}

/// The pull policy of an image: as it is written, or the default of the API server.
pub(crate) fn policy_of(found: &PodImageMeaning) -> &str {
    let written = found.image.pull_policy.as_deref();
    written.unwrap_or_else(|| meaning::default_pull_policy(&found.image.image))
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
