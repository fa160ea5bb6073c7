//! The load client: HTTP/1.1 over plain TCP or TLS, as cheap as possible, because it shares the
//! machine with what it measures.
//!
//! All connections of a thread read into one buffer, which stays in the processor's cache; bodies
//! are counted, and hashed or kept on demand.

use std::{
    cell::RefCell,
    future::poll_fn,
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use anyhow::{Context as _, Result, bail};
use sha2::{Digest as _, Sha256};
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt as _, ReadBuf},
    net::TcpStream,
};
use tokio_rustls::{TlsConnector, rustls};

const READ_BYTES: usize = 256 << 10;

thread_local! {
    static SCRATCH: RefCell<Vec<u8>> = RefCell::new(vec![0; READ_BYTES]);
}

/// A connection's bytes, over TCP or TLS.
pub(crate) trait Io: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Io for T {}

/// Where requests go, and how.
#[derive(Clone)]
pub(crate) struct Target {
    /// The listener.
    pub(crate) address: SocketAddr,
    /// With TLS: what to trust.
    pub(crate) tls: Option<Arc<rustls::ClientConfig>>,
}

/// What becomes of a body.
pub(crate) enum Sink<'a> {
    /// It is counted.
    Count,
    /// It is hashed.
    Hash(&'a mut Sha256),
    /// It is kept.
    Keep(&'a mut Vec<u8>),
}

impl Sink<'_> {
    fn take(&mut self, bytes: &[u8]) {
        match self {
            Self::Count => {}
            Self::Hash(hash) => hash.update(bytes),
            Self::Keep(kept) => kept.extend_from_slice(bytes),
        }
    }
}

/// The head of an answer.
pub(crate) struct Head {
    /// The status.
    pub(crate) status: u16,
    /// Announced bytes of the body.
    pub(crate) length: Option<u64>,
    close: bool,
    text: String,
}

impl Head {
    fn parse(text: &[u8]) -> Result<Self> {
        let text = String::from_utf8_lossy(text).into_owned();
        let status = text
            .get(9..12)
            .and_then(|digits| digits.parse().ok())
            .context("an answer without a status")?;
        let mut head = Self {
            status,
            length: None,
            close: false,
            text,
        };
        head.length = head
            .header("content-length")
            .and_then(|value| value.parse().ok());
        head.close = head
            .header("connection")
            .is_some_and(|value| value.eq_ignore_ascii_case("close"));
        Ok(head)
    }

    /// A header's value.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.text.lines().skip(1).find_map(|line| {
            let (key, value) = line.split_once(':')?;
            key.eq_ignore_ascii_case(name).then(|| value.trim())
        })
    }
}

/// One connection that is kept alive.
pub(crate) struct Connection {
    io: Box<dyn Io>,
    pending: Vec<u8>,
    reusable: bool,
}

impl Connection {
    /// Connects, with a handshake where the target wants one.
    pub(crate) async fn open(target: &Target) -> Result<Self> {
        let stream = TcpStream::connect(target.address)
            .await
            .with_context(|| format!("connect to {}", target.address))?;
        stream.set_nodelay(true)?;
        let io: Box<dyn Io> = match &target.tls {
            None => Box::new(stream),
            Some(config) => {
                let name = rustls::pki_types::ServerName::from(target.address.ip());
                let stream = TlsConnector::from(Arc::clone(config))
                    .connect(name, stream)
                    .await
                    .context("TLS handshake")?;
                Box::new(stream)
            }
        };
        Ok(Self {
            io,
            pending: Vec::new(),
            reusable: true,
        })
    }

    /// Whether another request may follow on it.
    pub(crate) fn is_reusable(&self) -> bool {
        self.reusable
    }

    /// Sends a request with its body and reads the answer; `arrived` hears of the bytes of the body
    /// as they come.
    pub(crate) async fn request(
        &mut self,
        head: &[u8],
        body: &[u8],
        mut sink: Sink<'_>,
        arrived: impl Fn(u64),
    ) -> Result<Head> {
        self.io.write_all(head).await?;
        if !body.is_empty() {
            self.io.write_all(body).await?;
        }
        self.io.flush().await?;
        let (answer, mut got) = self.head(&mut sink).await?;
        arrived(got);
        let bodiless = head.starts_with(b"HEAD") || matches!(answer.status, 204 | 304);
        // Without a length, as the lists of some servers come to HTTP/1.0, the end of the
        // connection is the end of the body.
        let to_the_end = !bodiless && answer.length.is_none();
        if to_the_end && !head.ends_with(CLOSE) {
            bail!("an answer without Content-Length");
        }
        let length = match answer.length {
            _ if bodiless => 0,
            Some(length) => length,
            None => u64::MAX,
        };
        while got < length {
            let more = poll_fn(|cx| self.poll_body(cx, length - got, &mut sink)).await?;
            if more == 0 && to_the_end {
                self.reusable = false;
                return Ok(answer);
            }
            if more == 0 {
                bail!("the body broke off");
            }
            got += more;
            arrived(more);
        }
        if got > length {
            bail!("{got} bytes instead of {length}");
        }
        self.reusable = !answer.close;
        Ok(answer)
    }

    /// The head of an answer; what came of the body with it goes to the sink.
    async fn head(&mut self, sink: &mut Sink<'_>) -> Result<(Head, u64)> {
        self.pending.clear();
        loop {
            let found = poll_fn(|cx| self.poll_head(cx, sink)).await?;
            if let Some(found) = found {
                return Ok(found);
            }
        }
    }

    fn poll_head(
        &mut self,
        cx: &mut Context<'_>,
        sink: &mut Sink<'_>,
    ) -> Poll<Result<Option<(Head, u64)>>> {
        SCRATCH.with_borrow_mut(|scratch| {
            let mut buffer = ReadBuf::new(scratch);
            ready!(Pin::new(&mut self.io).poll_read(cx, &mut buffer))?;
            let bytes = buffer.filled();
            if bytes.is_empty() {
                return Poll::Ready(Err(anyhow::anyhow!("the server closed the connection")));
            }
            if self.pending.is_empty()
                && let Some(end) = end_of_head(bytes)
            {
                sink.take(&bytes[end..]);
                let rest = (bytes.len() - end) as u64;
                return Poll::Ready(Head::parse(&bytes[..end]).map(|head| Some((head, rest))));
            }
            self.pending.extend_from_slice(bytes);
            let Some(end) = end_of_head(&self.pending) else {
                return Poll::Ready(Ok(None));
            };
            sink.take(&self.pending[end..]);
            let rest = (self.pending.len() - end) as u64;
            Poll::Ready(Head::parse(&self.pending[..end]).map(|head| Some((head, rest))))
        })
    }

    fn poll_body(
        &mut self,
        cx: &mut Context<'_>,
        left: u64,
        sink: &mut Sink<'_>,
    ) -> Poll<Result<u64>> {
        SCRATCH.with_borrow_mut(|scratch| {
            let room = usize::try_from(left).unwrap_or(usize::MAX).min(READ_BYTES);
            let mut buffer = ReadBuf::new(&mut scratch[..room]);
            ready!(Pin::new(&mut self.io).poll_read(cx, &mut buffer))?;
            let bytes = buffer.filled();
            sink.take(bytes);
            Poll::Ready(Ok(bytes.len() as u64))
        })
    }

    /// Sends a GET and then reads at most `bytes` of the answer: a client that is slow.
    pub(crate) async fn begin(&mut self, head: &[u8]) -> Result<()> {
        self.io.write_all(head).await?;
        self.io.flush().await?;
        Ok(())
    }

    /// Reads up to `bytes`.
    pub(crate) async fn read_some(&mut self, bytes: u64) -> Result<()> {
        match poll_fn(|cx| self.poll_body(cx, bytes, &mut Sink::Count)).await? {
            0 => bail!("the body broke off"),
            _ => Ok(()),
        }
    }
}

fn end_of_head(bytes: &[u8]) -> Option<usize> {
    bytes
        .windows(4)
        .take(16 << 10)
        .position(|window| window == b"\r\n\r\n")
        .map(|at| at + 4)
}

/// distribution knows an OCI manifest only for those who accept one.
const ACCEPT: &str = "Accept: application/vnd.oci.image.manifest.v1+json, */*";

/// The head of a request.
pub(crate) fn head(method: &str, path: &str, length: Option<usize>) -> Vec<u8> {
    let length = length.map_or_else(String::new, |length| {
        format!("Content-Length: {length}\r\n")
    });
    format!("{method} {path} HTTP/1.1\r\nHost: bench\r\n{ACCEPT}\r\n{length}\r\n").into_bytes()
}

/// The head of a request whose body has no announced length.
pub(crate) fn chunked_head(method: &str, path: &str) -> Vec<u8> {
    format!(
        "{method} {path} HTTP/1.1\r\nHost: bench\r\nContent-Type: application/octet-stream\r\n\
         Transfer-Encoding: chunked\r\n\r\n"
    )
    .into_bytes()
}

/// Bytes of one chunk: Go's clients copy bodies through a buffer of this size.
const CHUNK_BYTES: usize = 32 << 10;

/// A body in chunks, the last empty one included (RFC 9112, section 7.1).
pub(crate) fn chunked(bytes: &[u8]) -> Vec<u8> {
    let chunks = bytes.len().div_ceil(CHUNK_BYTES);
    let mut framed = Vec::with_capacity(bytes.len() + 16 * (chunks + 1));
    for chunk in bytes.chunks(CHUNK_BYTES) {
        framed.extend_from_slice(format!("{:x}\r\n", chunk.len()).as_bytes());
        framed.extend_from_slice(chunk);
        framed.extend_from_slice(b"\r\n");
    }
    framed.extend_from_slice(b"0\r\n\r\n");
    framed
}

/// The end of the head of a request that takes a body of unknown length.
const CLOSE: &[u8] = b"Connection: close\r\n\r\n";

/// Asks once on a connection of its own and keeps the body, whatever its length.
pub(crate) async fn get(target: &Target, path: &str) -> Result<(Head, Vec<u8>)> {
    let mut connection = Connection::open(target).await?;
    let mut body = Vec::new();
    let mut request = format!("GET {path} HTTP/1.0\r\nHost: bench\r\n{ACCEPT}\r\n").into_bytes();
    request.extend_from_slice(CLOSE);
    let head = connection
        .request(&request, &[], Sink::Keep(&mut body), |_| {})
        .await?;
    Ok((head, body))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_in_chunks_ends_with_an_empty_one() {
        assert_eq!(chunked(b"abc"), b"3\r\nabc\r\n0\r\n\r\n");
        assert_eq!(chunked(b""), b"0\r\n\r\n");
        let framed = chunked(&vec![7; CHUNK_BYTES + 1]);
        assert!(framed.starts_with(b"8000\r\n"));
        assert!(framed.ends_with(b"\r\n1\r\n\x07\r\n0\r\n\r\n"));
    }
}
