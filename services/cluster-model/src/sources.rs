//! The upstream images that pods and templates need, and the registry's addresses that they name.

use crate::scope::Scope;
use holdfast_api::artifact::MAX_SOURCE_BYTES;
use holdfast_api::labels;
use holdfast_core::{Host, pod, rewrite};
use serde_json::Value;
use std::collections::BTreeSet;

/// The upstream images that a pod, or the pod that a template becomes, needs: canonical references.
/// A mirror pod brings none.
pub(crate) fn sources(document: &Value, addresses: &[String], scope: &Scope) -> BTreeSet<String> {
    let images = pod::original_images(document, addresses);
    if images.is_empty() {
        return BTreeSet::new();
    }
    // A rewritten image needs its copy even if the rules changed.
    let wanted =
        !pod::is_mirror(document) && !labels::opts_out(document) && scope.condition_holds(document);
    images
        .into_iter()
        .filter(|image| {
            image.rewritten
                || (wanted
                    && image.image.pull_policy.as_deref() != Some("Never")
                    && scope.includes_source(image.reference.host()))
        })
        .map(|image| image.reference.to_string())
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
