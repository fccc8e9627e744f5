//! Which blobs an action result names, at any depth.

use std::collections::HashSet;

use gf_blobstore::{BlobStore, ErrorKind, OwnerId, StoreError};
use gf_digest::{Digest, DigestFunction};
use gf_reapi::WireDigest;
use gf_reapi::execution::ActionResult;

use super::ActionCacheError;
use crate::content::read_whole;
use crate::encoded::{Entry, Malformed, directories, entries};

/// Output files, directories and symlinks of one result.
const MAX_OUTPUTS: usize = 100_000;

/// The digests of one closure.
const MAX_DIGESTS: usize = 1_000_000;

/// The encoded bytes of one Tree or Directory.
const MAX_TREE_BYTES: u64 = 32 << 20;

/// The encoded bytes of all Trees of one result.
const MAX_TREES_BYTES: u64 = 512 << 20;

/// What a result names itself, and where to look for the rest.
#[derive(Debug, Default)]
pub(super) struct Named {
    /// Everything named directly, trees and root directories included.
    digests: Vec<Digest>,
    trees: Vec<Digest>,
    roots: Vec<Digest>,
}

impl Named {
    /// Reads the digests of a result.
    ///
    /// # Errors
    /// [`ActionCacheError::Invalid`] when one is missing or malformed, or there are too many.
    pub(super) fn of(result: &ActionResult, function: DigestFunction) -> Result<Self, ActionCacheError> {
        let symlinks = result.output_symlinks.len() + output_symlinks_before_2_1(result);
        if result.output_files.len() + result.output_directories.len() + symlinks > MAX_OUTPUTS {
            return Err(ActionCacheError::Invalid(format!("more than {MAX_OUTPUTS} outputs")));
        }
        let read = |what: &str, wire: &WireDigest| {
            wire.to_digest(function).map_err(|error| ActionCacheError::Invalid(format!("{what}: {error}")))
        };
        let mut named = Self::default();
        for file in &result.output_files {
            let wire = file.digest.as_ref().ok_or_else(|| no_digest("an output file"))?;
            named.digests.push(read("the digest of an output file", wire)?);
        }
        for directory in &result.output_directories {
            let (tree, root) = (&directory.tree_digest, &directory.root_directory_digest);
            if tree.is_none() && root.is_none() {
                return Err(no_digest("an output directory"));
            }
            if let Some(wire) = tree {
                named.trees.push(read("the tree_digest of an output directory", wire)?);
            }
            if let Some(wire) = root {
                named.roots.push(read("the root_directory_digest of an output directory", wire)?);
            }
        }
        for (what, wire) in [("stdout_digest", &result.stdout_digest), ("stderr_digest", &result.stderr_digest)] {
            if let Some(wire) = wire {
                named.digests.push(read(what, wire)?);
            }
        }
        named.digests.extend(named.trees.iter().chain(&named.roots));
        Ok(named)
    }

    /// All digests that must be there, found by reading the trees. `None` when one of those is not there.
    ///
    /// # Errors
    /// [`ActionCacheError::Invalid`] when a tree is malformed or too large; [`ActionCacheError::Store`].
    pub(super) async fn closure(
        self,
        store: &dyn BlobStore,
        owner: OwnerId,
    ) -> Result<Option<Vec<Digest>>, ActionCacheError> {
        if self.trees.is_empty() && self.roots.is_empty() {
            return Ok(Some(self.digests));
        }
        match expand(store, owner, self).await {
            Ok(digests) => Ok(Some(digests)),
            Err(ActionCacheError::Store(error)) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }
}

#[expect(deprecated, reason = "clients before REAPI 2.1 send these")]
fn output_symlinks_before_2_1(result: &ActionResult) -> usize {
    result.output_file_symlinks.len() + result.output_directory_symlinks.len()
}

fn no_digest(what: &str) -> ActionCacheError {
    ActionCacheError::Invalid(format!("{what} has no digest"))
}

async fn expand(store: &dyn BlobStore, owner: OwnerId, named: Named) -> Result<Vec<Digest>, ActionCacheError> {
    let mut closure = Closure::default();
    for digest in &named.digests {
        closure.add(*digest)?;
    }
    let mut seen = HashSet::new();
    let mut tree_bytes: u64 = 0;
    for tree in named.trees.into_iter().filter(|tree| seen.insert(*tree)) {
        tree_bytes = tree_bytes.saturating_add(tree.size_bytes());
        if tree_bytes > MAX_TREES_BYTES {
            return Err(ActionCacheError::Invalid(format!("its output directories have over {MAX_TREES_BYTES} bytes")));
        }
        let bytes = read(store, owner, tree).await?;
        for directory in directories(&bytes) {
            let directory = directory.map_err(|error| malformed(tree, &error))?;
            for entry in entries(directory, tree.function()) {
                if let Entry::File(file) = entry.map_err(|error| malformed(tree, &error))? {
                    closure.add(file)?;
                }
            }
        }
    }
    let mut entered: HashSet<Digest> = named.roots.into_iter().collect();
    let mut waiting: Vec<Digest> = entered.iter().copied().collect();
    while let Some(digest) = waiting.pop() {
        let bytes = read(store, owner, digest).await?;
        for entry in entries(&bytes, digest.function()) {
            match entry.map_err(|error| malformed(digest, &error))? {
                Entry::File(file) => closure.add(file)?,
                Entry::Directory(child) => {
                    closure.add(child)?;
                    if entered.insert(child) {
                        waiting.push(child);
                    }
                }
            }
        }
    }
    Ok(closure.digests)
}

/// Digests, each once, in the order found.
#[derive(Default)]
struct Closure {
    digests: Vec<Digest>,
    seen: HashSet<Digest>,
}

impl Closure {
    fn add(&mut self, digest: Digest) -> Result<(), ActionCacheError> {
        if self.seen.insert(digest) {
            self.digests.push(digest);
        }
        if self.digests.len() > MAX_DIGESTS {
            return Err(ActionCacheError::Invalid(format!("more than {MAX_DIGESTS} blobs are named")));
        }
        Ok(())
    }
}

fn malformed(digest: Digest, reason: &Malformed) -> ActionCacheError {
    ActionCacheError::Invalid(format!("the output directory {digest}: {reason}"))
}

async fn read(store: &dyn BlobStore, owner: OwnerId, digest: Digest) -> Result<bytes::Bytes, ActionCacheError> {
    match read_whole(store, owner, digest, MAX_TREE_BYTES).await {
        Err(StoreError::TooLarge { digest, limit_bytes }) => {
            Err(ActionCacheError::Invalid(format!("the output directory {digest} has over {limit_bytes} bytes")))
        }
        other => Ok(other?),
    }
}
