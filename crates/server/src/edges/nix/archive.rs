//! `nar/…`: archives, up and down.
//!
//! The archive itself is sent with its length, in any part, and under a tag that is its hash; to clients that take zstd
//! as an encoding, in frames as the store has them, without a length. What was uploaded compressed is compressed again for
//! who asks for that file, in one piece of a length that nobody knows. What comes from an upstream goes on to who asked for
//! it while it comes.

use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use bytes::Bytes;
use futures::{TryStreamExt, stream};
use gf_blobstore::ByteRange;
use gf_nix_cache::archives::ArchiveRead;
use gf_nix_cache::{ArchiveFacts, CacheError, FoundArchive, OpenedArchive, Reading};
use gf_nix_formats::Compression;
use gf_tenancy::{NixPull, NixPush};

use super::answer::{Answer, SendError, boxed};
use super::door::Door;
use super::recompress::Recompressor;
use super::target::ArchiveUrl;
use crate::edges::plain_http::{BodyError, Incoming, Part, Problem, accepts_zstd, content_length, part};

const MEDIA_TYPE: &str = "application/x-nix-nar";

/// HEAD: one look-up. A file that was uploaded and that no narinfo names yet is here for those who may push.
pub(super) async fn head(door: &Door<'_>, url: ArchiveUrl) -> Result<Answer, Problem> {
    let grant = door.authorize::<NixPull>()?;
    let mut found = door.caches().find(&grant, url.name()).await?;
    if let (None, ArchiveUrl::OfFile(file), Some(grant)) = (found, url, door.may::<NixPush>()) {
        found = door.caches().has_archive(&grant, file).await?;
    }
    let FoundArchive { facts, compression } = found.ok_or_else(absent)?;
    let length = (compression == Compression::None).then_some(facts.nar_size);
    let mut answer = Answer::pieces(MEDIA_TYPE, length, boxed(stream::empty::<Result<_, SendError>>()));
    if length.is_some() {
        describe(&mut answer, &facts);
    }
    Ok(answer)
}

/// GET.
pub(super) async fn get(door: &Door<'_>, url: ArchiveUrl, headers: &HeaderMap) -> Result<Answer, Problem> {
    let grant = door.authorize::<NixPull>()?;
    if headers.contains_key(header::IF_NONE_MATCH) {
        let found = door.caches().find(&grant, url.name()).await?;
        let is_same = |found: &FoundArchive| found.compression == Compression::None && is_known(headers, &found.facts);
        if let Some(found) = found.filter(is_same) {
            let mut answer = Answer::done().with_status(StatusCode::NOT_MODIFIED);
            describe(&mut answer, &found.facts);
            return Ok(answer);
        }
    }
    // A part is taken out of what is here.
    let reading = match headers.contains_key(header::RANGE) {
        true => door.caches().open_archive(&grant, url.name()).await?.map(Reading::Here),
        false => door.caches().read_archive(&grant, url.name()).await?,
    };
    match reading.ok_or_else(absent)? {
        Reading::Here(opened) if opened.compression == Compression::None => send(&opened, headers),
        Reading::Here(opened) => recompress(&opened, opened.compression),
        Reading::Coming(coming) => {
            let facts = coming.facts;
            let mut answer = Answer::pieces(MEDIA_TYPE, Some(facts.nar_size), boxed(coming.into_stream()));
            describe(&mut answer, &facts);
            Ok(answer)
        }
    }
}

/// The archive as it is, or a part of it; whole, as zstd, to who takes that.
fn send(opened: &OpenedArchive, headers: &HeaderMap) -> Result<Answer, Problem> {
    if accepts_zstd(headers) && !headers.contains_key(header::RANGE) {
        let mut answer = Answer::pieces(MEDIA_TYPE, None, boxed(opened.archive.read_zstd()));
        answer.set(header::CONTENT_ENCODING, HeaderValue::from_static("zstd"));
        answer.set(header::VARY, HeaderValue::from_static("accept-encoding"));
        return Ok(answer);
    }
    let part = if fits(headers, &opened.facts) { part(headers, opened.facts.nar_size)? } else { None };
    let range = part.map_or(ByteRange::ALL, |part| ByteRange { offset: part.first, limit: Some(part.length()) });
    let read = opened.archive.read(range).map_err(CacheError::from)?;
    let mut answer = Answer::pieces(MEDIA_TYPE, Some(read.size_bytes()), boxed(read));
    describe(&mut answer, &opened.facts);
    if let Some(range) = part.and_then(Part::content_range) {
        answer.set(header::CONTENT_RANGE, range);
        answer = answer.with_status(StatusCode::PARTIAL_CONTENT);
    }
    Ok(answer)
}

/// The archive, compressed as it once came.
fn recompress(opened: &OpenedArchive, compression: Compression) -> Result<Answer, Problem> {
    let failed = |_| Problem::new(StatusCode::SERVICE_UNAVAILABLE, "there is no memory for a compressor");
    let Some(compressor) = Recompressor::new(compression).map_err(failed)? else {
        let text = format!("this archive is not sent as {} any more", compression.name());
        return Err(Problem::new(StatusCode::GONE, text));
    };
    let read = opened.archive.read(ByteRange::ALL).map_err(CacheError::from)?;
    let pieces = stream::try_unfold(Some((read, compressor)), |state| async move {
        let Some((read, compressor)) = state else { return Ok(None) };
        next_compressed(read, compressor).await.map(Some)
    });
    Ok(Answer::pieces(MEDIA_TYPE, None, boxed::<SendError>(pieces)))
}

/// What is left to do; `None` at the end.
type Compressing = Option<(ArchiveRead, Recompressor)>;

/// The next compressed bytes.
async fn next_compressed(
    mut read: ArchiveRead,
    mut compressor: Recompressor,
) -> Result<(Bytes, Compressing), SendError> {
    while let Some(piece) = read.try_next().await? {
        let (rest, out) = compressor.push(piece).await?;
        compressor = rest;
        if !out.is_empty() {
            return Ok((out, Some((read, compressor))));
        }
    }
    Ok((compressor.finish().await?, None))
}

/// PUT. When it is answered, the archive is durable, and a narinfo may name it.
pub(super) async fn put(
    door: &Door<'_>,
    url: ArchiveUrl,
    headers: &HeaderMap,
    incoming: &mut Incoming,
) -> Result<Answer, Problem> {
    let grant = door.authorize::<NixPush>()?;
    let ArchiveUrl::OfFile(file) = url else { return Err(Problem::not_allowed("GET, HEAD")) };
    if headers.get(header::CONTENT_ENCODING).is_some_and(|coding| coding != "identity") {
        let text = "an archive is compressed as its name says, and has no Content-Encoding";
        return Err(Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, text));
    }
    let body = stream::try_unfold(&mut *incoming, async |incoming| {
        Ok::<_, BodyError>(incoming.next().await?.map(|bytes| (bytes, incoming)))
    });
    let size = content_length(headers);
    door.caches().accept_archive(&grant, file, size, body).await?;
    door.count(&grant, "nix.archive", size.unwrap_or_default());
    // What was here already was not read; its sender looks for an answer when it has sent all of it.
    incoming.drain().await?;
    Ok(Answer::done())
}

/// The headers that belong to an archive as it is.
fn describe(answer: &mut Answer, facts: &ArchiveFacts) {
    answer.set(header::ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    answer.set(header::VARY, HeaderValue::from_static("accept-encoding"));
    if let Ok(tag) = HeaderValue::from_str(&tag(facts)) {
        answer.set(header::ETAG, tag);
    }
}

fn tag(facts: &ArchiveFacts) -> String {
    format!("\"{}\"", facts.nar_hash.base32())
}

/// Whether the client says that it has this archive.
fn is_known(headers: &HeaderMap, facts: &ArchiveFacts) -> bool {
    let tag = tag(facts);
    let said = headers.get_all(header::IF_NONE_MATCH).iter().filter_map(|value| value.to_str().ok());
    said.flat_map(|value| value.split(','))
        .map(str::trim)
        .any(|said| said == "*" || said.trim_start_matches("W/") == tag)
}

/// Whether a range that was asked for is one of this archive.
fn fits(headers: &HeaderMap, facts: &ArchiveFacts) -> bool {
    headers.get(header::IF_RANGE).is_none_or(|said| said.as_bytes() == tag(facts).as_bytes())
}

fn absent() -> Problem {
    Problem::new(StatusCode::NOT_FOUND, "no such archive is here")
}

#[cfg(test)]
mod tests {
    use gf_nix_formats::NarHash;

    use super::*;

    #[test]
    fn tags_are_compared() {
        let facts = ArchiveFacts { nar_hash: NarHash::of(b"x"), nar_size: 1 };
        let tag = tag(&facts);
        let with = |name, value: &str| HeaderMap::from_iter([(name, HeaderValue::from_str(value).unwrap())]);
        for (value, expected) in
            [(tag.clone(), true), (format!("\"a\", W/{tag}"), true), ("*".into(), true), ("\"a\"".into(), false)]
        {
            assert_eq!(is_known(&with(header::IF_NONE_MATCH, &value), &facts), expected, "{value}");
        }
        assert!(fits(&HeaderMap::new(), &facts) && fits(&with(header::IF_RANGE, &tag), &facts));
        assert!(!fits(&with(header::IF_RANGE, "\"a\""), &facts));
    }
}
