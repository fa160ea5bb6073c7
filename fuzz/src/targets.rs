//! All targets. Each is a few lines around a real parser, and states its promise in one sentence.

mod admission;
mod configuration;
mod images;
mod manifests;
mod nodes;
mod ranges;
mod routes;
mod sessions;
mod tokens;
mod upstreams;

use std::borrow::Cow;

use crate::Target;

/// Every target, by name.
pub const ALL: [Target; 19] = [
    images::REFERENCE,
    images::REWRITE,
    images::PULL_SECRET,
    images::QUANTITY,
    routes::ROUTE,
    ranges::RANGE,
    ranges::CHUNK,
    sessions::STATE,
    sessions::HASH,
    sessions::SEQUENCE,
    manifests::MANIFEST,
    manifests::LINK,
    admission::REVIEW,
    admission::CONDITION,
    configuration::VALUES,
    tokens::TOKEN,
    upstreams::CHALLENGE,
    nodes::HOSTS,
    nodes::RUNTIME,
];

/// The target of a name.
pub fn named(name: &str) -> Option<Target> {
    ALL.into_iter().find(|target| target.name == name)
}

/// Input as text; what is no UTF-8 becomes a replacement character, as it does nowhere in the
/// product.
fn text(input: &[u8]) -> Cow<'_, str> {
    String::from_utf8_lossy(input)
}
