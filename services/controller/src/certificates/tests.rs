//! The plan as a table, and the way from a plan to Secrets and back.

use super::issue::{BACKDATE, CA_LIFE, LEAF_LIFE};
use super::model::{Ca, Leaf, Wanted};
use super::plan::{Action, Existing, SETTLE, plan};
use super::{inspect, issue};
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use std::collections::BTreeSet;

const NOW: i64 = 1_800_000_000;
const DAY: i64 = 86_400;

fn want(names: &[&str]) -> Wanted {
    Wanted {
        leaf: Leaf::Registry,
        common_name: "holdfast-registry",
        names: names
            .iter()
            .map(|name| (*name).to_owned())
            .collect::<BTreeSet<_>>(),
    }
}

fn secret(data: &[(&str, &str)]) -> Secret {
    Secret {
        data: Some(
            data.iter()
                .map(|(key, value)| ((*key).to_owned(), ByteString(value.as_bytes().to_vec())))
                .collect(),
        ),
        ..Secret::default()
    }
}

fn ca_secret(ca: &Ca) -> Secret {
    secret(&[
        ("ca.crt", &ca.certificate),
        ("ca.key", &ca.key),
        ("ca-bundle.crt", &ca.bundle),
    ])
}

/// A CA and a certificate made at `NOW`, read back from their Secrets.
fn made(names: &[&str]) -> (Ca, Existing) {
    holdfast_runtime::tls::install_crypto_provider();
    let ca = issue::ca(NOW, "holdfast", &[]).unwrap();
    let (certificate, key) = issue::leaf(NOW, &ca, &want(names)).unwrap();
    let leaf = secret(&[
        ("tls.crt", &certificate),
        ("tls.key", &key),
        ("ca.crt", &ca.bundle),
    ]);
    let existing = Existing {
        ca: inspect::ca(Some(&ca_secret(&ca))),
        leaves: [(Leaf::Registry, inspect::leaf(Some(&leaf)).unwrap())].into(),
    };
    (ca, existing)
}

fn summary(actions: &[Action]) -> Vec<String> {
    actions
        .iter()
        .map(|action| match action {
            Action::MakeCa { keep, reason } => format!("ca keeping {}: {reason}", keep.len()),
            Action::WriteBundle { .. } => "bundle".to_owned(),
            Action::Issue { reason, .. } => format!("issue: {reason}"),
            Action::RefreshBundle { .. } => "refresh".to_owned(),
        })
        .collect()
}

// SPEC 32
#[test]
fn valid_certificates_stay_and_all_are_renewed_at_half_of_their_life() {
    let names = ["10.96.0.50", "holdfast-registry.sys.svc", "fd00::1"];
    let (_, existing) = made(&names);
    let half_leaf = LEAF_LIFE / 2 - BACKDATE;
    let half_ca = CA_LIFE / 2 - BACKDATE;
    for (at, names, expect) in [
        (NOW, &names[..], vec![]),
        (NOW - BACKDATE, &names[..], vec![]),
        (NOW + half_leaf - 1, &names[..], vec![]),
        (
            NOW + half_leaf,
            &names[..],
            vec!["issue: half of its lifetime has passed"],
        ),
        (
            NOW + LEAF_LIFE,
            &names[..],
            vec!["issue: it is not valid now"],
        ),
        (NOW, &names[..1], vec!["issue: its names changed"]),
        (
            NOW - 2 * BACKDATE,
            &names[..],
            vec![
                "ca keeping 1: it is not valid yet",
                "issue: it is not valid now",
            ],
        ),
        (
            NOW + half_ca,
            &names[..],
            vec![
                "ca keeping 1: half of its lifetime has passed",
                "issue: it is not valid now",
            ],
        ),
        (
            NOW + CA_LIFE + DAY,
            &names[..],
            vec!["ca keeping 0: it ran out", "issue: it is not valid now"],
        ),
    ] {
        assert_eq!(
            summary(&plan(&existing, at, &[want(names)])),
            expect,
            "{} s later",
            at - NOW
        );
    }
}

#[test]
fn a_clock_that_was_ahead_for_a_moment_leaves_nothing_behind() {
    holdfast_runtime::tls::install_crypto_provider();
    let ahead = NOW + 10 * 365 * DAY;
    let ca = issue::ca(ahead, "holdfast", &[]).unwrap();
    let (certificate, key) = issue::leaf(ahead, &ca, &want(&["a"])).unwrap();
    let leaf = secret(&[
        ("tls.crt", &certificate),
        ("tls.key", &key),
        ("ca.crt", &ca.bundle),
    ]);
    let existing = Existing {
        ca: inspect::ca(Some(&ca_secret(&ca))),
        leaves: [(Leaf::Registry, inspect::leaf(Some(&leaf)).unwrap())].into(),
    };
    assert_eq!(
        summary(&plan(&existing, NOW, &[want(&["a"])])),
        [
            "ca keeping 1: it is not valid yet",
            "issue: it is not valid now"
        ]
    );
}

// SPEC 32
#[test]
fn a_lost_ca_leaves_its_certificates_trusted_until_the_new_one_is_known() {
    let (_, mut existing) = made(&["a"]);
    existing.ca = None;
    assert_eq!(
        summary(&plan(&existing, NOW, &[want(&["a"])])),
        ["ca keeping 1: there is none", "refresh"]
    );
    let over = plan(&existing, NOW + CA_LIFE, &[want(&["a"])]);
    assert_eq!(
        summary(&over),
        ["ca keeping 0: there is none", "issue: it is not valid now"]
    );
}

#[test]
fn without_anything_everything_is_made() {
    let plan = plan(&Existing::default(), NOW, &[want(&["a"])]);
    assert_eq!(
        summary(&plan),
        ["ca keeping 0: there is none", "issue: there is none"]
    );
}

// SPEC 32
#[test]
fn a_new_ca_is_trusted_beside_the_old_and_signs_late() {
    let (old, _) = made(&["a"]);
    let later = NOW + CA_LIFE / 2 + DAY;
    let new = issue::ca(later, "holdfast", std::slice::from_ref(&old.certificate)).unwrap();
    // A certificate of the old CA that is past half of its life when the new one is made.
    let (certificate, key) = issue::leaf(later - LEAF_LIFE * 2 / 3, &old, &want(&["a"])).unwrap();
    let leaf = |bundle: &str| {
        inspect::leaf(Some(&secret(&[
            ("tls.crt", &certificate),
            ("tls.key", &key),
            ("ca.crt", bundle),
        ])))
    };
    let mut existing = Existing {
        ca: inspect::ca(Some(&ca_secret(&new))),
        leaves: [(Leaf::Registry, leaf(&old.bundle).unwrap())].into(),
    };
    assert_eq!(existing.ca.as_ref().unwrap().bundle.len(), 2);
    assert_eq!(
        summary(&plan(&existing, later, &[want(&["a"])])),
        ["refresh"],
        "trust first"
    );
    existing.leaves = [(Leaf::Registry, leaf(&new.bundle).unwrap())].into();
    assert!(plan(&existing, later + SETTLE - 1, &[want(&["a"])]).is_empty());
    let settled = plan(&existing, later + SETTLE, &[want(&["a"])]);
    assert_eq!(
        summary(&settled),
        ["issue: half of its lifetime has passed"]
    );
    let over = plan(&existing, NOW + CA_LIFE, &[want(&["a"])]);
    assert_eq!(
        summary(&over),
        ["bundle", "issue: it is not valid now"],
        "the old one leaves the bundle when it ran out"
    );
}

#[test]
fn what_is_broken_counts_as_absent() {
    let (ca, _) = made(&["a"]);
    let other = issue::ca(NOW, "holdfast", &[]).unwrap();
    let swapped = Ca {
        key: other.key,
        ..ca.clone()
    };
    assert!(
        inspect::ca(Some(&ca_secret(&swapped))).is_none(),
        "the key of another"
    );
    assert!(inspect::ca(Some(&secret(&[("ca.crt", "x"), ("ca.key", "y")]))).is_none());
    assert!(inspect::leaf(None).is_none());
    let mut no_bundle = ca_secret(&ca);
    no_bundle.data.as_mut().unwrap().remove("ca-bundle.crt");
    let existing = Existing {
        ca: inspect::ca(Some(&no_bundle)),
        ..Existing::default()
    };
    assert_eq!(summary(&plan(&existing, NOW, &[])), ["bundle"]);
}

#[test]
fn secrets_are_long_and_different() {
    let (one, two) = (
        issue::random_secret().unwrap(),
        issue::random_secret().unwrap(),
    );
    assert_eq!(one.len(), 64);
    assert_ne!(one, two);
}
