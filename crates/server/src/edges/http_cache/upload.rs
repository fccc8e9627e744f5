//! PUT.

use std::io;
use std::time::Duration;

use axum::body::{Body, HttpBody};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderValue, Response, StatusCode, Version, header};
use bytes::{Bytes, BytesMut};
use gf_blobstore::Encoding;
use gf_digest::Digest;
use gf_reapi::execution::ActionResult;
use gf_tenancy::{ActionCacheWrite, Authorized, CasWrite};
use http_body_util::BodyExt;
use prost::Message;
use tokio::sync::SemaphorePermit;
use tokio::time::{Instant, timeout, timeout_at};

use super::HttpEdge;
use super::grpc;
use super::problem::Problem;
use super::target::{Half, Target};
use crate::edges::reapi::RESULT_LISTS;

/// The largest body that is held in memory.
const MAX_BUFFERED_BYTES: usize = 64 << 20;

/// The most that a compressed body may decode to when its blob's size is not known.
const MAX_DECODED_BYTES: u64 = 1 << 30;

/// The largest action result. What is larger is kept as it is.
const MAX_RESULT_BYTES: usize = 4 << 20;

/// From the first to the last byte of a body that is held in memory.
const BUFFERED_TIMEOUT: Duration = Duration::from_secs(300);

/// How long a body waits for others to leave room. Each keeps what it has meanwhile, so it cannot be long.
const ROOM_TIMEOUT: Duration = Duration::from_secs(10);

pub(super) async fn put(edge: &HttpEdge, target: &Target, head: &Parts, body: Body) -> Response<Body> {
    let mut incoming = Incoming::new(edge, &head.headers, body);
    let done = match target.half {
        Half::Cas => put_blob(edge, target, &head.headers, &mut incoming).await,
        Half::ActionCache => put_result(edge, target, &head.headers, &mut incoming).await,
    };
    let Err(problem) = done else { return Response::new(Body::empty()) };
    let mut response = problem.into_response();
    // A client that is still sending shall stop: the connection carries no further request. HTTP/2 knows no such word.
    if head.version < Version::HTTP_2 && !incoming.body.is_end_stream() {
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

async fn put_blob(
    edge: &HttpEdge,
    target: &Target,
    headers: &HeaderMap,
    incoming: &mut Incoming<'_>,
) -> Result<(), Problem> {
    let grant = edge.authorize::<CasWrite>(headers, target)?;
    match (encoding(headers)?, content_length(headers)) {
        (Encoding::Identity, Some(length)) => {
            let digest = Digest::new(target.function, target.hash, length);
            if edge.services.content.has(&grant, digest).await? {
                incoming.drain().await?;
            } else {
                stream_blob(edge, &grant, digest, incoming).await?;
            }
        }
        (encoding, length) => {
            let (bytes, _held) = incoming.collect(length).await?;
            let size = decoded_size(encoding, &bytes).await?;
            let digest = Digest::new(target.function, target.hash, size);
            if !edge.services.content.has(&grant, digest).await? {
                edge.services.content.write_large(&grant, digest, encoding, bytes).await?;
            }
        }
    }
    Ok(())
}

/// A blob whose size is known is never held whole.
async fn stream_blob(
    edge: &HttpEdge,
    grant: &Authorized<CasWrite>,
    digest: Digest,
    incoming: &mut Incoming<'_>,
) -> Result<(), Problem> {
    let mut upload = edge.services.content.upload(grant, digest, Encoding::Identity).await?;
    while let Some(bytes) = incoming.next().await? {
        upload.write(bytes).await?;
    }
    Ok(upload.finish().await?)
}

async fn put_result(
    edge: &HttpEdge,
    target: &Target,
    headers: &HeaderMap,
    incoming: &mut Incoming<'_>,
) -> Result<(), Problem> {
    let grant = edge.authorize::<ActionCacheWrite>(headers, target)?;
    if encoding(headers)? != Encoding::Identity {
        let text = "under /ac/ only uncompressed bytes are taken";
        return Err(Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, text));
    }
    let (bytes, _held) = incoming.collect(content_length(headers)).await?;
    let cache = &edge.services.action_cache;
    match action_result(&bytes) {
        Some(result) => {
            cache.update(&grant, target.action(), result).await?;
        }
        None => cache.put_opaque(&grant, target.action(), bytes).await?,
    }
    Ok(())
}

/// The action result that these bytes are, if they are one and nothing else.
fn action_result(bytes: &Bytes) -> Option<ActionResult> {
    if bytes.len() > MAX_RESULT_BYTES || !grpc::are_few(bytes, RESULT_LISTS) {
        return None;
    }
    let result = ActionResult::decode(bytes.clone()).ok()?;
    // Decoding passes over fields that it does not know; their bytes are then missing here.
    (result.encoded_len() == bytes.len()).then_some(result)
}

fn content_length(headers: &HeaderMap) -> Option<u64> {
    headers.get(header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

fn encoding(headers: &HeaderMap) -> Result<Encoding, Problem> {
    match headers.get(header::CONTENT_ENCODING).map(|value| value.as_bytes()) {
        None | Some(b"identity" | b"") => Ok(Encoding::Identity),
        Some(b"zstd") => Ok(Encoding::Zstd),
        Some(_) => {
            let text = "this Content-Encoding is not supported; zstd is";
            Err(Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, text))
        }
    }
}

/// The size of the blob that a whole body holds.
async fn decoded_size(encoding: Encoding, bytes: &Bytes) -> Result<u64, Problem> {
    if encoding == Encoding::Identity {
        return Ok(bytes.len() as u64);
    }
    let bytes = bytes.clone();
    let counted = tokio::task::spawn_blocking(move || count_decoded(&bytes)).await;
    match counted {
        Ok(Ok(size)) if size <= MAX_DECODED_BYTES => Ok(size),
        Ok(Ok(_)) => {
            let text = format!("the body decodes to more than {MAX_DECODED_BYTES} bytes: send it uncompressed");
            Err(Problem::new(StatusCode::PAYLOAD_TOO_LARGE, text))
        }
        Ok(Err(error)) => Err(Problem::new(StatusCode::BAD_REQUEST, format!("the body is not zstd: {error}"))),
        Err(_) => Err(Problem::new(StatusCode::SERVICE_UNAVAILABLE, "the server is stopping")),
    }
}

fn count_decoded(bytes: &[u8]) -> io::Result<u64> {
    let decoder = zstd::stream::read::Decoder::new(bytes)?;
    io::copy(&mut io::Read::take(decoder, MAX_DECODED_BYTES + 1), &mut io::sink())
}

/// The body of a request.
struct Incoming<'a> {
    edge: &'a HttpEdge,
    body: Body,
    idle_timeout: Duration,
    /// The client sends nothing before it is told to go on, which reading the body does.
    waits_to_be_asked: bool,
}

impl<'a> Incoming<'a> {
    fn new(edge: &'a HttpEdge, headers: &HeaderMap, body: Body) -> Self {
        let waits_to_be_asked = headers.contains_key(header::EXPECT);
        let idle_timeout = edge.services.state.limits.upload_idle_timeout;
        Self { edge, body, idle_timeout, waits_to_be_asked }
    }

    async fn next(&mut self) -> Result<Option<Bytes>, Problem> {
        self.waits_to_be_asked = false;
        loop {
            let frame = timeout(self.idle_timeout, self.body.frame())
                .await
                .map_err(|_| Problem::new(StatusCode::REQUEST_TIMEOUT, "the upload was idle for too long"))?;
            match frame {
                None => return Ok(None),
                Some(Ok(frame)) => {
                    if let Ok(bytes) = frame.into_data() {
                        self.edge.services.state.metrics.bytes_in(bytes.len() as u64);
                        return Ok(Some(bytes));
                    }
                }
                Some(Err(error)) => {
                    let text = format!("the request was cut off: {error}");
                    return Err(Problem::new(StatusCode::BAD_REQUEST, text));
                }
            }
        }
    }

    /// Reads what is of no use: a client that is still sending would not see the answer.
    async fn drain(&mut self) -> Result<(), Problem> {
        if !self.waits_to_be_asked {
            while self.next().await?.is_some() {}
        }
        Ok(())
    }

    /// The whole body, and the room in memory that it takes for as long as it is held.
    async fn collect(&mut self, length: Option<u64>) -> Result<(Bytes, SemaphorePermit<'a>), Problem> {
        let announced = length.or_else(|| self.body.size_hint().exact());
        let room = announced.map_or(Some(MAX_BUFFERED_BYTES), |length| usize::try_from(length).ok());
        let room = room.filter(|room| *room <= MAX_BUFFERED_BYTES).ok_or_else(too_large)?;
        let mut held = self.edge.buffer.try_acquire_many(0).map_err(|_| no_room())?;
        // Memory that nothing was written to is not taken yet.
        let mut whole = BytesMut::with_capacity(announced.map_or(0, |_| room));
        let deadline = Instant::now() + BUFFERED_TIMEOUT;
        while let Some(bytes) = timeout_at(deadline, self.next()).await.map_err(|_| too_slow())?? {
            if whole.len() + bytes.len() > room {
                return Err(too_large());
            }
            // For what came, not for what was announced: who sends slowly keeps nobody else out.
            let more = (whole.len() + bytes.len()).div_ceil(1024) - held.num_permits();
            let more = self.edge.buffer.acquire_many(u32::try_from(more).unwrap_or(u32::MAX));
            held.merge(timeout(ROOM_TIMEOUT, more).await.ok().and_then(Result::ok).ok_or_else(no_room)?);
            whole.extend_from_slice(&bytes);
        }
        Ok((whole.freeze(), held))
    }
}

fn no_room() -> Problem {
    let text = "too many bodies of unknown size at once: send a Content-Length, uncompressed";
    Problem::new(StatusCode::SERVICE_UNAVAILABLE, text)
}

fn too_slow() -> Problem {
    let text = format!("a body without a known size must come within {} s", BUFFERED_TIMEOUT.as_secs());
    Problem::new(StatusCode::REQUEST_TIMEOUT, text)
}

fn too_large() -> Problem {
    let text =
        format!("a body without a known size may have {MAX_BUFFERED_BYTES} bytes: send a Content-Length, uncompressed");
    Problem::new(StatusCode::PAYLOAD_TOO_LARGE, text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_results_are_taken_for_results() {
        let result = ActionResult { exit_code: 3, stdout_raw: Bytes::from_static(b"out"), ..ActionResult::default() };
        let bytes = Bytes::from(result.encode_to_vec());
        assert_eq!(action_result(&bytes), Some(result));
        assert_eq!(action_result(&Bytes::new()), Some(ActionResult::default()));
        let with_unknown_field = [&bytes[..], &[0xfa, 0x01, 1, 0]].concat();
        assert_eq!(action_result(&with_unknown_field.into()), None);
        assert_eq!(action_result(&Bytes::from_static(b"cCrS\x01\x00")), None);
        // A million empty output files, which would take hundreds of megabytes.
        assert_eq!(action_result(&Bytes::from([0x12, 0].repeat(1 << 20))), None);
    }
}
