//! One port for gRPC and HTTP/1.1, in the clear or over TLS.
//!
//! What always holds: connections, their headers, streams and silences are bounded; every connection is a task of a
//! group, which [`Connections::drain`] ends within a deadline.

mod first_bytes;
mod linger;
mod room;
mod stalls;
mod streams;
mod tls;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use rustix::net::sockopt;
use tokio::io::{AsyncRead, AsyncWrite, BufWriter};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use first_bytes::FirstBytesDeadline;
use linger::{Lingering, Unread};
pub(crate) use room::take_for_answer;
use room::{ConnectionRoom, ServerRoom};
use stalls::WatchedService;
use streams::StreamExecutor;
pub use tls::{TlsConfig, TlsError};

/// At most so many connections at once; further ones wait in the backlog.
const MAX_CONNECTIONS: usize = 8192;
const BACKLOG: u32 = 1024;
/// From the connection to the end of the TLS handshake, and again to the first bytes.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// From one HTTP/1.1 request to the last header of the next: a compromise, since the library tells no idle connection
/// from one that sends its headers a byte at a time. Hanging up on idle ones races with their next request.
const HEADER_TIMEOUT: Duration = Duration::from_secs(90);
const HTTP1_BUFFER_BYTES: usize = 256 << 10;
const HTTP1_MAX_HEADERS: usize = 64;
const HTTP2_MAX_HEADER_BYTES: u32 = 64 << 10;
/// Bazel opens at most 100 on a connection; each may hold a send buffer that its client does not read.
const HTTP2_MAX_STREAMS: u32 = 256;
/// Wide enough for one upload to fill a fast link with a long round trip.
const HTTP2_STREAM_WINDOW_BYTES: u32 = 4 << 20;
const HTTP2_CONNECTION_WINDOW_BYTES: u32 = 16 << 20;
/// Larger frames cost fewer wake-ups in a large upload.
const HTTP2_MAX_FRAME_BYTES: u32 = 256 << 10;
const HTTP2_SEND_BUFFER_BYTES: usize = 512 << 10;
/// Four full frames of 16 KiB, the most that clients take by default, with their heads.
const WRITE_BUFFER_BYTES: usize = 66 << 10;
/// A peer that takes no bytes for so long, or has vanished, is cut off.
const STALL_TIMEOUT: Duration = Duration::from_secs(300);
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(30);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(20);
/// From cutting connections off to the end of the streams on them.
const CUT_DEADLINE: Duration = Duration::from_secs(2);
/// Out of file descriptors, most likely: others must end first.
const ACCEPT_ERROR_PAUSE: Duration = Duration::from_millis(100);

/// A bound port that does not answer yet.
pub struct Listener {
    socket: TcpListener,
    address: SocketAddr,
    tls: Option<TlsAcceptor>,
}

impl Listener {
    /// Takes the port.
    ///
    /// # Errors
    /// What the system says, for example that the address is in use.
    pub fn bind(address: SocketAddr, tls: Option<Arc<rustls::ServerConfig>>) -> io::Result<Self> {
        let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
        // A restart must not wait for the old connections to time out.
        socket.set_reuseaddr(true)?;
        // Accepted sockets inherit these.
        sockopt::set_socket_keepalive(&socket, true)?;
        sockopt::set_tcp_keepidle(&socket, KEEP_ALIVE_INTERVAL)?;
        sockopt::set_tcp_user_timeout(&socket, u32::try_from(STALL_TIMEOUT.as_millis()).unwrap_or(u32::MAX))?;
        socket.bind(address)?;
        let socket = socket.listen(BACKLOG)?;
        let address = socket.local_addr()?;
        Ok(Self { socket, address, tls: tls.map(TlsAcceptor::from) })
    }

    /// The address taken, with the real port where 0 was asked for.
    #[must_use]
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// Begins to answer.
    #[must_use]
    pub fn serve(self, router: Router) -> Connections {
        let tasks = TaskTracker::new();
        let streams = StreamExecutor::new(tasks.clone());
        let builder = http_builder(streams.clone());
        let http = Http { builder, streams, router, room: ServerRoom::default() };
        let connections = Connections {
            tasks,
            draining: CancellationToken::new(),
            cut: CancellationToken::new(),
            http: Arc::new(http),
        };
        connections.tasks.spawn(accept_all(self, connections.clone()));
        connections
    }
}

/// The group of tasks that serve connections.
#[derive(Clone)]
pub struct Connections {
    tasks: TaskTracker,
    draining: CancellationToken,
    cut: CancellationToken,
    http: Arc<Http>,
}

/// What answers on a connection.
struct Http {
    builder: auto::Builder<StreamExecutor>,
    streams: StreamExecutor,
    router: Router,
    room: ServerRoom,
}

/// How a drain ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Drained {
    /// Every request was answered.
    Complete,
    /// Some were cut off at the deadline.
    Cut,
}

impl Connections {
    /// Serves a connection that is open already, as if it had been accepted. Must be called within a Tokio runtime.
    pub fn serve_stream<S>(&self, stream: S)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let group = self.clone();
        self.spawn(async move { group.serve_http(stream).await });
    }

    /// Stops accepting, lets requests under way finish, and cuts what is left at the deadline.
    pub async fn drain(&self, deadline: Duration) -> Drained {
        self.draining.cancel();
        self.tasks.close();
        if timeout(deadline, self.tasks.wait()).await.is_ok() {
            return Drained::Complete;
        }
        self.cut.cancel();
        // Streams end with their connection, unless what they wait for does not come back; the runtime ends those.
        if timeout(CUT_DEADLINE, self.tasks.wait()).await.is_err() {
            tracing::warn!(left = self.tasks.len(), "requests do not end although their connections did");
        }
        Drained::Cut
    }

    fn spawn(&self, serve: impl Future<Output = ()> + Send + 'static) {
        let (cut, open) = (self.cut.clone(), self.http.streams.connection());
        self.tasks.spawn(async move {
            cut.run_until_cancelled(serve).await;
            drop(open);
        });
    }

    async fn serve_tcp(&self, stream: TcpStream, tls: Option<TlsAcceptor>) {
        // Without this, a small answer waits up to 44 ms for the client's delayed acknowledgement.
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, "the connection ended before it began");
            return;
        }
        let Some(tls) = tls else { return self.serve_http(stream).await };
        match timeout(HANDSHAKE_TIMEOUT, tls.accept(stream)).await {
            Ok(Ok(stream)) => self.serve_http(stream).await,
            // A port scan or a client that speaks no TLS: nobody needs to look.
            Ok(Err(error)) => tracing::debug!(%error, "a TLS handshake failed"),
            Err(_) => tracing::debug!("a TLS handshake took too long"),
        }
    }

    async fn serve_http<S>(&self, stream: S)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        // Frames that are ready together go out together: HTTP/2 would write each of 16 KiB by itself.
        let stream = BufWriter::with_capacity(WRITE_BUFFER_BYTES, stream);
        let unread = Unread::default();
        let stream = Lingering::new(stream, unread.clone());
        let io = TokioIo::new(FirstBytesDeadline::new(stream, HANDSHAKE_TIMEOUT));
        let room = ConnectionRoom::within(&self.http.room);
        let service = WatchedService::new(self.http.router.clone(), unread, room);
        let mut connection = std::pin::pin!(self.http.builder.serve_connection(io, service));
        let result = tokio::select! {
            result = connection.as_mut() => result,
            () = self.draining.cancelled() => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        };
        if let Err(error) = result {
            tracing::debug!(%error, "a connection broke");
        }
    }
}

async fn accept_all(listener: Listener, connections: Connections) {
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let accepted = connections.draining.run_until_cancelled(async {
            let place = Arc::clone(&places).acquire_owned().await;
            (place, listener.socket.accept().await)
        });
        let Some((place, accepted)) = accepted.await else { return };
        match accepted {
            Ok((stream, _)) => {
                let (group, tls) = (connections.clone(), listener.tls.clone());
                connections.spawn(async move {
                    group.serve_tcp(stream, tls).await;
                    drop(place);
                });
            }
            // The client gave up in the backlog.
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection");
                sleep(ACCEPT_ERROR_PAUSE).await;
            }
        }
    }
}

fn http_builder(streams: StreamExecutor) -> auto::Builder<StreamExecutor> {
    let mut builder = auto::Builder::new(streams);
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .max_buf_size(HTTP1_BUFFER_BYTES)
        .max_headers(HTTP1_MAX_HEADERS);
    builder
        .http2()
        .timer(TokioTimer::new())
        .initial_stream_window_size(HTTP2_STREAM_WINDOW_BYTES)
        .initial_connection_window_size(HTTP2_CONNECTION_WINDOW_BYTES)
        .max_frame_size(HTTP2_MAX_FRAME_BYTES)
        .max_send_buf_size(HTTP2_SEND_BUFFER_BYTES)
        .max_concurrent_streams(HTTP2_MAX_STREAMS)
        .max_header_list_size(HTTP2_MAX_HEADER_BYTES)
        .keep_alive_interval(KEEP_ALIVE_INTERVAL)
        .keep_alive_timeout(KEEP_ALIVE_TIMEOUT);
    builder
}
