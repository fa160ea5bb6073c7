//! Tokens with keys that are made here: what is accepted, and what must be refused.

use aws_lc_rs::{
    encoding::AsDer as _,
    rand::SystemRandom,
    rsa::{KeySize, PublicKeyComponents},
    signature::{self, EcdsaKeyPair, Ed25519KeyPair, KeyPair as _, RsaKeyPair},
};
use holdfast_config::RsaAlgorithm;
use serde_json::{Value, json};

use super::{super::keys, *};

const NOW: f64 = 1_700_000_000.0;

enum Signer {
    Ed(Ed25519KeyPair),
    Ec(EcdsaKeyPair),
    Rsa(Box<RsaKeyPair>),
}

impl Signer {
    fn ed() -> Self {
        Self::Ed(Ed25519KeyPair::generate().unwrap())
    }

    fn ec() -> Self {
        Self::Ec(EcdsaKeyPair::generate(&signature::ECDSA_P256_SHA256_FIXED_SIGNING).unwrap())
    }

    fn rsa() -> Self {
        Self::Rsa(Box::new(RsaKeyPair::generate(KeySize::Rsa2048).unwrap()))
    }

    fn jwk(&self, extra: &Value) -> Value {
        let text = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
        let mut jwk = match self {
            Self::Ed(pair) => {
                json!({"kty": "OKP", "crv": "Ed25519", "x": text(pair.public_key().as_ref())})
            }
            Self::Ec(pair) => {
                let point = pair.public_key().as_ref();
                json!({"kty": "EC", "crv": "P-256", "x": text(&point[1..33]), "y": text(&point[33..])})
            }
            Self::Rsa(pair) => {
                let components: PublicKeyComponents<Vec<u8>> = pair.public_key().into();
                json!({"kty": "RSA", "n": text(&components.n), "e": text(&components.e)})
            }
        };
        for (key, value) in extra.as_object().unwrap() {
            jwk[key] = value.clone();
        }
        jwk
    }

    fn sign(&self, message: &[u8], algorithm: &str) -> Vec<u8> {
        let random = SystemRandom::new();
        match self {
            Self::Ed(pair) => pair.sign(message).as_ref().to_vec(),
            Self::Ec(pair) => pair.sign(&random, message).unwrap().as_ref().to_vec(),
            Self::Rsa(pair) => {
                let padding: &dyn signature::RsaEncoding = match algorithm {
                    "RS384" => &signature::RSA_PKCS1_SHA384,
                    "RS512" => &signature::RSA_PKCS1_SHA512,
                    "PS256" => &signature::RSA_PSS_SHA256,
                    _ => &signature::RSA_PKCS1_SHA256,
                };
                let mut signature = vec![0; pair.public_modulus_len()];
                pair.sign(padding, &random, message, &mut signature)
                    .unwrap();
                signature
            }
        }
    }

    fn token(&self, header: &Value, payload: &Value) -> String {
        let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let signed = format!("{}.{}", part(header), part(payload));
        let algorithm = header["alg"].as_str().unwrap_or_default();
        let signature = self.sign(signed.as_bytes(), algorithm);
        format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature))
    }
}

fn keys_of(jwks: &[Value]) -> Vec<Key> {
    let file = json!({ "keys": jwks }).to_string();
    keys::parse(file.as_bytes(), RsaAlgorithm::RS256).unwrap_or_else(|error| panic!("{error}"))
}

fn payload() -> Value {
    json!({
        "iss": "auth", "sub": "ci", "aud": "registry", "exp": NOW + 300.0, "nbf": NOW,
        "access": [
            {"type": "repository", "name": "team/app", "actions": ["pull", "push"]},
            {"type": "registry", "name": "catalog", "actions": ["*"]},
        ],
    })
}

fn check(token: &str, keys: &[Key]) -> Result<Claims, Error> {
    let expected = Expected {
        issuer: "auth",
        service: "registry",
    };
    verify(token, keys, expected, NOW)
}

#[test]
fn every_algorithm_that_is_taken_verifies_with_its_own_key_only() {
    let (ed, ec, rsa) = (Signer::ed(), Signer::ec(), Signer::rsa());
    for (signer, algorithm) in [
        (&ed, "EdDSA"),
        (&ec, "ES256"),
        (&rsa, "RS256"),
        (&rsa, "RS384"),
        (&rsa, "RS512"),
        (&rsa, "PS256"),
    ] {
        let keys = keys_of(&[signer.jwk(&json!({"alg": algorithm, "kid": "k"}))]);
        let token = signer.token(&json!({"alg": algorithm, "kid": "k"}), &payload());
        let claims = check(&token, &keys).unwrap_or_else(|error| panic!("{algorithm}: {error}"));
        assert_eq!(claims.subject(), "ci");
        for other in [Signer::ed(), Signer::ec()] {
            let others = keys_of(&[other.jwk(&json!({"kid": "k"}))]);
            assert!(check(&token, &others).is_err(), "{algorithm}");
        }
    }
}

#[test]
fn a_key_is_used_with_its_one_algorithm() {
    let rsa = Signer::rsa();
    let pinned = keys_of(&[rsa.jwk(&json!({"alg": "RS256"}))]);
    let natural = keys_of(&[rsa.jwk(&json!({}))]);
    for keys in [&pinned, &natural] {
        let token = |alg: &str| rsa.token(&json!({ "alg": alg }), &payload());
        assert!(check(&token("RS256"), keys).is_ok());
        for alg in ["RS384", "RS512", "PS256", "ES256", "EdDSA"] {
            assert_eq!(check(&token(alg), keys), Err(Error::Key), "{alg}");
        }
        for alg in ["none", "None", "HS256", ""] {
            assert_eq!(check(&token(alg), keys), Err(Error::Algorithm), "{alg}");
        }
    }
}

#[test]
fn a_public_key_as_a_secret_signs_nothing() {
    // The classic confusion: HMAC with the RSA key that everybody knows.
    let rsa = Signer::rsa();
    let keys = keys_of(&[rsa.jwk(&json!({}))]);
    let Signer::Rsa(pair) = &rsa else {
        unreachable!()
    };
    let der = pair.public_key().as_der().unwrap();
    let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let signed = format!("{}.{}", part(&json!({"alg": "HS256"})), part(&payload()));
    let key = aws_lc_rs::hmac::Key::new(aws_lc_rs::hmac::HMAC_SHA256, der.as_ref());
    let tag = aws_lc_rs::hmac::sign(&key, signed.as_bytes());
    let token = format!("{signed}.{}", URL_SAFE_NO_PAD.encode(tag));
    assert_eq!(check(&token, &keys), Err(Error::Algorithm));
}

#[test]
fn a_key_in_the_token_is_not_looked_at() {
    let (ours, theirs) = (Signer::ed(), Signer::ed());
    let keys = keys_of(&[ours.jwk(&json!({"kid": "k"}))]);
    for header in [
        json!({"alg": "EdDSA", "kid": "k", "jwk": theirs.jwk(&json!({"kid": "k"}))}),
        json!({"alg": "EdDSA", "jwk": theirs.jwk(&json!({}))}),
        json!({"alg": "EdDSA", "jku": "https://evil.example/keys"}),
        json!({"alg": "EdDSA", "x5c": ["AAAA"]}),
    ] {
        let token = theirs.token(&header, &payload());
        assert_eq!(check(&token, &keys), Err(Error::Signature), "{header}");
    }
    let unknown = ours.token(&json!({"alg": "EdDSA", "kid": "other"}), &payload());
    assert_eq!(check(&unknown, &keys), Err(Error::Key));
    let nameless = ours.token(&json!({"alg": "EdDSA"}), &payload());
    assert!(check(&nameless, &keys).is_ok(), "then every key is tried");
}

#[test]
fn claims_are_checked_with_a_minute_of_leeway() {
    let signer = Signer::ed();
    let keys = keys_of(&[signer.jwk(&json!({}))]);
    let with = |key: &str, value: Value| {
        let mut payload = payload();
        payload[key] = value;
        check(&signer.token(&json!({"alg": "EdDSA"}), &payload), &keys).map(|_| ())
    };
    for (key, value, expect) in [
        ("iss", json!("auth"), Ok(())),
        ("iss", json!("other"), Err(Error::Issuer)),
        ("iss", json!(null), Err(Error::Form)),
        ("aud", json!(["x", "registry"]), Ok(())),
        ("aud", json!("x"), Err(Error::Audience)),
        ("aud", json!([]), Err(Error::Audience)),
        ("aud", json!(null), Err(Error::Form)),
        ("exp", json!(NOW - 59.0), Ok(())),
        ("exp", json!(NOW - 60.0), Err(Error::Expired)),
        ("exp", json!(null), Err(Error::Form)),
        ("exp", json!("2099"), Err(Error::Form)),
        ("nbf", json!(NOW + 60.0), Ok(())),
        ("nbf", json!(NOW + 61.0), Err(Error::NotYet)),
        ("nbf", json!(null), Ok(())),
        ("access", json!(null), Ok(())),
        ("access", json!("all"), Err(Error::Form)),
    ] {
        assert_eq!(with(key, value.clone()), expect, "{key} {value}");
    }
}

#[test]
fn broken_tokens_are_refused() {
    let signer = Signer::ed();
    let keys = keys_of(&[signer.jwk(&json!({}))]);
    let good = signer.token(&json!({"alg": "EdDSA"}), &payload());
    let (signed, signature) = good.rsplit_once('.').unwrap();
    let (header, _) = signed.split_once('.').unwrap();
    let mut altered = payload();
    altered["sub"] = json!("root");
    let altered = URL_SAFE_NO_PAD.encode(altered.to_string());
    for (token, expect) in [
        (format!("{header}.{altered}.{signature}"), Error::Signature),
        (format!("{signed}."), Error::Signature),
        (signed.to_owned(), Error::Form),
        (format!("{good}.{signature}"), Error::Form),
        ("..".to_owned(), Error::Form),
        (String::new(), Error::Form),
        (format!("{good}="), Error::Form),
        (
            signer.token(&json!({"alg": "EdDSA", "crit": ["exp"]}), &payload()),
            Error::Form,
        ),
        ("x".repeat(limits::TOKEN_BYTES + 1), Error::Form),
    ] {
        assert_eq!(check(&token, &keys), Err(expect), "{token}");
    }
}

#[test]
fn access_is_by_type_name_and_action() {
    let signer = Signer::ed();
    let keys = keys_of(&[signer.jwk(&json!({}))]);
    let claims = check(&signer.token(&json!({"alg": "EdDSA"}), &payload()), &keys).unwrap();
    for (kind, name, action, expect) in [
        ("repository", "team/app", "pull", true),
        ("repository", "team/app", "push", true),
        ("repository", "team/app", "delete", false),
        ("repository", "team", "pull", false),
        ("repository", "team/app/x", "pull", false),
        ("registry", "catalog", "pull", true),
        ("repository", "catalog", "pull", false),
    ] {
        assert_eq!(
            claims.allow(kind, name, action),
            expect,
            "{kind}:{name}:{action}"
        );
    }
}
