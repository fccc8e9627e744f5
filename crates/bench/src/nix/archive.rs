//! Archives and narinfos, written here from the format's description, so that no fault of the product's own writer is
//! shared.

use gf_nix_formats::{Hash, encode_base32};

use crate::data::Source;

/// An archive, and what a narinfo says of it.
pub(super) struct Archive {
    /// The bytes.
    pub(super) bytes: Vec<u8>,
    /// `sha256:<base32>`.
    pub(super) hash: String,
}

/// A store path's hash part: 32 characters.
pub(super) fn path_hash(source: &mut Source) -> String {
    encode_base32(&source.key()[..20])
}

impl Archive {
    fn finish(bytes: Vec<u8>) -> Self {
        let hash = format!("sha256:{}", Hash::sha256(&bytes).base32());
        Self { bytes, hash }
    }

    /// One file.
    pub(super) fn of_file(contents: &[u8]) -> Self {
        let mut bytes = Vec::with_capacity(contents.len() + 1024);
        strings(&mut bytes, &["nix-archive-1", "("]);
        file(&mut bytes, contents);
        strings(&mut bytes, &[")"]);
        Self::finish(bytes)
    }

    /// Folders of files; the names are numbers.
    pub(super) fn of_folders(folders: &[Vec<Vec<u8>>]) -> Self {
        let mut bytes = Vec::new();
        strings(&mut bytes, &["nix-archive-1", "(", "type", "directory"]);
        for (number, files) in folders.iter().enumerate() {
            strings(&mut bytes, &["entry", "(", "name", &format!("{number:06}"), "node", "(", "type", "directory"]);
            for (number, contents) in files.iter().enumerate() {
                strings(&mut bytes, &["entry", "(", "name", &format!("{number:06}"), "node", "("]);
                file(&mut bytes, contents);
                strings(&mut bytes, &[")", ")"]);
            }
            strings(&mut bytes, &[")", ")"]);
        }
        strings(&mut bytes, &[")"]);
        Self::finish(bytes)
    }

    /// Where it is put and found: `nar/<hash>.nar`.
    pub(super) fn url(&self) -> String {
        format!("nar/{}.nar", self.hash.trim_start_matches("sha256:"))
    }

    /// The narinfo of a path that is this archive and refers to nothing.
    pub(super) fn narinfo(&self, path_hash: &str) -> String {
        let (hash, url, size) = (&self.hash, self.url(), self.bytes.len());
        format!(
            "StorePath: /nix/store/{path_hash}-bench\nURL: {url}\nCompression: none\nFileHash: {hash}\nFileSize: {size}\n\
             NarHash: {hash}\nNarSize: {size}\nReferences: \n"
        )
    }
}

fn file(bytes: &mut Vec<u8>, contents: &[u8]) {
    strings(bytes, &["type", "regular", "contents"]);
    string(bytes, contents);
}

fn strings(bytes: &mut Vec<u8>, all: &[&str]) {
    all.iter().for_each(|each| string(bytes, each.as_bytes()));
}

/// The length in eight bytes, the bytes, and zeros up to a multiple of eight.
fn string(bytes: &mut Vec<u8>, contents: &[u8]) {
    bytes.extend_from_slice(&u64::try_from(contents.len()).unwrap_or(u64::MAX).to_le_bytes());
    bytes.extend_from_slice(contents);
    bytes.resize(bytes.len().next_multiple_of(8), 0);
}
