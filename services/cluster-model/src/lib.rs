//! What Holdfast reads from the objects of a cluster: which pods, templates and nodes are in scope,
//! which upstream images they need, which pods cannot pull, and which policy denied a pod.
//!
//! Pure: functions from objects of the API to small facts. It makes no request and knows no watch,
//! so the controller decides by it and the operator's commands show the same decisions.

pub mod admission_denials;
pub mod advice;
mod facts;
mod owners;
pub mod pull_status;
mod scope;

pub use admission_denials::{Denial, denied_by};
pub use facts::{
    Agent, NamespaceFacts, NodeFacts, PodFacts, address_of, document, is_agent, node_facts,
    pod_facts,
};
pub use owners::{Owner, OwnerFacts, owner_facts};
pub use scope::{Scope, ScopeError};
