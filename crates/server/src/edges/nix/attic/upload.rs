//! `upload-path`: a path with its archive in one request. What the archive is stands in a header, or, when that would be
//! too long, in front of the archive.

use std::collections::BTreeSet;
use std::fmt::Display;

use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName};
use bytes::{Buf, Bytes, BytesMut};
use futures::{StreamExt, stream};
use gf_nix_cache::archives::IngestError;
use gf_nix_cache::{Cache, PublishError, Uploaded, UploadedPath};
use gf_nix_formats::nar::NarError;
use gf_nix_formats::{ContentAddress, Hash, NarHash, NarInfo, Signature, Signatures, StorePath, SystemName};
use gf_tenancy::{NixPush, PermissionName};

use super::refusal::Refusal;
use super::wire::{UploadAnswer, UploadInfo, UploadKind};
use super::{cache_name, invalid, json, parse};
use crate::edges::credentials::Visitor;
use crate::edges::nix::NixEdge;
use crate::edges::nix::answer::Answer;
use crate::edges::nix::door::{Door, check};
use crate::edges::plain_http::{BodyError, Incoming, Problem};

const INFO: HeaderName = HeaderName::from_static("x-attic-nar-info");
const PREAMBLE_SIZE: HeaderName = HeaderName::from_static("x-attic-nar-info-preamble-size");

pub(super) async fn upload(edge: &NixEdge, head: &Parts, incoming: &mut Incoming) -> Result<Answer, Refusal> {
    let visitor = Visitor::of(head);
    check(edge, &visitor, PermissionName::NixPush)?;
    let (info, began) = read_info(edge, &head.headers, incoming).await?;
    let name = cache_name(&info.cache)?;
    let door = Door::find(edge, &name, visitor).await?;
    let grant = door.authorize::<NixPush>()?;
    let path = checked(&info, door.cache()?)?;
    let first = stream::iter((!began.is_empty()).then_some(Ok(began)));
    let body = first.chain(stream::try_unfold(&mut *incoming, |incoming| async move {
        Ok::<_, BodyError>(incoming.next().await?.map(|bytes| (bytes, incoming)))
    }));
    // Boxed, a compiler of today can see that it may move between threads.
    let body = body.boxed();
    let uploaded = door.caches().upload_path(&grant, path, body).await;
    let Uploaded { is_deduplicated, .. } = uploaded.map_err(|error| match error {
        // Its own word is the limit then, not ours.
        PublishError::Ingest(
            IngestError::TooLarge { limit_bytes } | IngestError::Archive(NarError::TooLarge(limit_bytes)),
        ) if limit_bytes == info.nar_size => invalid("the archive has more bytes than nar_size says").into(),
        error => Refusal::from(error),
    })?;
    door.published(&grant, &info.store_path_hash);
    // The client looks for an answer when it has sent everything.
    incoming.drain().await?;
    let kind = if is_deduplicated { UploadKind::Deduplicated } else { UploadKind::Uploaded };
    let frac_deduplicated = is_deduplicated.then_some(1.0);
    Ok(json(&UploadAnswer { kind, file_size: Some(info.nar_size), frac_deduplicated }))
}

/// What is said of the archive, and the bytes of it that came along.
async fn read_info(
    edge: &NixEdge,
    headers: &HeaderMap,
    incoming: &mut Incoming,
) -> Result<(UploadInfo, Bytes), Problem> {
    if let Some(info) = headers.get(INFO) {
        return Ok((parse(&Bytes::copy_from_slice(info.as_bytes()))?, Bytes::new()));
    }
    let size = headers.get(PREAMBLE_SIZE).and_then(|size| size.to_str().ok()?.parse::<usize>().ok());
    let size = size.ok_or_else(|| invalid("X-Attic-Nar-Info, or X-Attic-Nar-Info-Preamble-Size, is missing"))?;
    if size > NarInfo::MAX_BYTES {
        return Err(BodyError::TooLarge { max_bytes: NarInfo::MAX_BYTES }.into());
    }
    let _held = edge.buffers.reserve(size).await?;
    let mut read = BytesMut::with_capacity(size);
    while read.len() < size {
        let more = incoming.next().await?;
        read.extend_from_slice(&more.ok_or_else(|| invalid("the body ends within its preamble"))?);
    }
    let mut rest = read.freeze();
    let preamble = rest.copy_to_bytes(size);
    Ok((parse(&preamble)?, rest))
}

/// Text becomes values here.
fn checked(info: &UploadInfo, cache: &Cache) -> Result<UploadedPath, Problem> {
    let path = cache.settings().store_dir.parse(&info.store_path).map_err(|error| wrong("store_path", &error))?;
    if path.hash().to_string() != info.store_path_hash {
        return Err(invalid("store_path_hash is not that of store_path"));
    }
    let nar_hash =
        Hash::parse(&info.nar_hash).and_then(NarHash::try_from).map_err(|error| wrong("nar_hash", &error))?;
    let references = info.references.iter().map(|path| StorePath::parse(path));
    let references = references.collect::<Result<BTreeSet<_>, _>>().map_err(|error| wrong("references", &error))?;
    let deriver = info.deriver.as_deref().filter(|deriver| *deriver != "unknown-deriver");
    let deriver = deriver.map(StorePath::parse).transpose().map_err(|error| wrong("deriver", &error))?;
    let system = info.system.as_deref().map(SystemName::new).transpose().map_err(|error| wrong("system", &error))?;
    let address = info.ca.as_deref().filter(|address| !address.is_empty());
    let content_address = address.map(ContentAddress::parse).transpose().map_err(|error| wrong("ca", &error))?;
    let mut signatures = Signatures::default();
    for text in &info.sigs {
        let signature = Signature::parse(text).and_then(|signature| signatures.insert(signature));
        signature.map_err(|error| wrong("sigs", &error))?;
    }
    let nar_size = info.nar_size;
    Ok(UploadedPath { path, nar_hash, nar_size, references, deriver, system, content_address, signatures })
}

fn wrong(field: &'static str, error: &dyn Display) -> Problem {
    invalid(&format!("{field}: {error}"))
}
