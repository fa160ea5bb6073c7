//! The facts of owners: the pod templates of workloads.

use crate::owner::Owner;
use crate::scope::Scope;
use crate::sources::{Sources, sources};
use holdfast_core::pod;
use holdfast_core::workload::{self, WorkloadKind};
use serde_json::Value;
use std::collections::BTreeSet;

/// The facts of an owner.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OwnerFacts {
    /// Its UID.
    pub uid: String,
    /// What controls it.
    pub controller: Option<Owner>,
    /// The upstream images that a pod of its template needs, canonical references; empty when such
    /// a pod is not rewritten.
    pub sources: BTreeSet<String>,
    /// The names, as runtimes list them, of images that such a pod keeps whatever is known of them.
    pub kept: BTreeSet<String>,
    /// Whether pods may still be made of it.
    pub may_start: bool,
    /// Names of the template's pull secrets.
    pub pull_secrets: Vec<String>,
    /// The template's service account.
    pub service_account: String,
}

/// The facts of an owner, with the registry's `addresses` known so far.
pub fn owner_facts(
    kind: &WorkloadKind,
    object: &Value,
    addresses: &[String],
    scope: &Scope,
) -> OwnerFacts {
    let text = |pointer| object.pointer(pointer).and_then(Value::as_str);
    let template = workload::pod_template(kind.kind, object)
        .map(|template| workload::pod_of(template, text("/metadata/namespace").unwrap_or_default()))
        .unwrap_or_default();
    let Sources {
        needed: sources,
        kept,
        ..
    } = sources(&template, addresses, scope);
    let (pull_secrets, service_account) = if sources.is_empty() {
        Default::default()
    } else {
        let account = pod::service_account_name(&template).to_owned();
        (pod::pull_secret_names(&template), account)
    };
    OwnerFacts {
        uid: text("/metadata/uid").unwrap_or_default().to_owned(),
        controller: Owner::above(object),
        sources,
        kept,
        may_start: workload::may_start(kind.kind, object),
        pull_secrets,
        service_account,
    }
}

#[cfg(test)]
mod tests;
