//! What the steps of certificates share: what is wanted, and what was found.

use holdfast_api::labels;
use std::collections::BTreeSet;

/// The certificates below the CA.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Leaf {
    /// The registry's, for serving and as a client of other replicas.
    Registry,
    /// The webhook's, for serving.
    Webhook,
    /// The controller's, as a client of the registry, and for serving node agents.
    Controller,
    /// The node agents', as clients of the controller.
    NodeAgent,
}

impl Leaf {
    /// The name in logs and metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Registry => "registry",
            Self::Webhook => "webhook",
            Self::Controller => "controller",
            Self::NodeAgent => "node-agent",
        }
    }

    /// The part whose pods mount its Secret; the controller takes its own from the API server.
    pub const fn mounted_by(self) -> Option<&'static str> {
        match self {
            Self::Registry => Some(labels::COMPONENT_REGISTRY),
            Self::Webhook => Some(labels::COMPONENT_WEBHOOK),
            Self::Controller => None,
            Self::NodeAgent => Some(labels::COMPONENT_NODE_AGENT),
        }
    }
}

/// A certificate that must exist.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// Which one.
    pub leaf: Leaf,
    /// The subject's common name.
    pub common_name: &'static str,
    /// DNS names, IP addresses and URIs.
    pub names: BTreeSet<String>,
}

/// A CA: certificate, key and the bundle that is to be trusted, all PEM.
#[derive(Clone, PartialEq, Eq)]
pub struct Ca {
    /// The certificate.
    pub certificate: String,
    /// The private key.
    pub key: String,
    /// This and earlier certificates.
    pub bundle: String,
}

impl std::fmt::Debug for Ca {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ca")
            .field("certificate", &self.certificate)
            .finish_non_exhaustive()
    }
}

/// An existing CA.
#[derive(Clone, Debug)]
pub struct CaFacts {
    /// Certificate, key and bundle.
    pub material: Ca,
    /// Start of validity, seconds since 1970.
    pub not_before: i64,
    /// End of validity.
    pub not_after: i64,
    /// The identifier of its key.
    pub key_id: Vec<u8>,
    /// The certificates of the bundle, in order.
    pub bundle: Vec<BundleFacts>,
}

/// A certificate of the bundle.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BundleFacts {
    /// The certificate.
    pub pem: String,
    /// The identifier of its key.
    pub key_id: Vec<u8>,
    /// End of validity.
    pub not_after: i64,
}

/// An existing certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeafFacts {
    /// Start of validity, seconds since 1970.
    pub not_before: i64,
    /// End of validity.
    pub not_after: i64,
    /// The subject's common name.
    pub common_name: String,
    /// DNS names, IP addresses and URIs.
    pub names: BTreeSet<String>,
    /// The identifier of the key that signed it.
    pub issuer_key_id: Vec<u8>,
    /// The bundle beside it, PEM.
    pub bundle: String,
}
