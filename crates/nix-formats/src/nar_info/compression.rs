/// How an archive is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Compression {
    /// Not at all.
    None,
    /// What Nix writes unless told otherwise.
    Xz,
    /// Read by Nix since 2.4.
    Zstd,
    /// What Nix takes a missing field for.
    Bzip2,
    /// Brotli.
    Br,
    /// These and all below are read by Nix through libarchive, and hardly ever seen.
    Gzip,
    /// See [`Compression::Gzip`].
    Lzip,
    /// See [`Compression::Gzip`].
    Lz4,
    /// See [`Compression::Gzip`].
    Lzma,
    /// See [`Compression::Gzip`].
    Compress,
    /// See [`Compression::Gzip`].
    Grzip,
    /// See [`Compression::Gzip`].
    Lrzip,
    /// See [`Compression::Gzip`].
    Lzop,
}

impl Compression {
    const ALL: [Self; 13] = [
        Self::None,
        Self::Xz,
        Self::Zstd,
        Self::Bzip2,
        Self::Br,
        Self::Gzip,
        Self::Lzip,
        Self::Lz4,
        Self::Lzma,
        Self::Compress,
        Self::Grzip,
        Self::Lrzip,
        Self::Lzop,
    ];

    /// The value of the field `Compression`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Xz => "xz",
            Self::Zstd => "zstd",
            Self::Bzip2 => "bzip2",
            Self::Br => "br",
            Self::Gzip => "gzip",
            Self::Lzip => "lzip",
            Self::Lz4 => "lz4",
            Self::Lzma => "lzma",
            Self::Compress => "compress",
            Self::Grzip => "grzip",
            Self::Lrzip => "lrzip",
            Self::Lzop => "lzop",
        }
    }

    /// What Nix appends to `.nar` when it uploads. Those that it has no suffix for look uncompressed.
    #[must_use]
    pub const fn suffix(self) -> &'static str {
        match self {
            Self::Xz => ".xz",
            Self::Zstd => ".zst",
            Self::Bzip2 => ".bz2",
            Self::Br => ".br",
            Self::Lzip => ".lzip",
            Self::Lz4 => ".lz4",
            Self::None | Self::Gzip | Self::Lzma | Self::Compress | Self::Grzip | Self::Lrzip | Self::Lzop => "",
        }
    }

    /// Reads the value of the field.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|compression| compression.name() == name)
    }
}
