//! Who may do what: the one gate in front of every handler. The decision is pure and deny-by-default; credentials come from files that are
//! read again when they change.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use arc_swap::ArcSwap;
use base64::{Engine as _, engine::general_purpose::STANDARD};
use holdfast_config::AuthFiles;
use holdfast_core::rewrite::is_upstream_namespace;
use http::{HeaderMap, HeaderValue, StatusCode, header};
use sha2::{Digest as _, Sha256};

use crate::{
    error::{Code, Error},
    route::Endpoint,
};

/// Who asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Principal {
    /// No credentials were sent.
    Anonymous,
    /// A node of the cluster: it pulls.
    Node,
    /// Credentials were sent, and nobody knows them.
    Stranger,
}

/// What an endpoint does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Reads, the check of the API's version included.
    Pull,
    /// Writes.
    Push,
    /// Removes.
    Delete,
}

/// What anonymous clients may do; nodes may pull in any case.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Policy {
    /// Only with credentials, and then only pull: the registry of a cluster.
    NodesPull,
    /// Everybody may pull and push: the registry that runs alone.
    Open,
}

/// What the endpoint does.
pub fn action(endpoint: &Endpoint) -> Action {
    match endpoint {
        Endpoint::Base
        | Endpoint::Catalog(_)
        | Endpoint::GetBlob(..)
        | Endpoint::GetManifest(..)
        | Endpoint::Tags(..)
        | Endpoint::Referrers(..) => Action::Pull,
        Endpoint::StartUpload(..)
        | Endpoint::PushBlob(..)
        | Endpoint::MountBlob(..)
        | Endpoint::PatchUpload(..)
        | Endpoint::FinishUpload(..)
        | Endpoint::UploadStatus(..)
        | Endpoint::CancelUpload(..)
        | Endpoint::PutManifest(..) => Action::Push,
        Endpoint::DeleteManifest(..) | Endpoint::DeleteBlob(..) => Action::Delete,
    }
}

/// Decides. Nobody pushes under an upstream's name: those repositories hold what the upstream holds, and nothing else.
///
/// # Errors
/// 401 with a challenge where credentials would help, 403 where they would not.
pub fn decide(policy: Policy, principal: Principal, endpoint: &Endpoint) -> Result<(), Error> {
    let action = action(endpoint);
    match (policy, principal, action) {
        (_, Principal::Stranger, _) | (Policy::NodesPull, Principal::Anonymous, _) => {
            return Err(challenge());
        }
        (Policy::NodesPull, Principal::Node, Action::Push | Action::Delete) => {
            return Err(denied("these credentials may pull only"));
        }
        (Policy::NodesPull, Principal::Node, Action::Pull) | (Policy::Open, _, _) => {}
    }
    if action == Action::Push
        && let Endpoint::StartUpload(repo, _)
        | Endpoint::PushBlob(repo, _)
        | Endpoint::MountBlob(repo, ..)
        | Endpoint::PatchUpload(repo, ..)
        | Endpoint::FinishUpload(repo, ..)
        | Endpoint::UploadStatus(repo, ..)
        | Endpoint::CancelUpload(repo, _)
        | Endpoint::PutManifest(repo, ..) = endpoint
        && is_upstream_namespace(repo)
    {
        return Err(denied(
            "repositories whose name begins with a registry's host hold copies of that registry and cannot be pushed to",
        ));
    }
    Ok(())
}

fn challenge() -> Error {
    Error::new(
        StatusCode::UNAUTHORIZED,
        Code::Unauthorized,
        "credentials are needed",
    )
    .with(
        header::WWW_AUTHENTICATE,
        HeaderValue::from_static("Basic realm=\"holdfast\""),
    )
}

fn denied(message: &str) -> Error {
    Error::new(StatusCode::FORBIDDEN, Code::Denied, message)
}

/// The node credential, as hashes: they compare in constant time whatever their lengths, and do not print.
#[derive(Clone)]
struct NodeCredential {
    username: [u8; 32],
    password: [u8; 32],
}

/// Knows the credentials. Clones share them.
#[derive(Clone)]
pub struct Gate {
    policy: Policy,
    node: Arc<ArcSwap<Option<NodeCredential>>>,
}

impl std::fmt::Debug for Gate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Gate")
            .field("policy", &self.policy)
            .finish_non_exhaustive()
    }
}

impl Gate {
    /// A gate without credentials: the registry that runs alone.
    pub fn open() -> Self {
        Self {
            policy: Policy::Open,
            node: Arc::default(),
        }
    }

    /// A gate that lets nodes pull.
    pub fn nodes(username: &str, password: &str) -> Self {
        let gate = Self {
            policy: Policy::NodesPull,
            node: Arc::default(),
        };
        gate.set(username, password);
        gate
    }

    /// A gate with the credentials of the files.
    ///
    /// # Errors
    /// When a file cannot be read or is empty.
    pub fn from_files(files: &AuthFiles) -> std::io::Result<Self> {
        let gate = Self {
            policy: Policy::NodesPull,
            node: Arc::default(),
        };
        gate.reload(files)?;
        Ok(gate)
    }

    /// Reads the files again; on an error what was known stays.
    ///
    /// # Errors
    /// When a file cannot be read or is empty.
    pub fn reload(&self, files: &AuthFiles) -> std::io::Result<()> {
        self.set(
            &secret(&files.node_username)?,
            &secret(&files.node_password)?,
        );
        Ok(())
    }

    /// The files to watch.
    pub fn paths(files: &AuthFiles) -> Vec<PathBuf> {
        vec![files.node_username.clone(), files.node_password.clone()]
    }

    fn set(&self, username: &str, password: &str) {
        self.node.store(Arc::new(Some(NodeCredential {
            username: hash(username),
            password: hash(password),
        })));
    }

    /// Who asks, by the request's headers.
    pub fn principal(&self, headers: &HeaderMap) -> Principal {
        let Some(value) = headers.get(header::AUTHORIZATION) else {
            return Principal::Anonymous;
        };
        if self.policy == Policy::Open {
            // Nothing to know: clients that log in out of habit are as welcome as those that do not.
            return Principal::Anonymous;
        }
        let node = self.node.load();
        match (basic(value), node.as_ref()) {
            (Some((username, password)), Some(node))
                if same(&hash(&username), &node.username)
                    & same(&hash(&password), &node.password) =>
            {
                Principal::Node
            }
            _ => Principal::Stranger,
        }
    }

    /// Lets a request pass or not.
    ///
    /// # Errors
    /// See [`decide`].
    pub fn check(&self, headers: &HeaderMap, endpoint: &Endpoint) -> Result<(), Error> {
        decide(self.policy, self.principal(headers), endpoint)
    }

    /// Lets a request pass that is no endpoint: who may not even pull learns nothing of paths.
    ///
    /// # Errors
    /// See [`decide`].
    pub fn check_base(&self, headers: &HeaderMap) -> Result<(), Error> {
        self.check(headers, &Endpoint::Base)
    }
}

/// The content of a file that holds one secret, without the line's end.
pub(crate) fn secret(path: &Path) -> std::io::Result<String> {
    let text = fs::read_to_string(path)?;
    let text = text.trim_end().to_owned();
    if text.is_empty() {
        Err(std::io::Error::new(
            std::io::ErrorKind::InvalidData,
            format!("{} is empty", path.display()),
        ))
    } else {
        Ok(text)
    }
}

fn basic(value: &HeaderValue) -> Option<(String, String)> {
    let (scheme, encoded) = value.to_str().ok()?.split_once(' ')?;
    if !scheme.eq_ignore_ascii_case("basic") {
        return None;
    }
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
mod tests {
    use super::*;
    use crate::route::route;

    const DIGEST: &str = "sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a";
    const ID: &str = "018f4d0c-0000-7000-8000-000000000001";

    /// Every endpoint on `repo`, with what it does.
    fn endpoints(repo: &str) -> Vec<(Endpoint, Action)> {
        [
            ("GET /v2/", Action::Pull),
            ("GET /v2/_catalog", Action::Pull),
            ("GET /v2/{R}/blobs/{D}", Action::Pull),
            ("HEAD /v2/{R}/manifests/t", Action::Pull),
            ("GET /v2/{R}/tags/list", Action::Pull),
            ("GET /v2/{R}/referrers/{D}", Action::Pull),
            ("POST /v2/{R}/blobs/uploads/", Action::Push),
            ("POST /v2/{R}/blobs/uploads/?digest={D}", Action::Push),
            (
                "POST /v2/{R}/blobs/uploads/?mount={D}&from={R}",
                Action::Push,
            ),
            ("PATCH /v2/{R}/blobs/uploads/{I}", Action::Push),
            ("PUT /v2/{R}/blobs/uploads/{I}?digest={D}", Action::Push),
            ("GET /v2/{R}/blobs/uploads/{I}", Action::Push),
            ("DELETE /v2/{R}/blobs/uploads/{I}", Action::Push),
            ("PUT /v2/{R}/manifests/t", Action::Push),
            ("DELETE /v2/{R}/manifests/t", Action::Delete),
            ("DELETE /v2/{R}/blobs/{D}", Action::Delete),
        ]
        .into_iter()
        .map(|(request, action)| {
            let request = request
                .replace("{R}", repo)
                .replace("{D}", DIGEST)
                .replace("{I}", ID);
            let (method, target) = request.split_once(' ').unwrap();
            let (path, query) = target
                .split_once('?')
                .map_or((target, None), |(path, query)| (path, Some(query)));
            (
                route(&method.parse().unwrap(), path, query)
                    .unwrap_or_else(|error| panic!("{request}: {error:?}")),
                action,
            )
        })
        .collect()
    }

    fn check(policy: Policy, principal: Principal, repo: &str, expect: impl Fn(Action) -> u16) {
        for (endpoint, action) in endpoints(repo) {
            let status = decide(policy, principal, &endpoint)
                .map_or_else(|error| error.status().as_u16(), |()| 200);
            assert_eq!(
                status,
                expect(action),
                "{policy:?} {principal:?} {endpoint:?}"
            );
        }
    }

    #[test]
    fn in_a_cluster_only_nodes_pull_and_nobody_pushes() {
        for repo in ["team/app", "docker.io/library/nginx"] {
            check(Policy::NodesPull, Principal::Anonymous, repo, |_| 401);
            check(Policy::NodesPull, Principal::Stranger, repo, |_| 401);
            check(Policy::NodesPull, Principal::Node, repo, |action| {
                if action == Action::Pull { 200 } else { 403 }
            });
        }
    }

    #[test]
    fn alone_everybody_does_everything_but_push_under_an_upstreams_name() {
        check(Policy::Open, Principal::Anonymous, "team/app", |_| 200);
        for repo in [
            "docker.io/library/nginx",
            "registry.example_5000/a",
            "localhost/a",
        ] {
            check(Policy::Open, Principal::Anonymous, repo, |action| {
                if action == Action::Push { 403 } else { 200 }
            });
        }
    }

    #[test]
    fn credentials_are_told_apart() {
        let gate = Gate::nodes("node", "s3cret");
        let who = |value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::AUTHORIZATION, value.parse().unwrap());
            gate.principal(&headers)
        };
        assert_eq!(gate.principal(&HeaderMap::new()), Principal::Anonymous);
        assert_eq!(
            who(&format!("Basic {}", STANDARD.encode("node:s3cret"))),
            Principal::Node
        );
        for wrong in [
            "node:s3cre",
            "node:",
            "nod:s3cret",
            "node:s3cret ",
            "nodes3cret",
        ] {
            assert_eq!(
                who(&format!("Basic {}", STANDARD.encode(wrong))),
                Principal::Stranger,
                "{wrong}"
            );
        }
        assert_eq!(who("Bearer x"), Principal::Stranger);
        assert_eq!(who("Basic %%%"), Principal::Stranger);
    }

    #[test]
    fn changed_files_are_read_again() {
        let dir = tempfile::tempdir().unwrap();
        let file = |name: &str| dir.path().join(name);
        let files = AuthFiles {
            upload_secret: file("s"),
            node_username: file("u"),
            node_password: file("p"),
        };
        fs::write(&files.node_username, "node\n").unwrap();
        fs::write(&files.node_password, "one\n").unwrap();
        let gate = Gate::from_files(&files).unwrap();
        fs::write(&files.node_password, "two").unwrap();
        gate.reload(&files).unwrap();
        let mut headers = HeaderMap::new();
        headers.insert(
            header::AUTHORIZATION,
            format!("Basic {}", STANDARD.encode("node:two"))
                .parse()
                .unwrap(),
        );
        assert_eq!(gate.principal(&headers), Principal::Node);
        fs::write(&files.node_password, "").unwrap();
        assert!(gate.reload(&files).is_err());
        assert_eq!(gate.principal(&headers), Principal::Node);
    }
}
