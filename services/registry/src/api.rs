//! The distribution API as a hyper service: route, access control, handler, one answer.
//!
//! It is a hyper service and not a warp filter, because repository names contain slashes (a path is
//! read from its end), bodies are streams in both directions, and layers would cost the data path
//! and not help it.

use std::{convert::Infallible, sync::Arc, time::Instant};

use bytes::Bytes;
use holdfast_config::Writes;
use holdfast_core::{
    Host,
    reference::{MAX_NAME_LENGTH, MAX_TAG_LENGTH, RepositoryName},
    rewrite::{canonical, is_upstream_namespace, local_repository},
};
use holdfast_runtime::{CancellationToken, server};
use holdfast_store::{LockHolder, Store};
use http::{HeaderValue, Method, Request, Response, header};
use prometheus_client::registry::Registry;

use crate::{
    access_control::{self, AccessControl, Principal},
    access_log::AccessLog,
    body::{self, Body},
    call::{Call, Context, ListCall},
    content_types::ContentTypes,
    delete,
    error::{Code, Error, Result},
    limits::{
        LIST_MEMORY, LIST_MEMORY_PER_ADDRESS, LIST_WAIT, Limits, REFERRERS_PAGE_BYTES,
        uploads::Uploads,
    },
    listing,
    metrics::{self, Metrics},
    notify::Notifier,
    pull, push,
    push_memory::PushMemory,
    put_manifest,
    received::Received,
    referrers,
    response::{json, value, warning},
    route::{Endpoint, RouteError, namespace, route},
    session::Secret,
    volume_watch::VolumeStatus,
};
use holdfast_fill::pull_through::PullThrough;
use holdfast_upstream::Memory;
use holdfast_upstream::Requester;

/// The API over one store. Clones share everything.
#[derive(Clone)]
pub struct Api {
    inner: Arc<Inner>,
}

struct Inner {
    context: Context,
    access_log: Option<AccessLog>,
    observers: Observers,
    lists: Memory,
}

/// What a deployment adds to requests: the access log, notifications, and limits on writes. By
/// default it adds nothing.
#[derive(Debug, Default)]
pub struct Observers {
    /// Which requests are logged.
    pub access_log: Option<holdfast_config::AccessLog>,
    /// Sends events to the endpoints of the configuration.
    pub notifier: Option<Notifier>,
    /// Whether the volume answers. While it does not, requests are refused instead of waiting.
    pub volume_status: Option<VolumeStatus>,
    /// What clients may write, independent of who they are.
    pub writes: Writes,
    /// The upstream of pulls that name no upstream, in a mirror of one upstream.
    pub mirror_of: Option<(String, Host)>,
}

impl std::fmt::Debug for Api {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Api").finish_non_exhaustive()
    }
}

/// What an API is made of.
pub struct Parts {
    /// The content.
    pub store: Store,
    /// What fetches content on a miss, if anything.
    pub source: Option<Arc<dyn PullThrough>>,
    /// Who may do what.
    pub access_control: AccessControl,
    /// Signs upload sessions; the same in every replica.
    pub secret: Secret,
    /// The bounds.
    pub limits: Limits,
    /// The name of this replica in locks on the volume.
    pub owner: LockHolder,
    /// Cancelled when no new upload session may begin.
    pub draining: CancellationToken,
}

impl Api {
    /// Makes the API and registers its metrics.
    pub fn new(parts: Parts, registry: &mut Registry) -> Self {
        Self::observed(parts, Metrics::register(registry), Observers::default())
    }

    /// Makes the API with metrics that are already registered, and with observers.
    pub fn observed(parts: Parts, metrics: Metrics, observers: Observers) -> Self {
        let Parts {
            store,
            source,
            access_control,
            secret,
            limits,
            owner,
            draining,
        } = parts;
        Self {
            inner: Arc::new(Inner {
                context: Context {
                    store,
                    source,
                    access_control,
                    secret,
                    limits,
                    owner,
                    metrics,
                    draining,
                    uploads: Uploads::new(limits.uploads, limits.uploads_per_repository),
                    content_types: ContentTypes::default(),
                    push_memory: PushMemory::default(),
                },
                access_log: observers.access_log.as_ref().and_then(AccessLog::new),
                observers,
                lists: Memory::new(LIST_MEMORY, LIST_MEMORY_PER_ADDRESS),
            }),
        }
    }

    /// The metrics of the API.
    pub fn metrics(&self) -> &Metrics {
        &self.inner.context.metrics
    }

    /// Answers one request. A failure is an answer, too.
    pub async fn answer(&self, request: Request<server::RequestBody>) -> Response<Body> {
        let begun = Instant::now();
        let api = &*self.inner;
        let method = request.method().clone();
        let line = api
            .access_log
            .is_some()
            .then(|| AccessLog::begin(&request, begun));
        let received = length(request.headers());
        let mut actor = String::new();
        let (handler, result) = api.handle(request, &mut actor).await;
        let mut response = result.unwrap_or_else(|error| {
            tracing::debug!(handler, %error, "refused");
            error.into_response()
        });
        response.headers_mut().insert(
            "docker-distribution-api-version",
            HeaderValue::from_static("registry/2.0"),
        );
        let sent = if method == Method::HEAD {
            *response.body_mut() = body::empty();
            None
        } else {
            length(response.headers())
                .or_else(|| hyper::body::Body::size_hint(response.body()).exact())
        };
        api.context.metrics.answered(metrics::RequestOutcome {
            handler,
            method: metrics::method(&method),
            code: response.status().as_u16(),
            took: begun.elapsed(),
            received,
            sent,
        });
        match (&api.access_log, line) {
            (Some(log), Some(line)) => log.follow(line, handler, actor, response),
            _ => response,
        }
    }

    /// Serves until `shutdown`, then waits for the requests in progress.
    pub async fn serve(
        self,
        listener: tokio::net::TcpListener,
        tls: Option<holdfast_runtime::tls::ServerTls>,
        limits: server::Limits,
        shutdown: CancellationToken,
    ) {
        let counts = self.inner.context.metrics.connections.clone();
        let service = server::service_fn(move |request| {
            let api = self.clone();
            async move { Ok::<_, Infallible>(api.answer(request).await) }
        });
        server::serve_counted(listener, tls, service, limits, counts, shutdown).await;
    }
}

/// Whether the configuration allows the action at all.
fn allowed(writes: Writes, action: access_control::Action) -> bool {
    match (writes, action) {
        (_, access_control::Action::Pull)
        | (Writes::All, _)
        | (Writes::NoDeletes, access_control::Action::Push) => true,
        (Writes::NoDeletes, access_control::Action::Delete) | (Writes::None, _) => false,
    }
}

/// Whether a request names its host once and well-formed (RFC 9112, 3.2). With two headers, a proxy
/// and the registry could read different hosts. HTTP/1.0 may omit it, HTTP/2 has it in
/// `:authority`.
fn names_one_host(head: &http::request::Parts) -> bool {
    let mut hosts = head.headers.get_all(header::HOST).iter();
    let is_host = |host: &HeaderValue| {
        host.to_str().is_ok_and(|host| {
            host.is_empty() || !host.contains('@') && host.parse::<http::uri::Authority>().is_ok()
        })
    };
    match (hosts.next(), hosts.next()) {
        (None, _) => head.version != http::Version::HTTP_11,
        (Some(host), None) => is_host(host),
        (Some(_), Some(_)) => false,
    }
}

fn length(headers: &http::HeaderMap) -> Option<u64> {
    headers
        .get(header::CONTENT_LENGTH)
        .and_then(|length| length.to_str().ok()?.parse().ok())
}

impl Inner {
    /// Answers; `actor` becomes the name of the client, where that is known and recorded.
    async fn handle(
        &self,
        request: Request<server::RequestBody>,
        actor: &mut String,
    ) -> (&'static str, Result<Response<Body>>) {
        let (head, body) = request.into_parts();
        let body = Received::new(body, head.version);
        if !names_one_host(&head) {
            let refusal = Error::invalid(
                Code::Unsupported,
                "a request has exactly one valid Host header",
            );
            return ("none", Err(refusal));
        }
        let caller = match self.context.access_control.identify(&head).await {
            Ok(caller) => caller,
            Err(refusal) => return ("none", Err(refusal)),
        };
        if !matches!(caller, Principal::Anonymous | Principal::InvalidCredentials)
            && let Some(client) = head.extensions.get::<server::Client>()
        {
            client.set_authenticated();
        }
        let mut endpoint = match route(&head.method, head.uri.path(), head.uri.query()) {
            Ok(endpoint) => endpoint,
            // A client without any right learns nothing about paths.
            Err(error) => {
                let result = match error {
                    RouteError::NotFound => Err(error.into()),
                    _ => self
                        .context
                        .access_control
                        .check_unknown(&caller)
                        .and(Err(error.into())),
                };
                return ("none", result);
            }
        };
        let handler = endpoint.handler();
        let _in_flight = self.context.metrics.begin(handler);
        if let Err(refusal) = self.context.access_control.check(&caller, &endpoint) {
            return (handler, Err(refusal));
        }
        let notifier = self.observers.notifier.as_ref();
        if self.access_log.is_some() || notifier.is_some() {
            *actor = caller.subject();
        }
        if !allowed(self.observers.writes, access_control::action(&endpoint)) {
            let refusal = Error::new(
                http::StatusCode::METHOD_NOT_ALLOWED,
                Code::Unsupported,
                "this registry's configuration does not allow it",
            );
            return (handler, Err(refusal));
        }
        let hangs = self
            .observers
            .volume_status
            .as_ref()
            .is_some_and(VolumeStatus::hangs);
        if hangs && endpoint != Endpoint::Base {
            // Waiting would only pile up requests; another replica may reach its volume.
            return (
                handler,
                Err(Error::later("the registry's volume does not answer")),
            );
        }
        let writes = access_control::action(&endpoint) == access_control::Action::Push;
        let result = async {
            let named = endpoint.pulled_repository().cloned();
            let namespace = self.mirror(&head, &caller, &mut endpoint).await?;
            let draft = notifier.and_then(|notifier| notifier.draft(&head, &endpoint, actor));
            let dispatched = self.dispatch(&head, &caller, (&endpoint, named.as_ref()), body);
            let mut response = Requester::scope(access_control::address(&head), dispatched).await?;
            if let (Some(notifier), Some(draft)) = (notifier, draft) {
                notifier
                    .tell(
                        draft,
                        response.status(),
                        response.headers(),
                        &self.context.store,
                    )
                    .await;
            }
            if let Some(namespace) = namespace {
                response
                    .headers_mut()
                    .insert("oci-namespace", value(&namespace));
            }
            if writes && let Some(percent) = self.context.store.filling() {
                response.headers_mut().append(
                    header::WARNING,
                    warning(&format!("the registry's volume is {percent}% full")),
                );
            }
            Ok(response)
        };
        (handler, result.await)
    }

    /// Turns a pull with `ns`, as a client sends it to a mirror, into a pull of that upstream's
    /// local repository. It serves only what is local or may be fetched anyway, so it gives no
    /// access to upstreams that are not configured. Returns the namespace that was used.
    async fn mirror(
        &self,
        head: &http::request::Parts,
        caller: &Principal,
        endpoint: &mut Endpoint,
    ) -> Result<Option<String>> {
        let Some(repo) = endpoint.pulled_repository() else {
            return Ok(None);
        };
        if is_upstream_namespace(repo) {
            // `docker.io/nginx`, as people write it.
            if let Some(canonical) = canonical(repo) {
                *repo = canonical;
                self.context.access_control.check(caller, endpoint)?;
            }
            return Ok(None);
        }
        let named = namespace(head.uri.query());
        let Some((name, host)) = named.or_else(|| self.observers.mirror_of.clone()) else {
            return Ok(None);
        };
        let Some(local) = local_repository(&host, repo) else {
            return Ok(None);
        };
        let local = canonical(&local).unwrap_or(local);
        let fetched = self
            .context
            .source
            .as_ref()
            .is_some_and(|source| source.fetches(&local));
        if !fetched && !self.context.store.repository_exists(&local).await? {
            return Ok(None);
        }
        *repo = local;
        self.context.access_control.check(caller, endpoint)?;
        Ok(Some(name))
    }

    /// `named` is the repository as the client named it, if the endpoint pulls from one.
    async fn dispatch(
        &self,
        head: &http::request::Parts,
        caller: &Principal,
        (endpoint, named): (&Endpoint, Option<&RepositoryName>),
        body: Received,
    ) -> Result<Response<Body>> {
        let call = |repo| Call {
            api: &self.context,
            head,
            caller,
            repo,
        };
        match endpoint {
            Endpoint::Base => Ok(json("{}".into(), "application/json").map(body::full)),
            Endpoint::Catalog(page) => {
                let mirror_of = self.observers.mirror_of.as_ref().map(|(_, host)| host);
                let most = listing::most(listing::catalog_limit(page)?, MAX_NAME_LENGTH);
                let store = self.context.store.for_client(access_control::address(head));
                let made = listing::catalog(&store, mirror_of, page);
                self.list(head, most, made).await
            }
            Endpoint::Tags(repo, page) => {
                let most = listing::most(listing::tags_limit(page), MAX_TAG_LENGTH);
                let made = listing::tags(ListCall::new(call(repo), named, page));
                self.list(head, most, made).await
            }
            Endpoint::Referrers(repo, subject, kind, page) => {
                let list = ListCall::new(call(repo), named, page);
                let made = referrers::list(list, subject, kind.as_deref());
                self.list(head, REFERRERS_PAGE_BYTES as u64, made).await
            }
            Endpoint::GetBlob(repo, digest) => pull::blob(call(repo), digest).await,
            Endpoint::GetManifest(repo, reference) => pull::manifest(call(repo), reference).await,
            Endpoint::StartUpload(repo, algorithm) => push::start(call(repo), *algorithm).await,
            Endpoint::PushBlob(repo, digest) => push::single(call(repo), digest, body).await,
            Endpoint::MountBlob(repo, digest, from) => {
                push::mount(call(repo), digest, from.as_ref()).await
            }
            Endpoint::PatchUpload(repo, id, state) => {
                push::patch(call(repo), id, state, body).await
            }
            Endpoint::FinishUpload(repo, id, state, digest) => {
                push::finish(call(repo), id, state, digest, body).await
            }
            Endpoint::UploadStatus(repo, id, state) => push::status(call(repo), id, state).await,
            Endpoint::CancelUpload(repo, id, state) => push::cancel(call(repo), id, state).await,
            Endpoint::PutManifest(repo, reference, tags) => {
                put_manifest::put(call(repo), reference, tags, body).await
            }
            Endpoint::DeleteManifest(repo, reference) => {
                delete::manifest(call(repo), reference).await
            }
            Endpoint::DeleteBlob(repo, digest) => delete::blob(call(repo), digest).await,
        }
    }

    /// Makes a list when there is memory for it: the client may leave it unread for long.
    async fn list(
        &self,
        head: &http::request::Parts,
        most: u64,
        made: impl Future<Output = Result<Response<Bytes>>>,
    ) -> Result<Response<Body>> {
        let client = access_control::address(head).to_string();
        let mut parts = None;
        let read = async {
            let (made, bytes) = made.await?.into_parts();
            parts = Some(made);
            Ok(bytes)
        };
        let late = || Error::too_many("too many lists are in progress");
        let held = self
            .lists
            .hold_within(LIST_WAIT, (&client, most), late, read);
        let (bytes, reserved) = held.await?;
        let parts = parts.unwrap_or_else(|| Response::new(()).into_parts().0);
        let response = Response::from_parts(parts, bytes);
        Ok(response.map(|bytes| body::counted(bytes, reserved)))
    }
}
