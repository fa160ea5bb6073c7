//! The owners of pods: which object controls which.

use holdfast_api::artifact::Reference;
use holdfast_core::workload;
use serde_json::Value;

/// The identity of an owner.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Owner {
    /// Kind and name.
    pub reference: Reference,
    /// Its UID.
    pub uid: String,
}

impl Owner {
    /// What controls a raw object.
    pub fn above(object: &Value) -> Option<Self> {
        let (kind, name, uid) = workload::controller_of(object)?;
        Some(Self {
            reference: Reference {
                kind: kind.to_owned(),
                name: name.to_owned(),
            },
            uid: uid.to_owned(),
        })
    }
}
