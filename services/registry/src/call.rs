//! What handlers work with: the state that all requests share, and one request to a repository.

use std::sync::Arc;

use holdfast_core::{reference::RepositoryName, rewrite::is_upstream_namespace};
use holdfast_fill::pull_through::PullThrough;
use holdfast_runtime::CancellationToken;
use holdfast_store::{LockHolder, Store};
use http::request::Parts;

use crate::{
    access_control::{self, AccessControl, Principal},
    content_types::ContentTypes,
    error::{Error, Result},
    limits::{Limits, uploads::Uploads},
    metrics::Metrics,
    push_memory::PushMemory,
    route::{Page, namespace},
    session::Secret,
};

/// The state that all requests share.
pub(crate) struct Context {
    pub(crate) store: Store,
    pub(crate) source: Option<Arc<dyn PullThrough>>,
    pub(crate) access_control: AccessControl,
    pub(crate) secret: Secret,
    pub(crate) limits: Limits,
    pub(crate) owner: LockHolder,
    pub(crate) metrics: Metrics,
    pub(crate) draining: CancellationToken,
    pub(crate) uploads: Uploads,
    pub(crate) content_types: ContentTypes,
    pub(crate) push_memory: PushMemory,
}

impl Context {
    /// Refuses writes while the process ends or the volume is full.
    pub(crate) async fn check_write(&self, bytes: u64) -> Result<()> {
        if self.draining.is_cancelled() {
            return Err(Error::later("this replica is shutting down; retry"));
        }
        self.store.check_write(bytes).await.map_err(Error::from)
    }
}

/// One request to a repository, already authorized.
#[derive(Clone, Copy)]
pub(crate) struct Call<'a> {
    pub(crate) api: &'a Context,
    pub(crate) head: &'a Parts,
    pub(crate) caller: &'a Principal,
    pub(crate) repo: &'a RepositoryName,
}

impl<'a> Call<'a> {
    /// What fetches the repository's content on a miss.
    pub(crate) fn source(&self) -> Option<&'a Arc<dyn PullThrough>> {
        let source = self.api.source.as_ref();
        source.filter(|_| is_upstream_namespace(self.repo))
    }
}

/// A request for a list of a repository.
pub(crate) struct ListCall<'a> {
    pub(crate) call: Call<'a>,
    /// The repository as the client named it: a list shows it so.
    pub(crate) name: &'a RepositoryName,
    /// The `ns` of the query, for links to the next page.
    pub(crate) namespace: Option<String>,
    pub(crate) page: &'a Page,
    /// Reads lists in turn with other clients.
    pub(crate) store: Store,
}

impl<'a> ListCall<'a> {
    pub(crate) fn new(call: Call<'a>, named: Option<&'a RepositoryName>, page: &'a Page) -> Self {
        Self {
            call,
            name: named.unwrap_or(call.repo),
            namespace: namespace(call.head.uri.query()).map(|(text, _)| text),
            page,
            store: call
                .api
                .store
                .for_client(access_control::address(call.head)),
        }
    }
}
