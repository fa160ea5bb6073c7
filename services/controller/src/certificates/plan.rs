//! The steps for certificates: a pure function of the existing ones, the time and the wanted ones.
//!
//! Rules: everything is renewed at half of its lifetime. A new CA is trusted beside the old one
//! until the old one expires. It signs nothing for [`SETTLE`] seconds unless it must, so that all
//! replicas and nodes trust it first.

use super::inspect;
use super::issue::BACKDATE;
use super::model::{BundleFacts, CaFacts, Leaf, LeafFacts, Wanted};
use std::collections::{BTreeMap, BTreeSet};

/// Seconds for which a new CA signs only certificates that cannot wait.
pub const SETTLE: i64 = 3600;

/// The existing certificates.
#[derive(Clone, Debug, Default)]
pub struct Existing {
    /// The CA, if it is there and its key fits.
    pub ca: Option<CaFacts>,
    /// The certificates that could be read.
    pub leaves: BTreeMap<Leaf, LeafFacts>,
}

impl Existing {
    /// The certificates that are trusted at `now`. If the CA's Secret is lost, these are the
    /// bundles beside its certificates, which serve until all replicas and nodes trust the new CA.
    fn trusted(&self, now: i64) -> Vec<BundleFacts> {
        let mut trusted: Vec<BundleFacts> = match &self.ca {
            Some(ca) => ca.bundle.clone(),
            None => self
                .leaves
                .values()
                .flat_map(|leaf| inspect::bundle(&leaf.bundle))
                .collect(),
        };
        let mut seen = BTreeSet::new();
        trusted.retain(|certificate| {
            certificate.not_after > now && seen.insert(certificate.pem.clone())
        });
        trusted
    }
}

/// A step. Steps are applied in order.
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

/// The steps that are due at `now`, in seconds since 1970.
pub fn plan(existing: &Existing, now: i64, wanted: &[Wanted]) -> Vec<Action> {
    let trusted = existing.trusted(now);
    let mut actions: Vec<Action> = plan_ca(existing, &trusted, now).into_iter().collect();
    let bundle_changes = !actions.is_empty();
    let is_new_ca = matches!(actions.first(), Some(Action::MakeCa { .. }));
    let settled = existing
        .ca
        .as_ref()
        .is_some_and(|ca| !is_new_ca && now >= ca.not_before + BACKDATE + SETTLE);
    for want in wanted {
        let facts = existing.leaves.get(&want.leaf);
        let reason = match facts {
            None => Some("there is none"),
            Some(facts) => must_issue(facts, want, &trusted, now).or_else(|| {
                // Nothing trusts an older CA than the first one, but a certificate due for renewal
                // can wait for an hour.
                let due = settled && past_half(facts.not_before, facts.not_after, now);
                due.then_some("half of its lifetime has passed")
            }),
        };
        let is_outdated = || {
            let ca = existing.ca.as_ref();
            let bundle = ca.map(|ca| &ca.material.bundle);
            bundle.is_some_and(|bundle| facts.is_some_and(|facts| *bundle != facts.bundle))
        };
        if let Some(reason) = reason {
            actions.push(Action::Issue {
                want: want.clone(),
                reason,
            });
        } else if bundle_changes || is_outdated() {
            actions.push(Action::RefreshBundle { leaf: want.leaf });
        }
    }
    actions
}

/// The step for the CA, if one is due.
fn plan_ca(existing: &Existing, trusted: &[BundleFacts], now: i64) -> Option<Action> {
    let make = |reason| {
        let keep = trusted.iter().map(|certificate| certificate.pem.clone());
        Some(Action::MakeCa {
            keep: keep.collect(),
            reason,
        })
    };
    let Some(ca) = &existing.ca else {
        return make("there is none");
    };
    if now >= ca.not_after {
        return make("it ran out");
    }
    // Issued with a clock that was ahead: no client accepts it, or what it signs, until that time.
    if now < ca.not_before {
        return make("it is not valid yet");
    }
    if past_half(ca.not_before, ca.not_after, now) {
        return make("half of its lifetime has passed");
    }
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
    (bundle != ca.material.bundle).then_some(Action::WriteBundle { bundle })
}

/// Why a certificate must be issued at once.
fn must_issue(
    facts: &LeafFacts,
    want: &Wanted,
    trusted: &[BundleFacts],
    now: i64,
) -> Option<&'static str> {
    let is_trusted = trusted
        .iter()
        .any(|certificate| certificate.key_id == facts.issuer_key_id);
    if now >= facts.not_after || now < facts.not_before {
        Some("it is not valid now")
    } else if !is_trusted {
        Some("its issuer is no longer trusted")
    } else if facts.names != want.names || facts.common_name != want.common_name {
        Some("its names changed")
    } else {
        None
    }
}

fn past_half(not_before: i64, not_after: i64, now: i64) -> bool {
    now >= not_before + (not_after - not_before) / 2
}
