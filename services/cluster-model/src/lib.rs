//! What Holdfast reads from the objects of a cluster: which pods, templates and nodes are in scope,
//! which upstream images they need, which pods cannot pull, and which policy denied a pod.
//!
//! Pure: functions from objects of the API to small facts. It makes no request and knows no watch,
//! so the controller decides by it and the operator's commands show the same decisions.

pub mod admission_denials;
pub mod advice;
pub mod demand;
pub mod image_sources;
mod nodes;
mod owner;
mod pods;
pub mod pull_status;
mod scope;
mod services;
mod sources;
mod templates;
mod view;

pub use admission_denials::{Denial, denied_by};
pub use demand::Demand;
pub use nodes::{NamespaceFacts, NodeFacts, node_facts};
pub use owner::Owner;
pub use pods::{Agent, PodFacts, document, is_agent, pod_facts};
pub use scope::{Scope, ScopeError};
pub use services::cluster_ips;
pub use sources::address_of;
pub use templates::{OwnerFacts, owner_facts};
pub use view::{Key, Objects, OwnerView, find_owner, top_owner};
