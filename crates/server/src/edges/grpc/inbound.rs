//! Messages as they come.

use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, HttpBody};
use bytes::{Buf, Bytes, BytesMut};
use http_body_util::BodyExt;
use prost::Message;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;
use tonic::{Code, Status};

use super::HEADER_BYTES;
use super::fields::{self, Lists};

/// How long a call that takes one message waits for it.
const ONLY_MESSAGE_TIMEOUT: Duration = Duration::from_secs(120);

/// How long a large message waits for room.
const ROOM_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a large message may stand still while it holds room that others wait for.
const HOLDING_SILENCE: Duration = Duration::from_secs(10);

/// Messages up to this size need no room: what a connection may send ahead bounds them.
const SMALL_MESSAGE_BYTES: usize = 256 << 10;

/// Room for the large messages that are in memory at one time, over all calls.
#[derive(Clone)]
pub(in crate::edges) struct Room(Arc<Semaphore>);

impl Room {
    /// Room for so many bytes; more than the largest message.
    pub(in crate::edges) fn new(bytes: usize) -> Self {
        Self(Arc::new(Semaphore::new(bytes / 1024)))
    }

    async fn take(&self, bytes: usize) -> Result<OwnedSemaphorePermit, Status> {
        let kibibytes = u32::try_from(bytes.div_ceil(1024)).unwrap_or(u32::MAX);
        match timeout(ROOM_TIMEOUT, Arc::clone(&self.0).acquire_many_owned(kibibytes)).await {
            Ok(Ok(held)) => Ok(held),
            _ => Err(Status::unavailable("too many large messages at once; try again, or send smaller ones")),
        }
    }
}

/// The messages of a request body, each of at most `limit` bytes. A large one holds room in memory until the next is
/// asked for, or all of this is dropped.
pub(in crate::edges) struct Messages {
    body: Body,
    limit: usize,
    lists: Lists,
    room: Room,
    held: Option<OwnedSemaphorePermit>,
    /// What came and is not yet taken.
    pending: Bytes,
}

impl Messages {
    pub(in crate::edges) const fn new(body: Body, limit: usize, lists: Lists, room: Room) -> Self {
        Self { body, limit, lists, room, held: None, pending: Bytes::new() }
    }

    /// The next message; `None` when the caller closed its side.
    pub(in crate::edges) async fn next<M: Message + Default>(&mut self) -> Result<Option<M>, Status> {
        self.held = None;
        let Some(bytes) = self.next_bytes().await? else { return Ok(None) };
        if !fields::are_few(&bytes, self.lists) {
            return Err(Status::invalid_argument("the message has too many entries for its size"));
        }
        let decoded = M::decode(bytes);
        decoded.map(Some).map_err(|error| Status::invalid_argument(format!("the message cannot be decoded: {error}")))
    }

    /// The one message of a call that takes one.
    pub(in crate::edges) async fn only<M: Message + Default>(&mut self) -> Result<M, Status> {
        let only = async {
            let message = self.next().await?.ok_or_else(|| Status::invalid_argument("the call has no message"))?;
            let is_over = self.pending.is_empty() && self.body.is_end_stream();
            if !is_over && self.next_bytes().await?.is_some() {
                return Err(Status::invalid_argument("the call takes one message"));
            }
            Ok(message)
        };
        timeout(ONLY_MESSAGE_TIMEOUT, only)
            .await
            .unwrap_or_else(|_| Err(Status::deadline_exceeded("the message did not come to its end")))
    }

    async fn next_bytes(&mut self) -> Result<Option<Bytes>, Status> {
        while self.pending.len() < HEADER_BYTES {
            let Some(frame) = self.frame().await? else {
                return if self.pending.is_empty() { Ok(None) } else { Err(cut_off()) };
            };
            if self.pending.is_empty() {
                self.pending = frame;
            } else {
                let mut joined = BytesMut::from(&*self.pending);
                joined.extend_from_slice(&frame);
                self.pending = joined.freeze();
            }
        }
        let is_compressed = self.pending.get_u8() != 0;
        let length = usize::try_from(self.pending.get_u32()).unwrap_or(usize::MAX);
        if is_compressed {
            return Err(Status::unimplemented("compressed messages are not supported; compress the blobs instead"));
        }
        if length > self.limit {
            let limit = self.limit;
            let text = format!("the message has {length} bytes; at most {limit} are allowed");
            return Err(Status::new(Code::ResourceExhausted, text));
        }
        if length <= self.pending.len() {
            return Ok(Some(self.pending.split_to(length)));
        }
        self.join(length).await.map(Some)
    }

    /// A message that came in several frames. It takes room as it comes, not as it is announced.
    async fn join(&mut self, length: usize) -> Result<Bytes, Status> {
        let mut message = BytesMut::with_capacity(length);
        message.extend_from_slice(&std::mem::take(&mut self.pending));
        let mut roomy_up_to = SMALL_MESSAGE_BYTES;
        while message.len() < length {
            if message.len() >= roomy_up_to {
                let step = SMALL_MESSAGE_BYTES.min(length - roomy_up_to);
                let more = self.room.take(step).await?;
                match &mut self.held {
                    Some(held) => held.merge(more),
                    None => self.held = Some(more),
                }
                roomy_up_to += step.max(1);
            }
            let mut frame = self.frame_while_holding().await?.ok_or_else(cut_off)?;
            let taken = frame.len().min(length - message.len());
            message.extend_from_slice(&frame.split_to(taken));
            self.pending = frame;
        }
        Ok(message.freeze())
    }

    /// The next bytes of a message, soon if it holds room.
    async fn frame_while_holding(&mut self) -> Result<Option<Bytes>, Status> {
        if self.held.is_none() {
            return self.frame().await;
        }
        timeout(HOLDING_SILENCE, self.frame()).await.unwrap_or_else(|_| {
            Err(Status::unavailable("a large message stood still; try again, or send smaller ones"))
        })
    }

    /// The next bytes of the body; `None` at its end.
    async fn frame(&mut self) -> Result<Option<Bytes>, Status> {
        loop {
            match self.body.frame().await {
                None => return Ok(None),
                Some(Ok(frame)) => {
                    // Trailers of a request say nothing.
                    if let Ok(data) = frame.into_data() {
                        return Ok(Some(data));
                    }
                }
                Some(Err(error)) => return Err(Status::cancelled(format!("the request was cut off: {error}"))),
            }
        }
    }
}

fn cut_off() -> Status {
    Status::invalid_argument("the request ends within a message")
}

#[cfg(test)]
mod tests {
    use futures::{StreamExt, stream};
    use gf_reapi::bytestream::WriteRequest;

    use super::*;

    fn framed(message: &WriteRequest) -> Vec<u8> {
        let mut bytes = vec![0];
        bytes.extend_from_slice(&u32::try_from(message.encoded_len()).unwrap().to_be_bytes());
        bytes.extend_from_slice(&message.encode_to_vec());
        bytes
    }

    fn in_pieces(bytes: &[u8], piece: usize) -> Messages {
        let pieces: Vec<_> =
            bytes.chunks(piece).map(|piece| Ok::<_, std::io::Error>(Bytes::copy_from_slice(piece))).collect();
        Messages::new(Body::from_stream(stream::iter(pieces)), 1 << 20, Lists::FLAT, Room::new(1 << 20))
    }

    #[tokio::test]
    async fn messages_are_found_however_they_are_cut() {
        let write =
            |offset, size| WriteRequest { write_offset: offset, data: vec![7; size].into(), ..WriteRequest::default() };
        let sent = [write(1, 0), write(2, 300), write(3, 5), WriteRequest::default()];
        let bytes: Vec<u8> = sent.iter().flat_map(framed).collect();
        for piece in [1, 2, 3, 7, 100, 10_000] {
            let mut messages = in_pieces(&bytes, piece);
            for expected in &sent {
                assert_eq!(messages.next::<WriteRequest>().await.unwrap().as_ref(), Some(expected));
            }
            assert_eq!(messages.next::<WriteRequest>().await.unwrap(), None);
        }
    }

    #[tokio::test]
    async fn bad_framing_is_refused() {
        let good = framed(&WriteRequest { write_offset: 1, data: vec![7; 50].into(), ..WriteRequest::default() });
        let refused = async |bytes: &[u8]| in_pieces(bytes, 8).only::<WriteRequest>().await.unwrap_err().code();
        assert_eq!(refused(&[]).await, Code::InvalidArgument);
        assert_eq!(refused(&good[..3]).await, Code::InvalidArgument);
        assert_eq!(refused(&good[..20]).await, Code::InvalidArgument);
        assert_eq!(refused(&[good.clone(), good.clone()].concat()).await, Code::InvalidArgument);
        assert_eq!(refused(&[1, 0, 0, 0, 0]).await, Code::Unimplemented);
        assert_eq!(refused(&[0, 0xff, 0xff, 0xff, 0xff]).await, Code::ResourceExhausted);
        assert_eq!(refused(&[0, 0, 0, 0, 2, 0xff, 0xff]).await, Code::InvalidArgument);
    }

    #[tokio::test(start_paused = true)]
    async fn a_message_that_stands_still_holds_no_room() {
        let room = Room::new(1 << 20);
        let large = framed(&WriteRequest { data: vec![7; 700 << 10].into(), ..WriteRequest::default() });
        let begun = large.chunks(300 << 10).take(2).map(Bytes::copy_from_slice).map(Ok::<_, std::io::Error>);
        let body = Body::from_stream(stream::iter(begun.collect::<Vec<_>>()).chain(stream::pending()));
        let mut messages = Messages::new(body, 1 << 20, Lists::FLAT, room.clone());
        let began = tokio::time::Instant::now();
        let refused = messages.next::<WriteRequest>().await.unwrap_err();
        assert_eq!((refused.code(), began.elapsed()), (Code::Unavailable, HOLDING_SILENCE));
        drop(messages);
        assert_eq!(room.0.available_permits(), 1 << 10);
    }

    #[tokio::test(start_paused = true)]
    async fn large_messages_share_the_room() {
        let room = Room::new(400 << 10);
        let large = WriteRequest { data: vec![7; 700 << 10].into(), ..WriteRequest::default() };
        let send = || {
            let halves: Vec<_> = framed(&large).chunks(400 << 10).map(Bytes::copy_from_slice).collect();
            let body = Body::from_stream(stream::iter(halves.into_iter().map(Ok::<_, std::io::Error>)));
            Messages::new(body, 1 << 20, Lists::FLAT, room.clone())
        };
        let (mut first, mut second, mut third) = (send(), send(), send());
        assert!(first.only::<WriteRequest>().await.unwrap() == large);
        assert_eq!(second.only::<WriteRequest>().await.unwrap_err().code(), Code::Unavailable);
        drop(first);
        assert!(third.only::<WriteRequest>().await.unwrap() == large);
    }
}
