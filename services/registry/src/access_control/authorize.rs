//! The decision: from principal and endpoint to permission or refusal. Pure, and denies by default.

use holdfast_config::{AccessAction, AccessRule};
use holdfast_core::{reference::RepositoryName, rewrite::is_upstream_namespace};
use http::{HeaderValue, StatusCode, header};

use super::Principal;
use crate::{
    authn::rules::{self, Subject},
    error::{Code, Error},
    route::Endpoint,
};

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

/// What the endpoint does.
pub fn action(endpoint: &Endpoint) -> Action {
    level(endpoint).0
}

/// What an endpoint is about.
#[derive(Clone, Copy, Debug)]
enum Resource<'a> {
    /// The API's version: the place where clients learn how to log in.
    Base,
    /// The list of all repositories.
    Catalog,
    /// One repository.
    Repository(&'a RepositoryName),
}

/// What a caller needs; a mount also needs to pull from where it mounts, which its handler asks for
/// by itself.
fn level(endpoint: &Endpoint) -> (Action, Resource<'_>) {
    match endpoint {
        Endpoint::Base => (Action::Pull, Resource::Base),
        Endpoint::Catalog(_) => (Action::Pull, Resource::Catalog),
        Endpoint::GetBlob(repo, _)
        | Endpoint::GetManifest(repo, _)
        | Endpoint::Tags(repo, _)
        | Endpoint::Referrers(repo, ..) => (Action::Pull, Resource::Repository(repo)),
        Endpoint::StartUpload(repo, _)
        | Endpoint::PushBlob(repo, _)
        | Endpoint::MountBlob(repo, ..)
        | Endpoint::PatchUpload(repo, ..)
        | Endpoint::FinishUpload(repo, ..)
        | Endpoint::UploadStatus(repo, ..)
        | Endpoint::CancelUpload(repo, ..)
        | Endpoint::PutManifest(repo, ..) => (Action::Push, Resource::Repository(repo)),
        Endpoint::DeleteManifest(repo, _) | Endpoint::DeleteBlob(repo, _) => {
            (Action::Delete, Resource::Repository(repo))
        }
    }
}

/// How clients can log in.
#[derive(Clone, Debug, Default)]
pub(super) struct Challenges {
    /// User name and password: the nodes', or those of a file.
    pub(super) basic: bool,
    /// Realm and service of tokens.
    pub(super) bearer: Option<(String, String)>,
    /// Client certificates; there is no challenge for them.
    pub(super) certificate: bool,
}

/// What holds for all clients.
#[derive(Clone, Debug)]
pub(super) struct Policy {
    open: bool,
    anonymous_pull: bool,
    rules: Vec<AccessRule>,
    challenges: Challenges,
}

enum Verdict {
    Pass,
    /// Other credentials would help; the text is the bearer challenge's `error`.
    Challenge(Option<&'static str>),
    Deny(&'static str),
}

impl Policy {
    /// Every client may pull and push.
    pub(super) fn open() -> Self {
        Self {
            open: true,
            anonymous_pull: true,
            rules: Vec::new(),
            challenges: Challenges::default(),
        }
    }

    /// Allows only what follows from the principal and from the arguments.
    pub(super) fn guarded(
        anonymous_pull: bool,
        rules: Vec<AccessRule>,
        challenges: Challenges,
    ) -> Self {
        Self {
            open: false,
            anonymous_pull,
            rules,
            challenges,
        }
    }

    /// Whether every client may do everything.
    pub(super) fn is_open(&self) -> bool {
        self.open
    }

    /// Decides. No principal may push under an upstream's name: those repositories hold what the
    /// upstream holds, and nothing else.
    pub(super) fn check(&self, principal: &Principal, endpoint: &Endpoint) -> Result<(), Error> {
        let (action, resource) = level(endpoint);
        match self.evaluate(principal, action, resource) {
            Verdict::Pass => {}
            Verdict::Challenge(error) => return Err(self.challenge(error, endpoint)),
            Verdict::Deny(reason) => return Err(denied(reason)),
        }
        match resource {
            Resource::Repository(repo) if action == Action::Push && is_upstream_namespace(repo) => {
                Err(denied(
                    "repositories whose name begins with a registry's host hold copies of that registry and cannot be pushed to",
                ))
            }
            _ => Ok(()),
        }
    }

    /// For what is no endpoint.
    pub(super) fn check_unknown(&self, principal: &Principal) -> Result<(), Error> {
        match principal {
            Principal::InvalidCredentials => Err(self.challenge(None, &Endpoint::Base)),
            Principal::Anonymous if !self.anonymous_pull => self.check(principal, &Endpoint::Base),
            _ => Ok(()),
        }
    }

    fn evaluate(&self, principal: &Principal, action: Action, resource: Resource<'_>) -> Verdict {
        match principal {
            Principal::InvalidCredentials => Verdict::Challenge(Some("invalid_token")),
            _ if self.open => Verdict::Pass,
            Principal::Anonymous => self.judge_anonymous(action, resource),
            Principal::Node => match action {
                Action::Pull => Verdict::Pass,
                _ => Verdict::Deny("these credentials may pull only"),
            },
            Principal::User(name) => self.judge_rules(Subject::User(name), action, resource),
            Principal::Certificate(peer) => {
                self.judge_rules(Subject::Certificate(peer), action, resource)
            }
            Principal::Bearer(claims) => {
                let given = match (resource, action) {
                    (Resource::Base, _) => true,
                    (Resource::Catalog, _) => claims.allow("registry", "catalog", "*"),
                    (Resource::Repository(repo), action) => {
                        claims.allow("repository", repo.as_str(), verb(action))
                    }
                };
                if given {
                    Verdict::Pass
                } else {
                    Verdict::Challenge(Some("insufficient_scope"))
                }
            }
        }
    }

    fn judge_anonymous(&self, action: Action, resource: Resource<'_>) -> Verdict {
        let Challenges {
            basic,
            bearer,
            certificate,
        } = &self.challenges;
        let can_log_in = *basic || bearer.is_some();
        match (resource, action) {
            // Clients ask here whether and how to log in; without a challenge they never would.
            (Resource::Base, _) if self.anonymous_pull && !can_log_in => Verdict::Pass,
            (Resource::Catalog | Resource::Repository(_), Action::Pull) if self.anonymous_pull => {
                Verdict::Pass
            }
            _ if can_log_in => Verdict::Challenge(None),
            _ if *certificate => Verdict::Deny("a client certificate is needed"),
            _ => Verdict::Deny("access denied"),
        }
    }

    fn judge_rules(&self, subject: Subject<'_>, action: Action, resource: Resource<'_>) -> Verdict {
        let repo = match resource {
            Resource::Base => return Verdict::Pass,
            Resource::Catalog => None,
            Resource::Repository(repo) => Some(repo),
        };
        let action = match action {
            Action::Pull => AccessAction::Pull,
            Action::Push => AccessAction::Push,
            Action::Delete => AccessAction::Delete,
        };
        if rules::allow(&self.rules, subject, action, repo) {
            Verdict::Pass
        } else {
            Verdict::Deny("the rules of this registry do not allow it")
        }
    }

    /// 401 that says how to log in, and for what.
    fn challenge(&self, error: Option<&'static str>, endpoint: &Endpoint) -> Error {
        let mut refusal = Error::new(
            StatusCode::UNAUTHORIZED,
            Code::Unauthorized,
            "credentials are needed",
        );
        if let Some((realm, service)) = &self.challenges.bearer {
            let mut text = format!("Bearer realm=\"{realm}\",service=\"{service}\"");
            let scope = scope(endpoint);
            if !scope.is_empty() {
                text = format!("{text},scope=\"{scope}\"");
            }
            if let Some(error) = error {
                text = format!("{text},error=\"{error}\"");
            }
            refusal = refusal.with(header::WWW_AUTHENTICATE, crate::response::value(&text));
        }
        if self.challenges.basic || self.challenges.bearer.is_none() {
            let basic = HeaderValue::from_static("Basic realm=\"holdfast\"");
            refusal = refusal.with(header::WWW_AUTHENTICATE, basic);
        }
        refusal
    }
}

fn verb(action: Action) -> &'static str {
    match action {
        Action::Pull => "pull",
        Action::Push => "push",
        Action::Delete => "delete",
    }
}

/// The scope to ask the authorization service for.
fn scope(endpoint: &Endpoint) -> String {
    let (action, resource) = level(endpoint);
    let mut scope = match resource {
        Resource::Base => String::new(),
        Resource::Catalog => "registry:catalog:*".to_owned(),
        Resource::Repository(repo) => match action {
            Action::Push => format!("repository:{repo}:pull,push"),
            _ => format!("repository:{repo}:{}", verb(action)),
        },
    };
    if let Endpoint::MountBlob(_, _, Some(from)) = endpoint {
        scope = format!("{scope} repository:{from}:pull");
    }
    scope
}

fn denied(message: &str) -> Error {
    Error::new(StatusCode::FORBIDDEN, Code::Denied, message)
}
