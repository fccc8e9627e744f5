//! Answers that their client does not take.
//!
//! A client of HTTP/2 may answer pings and yet never open its window; an answer would wait for it, with the memory
//! that it holds, as long as the connection lasts. So a stream whose client does not take a piece of 64 KiB within
//! [`PATIENCE`] is reset.
//! One that waits for the server, because an action runs or nothing happens, is left alone.
//!
//! The library polls a body when it has a use for more, and says nothing else. So [`Watched`], around every body, notes
//! whose turn it is: the client's from each piece that is handed out until the next is asked for, the server's while
//! the body itself has nothing. [`reset_when_stalled`], around every stream, looks at the note.
//!
//! Deliberately absent: HTTP/1.1, whose connections carry one answer, and end when the system cannot send for long.

use std::convert::Infallible;
use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, HttpBody};
use bytes::Bytes;
use http::{Extensions, Request, Response};
use http_body::{Frame, SizeHint};
use hyper::body::Incoming;
use hyper::service::Service;
use hyper_util::service::TowerToHyperService;
use tokio::task::futures::TaskLocalFuture;
use tokio::time::{Sleep, sleep};

use super::linger::{NotedBody, Unread};
use super::room::{ConnectionRoom, Held, Place};

/// How long a client may have one piece to take. It is given up then, or at the latest after twice as long.
const PATIENCE: Duration = Duration::from_secs(60);

/// A larger piece is cut, so that taking a part of it counts. So much is also left with the library, without a limit in
/// time, when the last piece was handed out: a connection's streams together hold 16 MiB of such rests at most.
const MAX_PIECE_BYTES: usize = 64 << 10;

tokio::task_local! {
    /// Of the stream that is polled now.
    static TURN: Turn;
}

/// Whose turn it is: odd while it is the client's, another odd number for each piece.
#[derive(Clone, Debug, Default)]
struct Turn(Arc<AtomicU64>);

impl Turn {
    fn hand_to_client(&self) {
        self.0.store((self.0.load(Ordering::Relaxed) + 2) | 1, Ordering::Relaxed);
    }

    fn hand_to_server(&self) {
        self.0.fetch_and(!1, Ordering::Relaxed);
    }

    /// Which piece the client has to take.
    fn of_client(&self) -> Option<u64> {
        Some(self.0.load(Ordering::Relaxed)).filter(|number| number & 1 == 1)
    }
}

/// Runs a stream of HTTP/2 to its end, or until its client is given up: dropping it resets it, and what was not sent
/// is gone.
pub(super) async fn reset_when_stalled(stream: impl Future) {
    let turn = Turn::default();
    let mut stream = pin!(TURN.scope(turn.clone(), stream));
    let mut patience = Patience::default();
    poll_fn(|context| {
        if stream.as_mut().poll(context).is_ready() {
            return Poll::Ready(());
        }
        ready!(patience.poll_end(&turn, context));
        tracing::debug!("an answer that its client did not take was given up");
        Poll::Ready(())
    })
    .await;
}

/// One timer for many pieces: a reset of it for each would cost more than sending one.
#[derive(Default)]
struct Patience {
    /// And the piece that was handed out when it was set.
    timer: Option<(Pin<Box<Sleep>>, u64)>,
}

impl Patience {
    /// Ready when the client had the same piece to take for all the time of a timer.
    fn poll_end(&mut self, turn: &Turn, context: &mut Context<'_>) -> Poll<()> {
        loop {
            match (&mut self.timer, turn.of_client()) {
                (Some((timer, piece)), now) => {
                    ready!(timer.as_mut().poll(context));
                    if now == Some(*piece) {
                        return Poll::Ready(());
                    }
                    self.timer = None;
                }
                (None, Some(piece)) => self.timer = Some((Box::pin(sleep(PATIENCE)), piece)),
                (None, None) => return Poll::Pending,
            }
        }
    }
}

/// A body that notes whose turn it is, when a stream of HTTP/2 carries it.
pub(super) struct Watched {
    body: Body,
    turn: Option<Turn>,
    /// What is left of a large piece.
    rest: Bytes,
    /// Given back with the body.
    _held: Held,
}

impl Watched {
    fn new(body: Body, held: Held) -> Self {
        Self { body, turn: TURN.try_with(Turn::clone).ok(), rest: Bytes::new(), _held: held }
    }

    fn next_piece(&mut self) -> Frame<Bytes> {
        Frame::data(self.rest.split_to(self.rest.len().min(MAX_PIECE_BYTES)))
    }
}

impl HttpBody for Watched {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let this = &mut *self;
        let Some(turn) = &this.turn else { return Pin::new(&mut this.body).poll_frame(context) };
        if this.rest.is_empty() {
            let Poll::Ready(frame) = Pin::new(&mut this.body).poll_frame(context) else {
                turn.hand_to_server();
                return Poll::Pending;
            };
            turn.hand_to_client();
            match frame.map(|frame| frame.map(Frame::into_data)) {
                Some(Ok(Ok(data))) => this.rest = data,
                Some(Ok(Err(trailers))) => return Poll::Ready(Some(Ok(trailers))),
                Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                None => return Poll::Ready(None),
            }
        } else {
            turn.hand_to_client();
        }
        Poll::Ready(Some(Ok(this.next_piece())))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let (mut hint, rest) = (self.body.size_hint(), self.rest.len() as u64);
        if let Some(upper) = hint.upper() {
            hint.set_upper(upper + rest);
        }
        hint.set_lower(hint.lower() + rest);
        hint
    }
}

/// The router on one connection, with a watch on what it answers, a note of what it leaves unread, and room.
#[derive(Clone)]
pub(super) struct WatchedService {
    router: TowerToHyperService<Router>,
    unread: Unread,
    room: ConnectionRoom,
    /// What every request on the connection carries.
    marks: Extensions,
}

impl WatchedService {
    pub(super) fn new(router: Router, unread: Unread, room: ConnectionRoom, marks: Extensions) -> Self {
        Self { router: TowerToHyperService::new(router), unread, room, marks }
    }
}

type RouterFuture = <TowerToHyperService<Router> as Service<Request<NotedBody>>>::Future;

impl Service<Request<Incoming>> for WatchedService {
    type Response = Response<Watched>;
    type Error = Infallible;
    type Future = WatchedCall;

    fn call(&self, mut request: Request<Incoming>) -> WatchedCall {
        request.extensions_mut().extend(self.marks.clone());
        let held = Held::default();
        let call = self.router.call(NotedBody::note(request, &self.unread));
        WatchedCall { call: Box::pin(self.room.scope(held.clone(), call)), held }
    }
}

/// A call under way.
pub(super) struct WatchedCall {
    call: Pin<Box<TaskLocalFuture<Place, RouterFuture>>>,
    held: Held,
}

impl Future for WatchedCall {
    type Output = Result<Response<Watched>, Infallible>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let answer = ready!(self.call.as_mut().poll(context));
        // Here, where the stream is polled, and not where it was made: only here its note is known.
        Poll::Ready(answer.map(|answer| answer.map(|body| Watched::new(body, std::mem::take(&mut self.held)))))
    }
}

#[cfg(test)]
mod tests;
