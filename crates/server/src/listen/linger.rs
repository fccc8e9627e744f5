//! Closing a connection so that its client can still read the answer.
//!
//! A server that refuses a request before it has read all of it, and then closes, resets the connection, since the
//! client is still sending. The reset can overtake the answer, and a client that looks for it only when it has sent
//! everything never learns why. So when a body was left unread, the server says that nothing more will come from it,
//! and throws away what still comes from the client, until the client is done.
//!
//! Deliberately absent: HTTP/2, where one stream is ended without the others, and says so by itself.
//!
//! What always holds: that is bounded in time, in all and for each silence; nothing that is read is kept.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::body::HttpBody;
use bytes::Bytes;
use http::{Request, Version};
use http_body::{Frame, SizeHint};
use hyper::body::Incoming;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep};

/// How long a client that sends goes on being read: to the end of a refused upload of gigabytes, on a fast link.
const AT_MOST: Duration = Duration::from_secs(30);
/// How long a client may send nothing: it has sent everything, and takes its time to close.
const SILENCE: Duration = Duration::from_secs(2);
/// Read at once, and thrown away.
const SCRAP_BYTES: usize = 16 << 10;
/// Reads before other connections have their turn.
const READS_AT_ONCE: usize = 16;

/// Whether a request on a connection was left unread.
#[derive(Clone, Debug, Default)]
pub(super) struct Unread(Arc<AtomicBool>);

/// The body of a request, which notes when it is dropped before its end.
pub(super) struct NotedBody {
    body: Incoming,
    /// `None` for HTTP/2.
    unread: Option<Unread>,
}

impl NotedBody {
    pub(super) fn note(request: Request<Incoming>, unread: &Unread) -> Request<Self> {
        let unread = (request.version() < Version::HTTP_2).then(|| unread.clone());
        request.map(|body| Self { body, unread })
    }
}

impl Drop for NotedBody {
    fn drop(&mut self) {
        if let (Some(unread), false) = (&self.unread, self.body.is_end_stream()) {
            unread.0.store(true, Ordering::Relaxed);
        }
    }
}

impl HttpBody for NotedBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// A connection that lingers when it is shut down with a request unread.
pub(super) struct Lingering<S> {
    inner: S,
    unread: Unread,
    wait: Option<Wait>,
}

/// Our side is closed, and the client has so much time.
struct Wait {
    end: Instant,
    silence: Pin<Box<Sleep>>,
}

impl<S> Lingering<S> {
    pub(super) const fn new(inner: S, unread: Unread) -> Self {
        Self { inner, unread, wait: None }
    }
}

impl<S: AsyncRead + Unpin> Lingering<S> {
    /// Ready when the client has closed, or had its time.
    fn poll_linger(&mut self, context: &mut Context<'_>) -> Poll<()> {
        let wait = self.wait.get_or_insert_with(|| {
            let end = Instant::now() + AT_MOST;
            Wait { end, silence: Box::pin(sleep(SILENCE)) }
        });
        for _ in 0..READS_AT_ONCE {
            let mut scrap = [0; SCRAP_BYTES];
            let mut scrap = ReadBuf::new(&mut scrap);
            match Pin::new(&mut self.inner).poll_read(context, &mut scrap) {
                Poll::Pending => return wait.silence.as_mut().poll(context),
                Poll::Ready(Ok(())) if !scrap.filled().is_empty() => {
                    wait.silence.as_mut().reset((Instant::now() + SILENCE).min(wait.end));
                }
                // Closed by the client, in one way or another.
                Poll::Ready(_) => return Poll::Ready(()),
            }
        }
        if Instant::now() >= wait.end {
            return Poll::Ready(());
        }
        context.waker().wake_by_ref();
        Poll::Pending
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Lingering<S> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.wait.is_none() {
            ready!(Pin::new(&mut self.inner).poll_shutdown(context))?;
        }
        if self.unread.0.load(Ordering::Relaxed) {
            ready!(self.poll_linger(context));
        }
        Poll::Ready(Ok(()))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Lingering<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_read(context, buffer)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncWriteExt, duplex};

    use super::*;

    fn lingering<S>(inner: S) -> Lingering<S> {
        let unread = Unread::default();
        unread.0.store(true, Ordering::Relaxed);
        Lingering::new(inner, unread)
    }

    #[tokio::test(start_paused = true)]
    async fn it_waits_until_the_client_is_done_or_too_long() {
        for (between, expected) in [(SILENCE / 2, AT_MOST), (SILENCE * 2, SILENCE)] {
            let (mut client, server) = duplex(1 << 20);
            let sending = tokio::spawn(async move {
                while client.write_all(&[7; 100_000]).await.is_ok() {
                    sleep(between).await;
                }
            });
            let began = Instant::now();
            lingering(server).shutdown().await.unwrap();
            let lasted = began.elapsed();
            assert!(lasted >= expected && lasted <= expected + SILENCE, "{lasted:?} in place of {expected:?}");
            sending.await.unwrap();
        }
    }

    #[tokio::test(start_paused = true)]
    async fn it_ends_with_the_client_and_does_not_begin_without_a_reason() {
        let began = Instant::now();
        let (mut client, server) = duplex(1 << 20);
        client.write_all(&[7; 1_000_000]).await.unwrap();
        drop(client);
        lingering(server).shutdown().await.unwrap();
        let (_client, server) = duplex(1 << 20);
        Lingering::new(server, Unread::default()).shutdown().await.unwrap();
        assert_eq!(began.elapsed(), Duration::ZERO);
    }
}
