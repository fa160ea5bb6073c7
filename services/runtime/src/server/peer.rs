//! Wraps the service of a part: adds the identity of the client to requests, and tracks answers.

use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use http::{Request, Response, StatusCode, Version};
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper::service::Service;

use super::outgoing::{Piece, Stream};
use super::request_body::RequestBody;
use super::watch::{Underway, Watch};
use super::{Client, Limits, PeerAddr, requests};
use crate::tls::PeerIdentity;

/// Adds the identity of the client to every request, and tracks every answer.
#[derive(Clone, Debug)]
pub(super) struct Peer<S> {
    pub(super) inner: S,
    pub(super) address: SocketAddr,
    pub(super) identity: Option<PeerIdentity>,
    pub(super) watch: Arc<Watch>,
    pub(super) limits: Limits,
}

impl<S, B> Service<Request<Incoming>> for Peer<S>
where
    S: Service<Request<RequestBody>, Response = Response<B>>,
    B: Body,
{
    type Response = Response<Watched<B>>;
    type Error = S::Error;
    type Future = Answer<S::Future>;

    fn call(&self, mut request: Request<Incoming>) -> Self::Future {
        let is_http2 = request.version() == Version::HTTP_2;
        let taken = is_http2.then(|| requests::bytes(&request));
        let (underway, stream) = self.watch.request(taken);
        let watched = Some((underway, stream));
        // Over HTTP/1.1 hyper checks the number.
        if self.limits.headers < request.headers().len() {
            return Answer {
                inner: None,
                watched,
            };
        }
        request.extensions_mut().insert(PeerAddr(self.address));
        request
            .extensions_mut()
            .insert(Client(Arc::clone(&self.watch)));
        if let Some(identity) = &self.identity {
            request.extensions_mut().insert(identity.clone());
        }
        let request = request.map(|body| RequestBody::new(body, &self.limits));
        Answer {
            inner: Some(self.inner.call(request)),
            watched,
        }
    }
}

pin_project_lite::pin_project! {
    /// The future of an answer. Without an inner future the answer is 431.
    pub(super) struct Answer<F> {
        #[pin]
        inner: Option<F>,
        watched: Option<(Underway, Option<Arc<Stream>>)>,
    }
}

impl<F, B, E> Future for Answer<F>
where
    F: Future<Output = Result<Response<B>, E>>,
{
    type Output = Result<Response<Watched<B>>, E>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let response = if let Some(inner) = this.inner.as_pin_mut() {
            ready!(inner.poll(context))?.map(Some)
        } else {
            let mut refused = Response::new(None);
            *refused.status_mut() = StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE;
            refused
        };
        let (underway, stream) = match this.watched.take() {
            Some((underway, stream)) => (Some(underway), stream),
            None => (None, None),
        };
        Poll::Ready(Ok(response.map(|body| Watched {
            body,
            stream,
            underway,
        })))
    }
}

pin_project_lite::pin_project! {
    /// The body of an answer, whose pieces are tracked. The request ends when it is dropped.
    pub(super) struct Watched<B> {
        #[pin]
        body: Option<B>,
        stream: Option<Arc<Stream>>,
        underway: Option<Underway>,
    }
}

impl<B: Body> Body for Watched<B> {
    type Data = Piece<B::Data>;
    type Error = B::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        let this = self.project();
        let stream = this.stream;
        let Some(body) = this.body.as_pin_mut() else {
            return Poll::Ready(None);
        };
        if let Some(stream) = stream {
            ready!(stream.poll_room(context));
        }
        let frame = ready!(body.poll_frame(context));
        Poll::Ready(frame.map(|frame| {
            frame.map(|frame| frame.map_data(|data| Piece::new(data, stream.clone())))
        }))
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        let body = self.body.as_ref();
        body.map_or_else(|| SizeHint::with_exact(0), Body::size_hint)
    }
}
