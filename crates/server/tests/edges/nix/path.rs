//! Store paths made by hand, with a writer of archives that shares nothing with the server's.

use std::fmt::Write as _;

use gf_nix_formats::{Hash, NarHash};

/// A path with its archive.
pub(crate) struct TestPath {
    /// `<hash>-<name>`
    pub(crate) base_name: String,
    pub(crate) archive: Vec<u8>,
    pub(crate) references: Vec<String>,
}

impl TestPath {
    /// A path that is a file with these contents.
    pub(crate) fn file(name: &str, contents: &[u8]) -> Self {
        Self::with_archive(name, file_archive(contents))
    }

    /// A path that is a folder with these files, in the order of their names.
    pub(crate) fn folder(name: &str, files: &[(&str, Vec<u8>)]) -> Self {
        Self::with_archive(name, folder_archive(files))
    }

    pub(crate) fn with_archive(name: &str, archive: Vec<u8>) -> Self {
        // Any hash will do: nothing says what the path was made from.
        let hash = &Hash::sha256(&[name.as_bytes(), &archive].concat()).base32()[..32];
        Self { base_name: format!("{hash}-{name}"), archive, references: Vec::new() }
    }

    pub(crate) fn refers_to(mut self, other: &Self) -> Self {
        self.references.push(other.base_name.clone());
        self.references.sort();
        self
    }

    /// The hash part.
    pub(crate) fn hash(&self) -> &str {
        &self.base_name[..32]
    }

    pub(crate) fn nar_hash(&self) -> NarHash {
        NarHash::of(&self.archive)
    }

    /// Where an uncompressed archive is put.
    pub(crate) fn archive_url(&self) -> String {
        format!("/nix/main/nar/{}.nar", self.nar_hash().base32())
    }

    pub(crate) fn narinfo_url(&self) -> String {
        format!("/nix/main/{}.narinfo", self.hash())
    }

    /// As Nix writes it after an upload without compression.
    pub(crate) fn narinfo(&self) -> String {
        self.narinfo_of(&format!("nar/{}.nar", self.nar_hash().base32()), "none", &self.archive)
    }

    /// As Nix writes it after an upload of `file`.
    pub(crate) fn narinfo_of(&self, url: &str, compression: &str, file: &[u8]) -> String {
        let mut text = format!("StorePath: /nix/store/{}\nURL: {url}\nCompression: {compression}\n", self.base_name);
        writeln!(text, "FileHash: {}\nFileSize: {}", Hash::sha256(file), file.len()).unwrap();
        writeln!(text, "NarHash: {}\nNarSize: {}", self.nar_hash(), self.archive.len()).unwrap();
        writeln!(text, "References: {}", self.references.join(" ")).unwrap();
        text
    }
}

fn string(out: &mut Vec<u8>, bytes: &[u8]) {
    out.extend_from_slice(&(bytes.len() as u64).to_le_bytes());
    out.extend_from_slice(bytes);
    out.resize(out.len().next_multiple_of(8), 0);
}

fn strings(out: &mut Vec<u8>, texts: &[&str]) {
    for text in texts {
        string(out, text.as_bytes());
    }
}

pub(crate) fn file_archive(contents: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    strings(&mut out, &["nix-archive-1", "(", "type", "regular", "contents"]);
    string(&mut out, contents);
    strings(&mut out, &[")"]);
    out
}

fn folder_archive(files: &[(&str, Vec<u8>)]) -> Vec<u8> {
    let mut out = Vec::new();
    strings(&mut out, &["nix-archive-1", "(", "type", "directory"]);
    for (name, contents) in files {
        strings(&mut out, &["entry", "(", "name", name, "node", "(", "type", "regular", "contents"]);
        string(&mut out, contents);
        strings(&mut out, &[")", ")"]);
    }
    strings(&mut out, &[")"]);
    out
}
