//! The body of a request, with bounds on silence, rate, total time and size.
//!
//! Only the time that the server waits for the client counts. A part that reads slowly does not
//! make its client look slow.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::StatusCode;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use tokio::time::Sleep;

use super::Limits;

/// Why the body of a request ended early.
#[derive(Debug, thiserror::Error)]
pub enum BodyError {
    /// The client sent nothing for [`Limits::idle`].
    #[error("the client sent nothing for too long")]
    Silent,
    /// The client sent less than [`Limits::min_bytes_per_second`] over [`Limits::window`].
    #[error("the client sends too slowly")]
    Slow,
    /// The body took longer than [`Limits::body_timeout`].
    #[error("the client did not send the body in time")]
    Late,
    /// The body has more than [`Limits::body_bytes`].
    #[error("the body has more than {0} bytes")]
    TooLarge(u64),
    /// The connection or the stream broke.
    #[error("the client closed the connection or stream")]
    Broken(#[source] hyper::Error),
}

impl BodyError {
    /// The status of the answer: 408, 413, or 400 for a broken connection.
    pub fn status(&self) -> StatusCode {
        match self {
            Self::Silent | Self::Slow | Self::Late => StatusCode::REQUEST_TIMEOUT,
            Self::TooLarge(_) => StatusCode::PAYLOAD_TOO_LARGE,
            Self::Broken(_) => StatusCode::BAD_REQUEST,
        }
    }

    /// Finds a `BodyError` among an error and its sources. Frameworks such as warp wrap the errors
    /// of bodies.
    pub fn find<'a>(error: &'a (dyn std::error::Error + 'static)) -> Option<&'a Self> {
        std::iter::successors(Some(error), |error| error.source())
            .find_map(|error| error.downcast_ref())
    }
}

/// The body of a request. It yields the client's frames until a bound of [`Limits`] is reached, and
/// then one [`BodyError`]. The part answers with [`BodyError::status`]; over HTTP/1.1 the
/// connection ends after that answer.
#[derive(Debug)]
pub struct RequestBody {
    inner: Incoming,
    bounds: Bounds,
    received: u64,
    waiting_since: Option<Instant>,
    waited: Duration,
    rate: Rate,
    /// Created at the first wait. It may fire early, and is reset then.
    timer: Option<Pin<Box<Sleep>>>,
}

/// The bounds of bodies in [`Limits`].
#[derive(Clone, Copy, Debug)]
struct Bounds {
    idle: Duration,
    timeout: Option<Duration>,
    bytes: u64,
}

impl RequestBody {
    pub(super) fn new(inner: Incoming, limits: &Limits) -> Self {
        Self {
            inner,
            bounds: Bounds {
                idle: limits.idle,
                timeout: limits.body_timeout,
                bytes: limits.body_bytes,
            },
            received: 0,
            waiting_since: None,
            waited: Duration::ZERO,
            rate: Rate::new(limits.min_bytes_per_second, limits.window),
            timer: None,
        }
    }

    /// Ready if the time is over. Otherwise the task is woken when it may be.
    fn poll_overdue(&mut self, context: &mut Context<'_>) -> Poll<BodyError> {
        let now = Instant::now();
        let since = *self.waiting_since.get_or_insert(now);
        let silent = self.bounds.idle;
        let left = self
            .bounds
            .timeout
            .map(|all| all.saturating_sub(self.waited));
        let (time, error) = match left {
            Some(left) if left < silent => (left, BodyError::Late),
            _ => (silent, BodyError::Silent),
        };
        let deadline = tokio::time::Instant::from_std(since + time);
        let timer = self
            .timer
            .get_or_insert_with(|| Box::pin(tokio::time::sleep_until(deadline)));
        while timer.as_mut().poll(context).is_ready() {
            if deadline <= tokio::time::Instant::now() {
                return Poll::Ready(error);
            }
            timer.as_mut().reset(deadline);
        }
        Poll::Pending
    }

    /// Counts received bytes. Fails if they are too many or came too slowly.
    fn count(&mut self, bytes: usize) -> Result<(), BodyError> {
        let waited = self.waiting_since.take().map(|since| since.elapsed());
        let waited = waited.unwrap_or_default();
        self.waited += waited;
        self.received += bytes as u64;
        if self.bounds.bytes < self.received {
            return Err(BodyError::TooLarge(self.bounds.bytes));
        }
        if self.bounds.timeout.is_some_and(|all| all < self.waited) {
            return Err(BodyError::Late);
        }
        if self.rate.came(bytes, waited) {
            Ok(())
        } else {
            Err(BodyError::Slow)
        }
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let body = self.get_mut();
        // An announced length is checked before the bytes come.
        if body.bounds.bytes < body.received + body.inner.size_hint().lower() {
            return Poll::Ready(Some(Err(BodyError::TooLarge(body.bounds.bytes))));
        }
        match Pin::new(&mut body.inner).poll_frame(context) {
            Poll::Pending => body.poll_overdue(context).map(|error| Some(Err(error))),
            Poll::Ready(Some(Ok(frame))) => {
                let bytes = frame.data_ref().map_or(0, Bytes::len);
                Poll::Ready(Some(body.count(bytes).map(|()| frame)))
            }
            Poll::Ready(Some(Err(error))) => Poll::Ready(Some(Err(BodyError::Broken(error)))),
            Poll::Ready(None) => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

/// Whether a client that sends a body is fast enough. Pure: only the time that was spent on waiting
/// for it counts.
#[derive(Clone, Copy, Debug)]
struct Rate {
    least: u64,
    window: Duration,
    waited: Duration,
    bytes: u64,
}

impl Rate {
    /// At least `least` bytes a second over each `window`.
    fn new(least: u64, window: Duration) -> Self {
        Self {
            least,
            window,
            waited: Duration::ZERO,
            bytes: 0,
        }
    }

    /// Records `bytes` that came after a wait of `waited`; `false` when that is too slow.
    fn came(&mut self, bytes: usize, waited: Duration) -> bool {
        self.bytes += bytes as u64;
        self.waited += waited;
        if self.waited < self.window {
            return true;
        }
        let wanted = u128::from(self.least) * self.waited.as_millis() / 1000;
        let enough = wanted <= u128::from(self.bytes);
        self.waited = Duration::ZERO;
        self.bytes = 0;
        enough
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(pieces: &[(usize, u64)], expect: bool) {
        let mut rate = Rate::new(100, Duration::from_secs(60));
        let enough = pieces
            .iter()
            .all(|(bytes, seconds)| rate.came(*bytes, Duration::from_secs(*seconds)));
        assert_eq!(enough, expect, "{pieces:?}");
    }

    #[test]
    fn a_client_sends_enough_over_each_window() {
        check(&[(0, 59)], true);
        check(&[(5999, 60)], false);
        check(&[(6000, 60)], true);
        check(&[(1, 30), (5999, 30)], true);
        check(&[(9000, 60), (10, 60)], false);
        check(&[(1, 0); 1000], true);
    }
}
