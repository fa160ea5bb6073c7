//! Where content may be copied from, and with which credentials.
//!
//! The settings list upstreams and rule upstreams out. What else may be copied is what a fill
//! request named, and what is reachable from it ([`Grants`]).

use std::{sync::Arc, time::Instant};

use holdfast_api::{
    access::{Access, AccessRequest},
    fill::Priority,
};
use holdfast_core::{Digest, Host, ManifestRef, RepositoryName, UpstreamFilter, rewrite};
use holdfast_upstream::{Login, Requester, SharedPriority, UpstreamRepository, Upstreams};

use super::{
    Error, Result, grants::Grants, manifests::Manifests, request::NamedImage, settings::Settings,
};

/// What may be copied, and from where.
pub(super) struct Sources {
    upstreams: Upstreams,
    manifests: Arc<Manifests>,
    grants: Grants,
    /// The upstreams that may be copied; `None`: every one.
    permitted: Option<UpstreamFilter>,
    /// Whether a pull alone may copy from an upstream that the settings list.
    pull_through: bool,
}

impl Sources {
    pub(super) fn new(
        upstreams: Upstreams,
        manifests: Arc<Manifests>,
        settings: &Settings,
    ) -> Self {
        Self {
            upstreams,
            manifests,
            grants: Grants::new(settings.grant),
            permitted: settings.permitted.clone(),
            pull_through: settings.pull_through,
        }
    }

    /// Whether the settings let this upstream be copied. What is stored is served in any case.
    ///
    /// # Errors
    /// [`Error::Forbidden`] when they do not.
    pub(super) fn permit(&self, host: &Host) -> Result<()> {
        match &self.permitted {
            Some(permitted) if !permitted.include(host) => Err(Error::Forbidden(host.clone())),
            _ => Ok(()),
        }
    }

    /// [`Sources::permit`] for a local repository. One that is not copied from an upstream is
    /// permitted.
    pub(super) fn permit_repository(&self, repo: &RepositoryName) -> Result<()> {
        rewrite::upstream_of(repo).map_or(Ok(()), |(host, _)| self.permit(&host))
    }

    /// Whether a pull alone may copy from this upstream.
    fn pulls_through(&self, host: &Host) -> bool {
        self.pull_through && self.upstreams.is_listed(host)
    }

    /// Whether something of a repository may be copied on a pull now.
    pub(super) fn fetches(&self, repo: &RepositoryName) -> bool {
        rewrite::upstream_of(repo).is_some_and(|(host, _)| {
            self.permit(&host).is_ok()
                && (self.pulls_through(&host) || self.grants.names(repo, Instant::now()))
        })
    }

    /// Remembers what a fill request named and the credentials that came with it.
    pub(super) fn grant(&self, image: &NamedImage) {
        let logins = &image.source.logins;
        self.grants
            .add(&image.repo, &image.target, logins, Instant::now());
    }

    /// Remembers where a target led with the credentials of `source`.
    pub(super) fn record_root(
        &self,
        source: &UpstreamRepository,
        repo: &RepositoryName,
        target: &ManifestRef,
        digest: &Digest,
    ) {
        self.grants
            .record_root(repo, target, &source.logins, digest);
    }

    /// The source that a pull may copy a manifest from; `None` when neither a fill request nor the
    /// settings name it.
    pub(super) async fn of_manifest(
        &self,
        repo: &RepositoryName,
        reference: &ManifestRef,
    ) -> Option<UpstreamRepository> {
        let exactly = self.grants.exactly(repo, reference, Instant::now());
        let granted = match (exactly, reference) {
            (Some(logins), _) => Some(logins),
            (None, ManifestRef::Digest(digest)) => self.reachable(repo, digest).await,
            (None, ManifestRef::Tag(_)) => None,
        };
        self.source(repo, granted)
    }

    /// The source that a pull may copy a blob from.
    pub(super) async fn of_blob(
        &self,
        repo: &RepositoryName,
        digest: &Digest,
    ) -> Option<UpstreamRepository> {
        let granted = self.reachable(repo, digest).await;
        self.source(repo, granted)
    }

    /// The source for the lists of a repository, with the credentials of the settings: those of a
    /// fill request serve what that request named, and no list.
    pub(super) fn of_lists(&self, repo: &RepositoryName) -> Option<UpstreamRepository> {
        let is_named = self.grants.names(repo, Instant::now());
        self.source(repo, is_named.then(Vec::new))
    }

    /// The source that the settings alone allow pulls from.
    pub(super) fn of_settings(&self, repo: &RepositoryName) -> Option<UpstreamRepository> {
        self.source(repo, None)
    }

    fn source(
        &self,
        repo: &RepositoryName,
        granted: Option<Vec<Login>>,
    ) -> Option<UpstreamRepository> {
        let (host, repository) = rewrite::upstream_of(repo)?;
        self.permit(&host).ok()?;
        let is_listed = self.pulls_through(&host);
        let logins = granted.or_else(|| is_listed.then(Vec::new))?;
        Some(UpstreamRepository {
            host,
            repository,
            logins,
            priority: SharedPriority::default().on_behalf_of(Requester::current()),
        })
    }

    /// The credentials of the requests that led to something from which `wanted`, a manifest or a
    /// blob, is reachable.
    async fn reachable(&self, repo: &RepositoryName, wanted: &Digest) -> Option<Vec<Login>> {
        let now = Instant::now();
        let roots = self.grants.roots(repo, now);
        let leads = self.manifests.leading_to(repo, roots, wanted).await;
        self.grants.of_roots(repo, &leads, now)
    }

    /// Asks the upstream of an image which credentials it accepts. Each check asks the upstream;
    /// stored content is no answer. The credentials serve this question and no pull. An upstream
    /// that the settings rule out is not asked.
    ///
    /// # Errors
    /// [`Error::Request`] when the source is malformed.
    pub(super) async fn access(&self, request: &AccessRequest) -> Result<Access> {
        // Requests for waiting clients go first; this answer is for the next pod.
        let image = NamedImage::of(&request.source, &request.credentials, Priority::Prefetch)?;
        if self.permit(&image.source.host).is_err() {
            return Ok(Access::Unknown);
        }
        let target = image.target.to_string();
        Ok(self.upstreams.access(&image.source, &target).await)
    }
}
