//! Requests of the internal API that name an image of an upstream.

use holdfast_api::fill::{Credential, Priority};
use holdfast_core::{ManifestRef, Reference, RepositoryName, rewrite};
use holdfast_upstream::{Login, SharedPriority, UpstreamRepository};

use super::{Error, Result};

/// The image that a request of the internal API names.
pub(super) struct NamedImage {
    pub(super) source: UpstreamRepository,
    pub(super) repo: RepositoryName,
    pub(super) target: ManifestRef,
}

impl NamedImage {
    /// With no credentials but those of this request: the login of another namespace must not open
    /// this one's images.
    ///
    /// # Errors
    /// [`Error::Request`] when `text` is no reference of an image.
    pub(super) fn of(text: &str, credentials: &[Credential], level: Priority) -> Result<Self> {
        let reference =
            Reference::parse(text).map_err(|error| Error::Request(format!("source: {error}")))?;
        let repo = rewrite::local_repository(reference.host(), reference.repository())
            .ok_or_else(|| Error::Request("the source has no local name".to_owned()))?;
        let target = match (reference.digest(), reference.tag()) {
            (Some(digest), _) => ManifestRef::Digest(digest.clone()),
            (None, Some(tag)) => ManifestRef::Tag(tag.clone()),
            (None, None) => return Err(Error::Request("the source names no image".to_owned())),
        };
        let login = |credential: &Credential| {
            let (username, password) = (&credential.username, credential.password.expose());
            // Before there was a field for it, a token came with an empty user name.
            if credential.identity_token || username.is_empty() {
                Login::identity(username, password)
            } else {
                Login::new(username, password)
            }
        };
        let source = UpstreamRepository {
            host: reference.host().clone(),
            repository: reference.repository().clone(),
            logins: credentials.iter().map(login).collect(),
            priority: SharedPriority::new(level),
        };
        Ok(Self {
            source,
            repo,
            target,
        })
    }
}
