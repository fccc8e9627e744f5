//! Rows of paths and archives, and how their columns are written.

use std::collections::BTreeSet;

use gf_database::{Row, Value};
use gf_digest::{Digest, DigestFunction};
use gf_nix_formats::{
    Compression, ContentAddress, NarHash, NarInfo, NarUrl, Signature, Signatures, StorePath, StorePathHash, SystemName,
};
use serde::{Deserialize, Serialize};

use crate::CacheError;
use crate::archives::Root;

/// An archive that a tenant has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ArchiveRow {
    pub(crate) nar_hash: NarHash,
    pub(crate) nar_size: u64,
    pub(crate) root: Root,
    /// The blob that lists its blobs.
    pub(crate) blobs: Digest,
    /// Which upload it came in, a random number.
    pub(crate) upload: i64,
}

/// A path of a cache.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PathRow {
    pub(crate) path: StorePath,
    pub(crate) nar_hash: NarHash,
    pub(crate) nar_size: u64,
    pub(crate) references: BTreeSet<StorePath>,
    pub(crate) deriver: Option<StorePath>,
    pub(crate) system: Option<SystemName>,
    pub(crate) content_address: Option<ContentAddress>,
    pub(crate) signatures: Signatures,
    /// How many references it waits for.
    pub(crate) waiting: u64,
    pub(crate) upstream: Option<Origin>,
    pub(crate) used: Use,
}

/// Where a path came from that nobody uploaded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Origin {
    /// The upstream.
    pub(crate) upstream: String,
    /// Where it has the archive: relative to it, or absolute.
    pub(crate) url: String,
    pub(crate) compression: Compression,
}

/// What is known of the use of a path; times are seconds since 1970.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Use {
    pub(crate) created_s: u64,
    /// When it was published, or its narinfo or archive was read last.
    pub(crate) used_s: u64,
    /// When its narinfo was served last; 0 for never.
    pub(crate) served_s: u64,
    pub(crate) narinfos_served: u64,
    pub(crate) archives_read: u64,
}

impl ArchiveRow {
    pub(crate) fn read(row: &Row) -> Result<Self, CacheError> {
        Ok(Self {
            nar_hash: nar_hash(&row.get::<String>("nar_hash")?)?,
            nar_size: unsigned(row, "nar_size")?,
            root: RootText::parse(&row.get::<String>("root")?)?,
            blobs: digest(&row.get::<String>("blobs")?)?,
            upload: row.get("upload")?,
        })
    }
}

impl PathRow {
    /// Reads a row with all columns of `nix_paths`.
    pub(crate) fn read(row: &Row) -> Result<Self, CacheError> {
        fn bad(error: impl std::fmt::Display) -> CacheError {
            CacheError::row("a path", error)
        }
        let text = |column: &str| row.get::<Option<String>>(column);
        let hash = StorePathHash::parse(&row.get::<String>("hash")?).map_err(bad)?;
        let references: String = row.get("refs")?;
        let references = references.split_ascii_whitespace().map(StorePath::parse).collect::<Result<_, _>>();
        let mut signatures = Signatures::default();
        for line in row.get::<String>("signatures")?.lines() {
            signatures.insert(Signature::parse(line).map_err(bad)?).map_err(bad)?;
        }
        Ok(Self {
            path: StorePath::new(hash, &row.get::<String>("name")?).map_err(bad)?,
            nar_hash: nar_hash(&row.get::<String>("nar_hash")?)?,
            nar_size: unsigned(row, "nar_size")?,
            references: references.map_err(bad)?,
            deriver: text("deriver")?.map(|text| StorePath::parse(&text)).transpose().map_err(bad)?,
            system: text("system")?.map(|text| SystemName::new(&text)).transpose().map_err(bad)?,
            content_address: text("content_address")?
                .map(|text| ContentAddress::parse(&text))
                .transpose()
                .map_err(bad)?,
            signatures,
            waiting: unsigned(row, "waiting")?,
            upstream: Origin::read(row)?,
            used: Use::read(row)?,
        })
    }

    pub(crate) const fn is_visible(&self) -> bool {
        self.waiting == 0
    }

    /// Whether both say the same of the same bytes.
    pub(crate) fn has_content_of(&self, other: &Self) -> bool {
        (self.nar_hash, self.nar_size) == (other.nar_hash, other.nar_size)
            && self.path == other.path
            && self.references == other.references
    }

    /// The narinfo as this server serves it: the archive uncompressed, under a URL that says its hash.
    pub(crate) fn narinfo(&self) -> Result<NarInfo, CacheError> {
        let url = NarUrl::new(&nar_url(&self.nar_hash)).map_err(|error| CacheError::row("a path", error))?;
        Ok(NarInfo {
            store_path: self.path.clone(),
            url,
            compression: Compression::None,
            file_hash: Some(self.nar_hash.into()),
            file_size: Some(self.nar_size),
            nar_hash: self.nar_hash,
            nar_size: self.nar_size,
            references: self.references.clone(),
            deriver: self.deriver.clone(),
            system: self.system.clone(),
            signatures: self.signatures.clone(),
            content_address: self.content_address,
        })
    }

    /// The values of all columns after `cache`, in the order of the table.
    pub(crate) fn values(&self) -> Vec<Value> {
        let text = |text: Option<String>| Value::Text(text);
        let origin = self.upstream.as_ref();
        vec![
            self.path.hash().to_string().into(),
            self.path.name().into(),
            self.nar_hash.base32().into(),
            signed(self.nar_size).into(),
            words(&self.references).into(),
            text(self.deriver.as_ref().map(ToString::to_string)),
            text(self.system.as_ref().map(ToString::to_string)),
            text(self.content_address.as_ref().map(ToString::to_string)),
            lines(&self.signatures).into(),
            signed(self.waiting).into(),
            text(origin.map(|origin| origin.upstream.clone())),
            text(origin.map(|origin| origin.url.clone())),
            text(origin.map(|origin| origin.compression.name().to_owned())),
            signed(self.used.created_s).into(),
            signed(self.used.used_s).into(),
            signed(self.used.served_s).into(),
            signed(self.used.narinfos_served).into(),
            signed(self.used.archives_read).into(),
        ]
    }
}

impl Origin {
    fn read(row: &Row) -> Result<Option<Self>, CacheError> {
        let Some(upstream) = row.get::<Option<String>>("upstream")? else { return Ok(None) };
        let url: Option<String> = row.get("upstream_url")?;
        let compression: Option<String> = row.get("upstream_compression")?;
        let compression = compression.and_then(|name| Compression::from_name(&name));
        match (url, compression) {
            (Some(url), Some(compression)) => Ok(Some(Self { upstream, url, compression })),
            _ => Err(CacheError::row("a path", "it has an upstream, and does not say where its archive is")),
        }
    }
}

impl Use {
    fn read(row: &Row) -> Result<Self, CacheError> {
        Ok(Self {
            created_s: unsigned(row, "created_s")?,
            used_s: unsigned(row, "used_s")?,
            served_s: unsigned(row, "served_s")?,
            narinfos_served: unsigned(row, "narinfos_served")?,
            archives_read: unsigned(row, "archives_read")?,
        })
    }
}

/// Where the archive with this hash is, relative to its cache.
pub(crate) fn nar_url(hash: &NarHash) -> String {
    format!("nar/{}.nar", hash.base32())
}

pub(crate) fn words(paths: &BTreeSet<StorePath>) -> String {
    paths.iter().map(StorePath::as_str).collect::<Vec<_>>().join(" ")
}

pub(crate) fn lines(signatures: &Signatures) -> String {
    signatures.iter().map(Signature::as_str).collect::<Vec<_>>().join("\n")
}

/// Reads a number that is never below 0.
pub(crate) fn unsigned(row: &Row, column: &str) -> Result<u64, CacheError> {
    u64::try_from(row.get::<i64>(column)?).map_err(|error| CacheError::row("a number", error))
}

/// A number as the database has it. What is too large for it is larger than anything that is counted here.
pub(crate) fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

pub(crate) fn nar_hash(text: &str) -> Result<NarHash, CacheError> {
    let hash = gf_nix_formats::Hash::parse(&format!("sha256:{text}")).and_then(NarHash::try_from);
    hash.map_err(|error| CacheError::row("the hash of an archive", error))
}

/// The SHA-256 of a file in base 32, as in the URL that clients upload it to.
pub(crate) fn file_hash(hash: &[u8; 32]) -> String {
    NarHash::new(*hash).base32()
}

/// A digest of SHA-256: `<hash>/<size>`.
pub(crate) fn digest(text: &str) -> Result<Digest, CacheError> {
    let read = text.split_once('/').and_then(|(hash, size)| {
        let size = size.parse().ok()?;
        Digest::parse(DigestFunction::Sha256, hash, size).ok()
    });
    read.ok_or_else(|| CacheError::row("a digest", text))
}

pub(crate) fn digest_text(digest: &Digest) -> String {
    format!("{}/{}", digest.hash_hex().as_str(), digest.size_bytes())
}

/// A [`Root`] as the database keeps it.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum RootText {
    Directory(String),
    File(String),
    Executable(String),
    Symlink(String),
    Opaque(String),
}

impl RootText {
    pub(crate) fn format(root: &Root) -> String {
        let text = match root {
            Root::Directory(digest) => Self::Directory(digest_text(digest)),
            Root::File { digest, executable: false } => Self::File(digest_text(digest)),
            Root::File { digest, executable: true } => Self::Executable(digest_text(digest)),
            Root::Symlink { target } => Self::Symlink(target.clone()),
            Root::Opaque(digest) => Self::Opaque(digest_text(digest)),
        };
        // Text always becomes JSON.
        serde_json::to_string(&text).unwrap_or_default()
    }

    pub(crate) fn parse(text: &str) -> Result<Root, CacheError> {
        let read: Self =
            serde_json::from_str(text).map_err(|error| CacheError::row("the root of an archive", error))?;
        Ok(match read {
            Self::Directory(text) => Root::Directory(digest(&text)?),
            Self::File(text) => Root::File { digest: digest(&text)?, executable: false },
            Self::Executable(text) => Root::File { digest: digest(&text)?, executable: true },
            Self::Symlink(target) => Root::Symlink { target },
            Self::Opaque(text) => Root::Opaque(digest(&text)?),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn roots_are_read_as_they_were_written() {
        let digest = Digest::of(DigestFunction::Sha256, b"bytes");
        for root in [
            Root::Directory(digest),
            Root::File { digest, executable: false },
            Root::File { digest, executable: true },
            Root::Symlink { target: "../a \"b\"\n".into() },
            Root::Opaque(digest),
        ] {
            assert_eq!(RootText::parse(&RootText::format(&root)).unwrap(), root);
        }
        for bad in ["", "{}", r#"{"directory":"x"}"#, r#"{"directory":"00/1"}"#, r#"{"future":"x"}"#] {
            assert!(RootText::parse(bad).is_err(), "{bad}");
        }
    }
}
