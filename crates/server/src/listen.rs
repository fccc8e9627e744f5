//! One port for gRPC and HTTP/1.1, in the clear or over TLS.
//!
//! What always holds: connections, their headers, streams and silences are bounded; every connection is a task of a
//! group, which [`Connections::drain`] ends within a deadline.

mod first_bytes;
mod linger;
mod peer_certificate;
mod room;
mod stalls;
mod streams;
mod tls;

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::http::Extensions;
use gf_tenancy::Access;
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

use crate::edges::origin::PeerAddress;
use first_bytes::FirstBytesDeadline;
use linger::{Lingering, Unread};
pub use peer_certificate::PeerCertificate;
pub(crate) use room::take_for_answer;
use room::{ConnectionRoom, ServerRoom};
use stalls::WatchedService;
use streams::StreamExecutor;
pub use tls::{ClientCertificates, Presence, TlsConfig, TlsError};

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
/// From the end of a client's certificate to that of its connection, for requests that were let in before.
const AFTER_CERTIFICATE: Duration = Duration::from_secs(60);
/// From cutting connections off to the end of the streams on them.
const CUT_DEADLINE: Duration = Duration::from_secs(2);
/// Out of file descriptors, most likely: others must end first.
const ACCEPT_ERROR_PAUSE: Duration = Duration::from_millis(100);

/// A bound port that does not answer yet.
pub struct Listener {
    socket: TcpListener,
    address: SocketAddr,
    tls: Option<TlsAcceptor>,
    /// Who knows the holders of certificates.
    access: Option<Arc<Access>>,
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
        Ok(Self { socket, address, tls: tls.map(TlsAcceptor::from), access: None })
    }

    /// The address taken, with the real port where 0 was asked for.
    #[must_use]
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// Has the holders of certificates known by this.
    #[must_use]
    pub fn knowing(self, access: Arc<Access>) -> Self {
        Self { access: Some(access), ..self }
    }

    /// Begins to answer.
    #[must_use]
    pub fn serve(self, router: Router) -> Connections {
        let tasks = TaskTracker::new();
        let streams = StreamExecutor::new(tasks.clone());
        let [over_network, on_machine] =
            [Peer::OverNetwork, Peer::OnThisMachine].map(|peer| http_builder(&streams, peer));
        let http = Http { over_network, on_machine, streams, router, room: ServerRoom::default() };
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
    over_network: auto::Builder<StreamExecutor>,
    on_machine: auto::Builder<StreamExecutor>,
    streams: StreamExecutor,
    router: Router,
    room: ServerRoom,
}

/// Where the other end of a connection is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Peer {
    /// It may be gone without a word, so it is asked whether it lives.
    OverNetwork,
    /// The system says when it is gone. It is never asked: either side may stand still for as long as the machine or an
    /// operator holds it, and an answer that waited all that time to be read would come too late.
    OnThisMachine,
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
    /// Serves a connection within this machine that is open already. Must be called within a Tokio runtime.
    pub fn serve_stream<S>(&self, stream: S)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let group = self.clone();
        self.spawn(async move { group.serve_http(stream, Peer::OnThisMachine, Extensions::new()).await });
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

    async fn serve_tcp(&self, stream: TcpStream, source: IpAddr, tls: Option<(TlsAcceptor, Option<Arc<Access>>)>) {
        // Without this, a small answer waits up to 44 ms for the client's delayed acknowledgement.
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, "the connection ended before it began");
            return;
        }
        let mut marks = Extensions::new();
        marks.insert(PeerAddress(source));
        let Some((tls, access)) = tls else { return self.serve_http(stream, Peer::OverNetwork, marks).await };
        match timeout(HANDSHAKE_TIMEOUT, tls.accept(stream)).await {
            Ok(Ok(stream)) => {
                let certificate = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
                let known = access.zip(certificate).and_then(|(access, own)| PeerCertificate::of(&access, own));
                let Some(known) = known else { return self.serve_http(stream, Peer::OverNetwork, marks).await };
                marks.insert(known.clone());
                self.serve_while_certified(&known, self.serve_http(stream, Peer::OverNetwork, marks)).await;
            }
            // A port scan, a client that speaks no TLS, or one without the certificate that it needs.
            Ok(Err(error)) => tracing::debug!(%error, %source, "a TLS handshake failed"),
            Err(_) => tracing::debug!(%source, "a TLS handshake took too long"),
        }
    }

    /// Returns when the client is to go: to a server that does not stop, or to come back with a certificate that is good.
    async fn leave(&self, certificate: Option<PeerCertificate>) {
        let Some(certificate) = certificate else { return self.draining.cancelled().await };
        self.draining.run_until_cancelled(certificate.ended()).await;
    }

    /// A certificate that ends takes its connection along, also when a stream on it would go on for ever.
    async fn serve_while_certified(&self, known: &PeerCertificate, serve: impl Future<Output = ()>) {
        let ended = async {
            known.ended().await;
            sleep(AFTER_CERTIFICATE).await;
        };
        tokio::select! {
            () = serve => {}
            () = ended => tracing::debug!("a connection was cut off: the certificate of its client has ended"),
        }
    }

    /// `marks` are put on every request of the connection.
    async fn serve_http<S>(&self, stream: S, peer: Peer, marks: Extensions)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        // Frames that are ready together go out together: HTTP/2 would write each of 16 KiB by itself.
        let stream = BufWriter::with_capacity(WRITE_BUFFER_BYTES, stream);
        let unread = Unread::default();
        let stream = Lingering::new(stream, unread.clone());
        let io = TokioIo::new(FirstBytesDeadline::new(stream, HANDSHAKE_TIMEOUT));
        let room = ConnectionRoom::within(&self.http.room);
        let certificate = marks.get().cloned();
        let service = WatchedService::new(self.http.router.clone(), unread, room, marks);
        let mut connection = std::pin::pin!(self.http.builder(peer).serve_connection(io, service));
        let result = tokio::select! {
            result = connection.as_mut() => result,
            () = self.leave(certificate) => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        };
        if let Err(error) = result {
            tracing::debug!(%error, "a connection broke");
        }
    }
}

impl Http {
    const fn builder(&self, peer: Peer) -> &auto::Builder<StreamExecutor> {
        match peer {
            Peer::OverNetwork => &self.over_network,
            Peer::OnThisMachine => &self.on_machine,
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
            Ok((stream, source)) => {
                let tls = listener.tls.clone().map(|tls| (tls, listener.access.clone()));
                let group = connections.clone();
                connections.spawn(async move {
                    group.serve_tcp(stream, source.ip(), tls).await;
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

fn http_builder(streams: &StreamExecutor, peer: Peer) -> auto::Builder<StreamExecutor> {
    let mut builder = auto::Builder::new(streams.clone());
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
        .keep_alive_interval((peer == Peer::OverNetwork).then_some(KEEP_ALIVE_INTERVAL))
        .keep_alive_timeout(KEEP_ALIVE_TIMEOUT);
    builder
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    use super::*;

    /// The preface of HTTP/2 and an empty frame of settings; nothing is ever answered.
    const GREETING: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";

    /// Whether a connection whose other end stands still outlives an hour.
    async fn outlives_an_hour(peer: Peer) -> bool {
        let connections = Listener::bind(([127, 0, 0, 1], 0).into(), None).unwrap().serve(Router::new());
        let (mut client, server) = duplex(1 << 20);
        let group = connections.clone();
        connections.spawn(async move { group.serve_http(server, peer, Extensions::new()).await });
        client.write_all(GREETING).await.unwrap();
        let lives = timeout(Duration::from_secs(3600), async {
            let mut scrap = [0; 1024];
            while client.read(&mut scrap).await.unwrap_or(0) > 0 {}
        });
        lives.await.is_err()
    }

    #[tokio::test(start_paused = true)]
    async fn only_who_may_have_vanished_has_to_answer() {
        assert!(!outlives_an_hour(Peer::OverNetwork).await);
        assert!(outlives_an_hour(Peer::OnThisMachine).await);
    }
}
