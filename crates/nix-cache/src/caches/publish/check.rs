//! What is checked of a path before it is published.

use gf_digest::{Digest, DigestFunction};
use gf_nix_formats::{ContentAddress, FileMethod, Hash, HashAlgorithm, NarHash, NarInfo, NarUrl};

use crate::archives::Root;
use crate::cache::Cache;
use crate::caches::{ArchiveFile, NixCaches};
use crate::rows::PathRow;
use crate::{CacheError, PublishError};

/// When the narinfo names a file that was uploaded, the archive in it must be the one of the narinfo.
pub(super) async fn uploaded_file(caches: &NixCaches, cache: &Cache, narinfo: &NarInfo) -> Result<(), PublishError> {
    let Some(file) = named_file(&narinfo.url, narinfo) else { return Ok(()) };
    match caches.find_file(cache.owner, file).await? {
        Some(found) if found.facts.nar_hash != narinfo.nar_hash => {
            Err(PublishError::OtherArchive { announced: narinfo.nar_hash, actual: found.facts.nar_hash })
        }
        _ => Ok(()),
    }
}

/// The file that a URL names in the way of `nix copy`.
fn named_file(url: &NarUrl, narinfo: &NarInfo) -> Option<ArchiveFile> {
    let (hash, rest) = url.as_str().strip_prefix("nar/")?.split_once('.')?;
    let suffix = rest.strip_prefix("nar")?;
    let hash = NarHash::try_from(Hash::parse(&format!("sha256:{hash}")).ok()?).ok()?;
    let compression = narinfo.compression;
    (compression.suffix() == suffix).then_some(ArchiveFile { hash: *hash.as_bytes(), compression })
}

/// A signature that says it was made with a key which is known here must have been. Others cannot be judged, and say
/// nothing to who does not trust their keys.
pub(super) fn signatures(cache: &Cache, row: &PathRow) -> Result<(), PublishError> {
    let fingerprint = row.narinfo()?.fingerprint(&cache.settings.store_dir);
    let ours = [cache.key.public()];
    let known: Vec<_> =
        ours.iter().chain(cache.settings.upstreams.iter().flat_map(|upstream| &upstream.keys)).collect();
    for signature in &row.signatures {
        let mut named = known.iter().filter(|key| key.name().as_str() == signature.key_name()).peekable();
        if named.peek().is_some() && !named.any(|key| key.verifies(fingerprint.as_bytes(), signature)) {
            return Err(PublishError::ForgedSignature(signature.key_name().to_owned()));
        }
    }
    Ok(())
}

/// The content address must give the path, and the content the address, as far as the hashes at hand tell: clients need
/// no signature for such a path, so nobody else would look.
pub(super) fn content_address(cache: &Cache, row: &PathRow, root: &Root) -> Result<(), PublishError> {
    let Some(address) = &row.content_address else { return Ok(()) };
    let wrong = |reason| Err(PublishError::ContentAddress { path: row.path.clone(), reason });
    if !address.names(&cache.settings.store_dir, &row.path, &row.references) {
        return wrong("the path has another name then");
    }
    let refers_to_itself = row.references.contains(&row.path);
    let is_right = match address {
        ContentAddress::Text(hash) => file(root).is_some_and(|(file, executable)| !executable && is_digest(hash, file)),
        ContentAddress::Fixed(FileMethod::Flat, hash) if hash.algorithm() == HashAlgorithm::Sha256 => {
            file(root).is_some_and(|(file, _)| is_digest(hash, file))
        }
        // Content that names itself is hashed with its own name left out.
        ContentAddress::Fixed(FileMethod::Recursive, hash)
            if hash.algorithm() == HashAlgorithm::Sha256 && !refers_to_itself =>
        {
            *hash == Hash::from(row.nar_hash)
        }
        // Of another algorithm, or of git objects: the hashes at hand do not tell.
        ContentAddress::Fixed(FileMethod::Flat | FileMethod::Recursive | FileMethod::Git, _) => true,
    };
    if is_right { Ok(()) } else { wrong("its content has another hash") }
}

fn file(root: &Root) -> Option<(&Digest, bool)> {
    match root {
        Root::File { digest, executable } => Some((digest, *executable)),
        Root::Directory(_) | Root::Symlink { .. } | Root::Opaque(_) => None,
    }
}

fn is_digest(hash: &Hash, digest: &Digest) -> bool {
    digest.function() == DigestFunction::Sha256 && hash.as_bytes() == digest.hash()
}

impl From<PublishError> for CacheError {
    /// What cannot be published of what is here already.
    fn from(error: PublishError) -> Self {
        match error {
            PublishError::Cache(error) => error,
            other => Self::row("a path", other),
        }
    }
}
