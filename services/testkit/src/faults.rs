//! Faults: what goes wrong, for which requests, how often. Applied to a finished response, or
//! instead of asking for one.

use std::{convert::Infallible, io, sync::Arc, time::Duration};

use bytes::Bytes;
use futures::{Stream, StreamExt, stream};
use http::{Response, StatusCode, header};
use http_body_util::{BodyExt, BodyStream, Full, StreamBody, combinators::BoxBody};
use hyper::body::Frame;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

/// The body type of every response here.
pub type Body = BoxBody<Bytes, io::Error>;

/// A body of known bytes.
pub fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into())
        .map_err(|never: Infallible| match never {})
        .boxed()
}

/// What goes wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Kind {
    /// Every connection is cut, new ones before a byte is read.
    Down,
    /// No answer until the fault is cleared; with `after`, the body stops after that many bytes
    /// until then.
    Hang {
        /// Bytes of the body that still pass.
        #[serde(default)]
        after: Option<u64>,
    },
    /// Bodies trickle.
    Slow {
        /// Bytes in a second.
        bytes_per_second: u64,
    },
    /// 429 with `Retry-After`.
    TooMany {
        /// The header's value, seconds.
        #[serde(default = "one")]
        retry_after: u64,
    },
    /// A status without meaning, by default 500.
    Error {
        /// The status code.
        #[serde(default = "internal_error")]
        status: u16,
    },
    /// The body ends early and the connection breaks.
    Truncate {
        /// Bytes of the body that still pass.
        after: u64,
    },
    /// The body has the right length and a wrong first byte.
    WrongBytes,
    /// 307 to this URL with the request's path behind it.
    Redirect {
        /// Scheme, host and port.
        to: String,
    },
}

fn one() -> u64 {
    1
}

fn internal_error() -> u16 {
    500
}

/// A fault with the requests that it concerns.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fault {
    /// What goes wrong.
    #[serde(flatten)]
    pub kind: Kind,
    /// Only requests whose `METHOD path` contains this text, a digest for instance; all when
    /// absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// How many requests it hits; until cleared when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub times: Option<u32>,
}

impl Fault {
    /// A fault for every request until it is cleared.
    pub fn new(kind: Kind) -> Self {
        Self {
            kind,
            path: None,
            times: None,
        }
    }

    /// Narrows to requests whose `METHOD path` contains `text`.
    #[must_use]
    pub fn on(mut self, text: &str) -> Self {
        self.path = Some(text.to_owned());
        self
    }

    /// Narrows to the next `n` requests.
    #[must_use]
    pub fn times(mut self, n: u32) -> Self {
        self.times = Some(n);
        self
    }
}

/// The faults in force; clones share them.
#[derive(Debug, Clone)]
pub struct Faults {
    list: Arc<Mutex<Vec<Fault>>>,
    changed: Arc<watch::Sender<u64>>,
}

impl Default for Faults {
    fn default() -> Self {
        Self {
            list: Arc::default(),
            changed: Arc::new(watch::Sender::new(0)),
        }
    }
}

/// What to do with a request.
#[derive(Debug)]
pub enum Verdict {
    /// Answer it as usual.
    Pass,
    /// Answer it, then spoil the answer.
    Spoil(Kind),
    /// Answer this instead.
    Instead(Response<Body>),
    /// Cut the connection.
    Cut,
}

impl Faults {
    /// Adds a fault; the first that concerns a request counts.
    pub fn set(&self, fault: Fault) {
        self.list.lock().push(fault);
        self.changed.send_modify(|n| *n += 1);
    }

    /// Ends all faults; requests that hang continue.
    pub fn clear(&self) {
        self.list.lock().clear();
        self.changed.send_modify(|n| *n += 1);
    }

    /// The faults in force.
    pub fn list(&self) -> Vec<Fault> {
        self.list.lock().clone()
    }

    /// True while connections are to be cut.
    pub fn is_down(&self) -> bool {
        let list = self.list.lock();
        list.iter()
            .any(|f| f.kind == Kind::Down && f.path.is_none())
    }

    /// Resolves when [`Self::is_down`].
    pub async fn down(&self) {
        let mut changed = self.changed.subscribe();
        while !self.is_down() {
            if changed.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

    fn take(&self, request: &str) -> Option<Kind> {
        let mut list = self.list.lock();
        let at = list.iter().position(|f| {
            f.path
                .as_ref()
                .is_none_or(|text| request.contains(text.as_str()))
        })?;
        let kind = list[at].kind.clone();
        if let Some(times) = &mut list[at].times {
            *times -= 1;
            if *times == 0 {
                list.remove(at);
            }
        }
        Some(kind)
    }

    async fn gone(&self, kind: &Kind) {
        let mut changed = self.changed.subscribe();
        while self.list().iter().any(|f| f.kind == *kind) {
            if changed.changed().await.is_err() {
                return;
            }
        }
    }

    /// Decides about a request, by its method and path; waits here while it is to hang.
    pub async fn judge(&self, method: &http::Method, path: &str) -> Verdict {
        match self.take(&format!("{method} {path}")) {
            None => Verdict::Pass,
            Some(Kind::Down) => Verdict::Cut,
            Some(kind @ Kind::Hang { after: None }) => {
                self.gone(&kind).await;
                Verdict::Pass
            }
            Some(Kind::TooMany { retry_after }) => {
                let mut answer = plain(StatusCode::TOO_MANY_REQUESTS);
                answer
                    .headers_mut()
                    .insert(header::RETRY_AFTER, retry_after.into());
                Verdict::Instead(answer)
            }
            Some(Kind::Error { status }) => Verdict::Instead(plain(
                StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR),
            )),
            Some(Kind::Redirect { to }) => {
                let mut answer = plain(StatusCode::TEMPORARY_REDIRECT);
                if let Ok(value) = format!("{}{path}", to.trim_end_matches('/')).parse() {
                    answer.headers_mut().insert(header::LOCATION, value);
                }
                Verdict::Instead(answer)
            }
            Some(kind) => Verdict::Spoil(kind),
        }
    }

    /// Spoils a finished answer.
    pub fn spoil(&self, kind: Kind, answer: Response<Body>) -> Response<Body> {
        let (head, body) = answer.into_parts();
        let chunks = BodyStream::new(body).filter_map(|frame| async {
            match frame {
                Ok(frame) => frame.into_data().ok().map(Ok),
                Err(e) => Some(Err(e)),
            }
        });
        let body = match kind {
            Kind::Slow { bytes_per_second } => stream_body(slow(chunks, bytes_per_second)),
            Kind::Truncate { after } => {
                let cut = stream::once(async {
                    // The server drops what it has not flushed when a body fails; the bytes before
                    // the cut are to arrive.
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    Err(io::Error::other("truncated by a fault"))
                });
                stream_body(first(chunks, after).chain(cut))
            }
            Kind::WrongBytes => {
                let mut touched = false;
                stream_body(chunks.map(move |chunk| {
                    let chunk = chunk?;
                    if touched || chunk.is_empty() {
                        return Ok(chunk);
                    }
                    touched = true;
                    let mut bytes = chunk.to_vec();
                    bytes[0] ^= 0xFF;
                    Ok(bytes.into())
                }))
            }
            Kind::Hang { after: Some(after) } => {
                let faults = self.clone();
                let kind = Kind::Hang { after: Some(after) };
                stream_body(pause(
                    chunks,
                    after,
                    async move { faults.gone(&kind).await },
                ))
            }
            _ => stream_body(chunks),
        };
        Response::from_parts(head, body)
    }
}

fn plain(status: StatusCode) -> Response<Body> {
    let mut answer = Response::new(full(
        r#"{"errors":[{"code":"UNKNOWN","message":"a fault of the test"}]}"#,
    ));
    *answer.status_mut() = status;
    answer
}

type Chunk = io::Result<Bytes>;

fn stream_body(chunks: impl Stream<Item = Chunk> + Send + Sync + 'static) -> Body {
    BodyExt::boxed(StreamBody::new(chunks.map(|chunk| chunk.map(Frame::data))))
}

fn slow(
    chunks: impl Stream<Item = Chunk> + Send + Sync + 'static,
    rate: u64,
) -> impl Stream<Item = Chunk> + Send + Sync {
    let piece = usize::try_from(rate / 20).unwrap_or(usize::MAX).max(1);
    split(chunks, piece).then(move |chunk| async move {
        let bytes = chunk.as_ref().map_or(0, Bytes::len) as u64;
        tokio::time::sleep(Duration::from_micros(bytes * 1_000_000 / rate.max(1))).await;
        chunk
    })
}

fn split(
    chunks: impl Stream<Item = Chunk> + Send + Sync,
    piece: usize,
) -> impl Stream<Item = Chunk> + Send + Sync {
    chunks.flat_map(move |chunk| {
        let pieces: Vec<Chunk> = match chunk {
            Ok(bytes) => (0..bytes.len())
                .step_by(piece)
                .map(|at| Ok(bytes.slice(at..(at + piece).min(bytes.len()))))
                .collect(),
            Err(e) => vec![Err(e)],
        };
        stream::iter(pieces)
    })
}

fn first(
    chunks: impl Stream<Item = Chunk> + Send + Sync,
    limit: u64,
) -> impl Stream<Item = Chunk> + Send + Sync {
    let mut left = usize::try_from(limit).unwrap_or(usize::MAX);
    chunks
        .map(move |chunk| {
            let bytes = chunk?;
            let part = bytes.slice(..bytes.len().min(left));
            left -= part.len();
            Ok(part)
        })
        .take_while(|chunk| {
            let more = chunk.as_ref().map_or(true, |bytes| !bytes.is_empty());
            async move { more }
        })
}

fn pause(
    chunks: impl Stream<Item = Chunk> + Send + Sync + 'static,
    after: u64,
    released: impl Future<Output = ()> + Send + Sync + 'static,
) -> impl Stream<Item = Chunk> + Send + Sync {
    let after = usize::try_from(after).unwrap_or(usize::MAX);
    let state = (
        Box::pin(chunks),
        0_usize,
        None::<Bytes>,
        Some(Box::pin(released)),
    );
    stream::unfold(
        state,
        move |(mut chunks, sent, rest, mut gate)| async move {
            if let Some(rest) = rest {
                if let Some(gate) = gate.take() {
                    gate.await;
                }
                return Some((Ok(rest), (chunks, sent, None, None)));
            }
            match chunks.next().await? {
                Ok(bytes) if gate.is_some() && sent + bytes.len() > after => {
                    let head = bytes.slice(..after - sent);
                    let tail = bytes.slice(after - sent..);
                    Some((Ok(head), (chunks, after, Some(tail), gate)))
                }
                Ok(bytes) => {
                    let sent = sent + bytes.len();
                    Some((Ok(bytes), (chunks, sent, None, gate)))
                }
                Err(e) => Some((Err(e), (chunks, sent, None, gate))),
            }
        },
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(json: &str, expect: Fault) {
        assert_eq!(
            serde_json::from_str::<Fault>(json).unwrap(),
            expect,
            "{json}"
        );
    }

    #[test]
    fn faults_read_as_json() {
        check(r#"{"kind":"down"}"#, Fault::new(Kind::Down));
        check(r#"{"kind":"hang"}"#, Fault::new(Kind::Hang { after: None }));
        check(
            r#"{"kind":"slow","bytes_per_second":9}"#,
            Fault::new(Kind::Slow {
                bytes_per_second: 9,
            }),
        );
        check(
            r#"{"kind":"too_many"}"#,
            Fault::new(Kind::TooMany { retry_after: 1 }),
        );
        check(
            r#"{"kind":"error"}"#,
            Fault::new(Kind::Error { status: 500 }),
        );
        check(
            r#"{"kind":"wrong_bytes","path":"sha256:ab","times":2}"#,
            Fault::new(Kind::WrongBytes).on("sha256:ab").times(2),
        );
        check(
            r#"{"kind":"truncate","after":5}"#,
            Fault::new(Kind::Truncate { after: 5 }),
        );
        check(
            r#"{"kind":"redirect","to":"http://a"}"#,
            Fault::new(Kind::Redirect {
                to: "http://a".to_owned(),
            }),
        );
    }

    async fn spoiled(kind: Kind, body: &'static str) -> Result<Bytes, io::Error> {
        let answer = Faults::default().spoil(kind, Response::new(full(body)));
        answer
            .into_body()
            .collect()
            .await
            .map(http_body_util::Collected::to_bytes)
    }

    #[tokio::test]
    async fn bodies_are_spoiled() {
        assert_eq!(
            spoiled(Kind::WrongBytes, "abc").await.unwrap()[1..],
            b"bc"[..]
        );
        assert!(spoiled(Kind::Truncate { after: 2 }, "abc").await.is_err());
        assert_eq!(
            spoiled(Kind::Hang { after: Some(2) }, "abc").await.unwrap(),
            "abc"
        );
        assert_eq!(
            spoiled(
                Kind::Slow {
                    bytes_per_second: 1000
                },
                "abc"
            )
            .await
            .unwrap(),
            "abc"
        );
    }
}
