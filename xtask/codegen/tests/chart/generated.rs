//! The committed files are the generated ones, and the defaults are the defaults.

use std::path::Path;

use holdfast_config::{DEFAULT_MATCH_CONDITION, Values};

/// The folder of the workspace.
pub(crate) fn root() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."))
}

#[test]
fn committed_files_are_the_generated_ones() {
    holdfast_codegen::check(root()).unwrap();
}

#[test]
fn a_stale_file_is_named_with_the_command_that_fixes_it() {
    let folder = tempfile::tempdir().unwrap();
    holdfast_codegen::generate(folder.path()).unwrap();
    holdfast_codegen::check(folder.path()).unwrap();
    std::fs::write(folder.path().join("chart/values.yaml"), "stale: true\n").unwrap();
    let message = holdfast_codegen::check(folder.path())
        .unwrap_err()
        .to_string();
    assert!(
        message.contains("chart/values.yaml") && message.contains("cargo xtask generate"),
        "{message}"
    );
}

// SPEC 2
#[test]
fn the_charts_values_are_the_defaults_of_the_types() {
    let text = std::fs::read_to_string(root().join("chart/values.yaml")).unwrap();
    assert_eq!(Values::parse(&text).unwrap(), Values::default());
    assert_eq!(Values::parse("").unwrap(), Values::default());
}

// SPEC 2, SPEC 15, SPEC 17, SPEC 18
#[test]
fn every_key_of_the_extension_has_its_documented_default() {
    let defaults = serde_json::to_value(Values::default()).unwrap();
    let documented = serde_json::json!({
        "enableClusterRegistry": false,
        "enableEarlyLoading": false,
        "enableLocalRegistry": false,
        "clusterRegistry": {
            "highAvailability": { "enabled": true },
            "autoScaling": { "enabled": true },
            "storageClassName": "nexus-shared",
            "storageSize": "100Gi",
            "clusterRegistryGCCadence": "0 0 * * *",
            "clusterRegistryGCThreshold": 0,
            "registryService": { "scale": "medium" },
        },
        "webhook": {
            "highAvailability": { "enabled": true },
            "autoScaling": { "enabled": true },
            "pod": { "mutation": { "matchConditionExpression": DEFAULT_MATCH_CONDITION } },
        },
    });
    assert_eq!(defaults["global"]["networkfunctionextension"], documented);
}
