//! Everything below an input root.

use std::collections::HashSet;

use bytes::Bytes;
use gf_blobstore::{Accept, BlobStore, OwnerId, StoreError};
use gf_digest::Digest;
use gf_reapi::check_directory;
use gf_reapi::execution::Directory;
use prost::Message;

use super::ActionError;
use crate::encoded::{Entry, count_fields, entries};

/// Distinct directories below one root, and distinct files.
const MAX_DIRECTORIES: usize = 500_000;
const MAX_FILES: usize = 2_000_000;
/// One encoded directory, and what is in it: decoded, an entry of two bytes would take two hundred.
const MAX_DIRECTORY_BYTES: u64 = 16 << 20;
const MAX_DIRECTORY_FIELDS: usize = 500_000;
/// A directory, its nodes, their properties, and each of these.
const DIRECTORY_DEPTH: u32 = 4;
/// Directories read from the store at once, and their bytes.
const MAX_BATCH_COUNT: usize = 256;
const MAX_BATCH_BYTES: u64 = 4 << 20;
/// Digests asked about at once.
const MAX_ASKED: usize = 10_000;

/// The digests that are missing of `named`, of `root` and of all below it, each once. The others are leased.
///
/// A directory that is missing hides what is below it. Each distinct directory is read once, so a tree in which one
/// occurs on 2^30 paths is no more work than its messages.
pub(crate) async fn find_missing(
    store: &dyn BlobStore,
    owner: OwnerId,
    root: Digest,
    named: &[Digest],
) -> Result<Vec<Digest>, ActionError> {
    let mut walk = Walk { directories: vec![root], seen: HashSet::from([root]), files: HashSet::new() };
    let mut missing = Vec::new();
    while !walk.directories.is_empty() {
        let batch = walk.take_batch()?;
        let answers = store.read_batch(owner, &batch, Accept::Identity).await;
        for (digest, answer) in batch.into_iter().zip(answers) {
            match answer {
                Ok((bytes, _)) => walk.enter(digest, &bytes)?,
                Err(StoreError::NotFound(digest)) => missing.push(digest),
                Err(error) => return Err(error.into()),
            }
        }
    }
    let mut asked = named.iter().copied().chain(walk.files);
    loop {
        let some: Vec<Digest> = asked.by_ref().take(MAX_ASKED).collect();
        if some.is_empty() {
            return Ok(missing);
        }
        missing.extend(store.find_missing(owner, &some).await?);
    }
}

struct Walk {
    /// Those still to be read.
    directories: Vec<Digest>,
    seen: HashSet<Digest>,
    files: HashSet<Digest>,
}

impl Walk {
    fn take_batch(&mut self) -> Result<Vec<Digest>, ActionError> {
        let mut batch = Vec::new();
        let mut batch_bytes = 0;
        while let Some(digest) = self.directories.last().copied() {
            if digest.size_bytes() > MAX_DIRECTORY_BYTES {
                return Err(ActionError::Invalid(format!(
                    "the directory {digest} is larger than {MAX_DIRECTORY_BYTES} bytes"
                )));
            }
            batch_bytes += digest.size_bytes();
            let is_full = batch.len() == MAX_BATCH_COUNT || batch_bytes > MAX_BATCH_BYTES;
            if is_full && !batch.is_empty() {
                break;
            }
            batch.push(digest);
            self.directories.pop();
        }
        Ok(batch)
    }

    fn enter(&mut self, digest: Digest, bytes: &Bytes) -> Result<(), ActionError> {
        let malformed = |reason: String| ActionError::Invalid(format!("the input directory {digest}: {reason}"));
        if count_fields(bytes, DIRECTORY_DEPTH) > MAX_DIRECTORY_FIELDS {
            return Err(malformed("it has too many entries".to_owned()));
        }
        let directory = Directory::decode(bytes.clone()).map_err(|error| malformed(error.to_string()))?;
        check_directory(&directory).map_err(|error| malformed(error.to_string()))?;
        for entry in entries(bytes, digest.function()) {
            match entry.map_err(|error| malformed(error.to_string()))? {
                Entry::File(file) => {
                    self.files.insert(file);
                }
                Entry::Directory(child) if self.seen.insert(child) => self.directories.push(child),
                Entry::Directory(_) => {}
            }
        }
        if self.seen.len() > MAX_DIRECTORIES || self.files.len() > MAX_FILES {
            return Err(ActionError::Invalid(format!(
                "the input root has more than {MAX_DIRECTORIES} directories or {MAX_FILES} files"
            )));
        }
        Ok(())
    }
}
