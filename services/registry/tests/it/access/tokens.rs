//! Tokens of an authorization service, as clients of the distribution registry bring them.

use std::path::Path;

use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair as _};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use holdfast_config::{AccessSettings, RsaAlgorithm, TokenSettings};
use holdfast_registry::access_control::AccessControl;
use holdfast_runtime::metrics::unix_seconds;
use serde_json::{Value, json};

use crate::harness::{Registry, Setup, code, header, sha256};

/// An authorization service.
pub(crate) struct Service(Ed25519KeyPair);

impl Service {
    pub(crate) fn new() -> Self {
        Self(Ed25519KeyPair::generate().unwrap())
    }

    pub(crate) fn jwks(&self) -> String {
        let x = URL_SAFE_NO_PAD.encode(self.0.public_key().as_ref());
        json!({"keys": [{"kty": "OKP", "crv": "Ed25519", "kid": "one", "x": x}]}).to_string()
    }

    fn sign(&self, claims: &Value) -> String {
        let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let signed = format!(
            "{}.{}",
            part(&json!({"alg": "EdDSA", "kid": "one"})),
            part(claims)
        );
        let signature = URL_SAFE_NO_PAD.encode(self.0.sign(signed.as_bytes()));
        format!("Bearer {signed}.{signature}")
    }

    /// A token for one scope, `type:name:action,action`.
    pub(crate) fn token(&self, scope: &str) -> String {
        let mut parts = scope.split(':');
        let mut next = || parts.next().unwrap_or_default();
        let (kind, name) = (next(), next());
        let actions: Vec<_> = next().split(',').collect();
        self.sign(&json!({
            "iss": "auth", "sub": "ci", "aud": "registry.example", "exp": unix_seconds() + 300.0,
            "access": [{"type": kind, "name": name, "actions": actions}],
        }))
    }
}

pub(crate) fn settings(keys: &Path) -> TokenSettings {
    TokenSettings {
        keys: keys.to_owned(),
        realm: "https://auth.example/token".to_owned(),
        service: "registry.example".to_owned(),
        issuer: "auth".to_owned(),
        rsa_algorithm: RsaAlgorithm::RS256,
    }
}

async fn start(service: &Service) -> Registry {
    let folder = tempfile::tempdir().unwrap();
    let keys = folder.path().join("keys");
    std::fs::write(&keys, service.jwks()).unwrap();
    let access = AccessSettings {
        token: Some(settings(&keys)),
        ..AccessSettings::default()
    };
    Setup {
        access_control: AccessControl::from_settings(None, Some(&access)).unwrap(),
        ..Setup::default()
    }
    .start()
    .await
}

#[tokio::test]
async fn a_client_is_sent_to_the_service_and_comes_back_with_a_token() {
    let service = Service::new();
    let registry = start(&service).await;
    let base = r#"Bearer realm="https://auth.example/token",service="registry.example""#;
    let answer = registry.get("/v2/").await;
    assert_eq!(header(answer.headers(), "www-authenticate"), base);
    let upload = format!("/v2/team/app/blobs/uploads/?digest={}", sha256(b"x"));
    let answer = registry.send("POST", &upload, &[], "x").await;
    assert_eq!(
        header(answer.headers(), "www-authenticate"),
        format!(r#"{base},scope="repository:team/app:pull,push""#)
    );
    let with = async |method: &str, path: &str, scope: &str| {
        let token = service.token(scope);
        registry
            .send(method, path, &[("authorization", &token)], "x")
            .await
    };
    let pull = "repository:team/app:pull";
    let push = "repository:team/app:pull,push";
    let blob = format!("/v2/team/app/blobs/{}", sha256(b"x"));
    assert_eq!(with("GET", "/v2/", pull).await.status(), 200);
    let refused = with("POST", &upload, pull).await;
    assert!(
        header(refused.headers(), "www-authenticate").ends_with(r#",error="insufficient_scope""#)
    );
    assert_eq!(code(refused).await, (401, "UNAUTHORIZED".into()));
    assert_eq!(with("POST", &upload, push).await.status(), 201);
    assert_eq!(with("GET", &blob, pull).await.status(), 200);
    assert_eq!(
        with("GET", &blob, "repository:other:pull").await.status(),
        401
    );
    assert_eq!(with("DELETE", &blob, push).await.status(), 401);
    assert_eq!(
        with("DELETE", &blob, "repository:team/app:delete")
            .await
            .status(),
        202
    );
    assert_eq!(with("GET", "/v2/_catalog", pull).await.status(), 401);
    assert_eq!(
        with("GET", "/v2/_catalog", "registry:catalog:*")
            .await
            .status(),
        200
    );
}

#[tokio::test]
async fn tokens_of_others_and_old_ones_are_refused() {
    let (service, other) = (Service::new(), Service::new());
    let registry = start(&service).await;
    let now = unix_seconds();
    let claims = |exp: f64, aud: &str, iss: &str| json!({"iss": iss, "sub": "ci", "aud": aud, "exp": exp, "access": []});
    for (token, expect) in [
        (
            service.sign(&claims(now + 300.0, "registry.example", "auth")),
            200,
        ),
        (other.token("repository:a:pull"), 401),
        (
            service.sign(&claims(now - 90.0, "registry.example", "auth")),
            401,
        ),
        (service.sign(&claims(now + 300.0, "elsewhere", "auth")), 401),
        (
            service.sign(&claims(now + 300.0, "registry.example", "x")),
            401,
        ),
        (format!("Bearer {}", "x".repeat(17 << 10)), 401),
        ("Bearer".to_owned(), 401),
    ] {
        let answer = registry
            .send("GET", "/v2/", &[("authorization", &token)], "")
            .await;
        assert_eq!(answer.status(), expect, "{token:.80}");
    }
}

#[tokio::test]
async fn a_mount_needs_to_pull_from_where_it_mounts() {
    let service = Service::new();
    let registry = start(&service).await;
    let digest = sha256(b"x");
    let upload = format!("/v2/base/blobs/uploads/?digest={digest}");
    let token = service.token("repository:base:pull,push");
    let pushed = registry
        .send("POST", &upload, &[("authorization", &token)], "x")
        .await;
    assert_eq!(pushed.status(), 201);
    let mount = format!("/v2/app/blobs/uploads/?mount={digest}&from=base");
    let answer = registry.send("POST", &mount, &[], "").await;
    assert!(
        header(answer.headers(), "www-authenticate")
            .ends_with(r#",scope="repository:app:pull,push repository:base:pull""#)
    );
    let only_app = service.token("repository:app:pull,push");
    let answer = registry
        .send("POST", &mount, &[("authorization", &only_app)], "")
        .await;
    assert_eq!(
        answer.status(),
        202,
        "a session instead of what it may not read"
    );
    let both = service.sign(&json!({
        "iss": "auth", "aud": "registry.example", "exp": unix_seconds() + 300.0,
        "access": [
            {"type": "repository", "name": "app", "actions": ["pull", "push"]},
            {"type": "repository", "name": "base", "actions": ["pull"]},
        ],
    }));
    let answer = registry
        .send("POST", &mount, &[("authorization", &both)], "")
        .await;
    assert_eq!(answer.status(), 201);
}
