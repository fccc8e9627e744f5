//! A deadline for the first bytes of a connection.
//!
//! Until it knows whether a client speaks HTTP/1.1 or HTTP/2, the HTTP library waits without limit; a client that
//! connects and says nothing would hold its place for ever. What comes later has limits of its own: header
//! timeouts for HTTP/1.1, keep-alive pings for HTTP/2.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Sleep, sleep};

/// The HTTP/2 preface, for all of which the library waits once its beginning came. A request with a host is longer.
const ENOUGH_BYTES: usize = 24;

/// A connection that fails to read when its first bytes come too late.
pub(super) struct FirstBytesDeadline<S> {
    inner: S,
    /// `None` once enough came.
    waiting: Option<Waiting>,
}

struct Waiting {
    deadline: Pin<Box<Sleep>>,
    received_bytes: usize,
}

impl<S> FirstBytesDeadline<S> {
    pub(super) fn new(inner: S, within: Duration) -> Self {
        Self { inner, waiting: Some(Waiting { deadline: Box::pin(sleep(within)), received_bytes: 0 }) }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for FirstBytesDeadline<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let Some(waiting) = &mut this.waiting else { return Pin::new(&mut this.inner).poll_read(cx, buf) };
        if waiting.deadline.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        let before = buf.filled().len();
        let poll = Pin::new(&mut this.inner).poll_read(cx, buf);
        waiting.received_bytes += buf.filled().len() - before;
        if waiting.received_bytes >= ENOUGH_BYTES {
            this.waiting = None;
        }
        poll
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for FirstBytesDeadline<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn silence_is_cut_and_speech_is_not() {
        let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
        let mut buf = [0; 32];
        for length in 1..preface.len() {
            let (mut client, server) = duplex(64);
            let mut silent = FirstBytesDeadline::new(server, Duration::from_secs(10));
            client.write_all(&preface[..length]).await.unwrap();
            assert_eq!(silent.read(&mut buf).await.unwrap(), length);
            // Longer than the deadline, so that a test that waits for ever fails in place of hanging.
            let cut = tokio::time::timeout(Duration::from_secs(60), silent.read(&mut buf)).await;
            let cut = cut.unwrap_or_else(|_| panic!("{length} bytes hold a connection for ever"));
            assert_eq!(cut.unwrap_err().kind(), io::ErrorKind::TimedOut, "{length}");
        }

        let (mut client, server) = duplex(64);
        let mut speaking = FirstBytesDeadline::new(server, Duration::from_secs(10));
        client.write_all(preface).await.unwrap();
        assert_eq!(speaking.read(&mut buf).await.unwrap(), 24);
        let later = tokio::spawn(async move { speaking.read(&mut buf).await.unwrap() });
        tokio::time::advance(Duration::from_secs(60)).await;
        client.write_all(b"x").await.unwrap();
        assert_eq!(later.await.unwrap(), 1);
    }
}
