//! PUT.

use std::io;
use std::sync::Arc;

use axum::body::Body;
use axum::http::request::Parts;
use axum::http::{HeaderMap, Response, StatusCode, header};
use bytes::Bytes;
use gf_blobstore::Encoding;
use gf_digest::Digest;
use gf_reapi::execution::ActionResult;
use gf_tenancy::{ActionCacheWrite, Authorized, CasWrite};
use prost::Message;

use super::HttpEdge;
use super::grpc;
use super::target::{Half, Target};
use crate::edges::EdgeState;
use crate::edges::plain_http::{BodyError, Held, Incoming, Problem, content_length};
use crate::edges::reapi::RESULT_LISTS;

/// The largest body that is held in memory.
const MAX_BUFFERED_BYTES: usize = 64 << 20;

/// The most that a compressed body may decode to when its blob's size is not known.
const MAX_DECODED_BYTES: u64 = 1 << 30;

/// Two to this power is the largest window that is decoded with: what writes in windows of more is told so. As the store has
/// it, so that what is counted here can be stored.
const WINDOW_LOG_MAX: u32 = 23;

/// The largest action result. What is larger is kept as it is.
const MAX_RESULT_BYTES: usize = 4 << 20;

pub(super) async fn put(edge: &HttpEdge, target: &Target, head: &Parts, body: Body) -> Response<Body> {
    let EdgeState { metrics, limits, .. } = &edge.services.state;
    let mut incoming = Incoming::new(metrics, limits.upload_idle_timeout, &head.headers, body);
    let done = match target.half {
        Half::Cas => put_blob(edge, target, head, &mut incoming).await,
        Half::ActionCache => put_result(edge, target, head, &mut incoming).await,
    };
    match done {
        Ok(()) => Response::new(Body::empty()),
        Err(problem) => incoming.refuse(head, problem.into_response()),
    }
}

async fn put_blob(edge: &HttpEdge, target: &Target, head: &Parts, incoming: &mut Incoming) -> Result<(), Problem> {
    let grant = edge.authorize::<CasWrite>(head, &target.instance)?;
    let size_bytes = match (encoding(&head.headers)?, content_length(&head.headers)) {
        (Encoding::Identity, Some(length)) => {
            let digest = Digest::new(target.function, target.hash, length);
            if edge.services.content.has(&grant, digest).await? {
                incoming.drain().await?;
            } else {
                stream_blob(edge, &grant, digest, incoming).await?;
            }
            length
        }
        (encoding, length) => {
            let (bytes, _held) = collect(edge, incoming, length).await?;
            let size = decoded_size(edge, encoding, &bytes).await?;
            let digest = Digest::new(target.function, target.hash, size);
            if !edge.services.content.has(&grant, digest).await? {
                edge.services.content.write_large(&grant, digest, encoding, bytes).await?;
            }
            size
        }
    };
    edge.count(head, &grant, "cas.write", size_bytes);
    Ok(())
}

/// A blob whose size is known is never held whole.
async fn stream_blob(
    edge: &HttpEdge,
    grant: &Authorized<CasWrite>,
    digest: Digest,
    incoming: &mut Incoming,
) -> Result<(), Problem> {
    let mut upload = edge.services.content.upload(grant, digest, Encoding::Identity).await?;
    while let Some(bytes) = incoming.next().await? {
        upload.write(bytes).await?;
    }
    Ok(upload.finish().await?)
}

async fn put_result(edge: &HttpEdge, target: &Target, head: &Parts, incoming: &mut Incoming) -> Result<(), Problem> {
    let grant = edge.authorize::<ActionCacheWrite>(head, &target.instance)?;
    if encoding(&head.headers)? != Encoding::Identity {
        let text = "under /ac/ only uncompressed bytes are taken";
        return Err(Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, text));
    }
    let (bytes, _held) = collect(edge, incoming, content_length(&head.headers)).await?;
    let size_bytes = bytes.len() as u64;
    let cache = &edge.services.action_cache;
    match action_result(&bytes) {
        Some(result) => {
            cache.update(&grant, target.action(), result).await?;
        }
        None => cache.put_opaque(&grant, target.action(), bytes).await?,
    }
    edge.count(head, &grant, "actioncache.write", size_bytes);
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

/// The whole body. Who sends too much is told what to do instead.
async fn collect<'a>(
    edge: &'a HttpEdge,
    incoming: &mut Incoming,
    length: Option<u64>,
) -> Result<(Bytes, Held<'a>), Problem> {
    let collected = incoming.collect(&edge.buffers, MAX_BUFFERED_BYTES, length).await;
    collected.map_err(|error| match error {
        BodyError::TooLarge { max_bytes } => {
            let text =
                format!("a body without a known size may have {max_bytes} bytes: send a Content-Length, uncompressed");
            Problem::new(StatusCode::PAYLOAD_TOO_LARGE, text)
        }
        error => error.into(),
    })
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
async fn decoded_size(edge: &HttpEdge, encoding: Encoding, bytes: &Bytes) -> Result<u64, Problem> {
    if encoding == Encoding::Identity {
        return Ok(bytes.len() as u64);
    }
    let bytes = bytes.clone();
    let stopping = || Problem::new(StatusCode::SERVICE_UNAVAILABLE, "the server is stopping");
    let turn = Arc::clone(&edge.decoding).acquire_owned().await.map_err(|_| stopping())?;
    // It goes on when its client vanishes, and has its turn until it is done.
    let counting = tokio::task::spawn_blocking(move || (count_decoded(&bytes), turn));
    let counted = counting.await.map(|(counted, _turn)| counted);
    match counted {
        Ok(Ok(size)) if size <= MAX_DECODED_BYTES => Ok(size),
        Ok(Ok(_)) => {
            let text = format!("the body decodes to more than {MAX_DECODED_BYTES} bytes: send it uncompressed");
            Err(Problem::new(StatusCode::PAYLOAD_TOO_LARGE, text))
        }
        Ok(Err(error)) => Err(Problem::new(StatusCode::BAD_REQUEST, format!("the body is not zstd: {error}"))),
        Err(_) => Err(stopping()),
    }
}

fn count_decoded(bytes: &[u8]) -> io::Result<u64> {
    let mut decoder = zstd::stream::read::Decoder::new(bytes)?;
    decoder.window_log_max(WINDOW_LOG_MAX)?;
    io::copy(&mut io::Read::take(decoder, MAX_DECODED_BYTES + 1), &mut io::sink())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_of_larger_windows_than_the_store_has_are_not_decoded() {
        let frame = |window_log| {
            let mut encoder = zstd::stream::Encoder::new(Vec::new(), 1).unwrap();
            encoder.window_log(window_log).unwrap();
            io::copy(&mut io::Read::take(io::repeat(0), 1 << 25), &mut encoder).unwrap();
            encoder.finish().unwrap()
        };
        assert_eq!(count_decoded(&frame(WINDOW_LOG_MAX)).unwrap(), 1 << 25);
        assert!(count_decoded(&frame(WINDOW_LOG_MAX + 1)).is_err());
    }

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
