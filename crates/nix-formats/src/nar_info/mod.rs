//! What a cache says about one store path, and what its signatures cover.

mod compression;
mod field;
mod parse;

use std::collections::BTreeSet;
use std::fmt::Write as _;

use thiserror::Error;

use crate::content_address::{ContentAddress, ContentAddressError};
use crate::hash::{Hash, HashError, NarHash};
use crate::key::SecretKey;
use crate::signature::{SignatureError, Signatures};
use crate::store_path::{StoreDir, StorePath, StorePathError};

pub use compression::Compression;
pub use field::{NarUrl, SystemName};

/// A narinfo.
///
/// Read by [`NarInfo::parse`]; fields that are unknown are ignored and not kept, as Nix does: none of them is signed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NarInfo {
    /// The path that this is about.
    pub store_path: StorePath,
    /// Where the archive is.
    pub url: NarUrl,
    /// How the file behind the URL is compressed.
    pub compression: Compression,
    /// The hash of the compressed file. Nobody checks it.
    pub file_hash: Option<Hash>,
    /// The size of the compressed file in bytes.
    pub file_size: Option<u64>,
    /// The hash of the archive.
    pub nar_hash: NarHash,
    /// The size of the archive in bytes, never 0.
    pub nar_size: u64,
    /// The paths that this one refers to, itself included if it does. In the order of signatures.
    pub references: BTreeSet<StorePath>,
    /// The derivation that made the path.
    pub deriver: Option<StorePath>,
    /// The system that the path is for. Nix does not read it; Attic writes it.
    pub system: Option<SystemName>,
    /// Signatures over [`NarInfo::fingerprint`].
    pub signatures: Signatures,
    /// How the path follows from its content, if it does.
    pub content_address: Option<ContentAddress>,
}

/// Why text is not a narinfo. Nix calls all of these corrupt, or misreads what it takes.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum NarInfoError {
    /// Over [`NarInfo::MAX_BYTES`].
    #[error("the narinfo has {0} bytes; at most {max} are allowed", max = NarInfo::MAX_BYTES)]
    TooLong(usize),
    /// Not text.
    #[error("the narinfo is not UTF-8")]
    NotUtf8,
    /// The last line does not end. Perhaps the rest was lost.
    #[error("the last line of the narinfo does not end in a new line")]
    CutShort,
    /// A line without `: `. Nix takes what follows `References:` for references, even the next line.
    #[error("line {0} of the narinfo is not `Key: value`")]
    Line(usize),
    /// A control character, such as the carriage return of a Windows line end.
    #[error("line {0} of the narinfo has a control character")]
    ControlCharacter(usize),
    /// A field that may occur once occurs again.
    #[error("the narinfo has two fields {0}")]
    Duplicate(&'static str),
    /// A field that must be there is not.
    #[error("the narinfo has no {0}")]
    Missing(&'static str),
    /// A field that is left out when there is nothing to say.
    #[error("the field {0} of the narinfo is empty")]
    Empty(&'static str),
    /// Not a decimal number, or with a sign or zeros before it.
    #[error("the field {0} of the narinfo is not a number")]
    Number(&'static str),
    /// White space in the URL, or over 2048 characters.
    #[error("the URL in the narinfo has characters that no URL has, or too many")]
    Url,
    /// White space in the name of the system, or over 128 characters.
    #[error("the system in the narinfo has characters that no system's name has, or too many")]
    System,
    /// A compression that Nix does not know.
    #[error("the compression in the narinfo is unknown")]
    Compression,
    /// A store path is malformed.
    #[error("in the field {0} of the narinfo")]
    StorePath(&'static str, #[source] StorePathError),
    /// A hash is malformed, or that of the archive is not SHA-256.
    #[error("in the field {0} of the narinfo")]
    Hash(&'static str, #[source] HashError),
    /// A signature is malformed, or there are too many.
    #[error("in a signature of the narinfo")]
    Signature(#[from] SignatureError),
    /// The content address is malformed.
    #[error("in the content address of the narinfo")]
    ContentAddress(#[from] ContentAddressError),
}

impl NarInfo {
    /// The longest narinfo accepted, in bytes. It bounds the references too.
    pub const MAX_BYTES: usize = 1 << 20;

    /// Reads a narinfo of a store.
    ///
    /// The order of fields is free. A missing or empty `Compression` means bzip2, since that is what Nix takes it for.
    ///
    /// # Errors
    /// [`NarInfoError`] for the first thing that is wrong.
    pub fn parse(store: &StoreDir, bytes: &[u8]) -> Result<Self, NarInfoError> {
        parse::parse(store, bytes)
    }

    /// Writes the narinfo as Nix does, field by field in Nix's order.
    #[must_use]
    pub fn format(&self, store: &StoreDir) -> String {
        let mut text = String::with_capacity(512 + 64 * self.references.len());
        // Writing into a string cannot fail.
        let mut line = |key: &str, value: &dyn std::fmt::Display| {
            let _ = writeln!(text, "{key}: {value}");
        };
        line("StorePath", &store.join(&self.store_path));
        line("URL", &self.url);
        line("Compression", &self.compression.name());
        if let Some(hash) = &self.file_hash {
            line("FileHash", hash);
        }
        if let Some(size) = &self.file_size {
            line("FileSize", size);
        }
        line("NarHash", &self.nar_hash);
        line("NarSize", &self.nar_size);
        // Without references the space after the colon stays: Nix misreads the line otherwise.
        line("References", &self.references.iter().map(StorePath::as_str).collect::<Vec<_>>().join(" "));
        if let Some(deriver) = &self.deriver {
            line("Deriver", deriver);
        }
        if let Some(system) = &self.system {
            line("System", system);
        }
        for signature in &self.signatures {
            line("Sig", signature);
        }
        if let Some(address) = &self.content_address {
            line("CA", address);
        }
        text
    }

    /// What signatures cover.
    #[must_use]
    pub fn fingerprint(&self, store: &StoreDir) -> String {
        fingerprint(store, &self.store_path, &self.nar_hash, self.nar_size, &self.references)
    }

    /// Signs, and adds the signature.
    ///
    /// # Errors
    /// [`SignatureError::TooMany`] when there is no room for another.
    pub fn sign(&mut self, store: &StoreDir, key: &SecretKey) -> Result<(), SignatureError> {
        self.signatures.insert(key.sign(self.fingerprint(store).as_bytes())).map(drop)
    }

    /// Whether the path is the one that its content address gives.
    #[must_use]
    pub fn is_content_addressed(&self, store: &StoreDir) -> bool {
        self.content_address.is_some_and(|address| address.names(store, &self.store_path, &self.references))
    }
}

/// What signatures of a store path cover: `1;<path>;<hash>;<size>;<references>`, paths in full.
///
/// Neither the URL nor the compression, deriver or content address is in it, so a cache may serve the archive as it likes.
#[must_use]
pub fn fingerprint(
    store: &StoreDir,
    path: &StorePath,
    nar_hash: &NarHash,
    nar_size: u64,
    references: &BTreeSet<StorePath>,
) -> String {
    let references: Vec<String> = references.iter().map(|reference| store.join(reference)).collect();
    format!("1;{store}/{path};{nar_hash};{nar_size};{}", references.join(","))
}

#[cfg(test)]
mod tests;
