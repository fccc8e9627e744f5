//! Messages as they go.

use std::pin::Pin;
use std::task::{Context, Poll};

use axum::body::{Body, HttpBody};
use axum::http::{HeaderMap, HeaderValue, Response, header};
use bytes::{BufMut, Bytes, BytesMut};
use futures::{Stream, ready};
use http_body::Frame;
use prost::Message;
use tonic::{Code, Status};

use super::HEADER_BYTES;
use crate::metrics::Call;

/// A part of an answer.
pub(in crate::edges) type Part = Result<Bytes, Status>;

/// The parts of a streamed answer, framed.
pub(in crate::edges) type Frames = Pin<Box<dyn Stream<Item = Part> + Send>>;

/// A framed message.
pub(in crate::edges) fn encode(message: &impl Message) -> Bytes {
    let length = message.encoded_len();
    let mut frame = BytesMut::with_capacity(HEADER_BYTES + length);
    put_header(&mut frame, length);
    // The buffer grows as needed, so that encoding cannot run out of space.
    message.encode_raw(&mut frame);
    frame.freeze()
}

/// The frame of a message that is encoded already. Such messages are small: copying one is cheaper than a frame of
/// HTTP/2 for the header alone.
pub(in crate::edges) fn frame(message: &[u8]) -> Bytes {
    let mut frame = BytesMut::with_capacity(HEADER_BYTES + message.len());
    put_header(&mut frame, message.len());
    frame.extend_from_slice(message);
    frame.freeze()
}

/// The header of a message. Answers are bounded far below 4 GiB.
pub(in crate::edges) fn put_header(frame: &mut BytesMut, length: usize) {
    frame.put_u8(0);
    frame.put_u32(u32::try_from(length).unwrap_or(u32::MAX));
}

/// An answer of one message, framed.
pub(in crate::edges) fn unary(message: Bytes) -> Response<Body> {
    respond(Body::new(UnaryBody { message: Some(message), is_ended: false }))
}

/// An answer of many messages. `call` is finished when the stream ends, and cancelled when the caller vanishes.
pub(in crate::edges) fn stream(parts: Frames, call: Call) -> Response<Body> {
    respond(Body::new(StreamBody { parts, call: Some(call) }))
}

fn respond(body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    response
}

fn ok_trailers() -> HeaderMap {
    let mut trailers = HeaderMap::with_capacity(1);
    trailers.insert(Status::GRPC_STATUS, HeaderValue::from_static("0"));
    trailers
}

struct UnaryBody {
    message: Option<Bytes>,
    is_ended: bool,
}

impl HttpBody for UnaryBody {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        if let Some(message) = self.message.take() {
            return Poll::Ready(Some(Ok(Frame::data(message))));
        }
        if std::mem::replace(&mut self.is_ended, true) {
            return Poll::Ready(None);
        }
        Poll::Ready(Some(Ok(Frame::trailers(ok_trailers()))))
    }

    fn is_end_stream(&self) -> bool {
        self.is_ended
    }
}

struct StreamBody {
    parts: Frames,
    /// Taken when the trailers are sent.
    call: Option<Call>,
}

impl HttpBody for StreamBody {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        if self.call.is_none() {
            return Poll::Ready(None);
        }
        let (trailers, code) = match ready!(self.parts.as_mut().poll_next(context)) {
            Some(Ok(part)) => return Poll::Ready(Some(Ok(Frame::data(part)))),
            None => (ok_trailers(), Code::Ok),
            Some(Err(status)) => (trailers(&status), status.code()),
        };
        if let Some(call) = self.call.take() {
            call.finish(code);
        }
        Poll::Ready(Some(Ok(Frame::trailers(trailers))))
    }

    fn is_end_stream(&self) -> bool {
        self.call.is_none()
    }
}

fn trailers(status: &Status) -> HeaderMap {
    let mut trailers = HeaderMap::new();
    if status.add_header(&mut trailers).is_err() {
        trailers.insert(Status::GRPC_STATUS, HeaderValue::from(Code::Internal as i32));
    }
    trailers
}
