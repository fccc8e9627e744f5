//! Contents within a result: taken out when it is stored, put in when a reader asks.

use std::collections::HashSet;

use bytes::Bytes;
use gf_blobstore::{Accept, BlobStore, Encoding, NewBlob, OwnerId};
use gf_digest::{Digest, DigestFunction};
use gf_reapi::WireDigest;
use gf_reapi::execution::ActionResult;
use prost::Message;

use super::ActionCacheError;

/// The largest result, contents included: with what is around it, it fits a message of 4 MiB, the default of gRPC.
const MAX_INLINED_RESULT_BYTES: usize = (4 << 20) - (16 << 10);

/// What contents cost in a result beyond their own bytes: tags and lengths, of the field and of the file around it.
const FIELD_BYTES: usize = 12;

/// What a reader wants to have in the result itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Inlining {
    /// The standard output.
    pub stdout: bool,
    /// The standard error output.
    pub stderr: bool,
    /// The output files with these paths.
    pub output_files: Vec<String>,
}

impl Inlining {
    /// Nothing in the result itself.
    pub const NONE: Self = Self { stdout: false, stderr: false, output_files: Vec::new() };
}

/// Takes all contents out of a result, as blobs to be stored: what is kept names everything by digest.
pub(super) fn take_contents(
    result: &mut ActionResult,
    function: DigestFunction,
) -> Result<Vec<NewBlob>, ActionCacheError> {
    let mut blobs = Vec::new();
    let mut take = |bytes: &mut Bytes, digest: &mut Option<WireDigest>| -> Result<(), ActionCacheError> {
        if bytes.is_empty() {
            return Ok(());
        }
        let bytes = std::mem::take(bytes);
        let named = match digest {
            Some(wire) => wire.to_digest(function).map_err(|error| ActionCacheError::Invalid(error.to_string()))?,
            None => Digest::of(function, &bytes),
        };
        *digest = Some(named.into());
        blobs.push(NewBlob { digest: named, bytes, encoding: Encoding::Identity });
        Ok(())
    };
    take(&mut result.stdout_raw, &mut result.stdout_digest)?;
    take(&mut result.stderr_raw, &mut result.stderr_digest)?;
    for file in &mut result.output_files {
        take(&mut file.contents, &mut file.digest)?;
    }
    Ok(blobs)
}

/// Puts in what was asked for, as far as it fits; whatever does not, or is not there, is left out.
pub(super) async fn put_contents(
    store: &dyn BlobStore,
    owner: OwnerId,
    function: DigestFunction,
    result: &mut ActionResult,
    inlining: &Inlining,
) {
    let mut left = MAX_INLINED_RESULT_BYTES.saturating_sub(result.encoded_len());
    let mut digests = Vec::new();
    let mut targets = Vec::new();
    for (digest, target) in slots(result, inlining) {
        let Some(digest) = digest.and_then(|wire| wire.to_digest(function).ok()) else { continue };
        let needed = usize::try_from(digest.size_bytes()).map_or(usize::MAX, |bytes| bytes.saturating_add(FIELD_BYTES));
        if !digest.is_empty() && needed <= left {
            left -= needed;
            digests.push(digest);
            targets.push(target);
        }
    }
    if digests.is_empty() {
        return;
    }
    let contents = store.read_batch(owner, &digests, Accept::Identity).await;
    for (target, bytes) in targets.into_iter().zip(contents) {
        if let Ok((bytes, Encoding::Identity)) = bytes {
            *target = bytes;
        }
    }
}

/// The places for contents that were asked for, each with the digest of what belongs there.
fn slots<'a>(
    result: &'a mut ActionResult,
    inlining: &'a Inlining,
) -> impl Iterator<Item = (Option<&'a WireDigest>, &'a mut Bytes)> {
    let stdout = inlining.stdout.then_some((result.stdout_digest.as_ref(), &mut result.stdout_raw));
    let stderr = inlining.stderr.then_some((result.stderr_digest.as_ref(), &mut result.stderr_raw));
    let asked: HashSet<&str> = inlining.output_files.iter().map(String::as_str).collect();
    let files = result
        .output_files
        .iter_mut()
        .filter(move |file| asked.contains(file.path.as_str()))
        .map(|file| (file.digest.as_ref(), &mut file.contents));
    stdout.into_iter().chain(stderr).chain(files)
}
