//! A server behind a pipe, a client that speaks HTTP/2 by hand, and a clock that runs ahead when both wait.

use axum::routing::get;
use futures::stream;
use h2::client::{Builder, SendRequest};
use h2::{Reason, RecvStream};
use tokio::io::duplex;
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout};

use super::*;
use crate::listen::{Connections, Listener};

const ANSWER_BYTES: usize = 1 << 20;

/// Bytes that say when they are dropped.
struct Tracked {
    bytes: Vec<u8>,
    _alive: mpsc::Sender<()>,
}

impl AsRef<[u8]> for Tracked {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

/// A large answer, whose memory is held as long as the channel is open.
fn large_answer() -> (Router, mpsc::Receiver<()>) {
    let (alive, gone) = mpsc::channel(1);
    let answer = Bytes::from_owner(Tracked { bytes: vec![7; ANSWER_BYTES], _alive: alive });
    let answer = Arc::new(std::sync::Mutex::new(Some(answer)));
    let take = move || std::future::ready(answer.lock().unwrap().take().unwrap());
    (Router::new().route("/", get(take)), gone)
}

async fn connect(router: Router, window_bytes: u32) -> (Connections, SendRequest<Bytes>) {
    let connections = Listener::bind("127.0.0.1:0".parse().unwrap(), None).unwrap().serve(router);
    let (ours, theirs) = duplex(1 << 20);
    connections.serve_stream(theirs);
    let mut builder = Builder::new();
    builder.initial_window_size(window_bytes).initial_connection_window_size(1 << 20);
    let (client, connection) = builder.handshake(ours).await.unwrap();
    tokio::spawn(connection);
    (connections, client)
}

async fn request(client: &mut SendRequest<Bytes>) -> RecvStream {
    let request = Request::get("http://server/").body(()).unwrap();
    let (answer, _) = client.send_request(request, true).unwrap();
    answer.await.unwrap().into_body()
}

/// Longer than any stream may be stalled, so that a test that waits for ever fails in place of hanging.
const LONG: Duration = Duration::from_secs(600);

#[tokio::test(start_paused = true)]
async fn an_answer_that_nobody_takes_is_reset_and_its_memory_is_free() {
    for window_bytes in [0, 1, 100_000] {
        let (router, mut gone) = large_answer();
        let (_connections, mut client) = connect(router, window_bytes).await;
        let began = Instant::now();
        let mut body = request(&mut client).await;
        let mut received = 0;
        let error = loop {
            match timeout(LONG, body.data()).await.expect("the stream is reset").unwrap() {
                Ok(data) => received += data.len(),
                Err(error) => break error,
            }
        };
        assert_eq!((received, error.reason()), (window_bytes as usize, Some(Reason::CANCEL)));
        assert!(began.elapsed() >= PATIENCE && began.elapsed() <= 3 * PATIENCE, "{:?}", began.elapsed());
        assert_eq!(timeout(Duration::from_secs(1), gone.recv()).await, Ok(None), "the memory is free");
    }
}

#[tokio::test(start_paused = true)]
async fn one_who_takes_a_little_at_a_time_gets_everything() {
    let (router, _gone) = large_answer();
    let (_connections, mut client) = connect(router, u32::try_from(MAX_PIECE_BYTES).unwrap()).await;
    let mut body = request(&mut client).await;
    let mut received = 0;
    while let Some(data) = body.data().await {
        let bytes = data.unwrap().len();
        received += bytes;
        tokio::time::sleep(PATIENCE / 10).await;
        body.flow_control().release_capacity(bytes).unwrap();
    }
    assert_eq!(received, ANSWER_BYTES);
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_waits_for_the_server_may_take_its_time() {
    let slow = || async {
        let pieces = stream::unfold(0, |number| async move {
            tokio::time::sleep(10 * PATIENCE).await;
            (number < 3).then_some((Ok::<_, Infallible>(Bytes::from_static(b"piece")), number + 1))
        });
        tokio::time::sleep(10 * PATIENCE).await;
        Body::from_stream(pieces)
    };
    let (_connections, mut client) = connect(Router::new().route("/", get(slow)), 1 << 20).await;
    let mut body = request(&mut client).await;
    let mut received = Vec::new();
    while let Some(data) = body.data().await {
        received.extend_from_slice(&data.unwrap());
    }
    assert_eq!(received, b"piece".repeat(3));
}
