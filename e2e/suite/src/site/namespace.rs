//! A namespace of one test: with a pull secret for the private upstream, gone when the test ends.

use anyhow::Result;
use serde_json::{Value, json};

use super::{LOGIN, PRIVATE, Site};
use crate::images::unique;
use crate::kube::Kube;
use crate::objects::{self, Pod};

/// The name of the pull secret that every test namespace has.
pub(crate) const SECRET: &str = "upstream";

/// A namespace that is deleted on drop.
pub(crate) struct Namespace<'a> {
    pub(crate) name: String,
    kube: &'a Kube,
}

impl Site {
    /// Makes a namespace for one test.
    pub(crate) fn namespace(&self) -> Result<Namespace<'_>> {
        self.labelled_namespace(&json!({}))
    }

    /// As [`Self::namespace`], with labels.
    pub(crate) fn labelled_namespace(&self, labels: &Value) -> Result<Namespace<'_>> {
        let name = format!("e2e-{}", unique()?);
        self.kube.apply(&[
            objects::namespace(&name, labels),
            objects::pull_secret(&name, SECRET, PRIVATE, LOGIN.0, LOGIN.1),
        ])?;
        Ok(Namespace {
            name,
            kube: &self.kube,
        })
    }
}

impl Namespace<'_> {
    /// Creates a pod and returns it as the API server stored it.
    pub(crate) fn create(&self, pod: &Pod) -> Result<Value> {
        self.kube.create(&pod.build(&self.name))
    }
}

impl Drop for Namespace<'_> {
    fn drop(&mut self) {
        drop(
            self.kube
                .delete(&["namespace", &self.name, "--grace-period=1"]),
        );
    }
}
