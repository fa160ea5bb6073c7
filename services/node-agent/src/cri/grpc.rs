//! Unary gRPC calls over a unix socket. Each call has its own HTTP/2 connection, which is enough
//! for a few calls per minute.

use std::path::Path;
use std::time::Duration;

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use http::{HeaderMap, Request, header};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper_util::rt::{TokioExecutor, TokioIo};
use prost::Message;
use tokio::net::UnixStream;

/// Longest answer of the runtime: a list of some thousand images. Other answers have some hundred
/// bytes.
const MAX_ANSWER_BYTES: usize = 4 << 20;

/// The namespace of the CRI's objects, for containerd's own services. The CRI ignores the header.
const NAMESPACE: (&str, &str) = ("containerd-namespace", "k8s.io");

/// The runtime cannot use the request.
pub const CODE_INVALID_ARGUMENT: u32 = 3;
/// The work did not end in time.
pub const CODE_DEADLINE_EXCEEDED: u32 = 4;
/// The object does not exist.
pub const CODE_NOT_FOUND: u32 = 5;
/// The client may not do this.
pub const CODE_PERMISSION_DENIED: u32 = 7;
/// The state of the runtime does not allow the operation.
pub const CODE_FAILED_PRECONDITION: u32 = 9;
/// The runtime does not implement the method.
pub const CODE_UNIMPLEMENTED: u32 = 12;
/// The runtime serves no request at the moment.
pub const CODE_UNAVAILABLE: u32 = 14;
/// The client is not authenticated.
pub const CODE_UNAUTHENTICATED: u32 = 16;

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The socket refuses connections or does not exist.
    #[error("cannot connect to the container runtime at {0}: {1}")]
    Connect(String, #[source] std::io::Error),
    /// The runtime answered with an error.
    #[error("{message} (code {code})")]
    Status {
        /// The gRPC status code.
        code: u32,
        /// The error text of the runtime.
        message: String,
    },
    /// The answer is not valid gRPC, or the connection broke.
    #[error("invalid answer of the container runtime: {0}")]
    Protocol(String),
    /// The runtime did not answer in time.
    #[error("the container runtime did not answer within {} s", .0.as_secs())]
    Timeout(Duration),
}

/// Calls the method at `path` (`/runtime.v1.ImageService/PullImage`) and waits at most `limit` for
/// the answer.
pub async fn call<Q: Message, A: Message + Default>(
    socket: &Path,
    path: &'static str,
    request: &Q,
    limit: Duration,
) -> Result<A, Error> {
    tokio::time::timeout(limit, exchange(socket, path, request))
        .await
        .map_err(|_| Error::Timeout(limit))?
}

async fn exchange<Q: Message, A: Message + Default>(
    socket: &Path,
    path: &'static str,
    request: &Q,
) -> Result<A, Error> {
    let stream = UnixStream::connect(socket)
        .await
        .map_err(|e| Error::Connect(socket.display().to_string(), e))?;
    let protocol = |e: &dyn std::fmt::Display| Error::Protocol(e.to_string());
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
            .await
            .map_err(|e| protocol(&e))?;
    let driver = tokio::spawn(connection);
    let request = Request::post(format!("http://localhost{path}"))
        .header(header::CONTENT_TYPE, "application/grpc")
        .header(header::TE, "trailers")
        .header(header::USER_AGENT, "holdfast-node-agent")
        .header(NAMESPACE.0, NAMESPACE.1)
        .body(Full::new(frame(request)))
        .map_err(|e| protocol(&e))?;
    let answer = async {
        let response = sender
            .send_request(request)
            .await
            .map_err(|e| protocol(&e))?;
        let (head, body) = response.into_parts();
        status(&head.headers)?;
        if !head.status.is_success() {
            return Err(Error::Protocol(format!("HTTP status {}", head.status)));
        }
        let body = Limited::new(body, MAX_ANSWER_BYTES)
            .collect()
            .await
            .map_err(|e| protocol(&e))?;
        match body.trailers() {
            Some(trailers) => status(trailers)?,
            None if !head.headers.contains_key("grpc-status") => {
                return Err(Error::Protocol("no gRPC status".to_owned()));
            }
            None => {}
        }
        unframe(body.to_bytes())
    };
    let answer = answer.await;
    driver.abort();
    answer
}

fn frame<M: Message>(message: &M) -> Bytes {
    let mut bytes = BytesMut::with_capacity(5 + message.encoded_len());
    bytes.put_u8(0);
    bytes.put_u32(u32::try_from(message.encoded_len()).unwrap_or(u32::MAX));
    bytes.extend_from_slice(&message.encode_to_vec());
    bytes.freeze()
}

fn unframe<M: Message + Default>(mut bytes: Bytes) -> Result<M, Error> {
    if bytes.len() < 5 || bytes.get_u8() != 0 || bytes.get_u32() as usize != bytes.len() {
        return Err(Error::Protocol("not one uncompressed message".to_owned()));
    }
    M::decode(bytes).map_err(|e| Error::Protocol(e.to_string()))
}

fn status(headers: &HeaderMap) -> Result<(), Error> {
    let Some(code) = headers.get("grpc-status") else {
        return Ok(());
    };
    match code.to_str().ok().and_then(|code| code.parse().ok()) {
        Some(0) => Ok(()),
        Some(code) => {
            let message = headers
                .get("grpc-message")
                .map(|m| unescape(m.as_bytes()))
                .unwrap_or_default();
            Err(Error::Status { code, message })
        }
        None => Err(Error::Protocol(
            "the gRPC status is not a number".to_owned(),
        )),
    }
}

/// Decodes the percent-encoding of gRPC messages.
fn unescape(bytes: &[u8]) -> String {
    let mut plain = Vec::with_capacity(bytes.len());
    let mut rest = bytes;
    while let Some((first, tail)) = rest.split_first() {
        let code = (*first == b'%').then(|| tail.get(..2)).flatten();
        let code = code
            .and_then(|hex| std::str::from_utf8(hex).ok())
            .and_then(|hex| u8::from_str_radix(hex, 16).ok());
        plain.push(code.unwrap_or(*first));
        rest = if code.is_some() {
            tail.get(2..).unwrap_or_default()
        } else {
            tail
        };
    }
    String::from_utf8_lossy(&plain).into_owned()
}
