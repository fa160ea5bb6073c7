//! Who may pull and push beside the nodes: as values of the chart, in the file of a registry that
//! runs alone, and as the registry reads it.

use std::path::{Path, PathBuf};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Folder of the mounted Secrets of [`AccessValues`], one folder a method.
const FOLDER: &str = "/etc/holdfast/access";

/// Who may pull and push, in addition to the nodes of the cluster, which may always pull. By
/// default no one.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct AccessValues {
    /// Allow all pulls without credentials.
    pub anonymous_pull: bool,
    /// Secret of the release's namespace whose key `htpasswd` holds users with bcrypt hashes
    /// (`htpasswd -B`). Empty: no users.
    pub htpasswd_secret: String,
    /// Secret of the release's namespace whose key `ca.crt` holds the CA of client certificates.
    /// Empty: no client certificates are requested.
    pub client_ca_secret: String,
    /// Tokens of an authorization service, as in the distribution registry.
    pub token: TokenValues,
    /// What users and client certificates may do. Empty: pull everything, push nothing.
    pub rules: Vec<AccessRule>,
}

/// Tokens of an authorization service, as in the distribution registry.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct TokenValues {
    /// Secret of the release's namespace whose key `keys` holds the service's public keys: a JWKS
    /// document, or PEM certificates or public keys. Empty: no tokens are accepted.
    pub secret_name: String,
    /// URL where clients get tokens.
    #[schemars(regex(pattern = r#"^$|^https?://[^\s"\\]+$"#))]
    pub realm: String,
    /// The registry's name in tokens (`aud`).
    #[schemars(regex(pattern = r#"^[^"\\\x00-\x1f]*$"#))]
    pub service: String,
    /// Issuer of tokens (`iss`).
    pub issuer: String,
    /// Signatures by RSA keys that do not name their algorithm themselves.
    pub rsa_algorithm: RsaAlgorithm,
}

/// The signature of RSA keys that do not name their algorithm.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[schemars(inline)]
#[allow(missing_docs, reason = "the names are those of RFC 7518")]
pub enum RsaAlgorithm {
    #[default]
    RS256,
    RS384,
    RS512,
    PS256,
}

/// Permits actions of clients on repositories. Rules only add permissions.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct AccessRule {
    /// Users of the htpasswd file; `*` means every one of them.
    pub users: Vec<String>,
    /// Client certificates by their subject's common name or a subject alternative name: `CN=ci`,
    /// `DNS=ci.example`, `URI=spiffe://example/ci`; `*` means every one of the CA.
    #[schemars(inner(regex(pattern = r"^(\*|(CN|DNS|URI)=.+)$")))]
    pub certificates: Vec<String>,
    /// Repositories by the first parts of their names: `team` means `team` and all below `team/`.
    /// Empty: all. Copies of an upstream are below the upstream's host, and no client can push
    /// there.
    #[schemars(inner(regex(pattern = r"^[a-z0-9][a-z0-9._/-]*$")))]
    pub repositories: Vec<String>,
    /// What is allowed.
    pub actions: Vec<AccessAction>,
}

/// What a rule allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[schemars(inline)]
#[allow(missing_docs, reason = "the names say it")]
pub enum AccessAction {
    Pull,
    Push,
    Delete,
}

/// Who may pull and push on a registry that runs alone. Without this section everyone may do both.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct StandaloneAccess {
    /// Allow all pulls without credentials.
    pub anonymous_pull: bool,
    /// File with users and bcrypt hashes (`htpasswd -B`).
    pub htpasswd: Option<PathBuf>,
    /// File with the CA of client certificates, PEM; needs `tls`.
    pub client_ca: Option<PathBuf>,
    /// Tokens of an authorization service, as in the distribution registry.
    #[schemars(with = "StandaloneToken")]
    pub token: Option<StandaloneToken>,
    /// What users and client certificates may do. Empty: pull everything, push nothing.
    pub rules: Vec<AccessRule>,
}

/// Tokens of an authorization service, as in the distribution registry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct StandaloneToken {
    /// File with the service's public keys: a JWKS document, or PEM certificates or public keys.
    pub keys: PathBuf,
    /// URL where clients get tokens.
    #[schemars(regex(pattern = r#"^https?://[^\s"\\]+$"#))]
    pub realm: String,
    /// The registry's name in tokens (`aud`).
    #[schemars(length(min = 1), regex(pattern = r#"^[^"\\\x00-\x1f]*$"#))]
    pub service: String,
    /// Issuer of tokens (`iss`).
    #[schemars(length(min = 1))]
    pub issuer: String,
    /// Signatures by RSA keys that do not name their algorithm themselves.
    #[serde(default)]
    pub rsa_algorithm: RsaAlgorithm,
}

/// Who may pull and push, as the registry reads it; files are read again when they change.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct AccessSettings {
    /// Whether pulls need no credentials.
    pub anonymous_pull: bool,
    /// File of users.
    pub htpasswd: Option<PathBuf>,
    /// PEM file of the CA of client certificates.
    pub client_ca: Option<PathBuf>,
    /// Tokens.
    pub token: Option<TokenSettings>,
    /// What users and client certificates may do; empty: pull everything.
    pub rules: Vec<AccessRule>,
}

/// How tokens are checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenSettings {
    /// File of the public keys, JWKS or PEM.
    pub keys: PathBuf,
    /// URL where clients get tokens.
    pub realm: String,
    /// The audience.
    pub service: String,
    /// The issuer.
    pub issuer: String,
    /// Signatures by RSA keys that do not name their algorithm.
    pub rsa_algorithm: RsaAlgorithm,
}

impl AccessValues {
    /// The settings of a replica: the Secrets are mounted below `/etc/holdfast/access`.
    pub fn settings(&self) -> AccessSettings {
        let folder = Path::new(FOLDER);
        let file = |secret: &str, path: &str| (!secret.is_empty()).then(|| folder.join(path));
        AccessSettings {
            anonymous_pull: self.anonymous_pull,
            htpasswd: file(&self.htpasswd_secret, "htpasswd/htpasswd"),
            client_ca: file(&self.client_ca_secret, "client-ca/ca.crt"),
            token: file(&self.token.secret_name, "token/keys").map(|keys| TokenSettings {
                keys,
                realm: self.token.realm.clone(),
                service: self.token.service.clone(),
                issuer: self.token.issuer.clone(),
                rsa_algorithm: self.token.rsa_algorithm,
            }),
            rules: self.rules.clone(),
        }
    }

    /// Refuses what belongs together and is not; paths open with `path`.
    pub(crate) fn check(&self, path: &str, refuse: &mut dyn FnMut(&str, String)) {
        let token = &self.token;
        let named = [
            ("realm", &token.realm),
            ("service", &token.service),
            ("issuer", &token.issuer),
        ];
        for (key, value) in named {
            if value.is_empty() != token.secret_name.is_empty() {
                refuse(
                    &format!("{path}.token"),
                    format!("secretName, realm, service and issuer belong together; look at {key}"),
                );
                break;
            }
        }
        check_rules(
            &self.rules,
            path,
            (&self.htpasswd_secret, "htpasswdSecret"),
            (&self.client_ca_secret, "clientCaSecret"),
            refuse,
        );
    }
}

impl StandaloneAccess {
    /// The settings of the registry.
    pub fn settings(&self) -> AccessSettings {
        AccessSettings {
            anonymous_pull: self.anonymous_pull,
            htpasswd: self.htpasswd.clone(),
            client_ca: self.client_ca.clone(),
            token: self.token.clone().map(|token| TokenSettings {
                keys: token.keys,
                realm: token.realm,
                service: token.service,
                issuer: token.issuer,
                rsa_algorithm: token.rsa_algorithm,
            }),
            rules: self.rules.clone(),
        }
    }

    /// Refuses what belongs together and is not; paths open with `path`.
    pub(crate) fn check(&self, path: &str, tls: bool, refuse: &mut dyn FnMut(&str, String)) {
        if self.client_ca.is_some() && !tls {
            refuse(
                &format!("{path}.clientCa"),
                "needs tls: certificates are shown in its handshake".to_owned(),
            );
        }
        let text = |file: &Option<PathBuf>| {
            file.as_ref()
                .map(|file| file.display().to_string())
                .unwrap_or_default()
        };
        check_rules(
            &self.rules,
            path,
            (&text(&self.htpasswd), "htpasswd"),
            (&text(&self.client_ca), "clientCa"),
            refuse,
        );
    }
}

fn check_rules(
    rules: &[AccessRule],
    path: &str,
    users: (&str, &str),
    certificates: (&str, &str),
    refuse: &mut dyn FnMut(&str, String),
) {
    for (index, rule) in rules.iter().enumerate() {
        let rule_path = format!("{path}.rules[{index}]");
        if rule.users.is_empty() && rule.certificates.is_empty() {
            refuse(&rule_path, "has neither users nor certificates".to_owned());
        }
        if rule.actions.is_empty() {
            refuse(
                &format!("{rule_path}.actions"),
                "allows nothing; give pull, push or delete".to_owned(),
            );
        }
        for (names, key, (source, method)) in [
            (&rule.users, "users", users),
            (&rule.certificates, "certificates", certificates),
        ] {
            if !names.is_empty() && source.is_empty() {
                refuse(
                    &format!("{rule_path}.{key}"),
                    format!("needs {path}.{method}"),
                );
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Standalone, Values};

    #[test]
    fn nothing_is_open_by_default() {
        assert_eq!(
            AccessValues::default().settings(),
            AccessSettings::default()
        );
        assert_eq!(Standalone::parse("").unwrap().settings().access, None);
    }

    #[test]
    fn secrets_become_files() {
        let values = Values::parse(
            "registry: {access: {htpasswdSecret: a, clientCaSecret: b, token: {secretName: c, realm: 'https://auth', service: s, issuer: i}}}",
        )
        .unwrap();
        let settings = values.registry.access.settings();
        assert_eq!(
            settings.htpasswd.as_deref(),
            Some(Path::new("/etc/holdfast/access/htpasswd/htpasswd"))
        );
        assert_eq!(
            settings.client_ca.as_deref(),
            Some(Path::new("/etc/holdfast/access/client-ca/ca.crt"))
        );
        assert_eq!(
            settings.token.unwrap().keys,
            Path::new("/etc/holdfast/access/token/keys")
        );
    }

    #[test]
    fn what_does_not_fit_together_is_refused_by_key() {
        let rule = "rules: [{users: [ci], actions: [push]}]";
        for (values, key) in [
            (
                "token: {realm: 'https://auth'}".to_owned(),
                "registry.access.token",
            ),
            ("token: {realm: 'auth'}".to_owned(), "token.realm"),
            (rule.to_owned(), "registry.access.rules[0].users"),
            (
                "rules: [{certificates: [ci], actions: [push]}]".to_owned(),
                "rules[0].certificates[0]",
            ),
            (
                "rules: [{actions: [push]}]".to_owned(),
                "registry.access.rules[0]",
            ),
            (
                "htpasswdSecret: a, rules: [{users: [ci]}]".to_owned(),
                "registry.access.rules[0].actions",
            ),
            (
                "htpasswdSecret: a, rules: [{users: [ci], actions: [write]}]".to_owned(),
                "rules[0].actions[0]",
            ),
        ] {
            let text = format!("registry: {{access: {{{values}}}}}");
            let message = Values::parse(&text).unwrap_err().to_string();
            assert!(message.contains(key), "{text}: {message}");
        }
        for (text, key) in [
            ("access: {clientCa: a}".to_owned(), "access.clientCa"),
            (format!("access: {{{rule}}}"), "access.rules[0].users"),
            ("access: {token: {keys: a}}".to_owned(), "access.token"),
        ] {
            let message = Standalone::parse(&text).unwrap_err().to_string();
            assert!(message.contains(key), "{text}: {message}");
        }
        let full = format!(
            "tls: {{certificate: a, key: b}}\naccess: {{anonymousPull: true, htpasswd: h, clientCa: c, {rule}}}"
        );
        assert!(Standalone::parse(&full).is_ok());
    }
}
