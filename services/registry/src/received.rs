//! Bodies of requests: frames as they come, with a limit on silence, and no more of them in memory
//! than the handler asks for.

use bytes::Bytes;
use holdfast_runtime::server::RequestBody;
use http_body_util::BodyExt;

use crate::error::{Code, Error, Result};

/// What a client sends, piece by piece.
#[derive(Debug)]
pub(crate) struct Received(IncomingBody);

impl Received {
    /// The body of a request.
    pub(crate) fn new(body: RequestBody, version: http::Version) -> Self {
        Self(IncomingBody {
            rest: Some(body),
            is_multiplexed: version == http::Version::HTTP_2,
        })
    }

    /// The next piece; `None` at the end.
    ///
    /// # Errors
    /// 408 when the client is silent for too long or too slow, 400 when it breaks off.
    pub(crate) async fn next(&mut self) -> Result<Option<Bytes>> {
        loop {
            let Some(body) = &mut self.0.rest else {
                return Ok(None);
            };
            match body.frame().await {
                None => return Ok(None),
                Some(Err(error)) => {
                    let (status, text) = (error.status(), error.to_string());
                    return Err(Error::new(status, Code::BlobUploadInvalid, text));
                }
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        return Ok(Some(data));
                    }
                }
            }
        }
    }

    /// All of it, at most `limit` bytes.
    ///
    /// # Errors
    /// 413 above the limit.
    pub(crate) async fn collect(mut self, limit: u64) -> Result<Bytes> {
        let mut collected = bytes::BytesMut::new();
        while let Some(piece) = self.next().await? {
            if (collected.len() + piece.len()) as u64 > limit {
                return Err(too_large(limit));
            }
            collected.extend_from_slice(&piece);
        }
        Ok(collected.freeze())
    }
}

/// A body that is discarded in part when its request is refused before the body was read.
///
/// Over HTTP/2 the answer ends a stream that the client still sends on: some clients (curl among
/// them) take the reset that follows for the failure and never show the answer. So a little of what
/// they send is read and discarded. Over HTTP/1.1 nothing is read: a client that waits for `100
/// Continue` would begin to send.
#[derive(Debug)]
struct IncomingBody {
    rest: Option<RequestBody>,
    is_multiplexed: bool,
}

impl Drop for IncomingBody {
    fn drop(&mut self) {
        let Some(mut rest) = self.rest.take() else {
            return;
        };
        if !self.is_multiplexed || hyper::body::Body::is_end_stream(&rest) {
            return;
        }
        let Ok(runtime) = tokio::runtime::Handle::try_current() else {
            return;
        };
        runtime.spawn(tokio::time::timeout(
            crate::limits::DISCARD_FOR,
            async move {
                let mut left = crate::limits::DISCARD_BYTES;
                while let Some(Ok(frame)) = rest.frame().await {
                    let length = frame.data_ref().map_or(0, Bytes::len);
                    match left.checked_sub(length) {
                        Some(rest) => left = rest,
                        None => return,
                    }
                }
            },
        ));
    }
}

/// 413.
pub(crate) fn too_large(limit: u64) -> Error {
    Error::new(
        http::StatusCode::PAYLOAD_TOO_LARGE,
        Code::SizeInvalid,
        format!("a manifest has at most {limit} bytes"),
    )
}
