//! The body of a request, within bounds of size and time.

use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, HttpBody};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderValue, Response, Version, header};
use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;
use thiserror::Error;
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::{Instant, timeout, timeout_at};

use crate::metrics::EdgeMetrics;

/// From the first to the last byte of a body that is held in memory.
const BUFFERED_TIMEOUT: Duration = Duration::from_secs(300);

/// How long a body waits for others to leave room. Each keeps what it has meanwhile, so it cannot be long.
const ROOM_TIMEOUT: Duration = Duration::from_secs(10);

/// How long one who holds room may send nothing: others may be waiting for it.
const HOLDING_IDLE_TIMEOUT: Duration = Duration::from_secs(10);

/// The beginning of a body, which has room of its own: large bodies keep no small one waiting.
const SMALL_BYTES: usize = 256 << 10;

/// Kibibytes of that room: when it is full, there is none to wait for.
const SMALL_KIB: usize = 256 * 1024;

/// No body has a larger share of the room than one of so many.
const SHARES: usize = 4;

/// Why a body was not read to its end.
#[derive(Debug, Error)]
pub(in crate::edges) enum BodyError {
    /// The connection or the stream ended.
    #[error("the request was cut off: {0}")]
    CutOff(String),
    /// Nothing came.
    #[error("the upload was idle for too long")]
    Idle,
    /// It came, but not fast enough for what holds memory.
    #[error("a body without a known size must come within {} s", BUFFERED_TIMEOUT.as_secs())]
    TooSlow,
    /// More than may be held in memory.
    #[error("this body may have {max_bytes} bytes at most")]
    TooLarge {
        /// What may be held.
        max_bytes: usize,
    },
    /// Others hold what there is.
    #[error("too many bodies of unknown size at once: send a Content-Length, uncompressed")]
    NoRoom,
}

/// The memory for bodies that are held whole, shared by all requests of an edge.
pub(in crate::edges) struct Buffers {
    /// One permit for each KiB.
    kibibytes: Semaphore,
    /// The same for the beginnings of bodies.
    small_kibibytes: Semaphore,
    /// The most of a single body.
    share_bytes: usize,
}

impl Buffers {
    pub(in crate::edges) const fn new(kibibytes: usize) -> Self {
        Self {
            kibibytes: Semaphore::const_new(kibibytes),
            small_kibibytes: Semaphore::const_new(SMALL_KIB),
            share_bytes: kibibytes / SHARES * 1024,
        }
    }

    /// Room for so many bytes, for what a body becomes.
    pub(in crate::edges) async fn reserve(&self, bytes: usize) -> Result<SemaphorePermit<'_>, BodyError> {
        let permits = u32::try_from(bytes.div_ceil(1024)).unwrap_or(u32::MAX);
        let room = timeout(ROOM_TIMEOUT, self.kibibytes.acquire_many(permits));
        room.await.ok().and_then(Result::ok).ok_or(BodyError::NoRoom)
    }
}

/// The room that a body takes for as long as this is held.
pub(in crate::edges) struct Held<'a> {
    buffers: &'a Buffers,
    small: SemaphorePermit<'a>,
    large: SemaphorePermit<'a>,
}

impl<'a> Held<'a> {
    /// Holds nothing.
    fn new(buffers: &'a Buffers) -> Result<Self, BodyError> {
        let nothing = |pool: &'a Semaphore| pool.try_acquire_many(0).map_err(|_| BodyError::NoRoom);
        Ok(Self { buffers, small: nothing(&buffers.small_kibibytes)?, large: nothing(&buffers.kibibytes)? })
    }

    fn is_anything(&self) -> bool {
        self.small.num_permits() > 0
    }

    /// Room for so many bytes in all: for what came, not for what was announced, so that who sends slowly keeps nobody out.
    async fn grow(&mut self, bytes: usize) -> Result<(), BodyError> {
        let small = bytes.min(SMALL_BYTES).div_ceil(1024).saturating_sub(self.small.num_permits());
        let small = u32::try_from(small).map_err(|_| BodyError::NoRoom)?;
        self.small.merge(self.buffers.small_kibibytes.try_acquire_many(small).map_err(|_| BodyError::NoRoom)?);
        let large = bytes.saturating_sub(SMALL_BYTES).div_ceil(1024).saturating_sub(self.large.num_permits());
        if large > 0 {
            self.large.merge(self.buffers.reserve(large * 1024).await?);
        }
        Ok(())
    }
}

/// The body of a request.
pub(in crate::edges) struct Incoming {
    body: Body,
    metrics: Arc<EdgeMetrics>,
    idle_timeout: Duration,
    /// The client sends nothing before it is told to go on, which reading the body does.
    waits_to_be_asked: bool,
}

impl Incoming {
    /// A body that may pause for `idle_timeout`.
    pub(in crate::edges) fn new(
        metrics: &Arc<EdgeMetrics>,
        idle_timeout: Duration,
        headers: &HeaderMap,
        body: Body,
    ) -> Self {
        let waits_to_be_asked = headers.contains_key(header::EXPECT);
        Self { body, metrics: Arc::clone(metrics), idle_timeout, waits_to_be_asked }
    }

    pub(in crate::edges) async fn next(&mut self) -> Result<Option<Bytes>, BodyError> {
        self.next_within(self.idle_timeout).await
    }

    async fn next_within(&mut self, idle_timeout: Duration) -> Result<Option<Bytes>, BodyError> {
        self.waits_to_be_asked = false;
        loop {
            let frame = timeout(idle_timeout, self.body.frame()).await.map_err(|_| BodyError::Idle)?;
            match frame {
                None => return Ok(None),
                Some(Ok(frame)) => {
                    if let Ok(bytes) = frame.into_data() {
                        self.metrics.bytes_in(bytes.len() as u64);
                        return Ok(Some(bytes));
                    }
                }
                Some(Err(error)) => return Err(BodyError::CutOff(error.to_string())),
            }
        }
    }

    /// Reads what is of no use: a client that is still sending would not see the answer.
    pub(in crate::edges) async fn drain(&mut self) -> Result<(), BodyError> {
        if !self.waits_to_be_asked {
            while self.next().await?.is_some() {}
        }
        Ok(())
    }

    /// The whole body, and the room in memory that it takes for as long as it is held.
    pub(in crate::edges) async fn collect<'a>(
        &mut self,
        buffers: &'a Buffers,
        max_bytes: usize,
        length: Option<u64>,
    ) -> Result<(Bytes, Held<'a>), BodyError> {
        let max_bytes = max_bytes.min(buffers.share_bytes);
        let announced = length.or_else(|| self.body.size_hint().exact());
        let room = announced.map_or(Some(max_bytes), |length| usize::try_from(length).ok());
        let room = room.filter(|room| *room <= max_bytes).ok_or(BodyError::TooLarge { max_bytes })?;
        let mut held = Held::new(buffers)?;
        // Memory that nothing was written to is not taken yet.
        let mut whole = BytesMut::with_capacity(announced.map_or(0, |_| room));
        let deadline = Instant::now() + BUFFERED_TIMEOUT;
        loop {
            let idle_timeout =
                if held.is_anything() { self.idle_timeout.min(HOLDING_IDLE_TIMEOUT) } else { self.idle_timeout };
            let next = timeout_at(deadline, self.next_within(idle_timeout)).await;
            let Some(bytes) = next.map_err(|_| BodyError::TooSlow)?? else { break };
            if whole.len() + bytes.len() > room {
                return Err(BodyError::TooLarge { max_bytes });
            }
            held.grow(whole.len() + bytes.len()).await?;
            whole.extend_from_slice(&bytes);
        }
        Ok((whole.freeze(), held))
    }

    /// The answer to a request that is refused, perhaps before all of it was read.
    pub(in crate::edges) fn refuse(&self, head: &Parts, mut response: Response<Body>) -> Response<Body> {
        // A client that is still sending shall stop: the connection carries no further request. HTTP/2 knows no such
        // word.
        if head.version < Version::HTTP_2 && !self.body.is_end_stream() {
            response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        response
    }
}

/// The length of a body as its head says it.
pub(in crate::edges) fn content_length(headers: &HeaderMap) -> Option<u64> {
    headers.get(header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn small_bodies_have_room_of_their_own_which_ends() {
        let buffers = Buffers::new(1024);
        let mut large = Held::new(&buffers).unwrap();
        large.grow(SMALL_BYTES + (1 << 20)).await.unwrap();
        assert!(large.is_anything() && buffers.kibibytes.available_permits() == 0);
        let mut all = Vec::new();
        for _ in 1..SMALL_KIB / (SMALL_BYTES / 1024) {
            let mut small = Held::new(&buffers).unwrap();
            small.grow(10).await.unwrap();
            small.grow(SMALL_BYTES).await.unwrap();
            assert_eq!(small.large.num_permits(), 0);
            all.push(small);
        }
        let mut late = Held::new(&buffers).unwrap();
        assert!(matches!(late.grow(1).await, Err(BodyError::NoRoom)));
        all.pop();
        late.grow(SMALL_BYTES).await.unwrap();
    }
}
