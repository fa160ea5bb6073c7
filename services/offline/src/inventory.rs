//! What was found in the cluster.

use std::collections::{BTreeMap, BTreeSet};

use holdfast_api::Artifact;
use holdfast_api::access::ImageAccess;
use holdfast_api::delivery::Delivery;
use holdfast_cluster_model::{NamespaceFacts, Scope};
use holdfast_config::{FailurePolicy, HealingValues};
use serde_json::Value;

use crate::answers::{Answers, Basis};
use crate::own::Own;

/// Namespace, kind and name of an owner.
pub(crate) type Key = (String, String, String);

/// What was found in the cluster.
#[derive(Debug)]
pub(crate) struct Inventory {
    /// Objects by kind; kinds that could not be listed are absent.
    pub(crate) objects: BTreeMap<&'static str, Vec<Value>>,
    /// Namespaces by name.
    pub(crate) namespaces: BTreeMap<String, NamespaceFacts>,
    pub(crate) artifacts: Vec<Artifact>,
    /// `None` where the caller may not list them.
    pub(crate) nodes: Option<Vec<Value>>,
    /// The registry's addresses.
    pub(crate) addresses: Vec<String>,
    /// Why pods are not rewritten at the moment; nothing while they are.
    pub(crate) not_rewriting: Option<String>,
    /// Namespaces whose pods keep their images, by who refuses the registry's references there.
    pub(crate) excluded: BTreeMap<String, String>,
    /// Owners that compare images, so that their pods keep them: namespace, kind and name.
    pub(crate) excluded_owners: BTreeSet<Key>,
    /// Which images pods may have from the registry.
    pub(crate) access: ImageAccess,
    /// What the controller knows of nodes; `None` where it said nothing.
    pub(crate) delivery: Option<Delivery>,
    /// Whether the controller changes the images of pods that cannot pull.
    pub(crate) healing: HealingValues,
    /// What happens to new pods while the webhook does not answer.
    pub(crate) failure_policy: FailurePolicy,
    /// What the answer is based on.
    pub(crate) basis: Basis,
    /// What the controller answered.
    pub(crate) answers: Answers,
    /// Whether Holdfast itself starts.
    pub(crate) own: Own,
    /// The pull secrets of service accounts by namespace and name; `None` where the caller may not
    /// list them.
    pub(crate) account_secrets: Option<BTreeMap<(String, String), Vec<String>>>,
    /// The node that is lost and replaced by an empty one; `None` after a power cut of all nodes.
    pub(crate) lost: Option<String>,
    /// What concerns Holdfast, by its configuration.
    pub(crate) scope: Scope,
    /// What the caller may not see.
    pub(crate) not_judged: Vec<String>,
}
