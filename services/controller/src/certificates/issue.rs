//! Generates keys, certificates and secrets. ECDSA P-256. Validity begins an hour early, for clocks
//! that are behind.

use super::model::{Ca, Leaf, Wanted};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType, date_time_ymd,
};
use std::net::IpAddr;
use std::time::Duration;

/// Seconds by which validity begins early.
pub const BACKDATE: i64 = 3600;
/// Lifetime of a CA: five years.
pub const CA_LIFE: i64 = 5 * 365 * 86_400;
/// Lifetime of a certificate: ninety days.
pub const LEAF_LIFE: i64 = 90 * 86_400;

/// Why nothing can be generated.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A key or certificate.
    #[error("cannot make a certificate")]
    Certificate(#[from] rcgen::Error),
    /// Random bytes.
    #[error("cannot read random bytes from the system")]
    Random,
}

/// A new CA for a release; `keep` stays in its bundle after it.
pub fn ca(now: i64, release: &str, keep: &[String]) -> Result<Ca, Error> {
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::new(Vec::<String>::new())?;
    // The name has the time, so that people can tell two CAs apart.
    params.distinguished_name.push(
        DnType::CommonName,
        format!("holdfast {release} internal CA {now}"),
    );
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![
        KeyUsagePurpose::KeyCertSign,
        KeyUsagePurpose::CrlSign,
        KeyUsagePurpose::DigitalSignature,
    ];
    validity(&mut params, now, CA_LIFE);
    let certificate = params.self_signed(&key)?.pem();
    let bundle = std::iter::once(certificate.as_str())
        .chain(keep.iter().map(String::as_str))
        .collect();
    Ok(Ca {
        certificate,
        key: key.serialize_pem(),
        bundle,
    })
}

/// A certificate and its key, PEM.
pub fn leaf(now: i64, ca: &Ca, want: &Wanted) -> Result<(String, String), Error> {
    let issuer = Issuer::from_ca_cert_pem(&ca.certificate, KeyPair::from_pem(&ca.key)?)?;
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::new(Vec::<String>::new())?;
    params
        .distinguished_name
        .push(DnType::CommonName, want.common_name);
    for name in &want.names {
        params.subject_alt_names.push(match name.parse::<IpAddr>() {
            Ok(address) => SanType::IpAddress(address),
            Err(_) if name.contains("://") => SanType::URI(name.as_str().try_into()?),
            Err(_) => SanType::DnsName(name.as_str().try_into()?),
        });
    }
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = match want.leaf {
        Leaf::Registry | Leaf::Controller => vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ],
        Leaf::Webhook => vec![ExtendedKeyUsagePurpose::ServerAuth],
        Leaf::NodeAgent => vec![ExtendedKeyUsagePurpose::ClientAuth],
    };
    params.use_authority_key_identifier_extension = true;
    validity(&mut params, now, LEAF_LIFE);
    let certificate = params.signed_by(&key, &issuer)?;
    Ok((certificate.pem(), key.serialize_pem()))
}

fn validity(params: &mut CertificateParams, now: i64, life: i64) {
    let at = |seconds: i64| {
        date_time_ymd(1970, 1, 1) + Duration::from_secs(u64::try_from(seconds).unwrap_or(0))
    };
    params.not_before = at(now - BACKDATE);
    params.not_after = at(now - BACKDATE + life);
}

/// 32 random bytes as 64 hexadecimal characters.
pub fn random_secret() -> Result<String, Error> {
    use std::fmt::Write as _;
    let mut bytes = [0_u8; 32];
    getrandom::fill(&mut bytes).map_err(|_| Error::Random)?;
    Ok(bytes
        .iter()
        .fold(String::with_capacity(64), |mut text, byte| {
            write!(text, "{byte:02x}").expect("writing into a String cannot fail");
            text
        }))
}
