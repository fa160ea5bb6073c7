//! Access control: one check before every handler. The decision is pure and denies by default;
//! credentials come from files that are read again when they change.

mod authorize;

use std::{
    net::{IpAddr, Ipv4Addr},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use arc_swap::{ArcSwap, ArcSwapOption};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use holdfast_config::{AccessSettings, AuthFiles, TokenSettings};
use holdfast_runtime::{
    CancellationToken, files,
    metrics::unix_seconds,
    reload::Reloads,
    server::{self, PeerAddr},
    tls::PeerIdentity,
};
use http::{HeaderValue, header, request};
use sha2::{Digest as _, Sha256};

pub use crate::authn::token::Claims;
use crate::{
    authn::{
        htpasswd::Htpasswd,
        keys::{self, Key},
        logins::{Logins, Overloaded},
        token::{self, Expected},
    },
    error::Error,
    route::Endpoint,
};
pub use authorize::{Action, action};
use authorize::{Challenges, Policy};

/// The client of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Principal {
    /// No credentials were sent.
    Anonymous,
    /// A node of the cluster, which may pull.
    Node,
    /// A user of the htpasswd file.
    User(Arc<str>),
    /// A client certificate of the configured CA.
    Certificate(Arc<PeerIdentity>),
    /// A client with a token of the authorization service.
    Bearer(Arc<Claims>),
    /// The credentials that were sent are unknown.
    InvalidCredentials,
}

impl Principal {
    /// The owner of an upload session; empty for anonymous clients.
    pub fn subject(&self) -> String {
        match self {
            Self::Anonymous | Self::InvalidCredentials => String::new(),
            Self::Node => "node".to_owned(),
            Self::User(name) => format!("user:{name}"),
            Self::Certificate(peer) => {
                // Each kind of name is a space of its own, as in the rules: a client that chooses
                // its name in one space must not be taken for another client.
                let names = [
                    ("CN", Some(&peer.common_name)),
                    ("URI", peer.uris.first()),
                    ("DNS", peer.dns.first()),
                ];
                let name = names
                    .into_iter()
                    .filter_map(|(kind, name)| Some((kind, name.filter(|name| !name.is_empty())?)))
                    .map(|(kind, name)| format!("{kind}={name}"))
                    .next();
                format!("certificate:{}", name.unwrap_or_default())
            }
            Self::Bearer(claims) => format!("token:{}", claims.subject()),
        }
    }
}

/// Why the files of `access` cannot be used. No text contains a secret.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// A file cannot be read, or is empty.
    #[error("cannot use {}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// A file's content is refused.
    #[error("{}: {reason}", path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// Why, with the line or the key's number.
        reason: String,
    },
}

/// The node credential, as hashes: they compare in constant time whatever their lengths, and do not
/// print. While it is rotated there are two passwords.
#[derive(Clone)]
struct NodeCredential {
    username: [u8; 32],
    passwords: Vec<[u8; 32]>,
}

impl NodeCredential {
    fn is(&self, username: &str, password: &str) -> bool {
        let password = hash(password);
        let known = self.passwords.iter();
        let known = known.fold(false, |known, one| known | same(&password, one));
        same(&hash(username), &self.username) & known
    }
}

/// Checks tokens.
struct Tokens {
    settings: TokenSettings,
    keys: ArcSwap<Vec<Key>>,
}

struct Inner {
    policy: Policy,
    node: ArcSwapOption<NodeCredential>,
    users: ArcSwapOption<Htpasswd>,
    logins: Arc<Logins>,
    tokens: Option<Tokens>,
    auth: Option<AuthFiles>,
    access: AccessSettings,
}

/// Identifies clients and decides what they may do. Clones share the credentials.
#[derive(Clone)]
pub struct AccessControl {
    inner: Arc<Inner>,
}

impl std::fmt::Debug for AccessControl {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Gate")
            .field("policy", &self.inner.policy)
            .finish_non_exhaustive()
    }
}

impl AccessControl {
    /// Access control without users that lets every client pull and push: for a standalone
    /// registry without `access`.
    pub fn open() -> Self {
        Self::empty(Policy::open(), None, AccessSettings::default())
    }

    /// Access control that lets nodes pull.
    pub fn nodes(username: &str, password: &str) -> Self {
        let access = AccessSettings::default();
        let access_control = Self::empty(policy(true, &access), None, access);
        let passwords = [password.to_owned()];
        access_control
            .inner
            .node
            .store(Some(credential(username, &passwords)));
        access_control
    }

    /// The access control of the settings: the nodes' by `auth`, the others' by `access`; with
    /// neither, every client may do everything.
    ///
    /// # Errors
    /// When a file is of no use: there is no last good one yet.
    pub fn from_settings(
        auth: Option<&AuthFiles>,
        access: Option<&AccessSettings>,
    ) -> Result<Self, LoadError> {
        if auth.is_none() && access.is_none() {
            return Ok(Self::open());
        }
        let access = access.cloned().unwrap_or_default();
        let access_control = Self::empty(policy(auth.is_some(), &access), auth.cloned(), access);
        for (what, _) in access_control.files() {
            access_control.reload(what)?;
        }
        Ok(access_control)
    }

    fn empty(policy: Policy, auth: Option<AuthFiles>, access: AccessSettings) -> Self {
        let tokens = access.token.clone().map(|settings| Tokens {
            settings,
            keys: ArcSwap::default(),
        });
        Self {
            inner: Arc::new(Inner {
                policy,
                node: ArcSwapOption::empty(),
                users: ArcSwapOption::empty(),
                logins: Arc::default(),
                tokens,
                auth,
                access,
            }),
        }
    }

    /// The files to watch, by their content.
    fn files(&self) -> Vec<(&'static str, Vec<PathBuf>)> {
        let Inner { auth, access, .. } = &*self.inner;
        let node = auth
            .as_ref()
            .map(|files| vec![files.node_username.clone(), files.node_password.clone()]);
        let users = access.htpasswd.clone().map(|path| vec![path]);
        let keys = access.token.as_ref().map(|token| vec![token.keys.clone()]);
        [(NODE, node), (USERS, users), (KEYS, keys)]
            .into_iter()
            .filter_map(|(what, paths)| Some((what, paths?)))
            .collect()
    }

    /// Reads the files of one kind again; on an error the previous content stays.
    fn reload(&self, what: &'static str) -> Result<(), LoadError> {
        let Inner { auth, access, .. } = &*self.inner;
        match (what, auth, &access.htpasswd, &self.inner.tokens) {
            (NODE, Some(files), ..) => {
                let usernames = secrets(&files.node_username)?;
                let passwords = secrets(&files.node_password)?;
                let username = usernames.first().map(String::as_str).unwrap_or_default();
                self.inner
                    .node
                    .store(Some(credential(username, &passwords)));
            }
            (USERS, _, Some(path), _) => {
                let text = String::from_utf8(read(path)?).map_err(|_| LoadError::Content {
                    path: path.clone(),
                    reason: "it is not UTF-8".to_owned(),
                })?;
                let users = Htpasswd::parse(&text).map_err(content(path))?;
                tracing::info!(users = users.len(), "the htpasswd file was read");
                self.inner.users.store(Some(Arc::new(users)));
            }
            (KEYS, _, _, Some(tokens)) => {
                let TokenSettings {
                    keys: path,
                    rsa_algorithm,
                    ..
                } = &tokens.settings;
                let keys = keys::parse(&read(path)?, *rsa_algorithm).map_err(content(path))?;
                tracing::info!(keys = keys.len(), "the token keys were read");
                tokens.keys.store(Arc::new(keys));
            }
            _ => {}
        }
        Ok(())
    }

    /// Reads files again when they change, until `shutdown`.
    pub async fn follow(self, every: Duration, reloads: Reloads, shutdown: CancellationToken) {
        let followed = self.files().into_iter().map(|(what, paths)| {
            let (access_control, reloads) = (self.clone(), reloads.clone());
            files::watch(paths, every, shutdown.clone(), move || {
                reloads.record(what, &access_control.reload(what).map_err(with_cause));
            })
        });
        futures::future::join_all(followed).await;
    }

    /// The client of a request, by its headers and the connection's certificate.
    ///
    /// # Errors
    /// 429 when too many passwords wait for their check, or too many of this client's were wrong.
    pub async fn identify(&self, head: &request::Parts) -> Result<Principal, Error> {
        // No users are configured: credentials are ignored.
        if self.inner.policy.is_open() {
            return Ok(Principal::Anonymous);
        }
        let mut values = head.headers.get_all(header::AUTHORIZATION).iter();
        match (values.next(), values.next()) {
            (None, _) => Ok(self.by_certificate(head)),
            (Some(value), None) => self.by_header(value, address(head)).await,
            _ => Ok(Principal::InvalidCredentials),
        }
    }

    fn by_certificate(&self, head: &request::Parts) -> Principal {
        match head.extensions.get::<PeerIdentity>() {
            Some(peer) if self.inner.access.client_ca.is_some() => {
                Principal::Certificate(Arc::new(peer.clone()))
            }
            _ => Principal::Anonymous,
        }
    }

    async fn by_header(&self, value: &HeaderValue, address: IpAddr) -> Result<Principal, Error> {
        let Some((scheme, rest)) = value.to_str().ok().and_then(|value| value.split_once(' '))
        else {
            return Ok(Principal::InvalidCredentials);
        };
        if scheme.eq_ignore_ascii_case("bearer") {
            return Ok(self.by_token(rest.trim()));
        }
        if !scheme.eq_ignore_ascii_case("basic") {
            return Ok(Principal::InvalidCredentials);
        }
        let Some((username, password)) = basic(rest) else {
            return Ok(Principal::InvalidCredentials);
        };
        if username.is_empty() && password.is_empty() {
            // Some clients send this for "no credentials" after a challenge.
            return Ok(Principal::Anonymous);
        }
        if let Some(node) = &*self.inner.node.load()
            && node.is(&username, &password)
        {
            return Ok(Principal::Node);
        }
        let Some(users) = self.inner.users.load_full() else {
            return Ok(Principal::InvalidCredentials);
        };
        let checked = users.check(&self.inner.logins, address, (&username, &password));
        match checked.await {
            Ok(true) => Ok(Principal::User(username.into())),
            Ok(false) => Ok(Principal::InvalidCredentials),
            Err(Overloaded) => Err(Error::too_many(
                "too many logins at once, or too many failed ones from this address",
            )),
        }
    }

    fn by_token(&self, token: &str) -> Principal {
        let Some(tokens) = &self.inner.tokens else {
            return Principal::InvalidCredentials;
        };
        let expected = Expected {
            issuer: &tokens.settings.issuer,
            service: &tokens.settings.service,
        };
        match token::verify(token, &tokens.keys.load(), expected, unix_seconds()) {
            Ok(claims) => Principal::Bearer(Arc::new(claims)),
            Err(reason) => {
                tracing::debug!(%reason, "a token was refused");
                Principal::InvalidCredentials
            }
        }
    }

    /// Decides whether a request is allowed.
    ///
    /// # Errors
    /// 401 with challenges where other credentials would help, 403 where they would not.
    pub fn check(&self, principal: &Principal, endpoint: &Endpoint) -> Result<(), Error> {
        self.inner.policy.check(principal, endpoint)
    }

    /// Decides about a request that is no endpoint: a client without any right learns nothing about
    /// paths.
    ///
    /// # Errors
    /// See [`AccessControl::check`].
    pub fn check_unknown(&self, principal: &Principal) -> Result<(), Error> {
        self.inner.policy.check_unknown(principal)
    }

    /// Whether an upload may go on by its name alone, as clients do that drop the query of
    /// `Location`: only where clients are not distinguished.
    pub fn sessions_by_name(&self) -> bool {
        self.inner.policy.is_open()
    }
}

const NODE: &str = "node-credential";
const USERS: &str = "htpasswd";
const KEYS: &str = "token-keys";

fn policy(nodes: bool, access: &AccessSettings) -> Policy {
    Policy::guarded(
        access.anonymous_pull,
        access.rules.clone(),
        Challenges {
            basic: nodes || access.htpasswd.is_some(),
            bearer: access
                .token
                .as_ref()
                .map(|token| (token.realm.clone(), token.service.clone())),
            certificate: access.client_ca.is_some(),
        },
    )
}

fn credential(username: &str, passwords: &[String]) -> Arc<NodeCredential> {
    Arc::new(NodeCredential {
        username: hash(username),
        passwords: passwords.iter().map(|password| hash(password)).collect(),
    })
}

/// The error with its cause, for a log.
fn with_cause(error: LoadError) -> String {
    let cause = std::error::Error::source(&error).map(|cause| format!(": {cause}"));
    format!("{error}{}", cause.unwrap_or_default())
}

fn content<E: std::fmt::Display>(path: &Path) -> impl FnOnce(E) -> LoadError {
    let path = path.to_owned();
    move |error| LoadError::Content {
        path,
        reason: error.to_string(),
    }
}

fn read(path: &Path) -> Result<Vec<u8>, LoadError> {
    std::fs::read(path).map_err(|source| LoadError::File {
        path: path.to_owned(),
        source,
    })
}

/// The secrets of a file, one a line, without the lines' ends: at least one.
fn secrets(path: &Path) -> Result<Vec<String>, LoadError> {
    let text = String::from_utf8(read(path)?).unwrap_or_default();
    let lines = text.lines().map(|line| line.trim_end().to_owned());
    let found: Vec<String> = lines.filter(|line| !line.is_empty()).collect();
    if found.is_empty() {
        return Err(LoadError::Content {
            path: path.to_owned(),
            reason: "it is empty".to_owned(),
        });
    }
    Ok(found)
}

/// The client for which logins and requests to upstreams are counted.
pub(crate) fn address(head: &request::Parts) -> IpAddr {
    let peer = head.extensions.get::<PeerAddr>();
    peer.map_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED), |peer| {
        server::client_address(peer.0.ip())
    })
}

fn basic(encoded: &str) -> Option<(String, String)> {
    let decoded = String::from_utf8(STANDARD.decode(encoded.trim()).ok()?).ok()?;
    let (username, password) = decoded.split_once(':')?;
    Some((username.to_owned(), password.to_owned()))
}

fn hash(text: &str) -> [u8; 32] {
    Sha256::digest(text).into()
}

fn same(a: &[u8; 32], b: &[u8; 32]) -> bool {
    std::hint::black_box(
        a.iter()
            .zip(b)
            .fold(0, |difference, (a, b)| difference | (a ^ b)),
    ) == 0
}

#[cfg(test)]
mod tests;
