//! Storing what the server does not have yet.

use std::collections::HashMap;
use std::fs;

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream};
use gf_digest::Digest;

use crate::blobs::{BlobClient, Source, blocking};
use crate::failure::Failure;

/// Calls under way for one assignment.
const CALLS: usize = 4;

/// Asks what is missing, and writes that.
pub(crate) async fn store(blobs: &BlobClient, found: &HashMap<Digest, Source>) -> Result<(), Failure> {
    let digests: Vec<Digest> = found.keys().filter(|digest| !digest.is_empty()).copied().collect();
    if digests.is_empty() {
        return Ok(());
    }
    let missing = blobs.find_missing(&digests).await?;
    let (large, small): (Vec<Digest>, Vec<Digest>) = missing.into_iter().partition(|digest| blobs.is_large(digest));
    let batches = blobs.batches(small).into_iter().map(|batch| async move {
        let sources = batch.into_iter().filter_map(|digest| Some((digest, found.get(&digest)?.clone()))).collect();
        blobs.write_batch(blocking(move || read_all(sources)).await?).await
    });
    stream::iter(batches).buffer_unordered(CALLS).try_collect::<()>().await?;
    let streams = large.into_iter().map(|digest| store_large(blobs, digest, found.get(&digest)));
    stream::iter(streams).buffer_unordered(CALLS).try_collect::<()>().await
}

async fn store_large(blobs: &BlobClient, digest: Digest, source: Option<&Source>) -> Result<(), Failure> {
    match source {
        Some(Source::File(path)) => blobs.write_file(digest, path).await,
        Some(Source::Bytes(bytes)) => blobs.write_bytes(digest, bytes.clone()).await,
        None => Err(Failure::Worker(format!("the server misses {digest}, of which it was not asked"))),
    }
}

fn read_all(sources: Vec<(Digest, Source)>) -> Result<Vec<(Digest, Bytes)>, Failure> {
    let read = |(digest, source)| {
        let bytes = match source {
            Source::Bytes(bytes) => bytes,
            Source::File(path) => fs::read(path).map_err(|error| Failure::io("read an output", error))?.into(),
        };
        Ok((digest, bytes))
    };
    sources.into_iter().map(read).collect()
}
