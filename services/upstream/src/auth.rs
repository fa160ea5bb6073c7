//! Challenges of an upstream and the answers to them: which realm may see a credential.

use std::{fmt, time::Duration};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use holdfast_api::fill::Credential;
use serde::Deserialize;
use serde_json::Value;
use url::Url;

use crate::limits::{UPSTREAM_CHALLENGE_BYTES, UPSTREAM_TOKEN_BYTES};

/// A user name and password, or an identity token, for one upstream; prints without its password
/// (SPEC 82).
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Login {
    username: String,
    password: String,
    is_identity: bool,
}

impl Login {
    /// A login.
    pub fn new(username: &str, password: &str) -> Self {
        Self {
            username: username.to_owned(),
            password: password.to_owned(),
            is_identity: false,
        }
    }

    /// A login by an OAuth 2 refresh token; registries that ask for a password get it under
    /// `username`, where there is one.
    pub fn identity(username: &str, token: &str) -> Self {
        Self {
            is_identity: true,
            ..Self::new(username, token)
        }
    }

    /// The login as a request of the internal API carries it.
    pub fn to_credential(&self) -> Credential {
        Credential {
            username: self.username.clone(),
            password: self.password.as_str().into(),
            identity_token: self.is_identity,
        }
    }

    /// The refresh token, if this login is one.
    pub(super) fn refresh_token(&self) -> Option<&str> {
        self.is_identity.then_some(self.password.as_str())
    }

    /// Bytes of its texts.
    pub(super) fn bytes(&self) -> usize {
        self.username.len() + self.password.len()
    }

    /// The value of an `Authorization: Basic` header.
    pub(super) fn basic(&self) -> String {
        // The name that docker writes beside a token.
        let username = match self.username.as_str() {
            "" if self.is_identity => "<token>",
            username => username,
        };
        format!(
            "Basic {}",
            BASE64_STANDARD.encode(format!("{username}:{}", self.password))
        )
    }
}

impl fmt::Debug for Login {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Login")
            .field("username", &self.username)
            .finish_non_exhaustive()
    }
}

/// What an upstream asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Challenge {
    /// User and password with every request.
    Basic,
    /// A token from a realm.
    Bearer {
        /// The token server.
        realm: Url,
        /// Its name for the registry.
        service: Option<String>,
        /// What the registry wants the token to be for, as it says it; absent where it does not
        /// say.
        scope: Option<String>,
    },
}

impl Challenge {
    /// Parses a `WWW-Authenticate` value; `None` when it asks for something else.
    pub(super) fn parse(value: &str) -> Option<Self> {
        let (scheme, rest) = value
            .trim()
            .split_once(' ')
            .unwrap_or_else(|| (value.trim(), ""));
        if scheme.eq_ignore_ascii_case("basic") {
            return Some(Self::Basic);
        }
        if !scheme.eq_ignore_ascii_case("bearer") {
            return None;
        }
        let mut realm = None;
        let mut service = None;
        let mut scope = None;
        for (name, value) in parameters(rest) {
            match name.to_ascii_lowercase().as_str() {
                "realm" => {
                    realm = Url::parse(&value)
                        .ok()
                        .filter(|url| matches!(url.scheme(), "http" | "https"));
                }
                "service" => service = Some(value),
                "scope" => scope = scope.or_else(|| sane_scope(&value)),
                _ => {}
            }
        }
        let realm = realm?;
        let bytes = realm.as_str().len() + service.as_ref().map_or(0, String::len);
        (bytes <= UPSTREAM_CHALLENGE_BYTES).then_some(Self::Bearer {
            realm,
            service,
            scope,
        })
    }

    /// The challenge without its scope: that of another path is no answer for this one.
    pub(super) fn without_scope(self) -> Self {
        match self {
            Self::Basic => Self::Basic,
            Self::Bearer { realm, service, .. } => Self::Bearer {
                realm,
                service,
                scope: None,
            },
        }
    }
}

/// Longest scope that is taken from a challenge, bytes.
const MAX_SCOPE_BYTES: usize = 1024;

/// The scope of a challenge as it may be asked for: scope tokens of RFC 6749, section 3.3, one
/// space between two of them.
fn sane_scope(text: &str) -> Option<String> {
    let is_token = |c: char| c.is_ascii_graphic() && c != '"' && c != '\\';
    let parts: Vec<&str> = text.split(' ').filter(|part| !part.is_empty()).collect();
    let is_sane = !parts.is_empty()
        && text.len() <= MAX_SCOPE_BYTES
        && parts.iter().all(|part| part.chars().all(is_token));
    is_sane.then(|| parts.join(" "))
}

/// The realm of a challenge that asks for a token.
pub fn realm(value: &str) -> Option<Url> {
    match Challenge::parse(value)? {
        Challenge::Basic => None,
        Challenge::Bearer { realm, .. } => Some(realm),
    }
}

fn parameters(mut text: &str) -> Vec<(String, String)> {
    let mut found = Vec::new();
    while let Some((name, rest)) = text.split_once('=') {
        let name = name.trim_matches([' ', ',', '\t']).to_owned();
        let (value, rest) = if let Some(quoted) = rest.strip_prefix('"') {
            let mut value = String::new();
            let mut characters = quoted.chars();
            loop {
                match characters.next() {
                    None | Some('"') => break,
                    Some('\\') => value.extend(characters.next()),
                    Some(character) => value.push(character),
                }
            }
            (value, characters.as_str())
        } else {
            let (value, rest) = rest.split_once(',').unwrap_or((rest, ""));
            (value.trim().to_owned(), rest)
        };
        found.push((name, value));
        text = rest;
    }
    found
}

/// Names under which strangers rent sub-domains: a shared parent there proves nothing.
const SHARED_PARENTS: [&str; 12] = [
    "azurecr.io",
    "azurewebsites.net",
    "github.io",
    "gitlab.io",
    "amazonaws.com",
    "cloudfront.net",
    "run.app",
    "web.app",
    "pages.dev",
    "workers.dev",
    "herokuapp.com",
    "cloudapp.azure.com",
];

/// Second-level labels that registries of country domains hand out under.
const SECOND_LEVEL: [&str; 10] = [
    "ac", "co", "com", "edu", "go", "gov", "ne", "net", "or", "org",
];

/// Whether a realm may see credentials for an upstream: the same host, or a host under the
/// upstream's parent (`auth.docker.io` for `registry-1.docker.io`), or one that the settings allow
/// (`host` or `host:port`); and TLS where the upstream has it.
pub(super) fn realm_is_bound(upstream: &Url, realm: &Url, allowed: &[String]) -> bool {
    if upstream.scheme() == "https" && realm.scheme() != "https" {
        return false;
    }
    let host = realm.host_str().unwrap_or_default();
    let with_port = realm
        .port_or_known_default()
        .map(|port| format!("{host}:{port}"));
    if allowed.iter().any(|name| {
        name.eq_ignore_ascii_case(host)
            || with_port
                .as_ref()
                .is_some_and(|full| name.eq_ignore_ascii_case(full))
    }) {
        return true;
    }
    match (upstream.host(), realm.host()) {
        (Some(url::Host::Domain(upstream)), Some(url::Host::Domain(realm))) => {
            let (upstream, realm) = (upstream.to_ascii_lowercase(), realm.to_ascii_lowercase());
            upstream == realm
                || parent(&upstream).is_some_and(|parent| {
                    realm == parent
                        || realm
                            .strip_suffix(parent)
                            .is_some_and(|head| head.ends_with('.'))
                })
        }
        (Some(upstream), Some(realm)) => upstream == realm,
        _ => false,
    }
}

fn parent(host: &str) -> Option<&str> {
    let (_, parent) = host.split_once('.')?;
    let labels: Vec<&str> = parent.split('.').collect();
    let is_suffix = match labels.as_slice() {
        [] | [_] => true,
        [second, top] => top.len() == 2 && SECOND_LEVEL.contains(second),
        _ => false,
    };
    let rented = SHARED_PARENTS
        .iter()
        .any(|shared| parent == *shared || parent.ends_with(&format!(".{shared}")));
    (!is_suffix && !rented).then_some(parent)
}

/// A token server's answer. Each field is read by itself: one that is odd does not spoil the
/// others.
#[derive(Deserialize)]
pub(super) struct TokenAnswer {
    #[serde(default)]
    token: Value,
    #[serde(default)]
    access_token: Value,
    #[serde(default)]
    expires_in: Value,
}

/// How long a token lasts whose server does not say it, and the least that is believed, seconds:
/// the token specification.
const LEAST_SECONDS: u64 = 60;
/// The longest that a token is used, seconds.
const MOST_SECONDS: u64 = 24 * 3600;

impl TokenAnswer {
    /// The token and for how long it counts, with a margin off its end. An empty `token` beside an
    /// `access_token` is no token.
    pub(super) fn token(self) -> Option<(String, Duration)> {
        let token = [self.token, self.access_token]
            .into_iter()
            .filter_map(|value| value.as_str().map(str::to_owned))
            .find(|token| is_bearer(token))?;
        let seconds = match &self.expires_in {
            Value::Number(number) => number.as_u64(),
            Value::String(text) => text.trim().parse().ok(),
            _ => None,
        };
        let seconds = seconds
            .unwrap_or(LEAST_SECONDS)
            .clamp(LEAST_SECONDS, MOST_SECONDS);
        Some((token, Duration::from_secs(seconds - seconds / 4)))
    }
}

/// Whether a text can stand behind `Bearer` in a header.
fn is_bearer(token: &str) -> bool {
    let length = 1..=UPSTREAM_TOKEN_BYTES;
    length.contains(&token.len()) && token.bytes().all(|byte| byte.is_ascii_graphic())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check_challenge(value: &str, expect: Option<Challenge>) {
        assert_eq!(Challenge::parse(value), expect, "{value}");
    }

    #[test]
    fn challenges_are_parsed() {
        let scoped = |realm: &str, service: Option<&str>, scope: Option<&str>| {
            Some(Challenge::Bearer {
                realm: realm.parse().unwrap(),
                service: service.map(str::to_owned),
                scope: scope.map(str::to_owned),
            })
        };
        let bearer = |realm: &str, service: Option<&str>| scoped(realm, service, None);
        check_challenge(r#"Basic realm="x""#, Some(Challenge::Basic));
        check_challenge(
            r#"Bearer realm="https://auth.example/token",service="reg",scope="repository:a,b:pull""#,
            scoped(
                "https://auth.example/token",
                Some("reg"),
                Some("repository:a,b:pull"),
            ),
        );
        for (scope, expect) in [
            ("aws", Some("aws")),
            (
                " repository:a:pull  repository:b:pull",
                Some("repository:a:pull repository:b:pull"),
            ),
            ("", None),
            ("  ", None),
            ("repository:a:pull\u{e9}", None),
            ("repository:a:pull\t", None),
            (&"x".repeat(1025), None),
        ] {
            check_challenge(
                &format!("Bearer realm=\"https://a/t\",scope=\"{scope}\""),
                scoped("https://a/t", None, expect),
            );
        }
        check_challenge(
            r#"bearer service=reg, realm="https://a/t?x=1""#,
            bearer("https://a/t?x=1", Some("reg")),
        );
        let long = |bytes: usize| "s".repeat(bytes - "https://a/t".len());
        let most = long(UPSTREAM_CHALLENGE_BYTES);
        check_challenge(
            &format!("Bearer realm=\"https://a/t\",service=\"{most}\""),
            bearer("https://a/t", Some(&most)),
        );
        let more = long(UPSTREAM_CHALLENGE_BYTES + 1);
        for parameters in [
            format!("realm=\"https://a/t\",service=\"{more}\""),
            format!("realm=\"https://a/t/{more}\""),
        ] {
            check_challenge(&format!("Bearer {parameters}"), None);
        }
        check_challenge("Bearer service=reg", None);
        check_challenge("Bearer realm=\"file:///etc/passwd\"", None);
        check_challenge("Negotiate", None);
        check_challenge("", None);
    }

    fn check_realm(upstream: &str, realm: &str, expect: bool) {
        assert_eq!(
            realm_is_bound(&upstream.parse().unwrap(), &realm.parse().unwrap(), &[]),
            expect,
            "{upstream} {realm}"
        );
    }

    #[test]
    fn a_realm_may_be_allowed_by_name() {
        let check = |allowed: &str, realm: &str, expect: bool| {
            let (upstream, realm) = (
                "https://registry.example".parse().unwrap(),
                realm.parse().unwrap(),
            );
            assert_eq!(
                realm_is_bound(&upstream, &realm, &[allowed.to_owned()]),
                expect,
                "{allowed} {realm}"
            );
        };
        check("auth.other", "https://auth.other/token", true);
        check("Auth.Other:443", "https://auth.other/token", true);
        check("auth.other:444", "https://auth.other/token", false);
        check("auth.other", "http://auth.other/token", false);
        check("auth.other", "https://evil.auth.other/token", false);
    }

    #[test]
    fn a_realm_is_bound_to_its_upstream() {
        check_realm(
            "https://registry-1.docker.io",
            "https://auth.docker.io/token",
            true,
        );
        check_realm(
            "https://registry.gitlab.com",
            "https://gitlab.com/jwt/auth",
            true,
        );
        check_realm("https://ghcr.io", "https://ghcr.io/token", true);
        check_realm("https://ghcr.io", "https://evil.io/token", false);
        check_realm(
            "https://registry.example.org",
            "https://evilexample.org/token",
            false,
        );
        check_realm("https://a.example.org", "http://a.example.org/token", false);
        check_realm("https://shop.co.uk", "https://evil.co.uk/token", false);
        check_realm(
            "https://mine.azurecr.io",
            "https://evil.azurecr.io/token",
            false,
        );
        check_realm(
            "https://mine.azurecr.io",
            "https://mine.azurecr.io/oauth2/token",
            true,
        );
        check_realm("http://127.0.0.1:5000", "http://127.0.0.1:5001/token", true);
        check_realm(
            "http://127.0.0.1:5000",
            "http://127.0.0.2:5000/token",
            false,
        );
        check_realm("http://10.0.0.1", "http://169.254.169.254/token", false);
    }

    #[test]
    fn a_login_never_prints_its_password() {
        assert!(!format!("{:?}", Login::new("me", "hunter2")).contains("hunter2"));
    }

    #[test]
    fn answers_of_token_servers_are_read_leniently() {
        for (answer, expect) in [
            (r#"{"token":"a","expires_in":400}"#, Some(("a", 300))),
            (r#"{"token":"a"}"#, Some(("a", 45))),
            (r#"{"token":"a","expires_in":0}"#, Some(("a", 45))),
            (r#"{"token":"a","expires_in":-1}"#, Some(("a", 45))),
            (r#"{"token":"a","expires_in":null}"#, Some(("a", 45))),
            (r#"{"token":"a","expires_in":"400"}"#, Some(("a", 300))),
            (r#"{"token":"a","expires_in":1e300}"#, Some(("a", 45))),
            (r#"{"token":"a","issued_at":"yesterday"}"#, Some(("a", 45))),
            (r#"{"token":"a","issued_at":0}"#, Some(("a", 45))),
            (r#"{"token":"","access_token":"b"}"#, Some(("b", 45))),
            (r#"{"token":null,"access_token":"b"}"#, Some(("b", 45))),
            (r#"{"access_token":"b"}"#, Some(("b", 45))),
            (r#"{"token":"a b","access_token":"b"}"#, Some(("b", 45))),
            (r#"{"token":""}"#, None),
            (r#"{"token":1}"#, None),
            ("{}", None),
        ] {
            let read: TokenAnswer = serde_json::from_str(answer).unwrap();
            let expect =
                expect.map(|(token, lasts)| (token.to_owned(), Duration::from_secs(lasts)));
            assert_eq!(read.token(), expect, "{answer}");
        }
    }

    #[test]
    fn a_token_has_so_many_bytes_and_no_more() {
        for (bytes, expect) in [
            (UPSTREAM_TOKEN_BYTES, true),
            (UPSTREAM_TOKEN_BYTES + 1, false),
        ] {
            let answer = format!(r#"{{"token":"{}"}}"#, "t".repeat(bytes));
            let read: TokenAnswer = serde_json::from_str(&answer).unwrap();
            assert_eq!(read.token().is_some(), expect, "{bytes}");
        }
    }
}
