//! Reads certificates from Secrets. Unreadable ones count as absent and are issued again.

use super::model::{BundleFacts, Ca, CaFacts, LeafFacts};
use holdfast_cluster_index::apply::text;
use k8s_openapi::api::core::v1::Secret;
use rcgen::{KeyPair, PublicKeyData as _};
use std::collections::BTreeSet;
use std::net::IpAddr;
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::pem::Pem;
use x509_parser::prelude::X509Certificate;

/// The CA of its Secret. `None` if something is missing or invalid, or the key does not match.
pub fn ca(secret: Option<&Secret>) -> Option<CaFacts> {
    let material = Ca {
        certificate: text(secret, "ca.crt")?,
        key: text(secret, "ca.key")?,
        bundle: text(secret, "ca-bundle.crt").unwrap_or_default(),
    };
    let pem = pems(&material.certificate).into_iter().next()?;
    let certificate = pem.parse_x509().ok()?;
    if !fits(&certificate, &material.key) {
        return None;
    }
    let bundle = bundle(&material.bundle);
    Some(CaFacts {
        not_before: certificate.validity().not_before.timestamp(),
        not_after: certificate.validity().not_after.timestamp(),
        key_id: subject_key_id(&certificate)?,
        bundle,
        material,
    })
}

/// The certificates of a bundle that can be read.
pub fn bundle(text: &str) -> Vec<BundleFacts> {
    split(text)
        .into_iter()
        .filter_map(|text| {
            let pem = pems(&text).into_iter().next()?;
            let certificate = pem.parse_x509().ok()?;
            Some(BundleFacts {
                key_id: subject_key_id(&certificate)?,
                not_after: certificate.validity().not_after.timestamp(),
                pem: text,
            })
        })
        .collect()
}

/// A certificate in its Secret.
pub fn leaf(secret: Option<&Secret>) -> Option<LeafFacts> {
    let (chain, key) = (text(secret, "tls.crt")?, text(secret, "tls.key")?);
    let pem = pems(&chain).into_iter().next()?;
    let certificate = pem.parse_x509().ok()?;
    if !fits(&certificate, &key) {
        return None;
    }
    let common_name = certificate
        .subject()
        .iter_common_name()
        .next()
        .and_then(|name| name.as_str().ok())
        .unwrap_or_default();
    Some(LeafFacts {
        not_before: certificate.validity().not_before.timestamp(),
        not_after: certificate.validity().not_after.timestamp(),
        common_name: common_name.to_owned(),
        names: names(&certificate),
        issuer_key_id: authority_key_id(&certificate)?,
        bundle: text(secret, "ca.crt").unwrap_or_default(),
    })
}

fn fits(certificate: &X509Certificate<'_>, key: &str) -> bool {
    KeyPair::from_pem(key)
        .is_ok_and(|key| key.subject_public_key_info() == certificate.public_key().raw)
}

fn pems(text: &str) -> Vec<Pem> {
    Pem::iter_from_buffer(text.as_bytes())
        .filter_map(Result::ok)
        .collect()
}

/// The certificates of a bundle, each with its own text.
fn split(bundle: &str) -> Vec<String> {
    const END: &str = "-----END CERTIFICATE-----";
    bundle
        .split_inclusive(END)
        .map(str::trim_start)
        .filter(|text| text.ends_with(END))
        .map(|text| format!("{text}\n"))
        .collect()
}

fn subject_key_id(certificate: &X509Certificate<'_>) -> Option<Vec<u8>> {
    certificate
        .extensions()
        .iter()
        .find_map(|extension| match extension.parsed_extension() {
            ParsedExtension::SubjectKeyIdentifier(id) => Some(id.0.to_vec()),
            _ => None,
        })
}

fn authority_key_id(certificate: &X509Certificate<'_>) -> Option<Vec<u8>> {
    certificate
        .extensions()
        .iter()
        .find_map(|extension| match extension.parsed_extension() {
            ParsedExtension::AuthorityKeyIdentifier(id) => {
                id.key_identifier.as_ref().map(|id| id.0.to_vec())
            }
            _ => None,
        })
}

fn names(certificate: &X509Certificate<'_>) -> BTreeSet<String> {
    let Ok(Some(extension)) = certificate.subject_alternative_name() else {
        return BTreeSet::new();
    };
    extension
        .value
        .general_names
        .iter()
        .filter_map(|name| match name {
            GeneralName::DNSName(name) | GeneralName::URI(name) => Some((*name).to_owned()),
            GeneralName::IPAddress(bytes) => match bytes.len() {
                4 => <[u8; 4]>::try_from(*bytes)
                    .ok()
                    .map(|octets| IpAddr::from(octets).to_string()),
                16 => <[u8; 16]>::try_from(*bytes)
                    .ok()
                    .map(|octets| IpAddr::from(octets).to_string()),
                _ => None,
            },
            _ => None,
        })
        .collect()
}
