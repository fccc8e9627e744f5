//! Documents that arrive compressed (`Content-Encoding`), as newer clients may send them.
//!
//! What always holds: no more is decoded than a document may have.

use std::io::{self, Read};

use axum::http::{HeaderMap, StatusCode, header};
use bytes::Bytes;
use gf_nix_formats::Compression;
use tokio::task::spawn_blocking;

use crate::edges::plain_http::{Buffers, Problem};

/// What the xz family may use of memory.
const XZ_MEMORY_BYTES: u64 = 96 << 20;

/// The largest window of zstd, as a power of two.
const ZSTD_WINDOW_LOG: u32 = 23;

const BROTLI_INPUT_BYTES: usize = 16 << 10;

/// How a body is encoded, as its head says it. Nix has the names of HTTP, and some of its own.
pub(super) fn content_coding(headers: &HeaderMap) -> Result<Compression, Problem> {
    let Some(value) = headers.get(header::CONTENT_ENCODING) else { return Ok(Compression::None) };
    let name = value.to_str().unwrap_or_default().to_ascii_lowercase();
    let coding = match name.as_str() {
        "" | "identity" => Some(Compression::None),
        name => Compression::from_name(name),
    };
    coding.filter(|coding| is_supported(*coding)).ok_or_else(|| {
        let text = "this Content-Encoding is not supported; br, gzip, zstd, xz and bzip2 are";
        Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, text)
    })
}

const fn is_supported(coding: Compression) -> bool {
    use Compression::{Br, Bzip2, Gzip, None, Xz, Zstd};
    matches!(coding, None | Br | Gzip | Zstd | Xz | Bzip2)
}

/// A whole document, decoded to at most `max_bytes`, for which there must be room.
pub(super) async fn decode(
    coding: Compression,
    bytes: Bytes,
    room: &Buffers,
    max_bytes: usize,
) -> Result<Bytes, Problem> {
    if coding == Compression::None {
        return Ok(bytes);
    }
    let _held = room.reserve(max_bytes).await?;
    let decoded = spawn_blocking(move || read_up_to(coding, &bytes, max_bytes + 1)).await;
    match decoded {
        Ok(Ok(decoded)) if decoded.len() <= max_bytes => Ok(decoded.into()),
        Ok(Ok(_)) => {
            let text = format!("what comes out of this body has more than {max_bytes} bytes");
            Err(Problem::new(StatusCode::PAYLOAD_TOO_LARGE, text))
        }
        Ok(Err(error)) => {
            let text = format!("the body cannot be decoded as {}: {error}", coding.name());
            Err(Problem::new(StatusCode::BAD_REQUEST, text))
        }
        Err(_) => Err(Problem::new(StatusCode::SERVICE_UNAVAILABLE, "the server is stopping")),
    }
}

fn read_up_to(coding: Compression, bytes: &[u8], most: usize) -> io::Result<Vec<u8>> {
    let mut decoded = Vec::new();
    let decoder: &mut dyn Read = match coding {
        Compression::Br => &mut brotli_decompressor::Decompressor::new(bytes, BROTLI_INPUT_BYTES),
        Compression::Gzip => &mut flate2::read::MultiGzDecoder::new(bytes),
        Compression::Bzip2 => &mut bzip2::read::MultiBzDecoder::new(bytes),
        Compression::Xz => {
            let stream = liblzma::stream::Stream::new_stream_decoder(XZ_MEMORY_BYTES, liblzma::stream::CONCATENATED)?;
            &mut liblzma::read::XzDecoder::new_stream(bytes, stream)
        }
        Compression::Zstd => {
            let mut decoder = zstd::stream::read::Decoder::new(bytes)?;
            decoder.window_log_max(ZSTD_WINDOW_LOG)?;
            &mut Box::new(decoder)
        }
        other => return Err(io::Error::other(format!("there is no decoder for {}", other.name()))),
    };
    decoder.take(most as u64).read_to_end(&mut decoded)?;
    Ok(decoded)
}
