//! Every key that a template reads exists, and every key that exists is read.

use std::collections::BTreeSet;
use std::path::Path;

use holdfast_codegen::{Leaf, leaves};
use holdfast_config::Values;

use crate::generated::root;

/// Keys that no template reads, and who does: `the registry`, `the webhook`, `the controller` or
/// `the node agent` in the text means that the key is in that part's document.
pub(crate) const READ_BY_SERVICES: &[(&str, &str)] = &[
    (
        "global.networkfunctionextension.enableLocalRegistry",
        "side loading; accepted as SPEC 2 asks",
    ),
    (
        "global.networkfunctionextension.clusterRegistry.clusterRegistryGCCadence",
        "the controller's collection",
    ),
    (
        "global.networkfunctionextension.clusterRegistry.clusterRegistryGCThreshold",
        "the controller's collection",
    ),
    (
        "Microsoft.CustomLocation.ServiceAccount",
        "the Arc extension manager passes it; accepted, not used",
    ),
    (
        "sources",
        "the webhook's rules, the controller's scope, the registry's fills",
    ),
    (
        "onlyListedUpstreams",
        "the webhook's rules, the controller's scope, the registry's fills",
    ),
    ("proxy.http", "the registry's fills"),
    ("proxy.https", "the registry's fills"),
    ("proxy.noProxy", "the registry's fills"),
    ("uplink.bandwidthBytesPerSecond", "the registry's fills"),
    ("uplink.concurrentFills", "the registry's fills"),
    ("uplink.concurrentFillsPerHost", "the registry's fills"),
    ("uplink.requestsPerSecondPerHost", "the registry's fills"),
    ("uplink.revalidatePulls", "the registry's fills"),
    ("uplink.tagFreshSeconds", "the registry's fills"),
    ("uplink.negativeSeconds", "the registry's fills"),
    ("logging.format", "all parts"),
    ("logging.level", "all parts"),
    ("registry.limits.manifestBytes", "the registry"),
    ("registry.limits.streamBufferBytes", "the registry"),
    ("registry.limits.connections", "the registry"),
    ("registry.limits.connectionsPerAddress", "the registry"),
    ("registry.limits.uploads", "the registry"),
    ("registry.limits.uploadsPerRepository", "the registry"),
    ("registry.limits.idleSeconds", "the registry"),
    ("registry.limits.minBytesPerSecond", "the registry"),
    ("registry.limits.warnUsedPercent", "the registry"),
    ("registry.access.anonymousPull", "the registry"),
    ("registry.access.token.realm", "the registry"),
    ("registry.access.token.service", "the registry"),
    ("registry.access.token.issuer", "the registry"),
    ("registry.access.token.rsaAlgorithm", "the registry"),
    ("registry.limits.reservePercent", "the registry"),
    ("registry.limits.holdSeconds", "the registry"),
    ("registry.limits.uploadHours", "the registry"),
    ("registry.accessLog.mode", "the registry"),
    ("registry.accessLog.sample", "the registry"),
    ("registry.scrub.bytesPerSecond", "the registry"),
    ("registry.scrub.everyHours", "the registry"),
    ("controller.healing.mode", "the controller"),
    ("controller.healing.evictionsPerMinute", "the controller"),
    ("controller.healing.refusedSeconds", "the controller"),
    ("controller.artifacts.perNamespace", "the controller"),
    ("controller.artifacts.total", "the controller"),
    ("controller.artifacts.undemandedMinutes", "the controller"),
    ("preload.images", "the controller"),
    ("webhook.waitForNodes", "the controller's state"),
    ("webhook.scope.nodeSelector", "the controller's state"),
];

/// Keys of a part that the shared templates read as `.part.KEY`, and of sections bound by `with`.
const BOUND: &[(&str, &[&str])] = &[
    (
        ".part.",
        &["registry", "webhook", "controller", "nodeAgent"],
    ),
    (
        "$settings.",
        &[
            "global.networkfunctionextension.clusterRegistry",
            "global.networkfunctionextension.webhook",
        ],
    ),
    ("$extension.", &["global.networkfunctionextension"]),
    ("$access.", &["registry.access"]),
];

fn templates() -> String {
    fn read(folder: &Path, text: &mut String) {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                read(&path, text);
            } else {
                text.push_str(&std::fs::read_to_string(path).unwrap());
            }
        }
    }
    let mut text = String::new();
    read(&root().join("chart/templates"), &mut text);
    text
}

/// The dotted words that follow `opening` in the templates.
fn dotted_names(text: &str, opening: &str) -> BTreeSet<String> {
    let tails = text.split(opening).skip(1);
    let word = |tail: &str| {
        tail.chars()
            .take_while(|letter| letter.is_ascii_alphanumeric() || *letter == '.')
            .collect::<String>()
    };
    tails
        .map(|tail| word(tail).trim_end_matches('.').to_owned())
        .filter(|word| !word.is_empty())
        .collect()
}

fn all() -> Vec<Leaf> {
    leaves(
        &holdfast_config::values_schema(),
        &serde_json::to_value(Values::default()).unwrap(),
    )
}

#[test]
fn every_path_that_a_template_reads_exists() {
    let leaves = all();
    let exists = |path: &str| {
        leaves
            .iter()
            .any(|leaf| leaf.path == path || leaf.path.starts_with(&format!("{path}.")))
    };
    for path in dotted_names(&templates(), ".Values.") {
        let below_an_open_map = path.starts_with("webhook.scope.namespaceSelector");
        assert!(
            exists(&path) || below_an_open_map,
            "a template reads .Values.{path}, which the schema does not know"
        );
    }
}

#[test]
fn every_key_is_read_by_a_template_or_a_service() {
    let text = templates();
    let mut read = dotted_names(&text, ".Values.");
    for (opening, sections) in BOUND {
        for word in dotted_names(&text, opening) {
            read.extend(sections.iter().map(|section| format!("{section}.{word}")));
        }
    }
    // `with` sections and the older spellings, which are read by `get`.
    for (section, keys) in [
        ("image", &["repository", "tag", "digest"][..]),
        ("systemNodes", &["selector", "required"]),
        (
            "networkFunctionExtension",
            &["EnableManagedInClusterEdgeRegistry", "EdgeRegistrySizeInGB"],
        ),
        ("registry", &["replicas"]),
        ("webhook", &["replicas"]),
        ("controller", &["replicas"]),
    ] {
        for key in keys {
            assert!(text.contains(key), "no template reads {section}.{key}");
            read.insert(format!("{section}.{key}"));
        }
    }
    let services: BTreeSet<&str> = READ_BY_SERVICES.iter().map(|(path, _)| *path).collect();
    for leaf in all() {
        let by_template = read
            .iter()
            .any(|path| leaf.path == *path || leaf.path.starts_with(&format!("{path}.")));
        let whole_parts = [
            "registry",
            "webhook",
            "controller",
            "nodeAgent",
            "global",
            "networkFunctionExtension",
        ];
        let by_template = by_template && !whole_parts.contains(&leaf.path.as_str());
        assert!(
            by_template || services.contains(leaf.path.as_str()),
            "nothing reads {}",
            leaf.path
        );
    }
}

#[test]
fn every_key_says_what_it_means() {
    for leaf in all() {
        assert!(leaf.description.len() > 5, "{} is not described", leaf.path);
    }
}
