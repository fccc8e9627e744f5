use gf_digest::Digest;

/// What a store path is, in the store of a tenant. Digests are SHA-256.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Root {
    /// A folder: the digest of its REAPI `Directory`.
    Directory(Digest),
    /// A file.
    File {
        /// Its contents.
        digest: Digest,
        /// Whether it may be run.
        executable: bool,
    },
    /// A symbolic link.
    Symlink {
        /// Where it points.
        target: String,
    },
    /// An archive with a name or a target that is not UTF-8, which no REAPI message can hold: the archive itself, as
    /// one blob.
    Opaque(Digest),
}
