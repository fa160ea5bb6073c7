//! The upstream images that pods and templates need, and the registry's addresses that they name.

use crate::scope::Scope;
use holdfast_api::artifact::MAX_SOURCE_BYTES;
use holdfast_api::labels;
use holdfast_core::kubelet::listed_name;
use holdfast_core::{Host, meaning, pod, rewrite};
use serde_json::Value;
use std::collections::BTreeSet;

/// The upstream images of a pod, or of the pod that a template becomes. Pods of Windows nodes have
/// none. A word that another webhook replaces is none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Sources {
    /// What it needs from the registry: canonical references. Mirror pods need none.
    pub(crate) needed: BTreeSet<String>,
    /// What it starts under the original name and never under another: the names under which
    /// runtimes list that. Nothing whose policy is `Always`, because that is pulled anyway.
    pub(crate) kept: BTreeSet<String>,
    /// What healing may give another name: what is needed, and what would be if its policy were not
    /// `Never`.
    pub(crate) healed: BTreeSet<String>,
}

/// Reads the upstream images of a pod.
pub(crate) fn sources(document: &Value, addresses: &[String], scope: &Scope) -> Sources {
    let mut sources = Sources::default();
    let images = meaning::of_pod(document, addresses);
    if images.is_empty() || pod::is_windows(document) {
        return sources;
    }
    // A rewritten image needs its copy even if the rules changed.
    let wanted =
        !pod::is_mirror(document) && !labels::opts_out(document) && scope.condition_holds(document);
    for found in images
        .iter()
        .filter(|found| !found.meaning.is_reserved_word())
    {
        let Some(source) = found.meaning.source() else {
            continue;
        };
        let text = source.to_string();
        if text.len() > MAX_SOURCE_BYTES {
            continue;
        }
        let policy = found.image.pull_policy.as_deref();
        let is_healed =
            found.meaning.is_rewritten() || wanted && scope.includes_source(source.host());
        if is_healed {
            sources.healed.insert(text.clone());
        }
        if found.meaning.is_rewritten() || is_healed && policy != Some("Never") {
            sources.needed.insert(text);
        } else if policy != Some("Always") {
            sources.kept.insert(listed_name(source));
        }
    }
    sources
}

/// The host of a reference when it is an IP address without a port: such may be an address of the
/// registry.
pub fn address_of(image: &str) -> Option<String> {
    let (first, _) = image.split_once('/')?;
    let bare = first.trim_start_matches('[').trim_end_matches(']');
    let address: std::net::IpAddr = bare.parse().ok()?;
    let host = match address {
        std::net::IpAddr::V4(address) => address.to_string(),
        std::net::IpAddr::V6(address) => format!("[{address}]"),
    };
    Host::parse(&host)
        .is_ok_and(|parsed| rewrite::is_at(&parsed, &host))
        .then_some(host)
}
