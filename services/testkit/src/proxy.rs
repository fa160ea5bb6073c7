//! The fault proxy: everything goes to one target registry, faults and counting in between.

use std::{io, net::SocketAddr, sync::Arc};

use anyhow::Context as _;
use futures::{StreamExt, TryStreamExt};
use http::{HeaderMap, Request, Response, StatusCode, header, header::HeaderValue};
use http_body_util::{BodyExt, BodyStream, StreamBody};
use hyper::body::{Frame, Incoming};
use tokio_rustls::TlsAcceptor;

use crate::{
    control,
    faults::{Body, Faults, Verdict, full},
    requests::Requests,
    server::{self, Cut},
    upstream::basic,
};

/// What to put where.
pub struct Settings {
    /// `address:port` to listen on.
    pub listen: String,
    /// `address:port` of the control API.
    pub control: String,
    /// Scheme, host and port of the registry behind.
    pub target: String,
    /// Ask for this user and password by Basic; the target never sees them.
    pub basic: Option<(String, String)>,
    /// Serve TLS.
    pub tls: Option<TlsAcceptor>,
}

struct Shared {
    target: String,
    basic: Option<String>,
    scheme: &'static str,
    client: reqwest::Client,
    faults: Faults,
    requests: Requests,
}

/// Binds both ports, tells the proxy's address to `ready`, serves until dropped.
///
/// # Errors
/// When a port cannot be bound or the client cannot be made.
pub async fn run(settings: Settings, ready: impl FnOnce(SocketAddr)) -> anyhow::Result<()> {
    let (listener, address) = server::bind(&settings.listen)
        .await
        .with_context(|| format!("listen on {}", settings.listen))?;
    let (control, _) = server::bind(&settings.control)
        .await
        .with_context(|| format!("listen on {}", settings.control))?;
    let client = reqwest::Client::builder()
        .redirect(reqwest::redirect::Policy::none())
        .no_proxy()
        .build()?;
    let shared = Arc::new(Shared {
        target: settings.target.trim_end_matches('/').to_owned(),
        basic: settings
            .basic
            .map(|(user, password)| basic(&user, &password)),
        scheme: if settings.tls.is_some() {
            "https"
        } else {
            "http"
        },
        client,
        faults: Faults::default(),
        requests: Requests::default(),
    });
    ready(address);
    let control_handler = {
        let shared = shared.clone();
        move |request| control::handle(shared.faults.clone(), shared.requests.clone(), request)
    };
    let faults = shared.faults.clone();
    let handler = move |request| {
        let shared = shared.clone();
        async move { shared.answer(request).await }
    };
    tokio::select! {
        never = server::serve(listener, settings.tls, faults, handler) => match never {},
        never = server::serve(control, None, Faults::default(), control_handler) => match never {},
    }
}

impl Shared {
    async fn answer(&self, request: Request<Incoming>) -> Result<Response<Body>, Cut> {
        let path = request.uri().path().to_owned();
        self.requests
            .record(request.method(), request.uri(), request.headers());
        let spoil = match self.faults.judge(request.method(), &path).await {
            Verdict::Cut => return Err(Cut),
            Verdict::Instead(answer) => return Ok(answer),
            Verdict::Pass => None,
            Verdict::Spoil(kind) => Some(kind),
        };
        let answer = if self.allowed(request.headers()) {
            self.forward(request).await
        } else {
            unauthorized()
        };
        Ok(match spoil {
            Some(kind) => self.faults.spoil(kind, answer),
            None => answer,
        })
    }

    fn allowed(&self, headers: &HeaderMap) -> bool {
        let given = headers
            .get(header::AUTHORIZATION)
            .and_then(|v| v.to_str().ok());
        self.basic
            .as_deref()
            .is_none_or(|wanted| given == Some(wanted))
    }

    async fn forward(&self, request: Request<Incoming>) -> Response<Body> {
        let (head, body) = request.into_parts();
        let host = head.headers.get(header::HOST).cloned();
        let host = host.or_else(|| {
            head.uri
                .authority()
                .and_then(|a| HeaderValue::from_str(a.as_str()).ok())
        });
        let mut headers = without_hop_by_hop(head.headers);
        if self.basic.is_some() {
            headers.remove(header::AUTHORIZATION);
        }
        if let Some(host) = host {
            headers.insert("x-forwarded-host", host);
        }
        headers.insert("x-forwarded-proto", HeaderValue::from_static(self.scheme));
        headers.remove(header::HOST);
        let path = head
            .uri
            .path_and_query()
            .map_or("/", http::uri::PathAndQuery::as_str);
        let has_body = !http_body::Body::is_end_stream(&body);
        let mut onward = self
            .client
            .request(head.method, format!("{}{path}", self.target))
            .headers(headers);
        if has_body {
            let chunks = BodyStream::new(body)
                .filter_map(|frame| async { frame.map(|f| f.into_data().ok()).transpose() });
            onward = onward.body(reqwest::Body::wrap_stream(chunks));
        }
        let answer = match onward.send().await {
            Ok(answer) => answer,
            Err(e) => {
                let mut answer =
                    Response::new(full(format!("the registry behind the fault proxy: {e}")));
                *answer.status_mut() = StatusCode::BAD_GATEWAY;
                return answer;
            }
        };
        let (status, headers) = (
            answer.status(),
            without_hop_by_hop(answer.headers().clone()),
        );
        let chunks = answer
            .bytes_stream()
            .map_ok(Frame::data)
            .map_err(io::Error::other);
        let mut back = Response::new(BodyExt::boxed(StreamBody::new(SyncStream::new(chunks))));
        *back.status_mut() = status;
        *back.headers_mut() = headers;
        back
    }
}

fn unauthorized() -> Response<Body> {
    let mut answer = Response::new(full(
        r#"{"errors":[{"code":"UNAUTHORIZED","message":"authentication required"}]}"#,
    ));
    *answer.status_mut() = StatusCode::UNAUTHORIZED;
    let challenge = HeaderValue::from_static(r#"Basic realm="holdfast-upstream""#);
    answer
        .headers_mut()
        .insert(header::WWW_AUTHENTICATE, challenge);
    answer
}

fn without_hop_by_hop(mut headers: HeaderMap) -> HeaderMap {
    for name in [
        "connection",
        "keep-alive",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
        "proxy-connection",
    ] {
        headers.remove(name);
    }
    headers
}

/// A stream that is `Sync` because it is only ever polled through `&mut`.
struct SyncStream<S>(parking_lot::Mutex<std::pin::Pin<Box<S>>>);

impl<S> SyncStream<S> {
    fn new(stream: S) -> Self {
        Self(parking_lot::Mutex::new(Box::pin(stream)))
    }
}

impl<S: futures::Stream> futures::Stream for SyncStream<S> {
    type Item = S::Item;

    fn poll_next(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Self::Item>> {
        let inner = self.0.get_mut();
        inner.as_mut().poll_next(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{ImageBuilder, Upstream};

    async fn start(
        target: String,
        login: Option<(String, String)>,
        tls: Option<TlsAcceptor>,
    ) -> SocketAddr {
        let (tell, told) = tokio::sync::oneshot::channel();
        let settings = Settings {
            listen: "127.0.0.1:0".to_owned(),
            control: "127.0.0.1:0".to_owned(),
            target,
            basic: login,
            tls,
        };
        tokio::spawn(run(settings, |address| tell.send(address).unwrap()));
        told.await.unwrap()
    }

    #[tokio::test]
    async fn forwards_with_basic_authentication_over_tls() {
        crate::tls::install_crypto_provider();
        let upstream = Upstream::start().await;
        let image = ImageBuilder::new(3).layer(300_000).build();
        upstream.push("app", "1", &image);
        let (acceptor, ca) = crate::tls::self_signed(&["127.0.0.1".to_owned()]).unwrap();
        let login = ("u".to_owned(), "p".to_owned());
        let address = start(upstream.url(), Some(login), Some(acceptor)).await;
        let ca = reqwest::Certificate::from_pem(ca.as_bytes()).unwrap();
        let client = reqwest::Client::builder()
            .tls_certs_only([ca])
            .build()
            .unwrap();
        let url = format!("https://{address}/v2/app/blobs/{}", image.layers[0]);
        assert_eq!(client.get(&url).send().await.unwrap().status(), 401);
        let bytes = client
            .get(&url)
            .basic_auth("u", Some("p"))
            .send()
            .await
            .unwrap()
            .bytes()
            .await
            .unwrap();
        assert_eq!(bytes, image.blobs[&image.layers[0]]);
        assert_eq!(
            upstream.requests().all()[0].authorization,
            None,
            "the target never sees the password"
        );
    }
}
