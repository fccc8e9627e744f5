//! What is answered: a head, and a body that is at hand or comes in pieces.

use std::error::Error;
use std::sync::Arc;

use axum::body::Body;
use axum::http::{HeaderName, HeaderValue, Method as Verb, Response, StatusCode, header};
use bytes::Bytes;
use futures::stream::{self, BoxStream};
use futures::{StreamExt, TryStreamExt};

use crate::metrics::{Call, EdgeMetrics};

/// What goes wrong while a body is sent.
pub(super) type SendError = Box<dyn Error + Send + Sync>;

/// A body in pieces.
pub(super) type Pieces = BoxStream<'static, Result<Bytes, SendError>>;

/// An answer that is not a refusal.
pub(super) struct Answer {
    head: Response<()>,
    content: Content,
}

enum Content {
    Whole(Bytes),
    /// With the length, where it is known.
    Pieces(Pieces, Option<u64>),
}

impl Answer {
    /// Done, and there is nothing to say.
    pub(super) fn done() -> Self {
        Self { head: Response::new(()), content: Content::Whole(Bytes::new()) }
    }

    /// A document that is at hand.
    pub(super) fn document(media_type: &'static str, bytes: impl Into<Bytes>) -> Self {
        let mut answer = Self { head: Response::new(()), content: Content::Whole(bytes.into()) };
        answer.set(header::CONTENT_TYPE, HeaderValue::from_static(media_type));
        answer
    }

    /// What comes in pieces, of this length where it is known.
    pub(super) fn pieces(media_type: &'static str, length: Option<u64>, pieces: Pieces) -> Self {
        let mut answer = Self { head: Response::new(()), content: Content::Pieces(pieces, length) };
        answer.set(header::CONTENT_TYPE, HeaderValue::from_static(media_type));
        answer
    }

    /// Another status than 200.
    pub(super) fn with_status(mut self, status: StatusCode) -> Self {
        *self.head.status_mut() = status;
        self
    }

    pub(super) fn set(&mut self, name: HeaderName, value: HeaderValue) {
        self.head.headers_mut().insert(name, value);
    }

    /// The response. The call ends when all of it is handed out; dropped before that, it counts as cancelled.
    pub(super) fn send(self, verb: &Verb, call: Call, metrics: &Arc<EdgeMetrics>) -> Response<Body> {
        let (mut head, ()) = self.head.into_parts();
        let length = match &self.content {
            Content::Whole(bytes) => Some(bytes.len() as u64),
            Content::Pieces(_, length) => *length,
        };
        if let Some(length) = length.filter(|_| head.status != StatusCode::NOT_MODIFIED) {
            head.headers.insert(header::CONTENT_LENGTH, HeaderValue::from(length));
        }
        let body = match self.content {
            _ if verb == Verb::HEAD => finished(call, head.status),
            Content::Whole(bytes) => {
                metrics.bytes_out(bytes.len() as u64);
                call.finish_http(head.status);
                Body::from(bytes)
            }
            Content::Pieces(pieces, _) => {
                let sending = Sending { pieces, metrics: Arc::clone(metrics), call, status: head.status };
                Body::from_stream(stream::try_unfold(sending, Sending::next))
            }
        };
        Response::from_parts(head, body)
    }
}

fn finished(call: Call, status: StatusCode) -> Body {
    call.finish_http(status);
    Body::empty()
}

/// A body under way.
struct Sending {
    pieces: Pieces,
    metrics: Arc<EdgeMetrics>,
    call: Call,
    status: StatusCode,
}

impl Sending {
    async fn next(mut self) -> Result<Option<(Bytes, Self)>, SendError> {
        match self.pieces.try_next().await {
            Ok(Some(piece)) => {
                self.metrics.bytes_out(piece.len() as u64);
                Ok(Some((piece, self)))
            }
            Ok(None) => {
                self.call.finish_http(self.status);
                Ok(None)
            }
            Err(error) => {
                // The status is sent already: all that is left is to cut the body off.
                tracing::error!(%error, "what a Nix cache has could not be read to its end");
                self.call.finish_http(StatusCode::SERVICE_UNAVAILABLE);
                Err(error)
            }
        }
    }
}

/// Makes pieces of a stream with an error of its own.
pub(super) fn boxed<E: Into<SendError> + 'static>(
    stream: impl futures::Stream<Item = Result<Bytes, E>> + Send + 'static,
) -> Pieces {
    stream.map_err(Into::into).boxed()
}
