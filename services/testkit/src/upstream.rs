//! An upstream registry in the test's process: pulls only, with authentication, faults and a record
//! of all requests.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    sync::Arc,
};

use base64::{Engine, prelude::BASE64_STANDARD};
use bytes::Bytes;
use http::{
    HeaderMap, Method, Request as HttpRequest, Response, StatusCode, header, header::HeaderValue,
};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use parking_lot::Mutex;
use tokio::task::JoinHandle;

use crate::{
    control,
    faults::{Body, Faults, Verdict, full},
    image::Image,
    requests::Requests,
    server::{self, Cut},
};

/// Who may read.
#[derive(Debug, Clone, Default)]
pub enum Auth {
    /// Everybody.
    #[default]
    Anonymous,
    /// Users with `user`, `password`, by Basic.
    Basic(Vec<(String, String)>),
    /// Bearer tokens.
    Bearer {
        /// Users that get a token that counts; with none, everybody does.
        users: Vec<(String, String)>,
        /// The realm of the challenge; the upstream's own `/token` when absent.
        realm: Option<String>,
    },
}

#[derive(Debug, Default)]
struct Content {
    blobs: BTreeMap<String, Bytes>,
    manifests: BTreeMap<String, (String, Bytes)>,
    repositories: BTreeMap<String, BTreeSet<String>>,
    tags: BTreeMap<(String, String), String>,
}

struct Shared {
    content: Mutex<Content>,
    auth: Auth,
    faults: Faults,
    requests: Requests,
    /// Bytes of bodies handed to clients, by path.
    sent: Arc<Mutex<BTreeMap<String, u64>>>,
    address: SocketAddr,
}

/// A running upstream; dropping it ends it.
pub struct Upstream {
    shared: Arc<Shared>,
    control: SocketAddr,
    tasks: Vec<JoinHandle<()>>,
}

impl Drop for Upstream {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

impl Upstream {
    /// Starts an upstream that everybody may read, on a free port of 127.0.0.1.
    ///
    /// # Panics
    /// When no port can be bound.
    pub async fn start() -> Self {
        Self::start_with(Auth::Anonymous).await
    }

    /// Starts an upstream with authentication.
    ///
    /// # Panics
    /// When no port can be bound.
    #[allow(
        clippy::expect_used,
        reason = "a test cannot go on without its upstream"
    )]
    pub async fn start_with(auth: Auth) -> Self {
        let (listener, address) = server::bind("127.0.0.1:0")
            .await
            .expect("bind a port for the upstream");
        let (control_listener, control) = server::bind("127.0.0.1:0")
            .await
            .expect("bind a port for its control API");
        let shared = Arc::new(Shared {
            content: Mutex::default(),
            auth,
            faults: Faults::default(),
            requests: Requests::default(),
            sent: Arc::default(),
            address,
        });
        let handler = {
            let shared = shared.clone();
            move |request| {
                let shared = shared.clone();
                async move { shared.answer(request).await }
            }
        };
        let control_handler = {
            let shared = shared.clone();
            move |request| control::handle(shared.faults.clone(), shared.requests.clone(), request)
        };
        let faults = shared.faults.clone();
        let tasks = vec![
            tokio::spawn(
                async move { match server::serve(listener, None, faults, handler).await {} },
            ),
            tokio::spawn(async move {
                match server::serve(control_listener, None, Faults::default(), control_handler)
                    .await {}
            }),
        ];
        Self {
            shared,
            control,
            tasks,
        }
    }

    /// `127.0.0.1:<port>`: the host of image references to it.
    pub fn host(&self) -> String {
        self.shared.address.to_string()
    }

    /// `http://127.0.0.1:<port>`.
    pub fn url(&self) -> String {
        format!("http://{}", self.shared.address)
    }

    /// The control API's `http://127.0.0.1:<port>`.
    pub fn control_url(&self) -> String {
        format!("http://{}", self.control)
    }

    /// Puts an image into a repository and points a tag at it.
    pub fn push(&self, repository: &str, tag: &str, image: &Image) {
        let mut content = self.shared.content.lock();
        content.blobs.extend(image.blobs.clone());
        content.manifests.extend(image.manifests.clone());
        let members = content
            .repositories
            .entry(repository.to_owned())
            .or_default();
        members.extend(image.blobs.keys().cloned());
        members.extend(image.manifests.keys().cloned());
        content.tags.insert(
            (repository.to_owned(), tag.to_owned()),
            image.digest.clone(),
        );
    }

    /// The faults in force.
    pub fn faults(&self) -> &Faults {
        &self.shared.faults
    }

    /// All requests so far.
    pub fn requests(&self) -> &Requests {
        &self.shared.requests
    }

    /// Bytes of bodies handed to clients, of all paths that end so.
    pub fn sent(&self, path_end: &str) -> u64 {
        let sent = self.shared.sent.lock();
        let fits = sent.iter().filter(|(path, _)| path.ends_with(path_end));
        fits.map(|(_, bytes)| bytes).sum()
    }

    /// How many times a blob or manifest was asked for by GET.
    pub fn gets(&self, digest: &str) -> usize {
        self.requests().count(&Method::GET, digest)
    }
}

impl Shared {
    async fn answer(&self, request: HttpRequest<Incoming>) -> Result<Response<Body>, Cut> {
        let path = request.uri().path().to_owned();
        self.requests
            .record(request.method(), request.uri(), request.headers());
        match self.faults.judge(request.method(), &path).await {
            Verdict::Cut => Err(Cut),
            Verdict::Instead(answer) => Ok(answer),
            Verdict::Pass => Ok(self.counted(&path, self.content(&request, &path))),
            Verdict::Spoil(kind) => {
                let answer = self.faults.spoil(kind, self.content(&request, &path));
                Ok(self.counted(&path, answer))
            }
        }
    }

    /// Counts the bytes of an answer as they leave.
    fn counted(&self, path: &str, answer: Response<Body>) -> Response<Body> {
        let (sent, path) = (Arc::clone(&self.sent), path.to_owned());
        answer.map(|body| {
            body.map_frame(move |frame| {
                if let Some(data) = frame.data_ref() {
                    let mut sent = sent.lock();
                    *sent.entry(path.clone()).or_default() += data.len() as u64;
                }
                frame
            })
            .boxed()
        })
    }

    fn content(&self, request: &HttpRequest<Incoming>, path: &str) -> Response<Body> {
        if path == "/token" {
            return self.token(request);
        }
        if let Some(challenge) = self.challenge(request.headers(), path) {
            let mut answer = error(StatusCode::UNAUTHORIZED, "UNAUTHORIZED");
            if let Ok(value) = HeaderValue::from_str(&challenge) {
                answer.headers_mut().insert(header::WWW_AUTHENTICATE, value);
            }
            return answer;
        }
        let Some(rest) = path.strip_prefix("/v2/") else {
            return error(StatusCode::NOT_FOUND, "UNSUPPORTED");
        };
        let head_only = request.method() == Method::HEAD;
        if rest.is_empty() {
            return Response::new(full("{}"));
        }
        let content = self.content.lock();
        if let Some((repository, digest)) = rest.rsplit_once("/blobs/") {
            let known = content
                .repositories
                .get(repository)
                .is_some_and(|members| members.contains(digest));
            match content.blobs.get(digest) {
                Some(bytes) if known => bytes_answer(
                    request.headers(),
                    head_only,
                    "application/octet-stream",
                    digest,
                    bytes,
                ),
                _ => error(StatusCode::NOT_FOUND, "BLOB_UNKNOWN"),
            }
        } else if let Some((repository, reference)) = rest.rsplit_once("/manifests/") {
            let digest = if reference.contains(':') {
                Some(reference.to_owned())
            } else {
                content
                    .tags
                    .get(&(repository.to_owned(), reference.to_owned()))
                    .cloned()
            };
            let known = |d: &String| {
                content
                    .repositories
                    .get(repository)
                    .is_some_and(|members| members.contains(d))
            };
            match digest
                .filter(known)
                .and_then(|d| content.manifests.get(&d).map(|m| (d.clone(), m)))
            {
                Some((digest, (media_type, bytes))) => {
                    bytes_answer(&HeaderMap::new(), head_only, media_type, &digest, bytes)
                }
                None => error(StatusCode::NOT_FOUND, "MANIFEST_UNKNOWN"),
            }
        } else {
            error(StatusCode::NOT_FOUND, "UNSUPPORTED")
        }
    }

    fn challenge(&self, headers: &HeaderMap, path: &str) -> Option<String> {
        let given = headers
            .get(header::AUTHORIZATION)
            .and_then(|v| v.to_str().ok())
            .unwrap_or_default();
        match &self.auth {
            Auth::Anonymous => None,
            Auth::Basic(users) => {
                let allowed = users
                    .iter()
                    .any(|(user, password)| basic(user, password) == given);
                (!allowed).then(|| r#"Basic realm="test""#.to_owned())
            }
            Auth::Bearer { realm, .. } => {
                let scope = scope_of(path);
                if given == format!("Bearer good.{scope}") {
                    return None;
                }
                let own = format!("http://{}/token", self.address);
                let realm = realm.as_ref().unwrap_or(&own);
                Some(format!(
                    r#"Bearer realm="{realm}",service="test",scope="{scope}""#
                ))
            }
        }
    }

    fn token(&self, request: &HttpRequest<Incoming>) -> Response<Body> {
        let Auth::Bearer { users, .. } = &self.auth else {
            return error(StatusCode::NOT_FOUND, "UNSUPPORTED");
        };
        let given = request
            .headers()
            .get(header::AUTHORIZATION)
            .and_then(|v| v.to_str().ok())
            .unwrap_or_default();
        if !users.is_empty()
            && !users
                .iter()
                .any(|(user, password)| basic(user, password) == given)
        {
            return error(StatusCode::UNAUTHORIZED, "UNAUTHORIZED");
        }
        let query = request.uri().query().unwrap_or_default();
        let scope = query
            .split('&')
            .find_map(|pair| pair.strip_prefix("scope="))
            .unwrap_or_default();
        let scope = scope
            .replace("%3A", ":")
            .replace("%2F", "/")
            .replace("%2C", ",");
        let token = serde_json::json!({"token": format!("good.{scope}"), "expires_in": 300});
        Response::new(full(token.to_string()))
    }
}

/// The value of an `Authorization: Basic` header.
pub fn basic(user: &str, password: &str) -> String {
    format!(
        "Basic {}",
        BASE64_STANDARD.encode(format!("{user}:{password}"))
    )
}

fn scope_of(path: &str) -> String {
    let rest = path.strip_prefix("/v2/").unwrap_or_default();
    let repository = rest
        .rsplit_once("/blobs/")
        .or_else(|| rest.rsplit_once("/manifests/"));
    repository.map_or_else(String::new, |(name, _)| format!("repository:{name}:pull"))
}

fn error(status: StatusCode, code: &str) -> Response<Body> {
    let mut answer = Response::new(full(
        serde_json::json!({"errors": [{"code": code, "message": code}]}).to_string(),
    ));
    *answer.status_mut() = status;
    answer
}

fn bytes_answer(
    headers: &HeaderMap,
    head_only: bool,
    media_type: &str,
    digest: &str,
    bytes: &Bytes,
) -> Response<Body> {
    let range = headers
        .get(header::RANGE)
        .and_then(|v| v.to_str().ok())
        .and_then(|v| parse_range(v, bytes.len()));
    let (status, part) = match range {
        Some((from, to)) => (StatusCode::PARTIAL_CONTENT, bytes.slice(from..to)),
        None => (StatusCode::OK, bytes.clone()),
    };
    let length = part.len();
    // Pieces, so that a fault in the middle of a body has a middle.
    let mut answer = Response::new(if head_only { full("") } else { full(part) });
    *answer.status_mut() = status;
    let headers = answer.headers_mut();
    headers.insert(header::CONTENT_LENGTH, length.into());
    for (name, value) in [
        ("content-type", media_type),
        ("docker-content-digest", digest),
    ] {
        if let Ok(value) = HeaderValue::from_str(value) {
            headers.insert(name, value);
        }
    }
    if let Some((from, to)) = range
        && let Ok(value) =
            HeaderValue::from_str(&format!("bytes {from}-{}/{}", to - 1, bytes.len()))
    {
        headers.insert(header::CONTENT_RANGE, value);
    }
    answer
}

fn parse_range(value: &str, length: usize) -> Option<(usize, usize)> {
    let (from, to) = value.strip_prefix("bytes=")?.split_once('-')?;
    let from: usize = from.parse().ok()?;
    let to = to
        .parse()
        .map_or(length, |last: usize| (last + 1).min(length));
    (from < to).then_some((from, to))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Fault, ImageBuilder, faults::Kind};

    #[tokio::test]
    async fn serves_what_was_pushed_and_counts() {
        crate::tls::install_crypto_provider();
        let upstream = Upstream::start().await;
        let image = ImageBuilder::new(1).layer(1000).build();
        upstream.push("team/app", "1", &image);
        let url = format!("{}/v2/team/app/manifests/1", upstream.url());
        assert_eq!(
            reqwest::get(&url).await.unwrap().bytes().await.unwrap(),
            image.bytes()
        );
        let url = format!("{}/v2/team/app/blobs/{}", upstream.url(), image.layers[0]);
        assert_eq!(
            reqwest::get(&url).await.unwrap().bytes().await.unwrap(),
            image.blobs[&image.layers[0]]
        );
        assert_eq!(upstream.gets(&image.layers[0]), 1);
        upstream
            .faults()
            .set(Fault::new(Kind::Truncate { after: 10 }));
        assert!(reqwest::get(&url).await.unwrap().bytes().await.is_err());
        upstream.faults().clear();
        upstream.faults().set(Fault::new(Kind::Down));
        assert!(reqwest::get(&url).await.is_err());
    }

    #[tokio::test]
    async fn control_sets_faults_and_reads_counts() {
        crate::tls::install_crypto_provider();
        let upstream = Upstream::start().await;
        let client = reqwest::Client::new();
        let fault = client
            .post(format!("{}/_control/fault", upstream.control_url()))
            .body(r#"{"kind":"error"}"#);
        assert_eq!(fault.send().await.unwrap().status(), 200);
        assert_eq!(
            reqwest::get(format!("{}/v2/", upstream.url()))
                .await
                .unwrap()
                .status(),
            500
        );
        let counts = reqwest::get(format!("{}/requests", upstream.control_url()))
            .await
            .unwrap();
        assert_eq!(counts.text().await.unwrap(), r#"{"GET /v2/":1}"#);
    }
}
