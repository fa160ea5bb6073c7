//! The actions on certificates: a pure function of what exists, the time and what is wanted.
//!
//! Rules: everything is renewed at half of its life; a new CA is trusted beside the old one until
//! the old one expires, and signs nothing for [`SETTLE`] seconds unless it must, so that all
//! replicas and nodes trust it first.

use super::issue::Ca;
use holdfast_api::labels;
use std::collections::{BTreeMap, BTreeSet};

/// Seconds for which a new CA signs only what cannot wait.
pub const SETTLE: i64 = 3600;

/// The certificates below the CA.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Leaf {
    /// The registry's, for serving and as a client of other replicas.
    Registry,
    /// The webhook's, for serving.
    Webhook,
    /// The controller's, as a client of the registry.
    Controller,
}

impl Leaf {
    /// The word for logs and metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Registry => "registry",
            Self::Webhook => "webhook",
            Self::Controller => "controller",
        }
    }

    /// The part whose pods mount its Secret; the controller takes its own from the API server.
    pub const fn mounted_by(self) -> Option<&'static str> {
        match self {
            Self::Registry => Some(labels::COMPONENT_REGISTRY),
            Self::Webhook => Some(labels::COMPONENT_WEBHOOK),
            Self::Controller => None,
        }
    }
}

/// A certificate that is to exist.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// Which one.
    pub leaf: Leaf,
    /// The subject's common name.
    pub common_name: &'static str,
    /// DNS names and IP addresses; empty for a client certificate.
    pub names: BTreeSet<String>,
}

/// What exists already.
#[derive(Clone, Debug, Default)]
pub struct Existing {
    /// The CA, if it is there and its key fits.
    pub ca: Option<CaFacts>,
    /// The certificates that could be read.
    pub leaves: BTreeMap<Leaf, LeafFacts>,
}

impl Existing {
    /// What is trusted at `now`. When the CA's Secret is lost, that is what its certificates were
    /// issued with: they go on serving until all replicas and nodes trust the new CA.
    fn trusted(&self, now: i64) -> Vec<BundleFacts> {
        let mut trusted: Vec<BundleFacts> = match &self.ca {
            Some(ca) => ca.bundle.clone(),
            None => self
                .leaves
                .values()
                .flat_map(|leaf| super::inspect::bundle(&leaf.bundle))
                .collect(),
        };
        let mut seen = BTreeSet::new();
        trusted.retain(|certificate| {
            certificate.not_after > now && seen.insert(certificate.pem.clone())
        });
        trusted
    }
}

/// A CA as it was found.
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

/// A certificate as it was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeafFacts {
    /// Start of validity, seconds since 1970.
    pub not_before: i64,
    /// End of validity.
    pub not_after: i64,
    /// The subject's common name.
    pub common_name: String,
    /// DNS names and IP addresses.
    pub names: BTreeSet<String>,
    /// The identifier of the key that signed it.
    pub issuer_key_id: Vec<u8>,
    /// The bundle beside it, PEM.
    pub bundle: String,
}

/// A step, to be done in the order given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Make a CA whose bundle also has `keep`.
    MakeCa {
        /// Older certificates that stay trusted, PEM.
        keep: Vec<String>,
        /// For the log.
        reason: &'static str,
    },
    /// Write the CA's bundle again.
    WriteBundle {
        /// PEM.
        bundle: String,
    },
    /// Issue a certificate.
    Issue {
        /// Which, and for what names.
        want: Wanted,
        /// For the log.
        reason: &'static str,
    },
    /// Put the current bundle beside a certificate that stays.
    RefreshBundle {
        /// Which.
        leaf: Leaf,
    },
}

/// What is to be done at `now` (seconds since 1970).
pub fn plan(existing: &Existing, now: i64, wanted: &[Wanted]) -> Vec<Action> {
    let mut actions = Vec::new();
    let ca_reason = match &existing.ca {
        None => Some("there is none"),
        Some(ca) if now >= ca.not_after => Some("it ran out"),
        // Made by a clock that was ahead: no client accepts it, or what it signs, until that time
        // comes.
        Some(ca) if now < ca.not_before => Some("it is not valid yet"),
        Some(ca) if past_half(ca.not_before, ca.not_after, now) => {
            Some("half of its lifetime has passed")
        }
        Some(_) => None,
    };
    let trusted = existing.trusted(now);
    if let Some(reason) = ca_reason {
        actions.push(Action::MakeCa {
            keep: trusted
                .iter()
                .map(|certificate| certificate.pem.clone())
                .collect(),
            reason,
        });
    } else if let Some(ca) = &existing.ca {
        let mut bundle: Vec<&str> = trusted
            .iter()
            .map(|certificate| certificate.pem.as_str())
            .collect();
        if !trusted
            .iter()
            .any(|certificate| certificate.key_id == ca.key_id)
        {
            bundle.insert(0, &ca.material.certificate);
        }
        let bundle = bundle.concat();
        if bundle != ca.material.bundle {
            actions.push(Action::WriteBundle { bundle });
        }
    }
    let bundle_changes = !actions.is_empty();
    let settled = ca_reason.is_none()
        && existing
            .ca
            .as_ref()
            .is_some_and(|ca| now >= ca.not_before + super::issue::BACKDATE + SETTLE);
    for want in wanted {
        let Some(facts) = existing.leaves.get(&want.leaf) else {
            actions.push(Action::Issue {
                want: want.clone(),
                reason: "there is none",
            });
            continue;
        };
        let signer_trusted = trusted
            .iter()
            .any(|certificate| certificate.key_id == facts.issuer_key_id);
        let must = if now >= facts.not_after || now < facts.not_before {
            Some("it is not valid now")
        } else if !signer_trusted {
            Some("its issuer is no longer trusted")
        } else if facts.names != want.names || facts.common_name != want.common_name {
            Some("its names changed")
        } else {
            None
        };
        // Nothing trusts an older CA than the first one, but a certificate due for renewal can wait
        // for an hour anyway.
        let due = (settled && past_half(facts.not_before, facts.not_after, now))
            .then_some("half of its lifetime has passed");
        if let Some(reason) = must.or(due) {
            actions.push(Action::Issue {
                want: want.clone(),
                reason,
            });
        } else if bundle_changes
            || existing
                .ca
                .as_ref()
                .is_some_and(|ca| ca.material.bundle != facts.bundle)
        {
            actions.push(Action::RefreshBundle { leaf: want.leaf });
        }
    }
    actions
}

fn past_half(not_before: i64, not_after: i64, now: i64) -> bool {
    now >= not_before + (not_after - not_before) / 2
}
