//! Everything of a cache but its archives: small files, held whole.

use axum::http::{HeaderMap, StatusCode};
use bytes::Bytes;
use futures::stream;
use gf_blobstore::StoreError;
use gf_nix_cache::{Kept, Log, Lookup, MAX_LOG_BYTES, Order, Publication};
use gf_nix_formats::{BuildTrace, NarInfo, Realisation, StorePath, StorePathHash};
use gf_tenancy::{NixPull, NixPush};

use super::NixEdge;
use super::answer::{Answer, boxed};
use super::coding::{content_coding, decode};
use super::door::Door;
use super::problem::Chain;
use super::target::File;
use crate::edges::plain_http::{Incoming, Problem, content_length};
use crate::metrics;

const JSON: &str = "application/json";

/// Documents other than narinfos and logs.
const MAX_DOCUMENT_BYTES: usize = Realisation::MAX_BYTES;

/// GET and HEAD.
pub(super) async fn get(door: &Door<'_>, file: &File) -> Result<Answer, Problem> {
    let grant = door.authorize::<NixPull>()?;
    let caches = door.caches();
    let json = match file {
        File::CacheInfo => {
            return Ok(Answer::document("text/x-nix-cache-info", door.cache()?.info().format()));
        }
        File::NarInfo(path) => return narinfo(door, *path).await,
        File::Log(derivation) => return log(door, derivation).await,
        File::Listing(path) => caches.listing(&grant, *path).await?,
        File::Realisation(id) => caches.realisation(&grant, id).await?,
        File::BuildTrace(key) => caches.build_trace(&grant, key).await?,
        File::DebugInfo(build_id) => caches.debug_info(&grant, build_id).await?,
        File::AtticCacheInfo | File::Archive(_) => None,
    };
    Ok(Answer::document(JSON, json.ok_or_else(absent)?))
}

async fn narinfo(door: &Door<'_>, path: StorePathHash) -> Result<Answer, Problem> {
    let grant = door.authorize::<NixPull>()?;
    match door.caches().lookup(&grant, path).await? {
        Lookup::Present(bytes) => {
            door.metrics().nix_lookup(metrics::Lookup::Hit);
            Ok(Answer::document("text/x-nix-narinfo", bytes))
        }
        Lookup::Absent => {
            door.metrics().nix_lookup(metrics::Lookup::Miss);
            Err(absent())
        }
    }
}

async fn log(door: &Door<'_>, derivation: &StorePath) -> Result<Answer, Problem> {
    let grant = door.authorize::<NixPull>()?;
    let found = door.caches().log(&grant, derivation).await?;
    let Log { size_bytes, read } = found.ok_or_else(absent)?;
    let pieces =
        stream::try_unfold(read, async |mut read| Ok::<_, StoreError>(read.next().await?.map(|piece| (piece, read))));
    Ok(Answer::pieces("text/plain; charset=utf-8", Some(size_bytes), boxed(pieces)))
}

/// PUT.
pub(super) async fn put(
    edge: &NixEdge,
    door: &Door<'_>,
    file: &File,
    headers: &HeaderMap,
    incoming: &mut Incoming,
) -> Result<Answer, Problem> {
    // Before a byte is read.
    let grant = door.authorize::<NixPush>()?;
    let upload = Upload { edge, headers };
    let caches = door.caches();
    match file {
        // A client that found no cache makes one by this. There is one already, and it says what it is itself.
        // Listings are made from the archives, so that they are right.
        File::CacheInfo | File::Listing(_) => incoming.drain().await?,
        File::NarInfo(path) => {
            let bytes = upload.collect(incoming, NarInfo::MAX_BYTES).await?;
            let narinfo = NarInfo::parse(&door.cache()?.settings().store_dir, &bytes)?;
            let publication = caches.publish(&grant, *path, narinfo, Order::ReferencesFirst).await?;
            door.published(&grant, path);
            return Ok(published(publication));
        }
        File::Log(derivation) => {
            let log = upload.collect(incoming, MAX_LOG_BYTES).await?;
            let size_bytes = log.len() as u64;
            caches.put_log(&grant, derivation, log).await?;
            door.count(&grant, "nix.log", size_bytes);
        }
        File::Realisation(id) => {
            let bytes = upload.collect(incoming, MAX_DOCUMENT_BYTES).await?;
            let realisation = Realisation::parse(&bytes).map_err(|error| malformed(&error))?;
            if realisation.id != *id {
                return Err(Problem::new(StatusCode::BAD_REQUEST, "this is the realisation of another output"));
            }
            let answer = kept(caches.put_realisation(&grant, &realisation).await?);
            door.count(&grant, "nix.realisation", bytes.len() as u64);
            return Ok(answer);
        }
        File::BuildTrace(key) => {
            let bytes = upload.collect(incoming, MAX_DOCUMENT_BYTES).await?;
            let trace = BuildTrace::parse(&bytes).map_err(|error| malformed(&error))?;
            let answer = kept(caches.put_build_trace(&grant, key, &trace).await?);
            door.count(&grant, "nix.realisation", bytes.len() as u64);
            return Ok(answer);
        }
        File::DebugInfo(build_id) => {
            let bytes = upload.collect(incoming, MAX_DOCUMENT_BYTES).await?;
            let text = std::str::from_utf8(&bytes).map_err(|error| malformed(&error))?;
            let answer = kept(caches.put_debug_info(&grant, build_id, text).await?);
            door.count(&grant, "nix.debug-info", bytes.len() as u64);
            return Ok(answer);
        }
        File::AtticCacheInfo | File::Archive(_) => return Err(Problem::not_allowed("GET, HEAD")),
    }
    Ok(Answer::done())
}

/// What comes with a PUT.
struct Upload<'a> {
    edge: &'a NixEdge,
    headers: &'a HeaderMap,
}

impl Upload<'_> {
    /// The whole document, decoded. Neither what comes nor what comes out of it is more than `max_bytes`.
    async fn collect(&self, incoming: &mut Incoming, max_bytes: usize) -> Result<Bytes, Problem> {
        let coding = content_coding(self.headers)?;
        let length = content_length(self.headers);
        let (bytes, _held) = incoming.collect(&self.edge.buffers, max_bytes, length).await?;
        decode(coding, bytes, &self.edge.buffers, max_bytes).await
    }
}

/// A narinfo that was taken. In every case the path is here, and the client is done with it.
fn published(publication: Publication) -> Answer {
    match publication {
        Publication::KeptFirst(first) => {
            Answer::document("text/plain", format!("another archive of this path is here, and stays: {first}\n"))
        }
        Publication::New | Publication::Signed | Publication::Known | Publication::Waiting(_) => Answer::done(),
    }
}

/// What was said of something. Builds need not come out the same twice, so who says something else has not made a mistake,
/// and its copy goes on; it is told which of the two stays.
fn kept(kept: Kept) -> Answer {
    match kept {
        Kept::This => Answer::done(),
        Kept::First => Answer::document("text/plain", "something else was said of this before, and stays\n"),
    }
}

fn malformed(error: &(dyn std::error::Error + 'static)) -> Problem {
    Problem::new(StatusCode::BAD_REQUEST, Chain(error).to_string())
}

fn absent() -> Problem {
    Problem::new(StatusCode::NOT_FOUND, "this is not here")
}
