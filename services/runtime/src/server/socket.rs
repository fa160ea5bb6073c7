//! The socket of a connection, which reports its traffic to the watch.

use std::io::IoSlice;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};

use super::watch::Watch;

/// A socket that reports its traffic to a watch.
#[derive(Debug)]
pub(super) struct Socket<S> {
    inner: S,
    watch: Arc<Watch>,
}

impl<S> Socket<S> {
    pub(super) fn new(inner: S, watch: Arc<Watch>) -> Self {
        Self { inner, watch }
    }

    fn wrote(&self, outcome: Poll<std::io::Result<usize>>) -> Poll<std::io::Result<usize>> {
        match &outcome {
            Poll::Pending => self.watch.is_blocked(),
            Poll::Ready(Ok(bytes)) => self.watch.sent(*bytes),
            Poll::Ready(Err(_)) => {}
        }
        outcome
    }
}

impl Socket<TcpStream> {
    /// Waits until the client has sent something, or the connection is broken.
    pub(super) async fn readable(&self) -> std::io::Result<()> {
        self.inner.readable().await
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Socket<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.inner).poll_read(context, buffer))?;
        if before < buffer.filled().len() {
            self.watch.received();
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Socket<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        let outcome = Pin::new(&mut self.inner).poll_write(context, bytes);
        self.wrote(outcome)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<std::io::Result<usize>> {
        let outcome = Pin::new(&mut self.inner).poll_write_vectored(context, slices);
        self.wrote(outcome)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(context)
    }

    fn poll_shutdown(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(context)
    }
}
