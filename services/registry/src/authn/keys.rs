//! Public keys that verify tokens: from a file of the configuration, each with the one algorithm
//! that it may be used for. Pure.
//!
//! The file is a JWKS document (RFC 7517) or PEM certificates and public keys; keys in tokens are
//! ignored (CVE-2025-24976).

use aws_lc_rs::{
    rsa::PublicKeyComponents,
    signature::{self, UnparsedPublicKey, VerificationAlgorithm},
};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use holdfast_config::RsaAlgorithm;
use serde::Deserialize;
use x509_parser::{pem::Pem, prelude::FromDer as _, x509::SubjectPublicKeyInfo};

use crate::limits;

/// The algorithm of a signature, by its name in RFC 7518 and RFC 8037. Neither `none` nor symmetric
/// algorithms are accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Algorithm {
    /// RSA PKCS #1 v1.5 with SHA-256.
    Rs256,
    /// RSA PKCS #1 v1.5 with SHA-384.
    Rs384,
    /// RSA PKCS #1 v1.5 with SHA-512.
    Rs512,
    /// RSA PSS with SHA-256.
    Ps256,
    /// ECDSA on P-256 with SHA-256.
    Es256,
    /// ECDSA on P-384 with SHA-384.
    Es384,
    /// Ed25519.
    EdDsa,
}

impl Algorithm {
    /// By its name; `None` if it is not supported.
    pub(crate) fn parse(name: &str) -> Option<Self> {
        Some(match name {
            "RS256" => Self::Rs256,
            "RS384" => Self::Rs384,
            "RS512" => Self::Rs512,
            "PS256" => Self::Ps256,
            "ES256" => Self::Es256,
            "ES384" => Self::Es384,
            "EdDSA" | "Ed25519" => Self::EdDsa,
            _ => return None,
        })
    }

    fn is_rsa(self) -> bool {
        matches!(self, Self::Rs256 | Self::Rs384 | Self::Rs512 | Self::Ps256)
    }
}

impl From<RsaAlgorithm> for Algorithm {
    fn from(algorithm: RsaAlgorithm) -> Self {
        match algorithm {
            RsaAlgorithm::RS256 => Self::Rs256,
            RsaAlgorithm::RS384 => Self::Rs384,
            RsaAlgorithm::RS512 => Self::Rs512,
            RsaAlgorithm::PS256 => Self::Ps256,
        }
    }
}

/// Why a file of keys is refused. Keys are counted from one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Error {
    /// Neither JWKS nor PEM.
    #[error("the file is neither a JWKS document nor PEM certificates or public keys")]
    Form,
    /// No key at all.
    #[error("the file holds no key")]
    Empty,
    /// Too many.
    #[error("the file holds more than {} keys", limits::TOKEN_KEYS)]
    TooMany,
    /// One key cannot be used.
    #[error("key {number}: {reason}")]
    Key {
        /// Which.
        number: usize,
        /// Why.
        reason: &'static str,
    },
}

enum Material {
    Rsa { n: Vec<u8>, e: Vec<u8> },
    Raw(Vec<u8>),
}

/// A key with its one algorithm.
pub(crate) struct Key {
    id: Option<String>,
    algorithm: Algorithm,
    material: Material,
}

impl Key {
    /// Whether a token with this header may be checked with the key.
    pub(crate) fn fits(&self, algorithm: Algorithm, id: Option<&str>) -> bool {
        self.algorithm == algorithm
            && match (&self.id, id) {
                (Some(own), Some(id)) => own == id,
                _ => true,
            }
    }

    /// Whether the signature is this key's.
    pub(crate) fn verifies(&self, message: &[u8], signature: &[u8]) -> bool {
        let rsa = match self.algorithm {
            Algorithm::Rs256 => &signature::RSA_PKCS1_2048_8192_SHA256,
            Algorithm::Rs384 => &signature::RSA_PKCS1_2048_8192_SHA384,
            Algorithm::Rs512 => &signature::RSA_PKCS1_2048_8192_SHA512,
            _ => &signature::RSA_PSS_2048_8192_SHA256,
        };
        match &self.material {
            Material::Rsa { n, e } => PublicKeyComponents { n, e }
                .verify(rsa, message, signature)
                .is_ok(),
            Material::Raw(bytes) => {
                let algorithm: &'static dyn VerificationAlgorithm = match self.algorithm {
                    Algorithm::Es256 => &signature::ECDSA_P256_SHA256_FIXED,
                    Algorithm::Es384 => &signature::ECDSA_P384_SHA384_FIXED,
                    Algorithm::EdDsa => &signature::ED25519,
                    _ => rsa,
                };
                UnparsedPublicKey::new(algorithm, bytes)
                    .verify(message, signature)
                    .is_ok()
            }
        }
    }
}

/// Reads a file of keys. RSA keys that do not name their algorithm are used with `rsa`.
///
/// # Errors
/// [`Error`]; one invalid key refuses the file, so that a mistake is noticed.
pub(crate) fn parse(file: &[u8], rsa: RsaAlgorithm) -> Result<Vec<Key>, Error> {
    let keys = if file.trim_ascii_start().starts_with(b"{") {
        jwks(file, rsa.into())?
    } else {
        pem(file, rsa.into())?
    };
    match keys.len() {
        0 => Err(Error::Empty),
        count if limits::TOKEN_KEYS < count => Err(Error::TooMany),
        _ => Ok(keys),
    }
}

#[derive(Deserialize)]
struct Document {
    keys: Vec<Jwk>,
}

#[derive(Deserialize)]
struct Jwk {
    kty: String,
    #[serde(default)]
    kid: Option<String>,
    #[serde(default, rename = "use")]
    usage: Option<String>,
    #[serde(default)]
    alg: Option<String>,
    #[serde(default)]
    crv: Option<String>,
    #[serde(default)]
    n: Option<String>,
    #[serde(default)]
    e: Option<String>,
    #[serde(default)]
    x: Option<String>,
    #[serde(default)]
    y: Option<String>,
    #[serde(default)]
    d: Option<serde::de::IgnoredAny>,
}

fn jwks(file: &[u8], rsa: Algorithm) -> Result<Vec<Key>, Error> {
    let document: Document = serde_json::from_slice(file).map_err(|_| Error::Form)?;
    document
        .keys
        .into_iter()
        .enumerate()
        .filter(|(_, jwk)| jwk.usage.as_deref().is_none_or(|usage| usage == "sig"))
        .map(|(index, jwk)| {
            self::jwk(jwk, rsa).map_err(|reason| Error::Key {
                number: index + 1,
                reason,
            })
        })
        .collect()
}

fn jwk(jwk: Jwk, rsa: Algorithm) -> Result<Key, &'static str> {
    if jwk.d.is_some() {
        return Err("it is a private key; the file holds public keys only");
    }
    let bytes = |text: Option<&str>| {
        text.and_then(|text| URL_SAFE_NO_PAD.decode(text.trim_end_matches('=')).ok())
            .ok_or("a number is missing or does not parse")
    };
    let curve = jwk.crv.as_deref().unwrap_or_default();
    let (natural, material) = match (jwk.kty.as_str(), curve) {
        ("RSA", _) => {
            let (n, e) = (bytes(jwk.n.as_deref())?, bytes(jwk.e.as_deref())?);
            let n: Vec<u8> = n.into_iter().skip_while(|byte| *byte == 0).collect();
            if !(256..=1024).contains(&n.len()) {
                return Err("RSA keys have 2048 to 8192 bits");
            }
            (rsa, Material::Rsa { n, e })
        }
        ("EC", "P-256") => (
            Algorithm::Es256,
            point(bytes(jwk.x.as_deref())?, bytes(jwk.y.as_deref())?, 32)?,
        ),
        ("EC", "P-384") => (
            Algorithm::Es384,
            point(bytes(jwk.x.as_deref())?, bytes(jwk.y.as_deref())?, 48)?,
        ),
        ("OKP", "Ed25519") => {
            let x = bytes(jwk.x.as_deref())?;
            if x.len() != 32 {
                return Err("an Ed25519 key has 32 bytes");
            }
            (Algorithm::EdDsa, Material::Raw(x))
        }
        ("oct", _) => return Err("symmetric keys are not supported"),
        _ => {
            return Err(
                "its type is not supported (RSA; EC with P-256 or P-384; OKP with Ed25519)",
            );
        }
    };
    let algorithm = match jwk.alg.as_deref() {
        None => natural,
        Some(name) => Algorithm::parse(name)
            .filter(|named| *named == natural || (named.is_rsa() && natural.is_rsa()))
            .ok_or("its alg is not supported or does not fit its type")?,
    };
    Ok(Key {
        id: jwk.kid,
        algorithm,
        material,
    })
}

fn point(x: Vec<u8>, y: Vec<u8>, length: usize) -> Result<Material, &'static str> {
    if x.len() != length || y.len() != length {
        return Err("the point does not have the curve's size");
    }
    Ok(Material::Raw([vec![4], x, y].concat()))
}

fn pem(file: &[u8], rsa: Algorithm) -> Result<Vec<Key>, Error> {
    let mut keys = Vec::new();
    for (index, block) in Pem::iter_from_buffer(file).enumerate() {
        let fail = |reason| Error::Key {
            number: index + 1,
            reason,
        };
        let block = block.map_err(|_| Error::Form)?;
        let key = match block.label.as_str() {
            "CERTIFICATE" => {
                let (_, certificate) = x509_parser::parse_x509_certificate(&block.contents)
                    .map_err(|_| fail("the certificate does not parse"))?;
                public_key(certificate.public_key(), rsa)
            }
            "PUBLIC KEY" => {
                let (_, info) = SubjectPublicKeyInfo::from_der(&block.contents)
                    .map_err(|_| fail("the public key does not parse"))?;
                public_key(&info, rsa)
            }
            label if label.ends_with("PRIVATE KEY") => {
                Err("it is a private key; the file holds public keys only")
            }
            _ => Err("only CERTIFICATE and PUBLIC KEY are supported"),
        };
        keys.push(key.map_err(fail)?);
    }
    if keys.is_empty() {
        return Err(if file.trim_ascii().is_empty() {
            Error::Empty
        } else {
            Error::Form
        });
    }
    Ok(keys)
}

fn public_key(info: &SubjectPublicKeyInfo<'_>, rsa: Algorithm) -> Result<Key, &'static str> {
    const RSA: &str = "1.2.840.113549.1.1.1";
    const EC: &str = "1.2.840.10045.2.1";
    const P256: &str = "1.2.840.10045.3.1.7";
    const P384: &str = "1.3.132.0.34";
    const ED25519: &str = "1.3.101.112";
    let curve = info
        .algorithm
        .parameters
        .as_ref()
        .and_then(|parameters| parameters.as_oid().ok())
        .map(|oid| oid.to_id_string())
        .unwrap_or_default();
    let algorithm = match (
        info.algorithm.algorithm.to_id_string().as_str(),
        curve.as_str(),
    ) {
        (RSA, _) => rsa,
        (EC, P256) => Algorithm::Es256,
        (EC, P384) => Algorithm::Es384,
        (ED25519, _) => Algorithm::EdDsa,
        _ => return Err("its type is not supported (RSA; EC with P-256 or P-384; Ed25519)"),
    };
    Ok(Key {
        id: None,
        algorithm,
        material: Material::Raw(info.subject_public_key.data.to_vec()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(file: &str) -> String {
        parse(file.as_bytes(), RsaAlgorithm::RS256)
            .err()
            .map(|error| error.to_string())
            .unwrap_or_default()
    }

    #[test]
    fn keys_that_are_of_no_use_are_refused_by_number() {
        let x = URL_SAFE_NO_PAD.encode([1; 32]);
        let n = URL_SAFE_NO_PAD.encode([1; 128]);
        let okp = format!(r#"{{"kty":"OKP","crv":"Ed25519","x":"{x}"}}"#);
        for (keys, expect) in [
            (okp.clone(), ""),
            (
                format!(r#"{{"kty":"EC","crv":"P-256","x":"{x}","y":"{x}"}}"#),
                "",
            ),
            (
                format!(r#"{okp},{{"kty":"oct","k":"AAAA"}}"#),
                "key 2: symmetric keys are not supported",
            ),
            (
                format!(r#"{{"kty":"OKP","crv":"Ed25519","x":"{x}","d":"{x}"}}"#),
                "key 1: it is a private key",
            ),
            (
                format!(r#"{{"kty":"RSA","n":"{n}","e":"AQAB"}}"#),
                "key 1: RSA keys have 2048",
            ),
            (
                format!(r#"{{"kty":"OKP","crv":"Ed25519","x":"{x}","alg":"RS256"}}"#),
                "key 1: its alg",
            ),
            (
                format!(r#"{{"kty":"EC","crv":"P-256","x":"{x}","y":"AA"}}"#),
                "key 1: the point",
            ),
            (
                format!(r#"{{"kty":"EC","crv":"secp256k1","x":"{x}","y":"{x}"}}"#),
                "key 1: its type",
            ),
            (
                format!(r#"{{"kty":"OKP","crv":"Ed25519","x":"{x}","use":"enc"}}"#),
                "holds no key",
            ),
            (String::new(), "holds no key"),
            (vec![okp; 33].join(","), "more than 32"),
        ] {
            let message = refusal(&format!(r#"{{"keys":[{keys}]}}"#));
            assert!(message.contains(expect), "{keys}: {message}");
            assert_eq!(message.is_empty(), expect.is_empty(), "{keys}: {message}");
        }
        assert!(refusal("").contains("no key"));
        assert!(refusal("hello").contains("neither"));
        assert!(refusal("{}").contains("neither"));
    }

    #[test]
    fn certificates_and_public_keys_are_taken_and_private_ones_are_not() {
        let key = rcgen::KeyPair::generate().unwrap();
        let certificate = rcgen::CertificateParams::new(Vec::<String>::new())
            .unwrap()
            .self_signed(&key)
            .unwrap();
        let both = format!("{}{}", certificate.pem(), key.public_key_pem());
        let keys =
            parse(both.as_bytes(), RsaAlgorithm::RS256).unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(keys.len(), 2);
        assert!(keys.iter().all(|key| key.fits(Algorithm::Es256, Some("x"))));
        assert!(refusal(&key.serialize_pem()).contains("key 1: it is a private key"));
    }
}
