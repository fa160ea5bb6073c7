//! The upstream images that pods and templates need, and the registry's addresses that they name.

use crate::scope::Scope;
use holdfast_api::artifact::MAX_SOURCE_BYTES;
use holdfast_api::labels;
use holdfast_core::{Host, meaning, pod, rewrite};
use serde_json::Value;
use std::collections::BTreeSet;

/// The upstream images that a pod, or the pod that a template becomes, needs: canonical references.
/// Mirror pods and pods of Windows nodes bring none. A word that another webhook replaces is none.
pub(crate) fn sources(document: &Value, addresses: &[String], scope: &Scope) -> BTreeSet<String> {
    let images = meaning::of_pod(document, addresses);
    if images.is_empty() || pod::is_windows(document) {
        return BTreeSet::new();
    }
    // A rewritten image needs its copy even if the rules changed.
    let wanted =
        !pod::is_mirror(document) && !labels::opts_out(document) && scope.condition_holds(document);
    images
        .iter()
        .filter(|found| !found.meaning.is_reserved_word())
        .filter_map(|found| Some((found, found.meaning.source()?)))
        .filter(|(found, source)| {
            found.meaning.is_rewritten()
                || (wanted
                    && found.image.pull_policy.as_deref() != Some("Never")
                    && scope.includes_source(source.host()))
        })
        .map(|(_, source)| source.to_string())
        .filter(|source| source.len() <= MAX_SOURCE_BYTES)
        .collect()
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
