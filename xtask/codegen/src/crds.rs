//! The custom resource definitions.

use anyhow::Result;
use holdfast_api::Artifact;
use holdfast_config::yaml;
use kube::CustomResourceExt;

/// The definition of `artifacts.holdfast.dev`.
pub(crate) fn artifacts() -> Result<String> {
    Ok(format!(
        "# Made from the types in services/api; do not edit.\n{}",
        yaml::to_string(&Artifact::crd())?
    ))
}
