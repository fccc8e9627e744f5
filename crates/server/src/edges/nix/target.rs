//! What a path under `/nix/` names.

use std::borrow::Cow;

use gf_nix_cache::{ArchiveFile, ArchiveName, CacheName};
use gf_nix_formats::{BuildTraceKey, Compression, DerivationOutput, NarHash, StorePath, StorePathHash, decode_base32};
use percent_encoding::percent_decode_str;
use thiserror::Error;

/// The longest path that is looked at, in bytes: a build trace with both names at their longest, percent-encoded.
const MAX_LENGTH: usize = 4096;

/// The compressions that Nix has suffixes for.
const UPLOADED: [Compression; 7] = [
    Compression::None,
    Compression::Xz,
    Compression::Zstd,
    Compression::Bzip2,
    Compression::Br,
    Compression::Lzip,
    Compression::Lz4,
];

/// What a path names.
#[derive(Debug)]
pub(super) enum Target {
    /// A file of a cache.
    File(CacheName, File),
    /// What Attic's clients call.
    Attic(Attic),
}

/// The files of a cache.
#[derive(Debug)]
pub(super) enum File {
    /// `nix-cache-info`
    CacheInfo,
    /// `attic-cache-info`
    AtticCacheInfo,
    /// `<hash>.narinfo`
    NarInfo(StorePathHash),
    /// `<hash>.ls`
    Listing(StorePathHash),
    /// `nar/…`
    Archive(ArchiveUrl),
    /// `log/<derivation>`
    Log(StorePath),
    /// `realisations/sha256:<hash>!<output>.doi`, up to Nix 2.34.
    Realisation(DerivationOutput),
    /// `build-trace-v2/<derivation>/<output>.doi`, from Nix 2.35.
    BuildTrace(BuildTraceKey),
    /// `debuginfo/<build id>.debug`
    DebugInfo(String),
}

/// An archive below `nar/`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ArchiveUrl {
    /// `<hash part of a store path>.nar`, as Attic names it. Never uploaded.
    OfPath(StorePathHash),
    /// `<hash of the file>.nar<suffix>`, as Nix uploads it, and as the narinfos of this server name it.
    OfFile(ArchiveFile),
}

/// The calls of Attic's interface.
#[derive(Debug)]
pub(super) enum Attic {
    /// `cache-config/<cache>`
    CacheConfig(CacheName),
    /// `get-missing-paths`
    MissingPaths,
    /// `upload-path`
    UploadPath,
}

/// Why a path names nothing.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub(super) enum TargetError {
    /// Nothing has this form of name.
    #[error("nothing of a Nix binary cache is called so; caches are at /nix/<cache>/")]
    Nothing,
    /// The form is known, and what should be a name or a hash is none.
    #[error("{0}")]
    Malformed(String),
}

impl Target {
    /// Takes apart the path of a request as it was sent, percent-encoded.
    pub(super) fn parse(path: &str) -> Result<Self, TargetError> {
        let below = path.strip_prefix("/nix/").filter(|_| path.len() <= MAX_LENGTH).ok_or(TargetError::Nothing)?;
        // Each part is decoded by itself, and once: an encoded `/` stays inside its part, where no name has one.
        let parts = below.split('/').map(|part| percent_decode_str(part).decode_utf8());
        let parts: Vec<Cow<'_, str>> = parts.collect::<Result<_, _>>().map_err(malformed)?;
        let parts: Vec<&str> = parts.iter().map(AsRef::as_ref).collect();
        match parts[..] {
            ["_api", "v1", "cache-config", cache] => Ok(Self::Attic(Attic::CacheConfig(cache_name(cache)?))),
            ["_api", "v1", "get-missing-paths"] => Ok(Self::Attic(Attic::MissingPaths)),
            ["_api", "v1", "upload-path"] => Ok(Self::Attic(Attic::UploadPath)),
            ["_api", ..] => Err(TargetError::Nothing),
            [cache, ref file @ ..] => {
                let cache = cache_name(cache)?;
                Ok(Self::File(cache, File::parse(file)?))
            }
            [] => Err(TargetError::Nothing),
        }
    }
}

impl File {
    fn parse(parts: &[&str]) -> Result<Self, TargetError> {
        match *parts {
            ["nix-cache-info"] => Ok(Self::CacheInfo),
            ["attic-cache-info"] => Ok(Self::AtticCacheInfo),
            ["nar", name] => ArchiveUrl::parse(name).map(Self::Archive),
            ["log", derivation] => StorePath::parse(derivation).map(Self::Log).map_err(malformed),
            ["realisations", name] => {
                let id = name.strip_suffix(".doi").ok_or(TargetError::Nothing)?;
                DerivationOutput::parse(id).map(Self::Realisation).map_err(malformed)
            }
            ["build-trace-v2", derivation, name] => {
                let output = name.strip_suffix(".doi").ok_or(TargetError::Nothing)?;
                BuildTraceKey::parse(derivation, output).map(Self::BuildTrace).map_err(malformed)
            }
            ["debuginfo", name] => {
                let build_id = name.strip_suffix(".debug").ok_or(TargetError::Nothing)?;
                Ok(Self::DebugInfo(build_id.to_owned()))
            }
            [name] => match name.split_once('.') {
                Some((hash, "narinfo")) => StorePathHash::parse(hash).map(Self::NarInfo).map_err(malformed),
                Some((hash, "ls")) => StorePathHash::parse(hash).map(Self::Listing).map_err(malformed),
                _ => Err(TargetError::Nothing),
            },
            _ => Err(TargetError::Nothing),
        }
    }
}

impl ArchiveUrl {
    fn parse(name: &str) -> Result<Self, TargetError> {
        let (hash, suffix) = name.split_once(".nar").ok_or(TargetError::Nothing)?;
        if hash.len() == StorePathHash::LENGTH && suffix.is_empty() {
            return StorePathHash::parse(hash).map(Self::OfPath).map_err(malformed);
        }
        let compression = UPLOADED.into_iter().find(|compression| compression.suffix() == suffix);
        let compression = compression.ok_or(TargetError::Nothing)?;
        let mut bytes = [0; 32];
        decode_base32(hash, &mut bytes).map_err(malformed)?;
        Ok(Self::OfFile(ArchiveFile { hash: bytes, compression }))
    }

    /// What to look for.
    pub(super) const fn name(self) -> ArchiveName {
        match self {
            Self::OfPath(path) => ArchiveName::Path(path),
            // Of what is not compressed, the file is the archive; some compressions have no suffix either.
            Self::OfFile(ArchiveFile { hash, compression: Compression::None }) => ArchiveName::Nar(NarHash::new(hash)),
            Self::OfFile(file) => ArchiveName::File(file),
        }
    }
}

fn cache_name(name: &str) -> Result<CacheName, TargetError> {
    CacheName::new(name).map_err(malformed)
}

fn malformed(error: impl std::fmt::Display) -> TargetError {
    TargetError::Malformed(error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    const HASH: &str = "2s4rw9nqymidjbnrk72ccxyn6yxcjdf4";

    fn parse(path: &str) -> Result<String, TargetError> {
        Target::parse(path).map(|target| format!("{target:?}"))
    }

    #[test]
    fn files_of_a_cache() {
        let hex = "ab".repeat(32);
        let check = |path: &str, expected: &str| {
            let found = parse(&format!("/nix/main/{path}")).unwrap();
            assert!(found.starts_with(&format!("File(main, {expected}")), "{path}: {found}");
        };
        let base32 = "1b8m03r63zqhnjf7l5wnldhh7c134ap5vpj0850ymkq1iyzicy5s";
        check(&format!("nar/{base32}.nar"), "Archive(OfFile(");
        check(&format!("nar/{base32}.nar.xz"), "Archive(OfFile(");
        check(&format!("nar/{HASH}.nar"), "Archive(OfPath(");
        check("nix-cache-info", "CacheInfo");
        check("attic-cache-info", "AtticCacheInfo");
        check(&format!("{HASH}.narinfo"), "NarInfo(");
        check(&format!("{HASH}.ls"), "Listing(");
        check(&format!("log/{HASH}-a%2Bb.drv"), "Log(");
        check(&format!("realisations/sha256:{hex}!out.doi"), "Realisation(");
        check(&format!("realisations/sha256%3A{hex}%21out.doi"), "Realisation(");
        check(&format!("build-trace-v2/{HASH}-x.drv/out.doi"), "BuildTrace(");
        check(&format!("debuginfo/{}.debug", &hex[..40]), "DebugInfo");
    }

    #[test]
    fn calls_of_attic() {
        assert_eq!(parse("/nix/_api/v1/cache-config/main").unwrap(), "Attic(CacheConfig(main))");
        assert_eq!(parse("/nix/_api/v1/get-missing-paths").unwrap(), "Attic(MissingPaths)");
        assert_eq!(parse("/nix/_api/v1/upload-path").unwrap(), "Attic(UploadPath)");
    }

    #[test]
    fn other_paths_name_nothing() {
        let long = format!("/nix/main/{}", "a".repeat(5000));
        for wrong in [
            "/nix",
            "/nix/",
            "/nix/main",
            "/nix/main/",
            "/nix/main//nix-cache-info",
            "/nix/main/nix-cache-info/",
            "/nix/../nix-cache-info",
            "/nix/%2e%2e/nix-cache-info",
            "/nix/../../nix-cache-info",
            "/nix/a%2Fb/nix-cache-info",
            "/nix/a%00/nix-cache-info",
            "/nix/%ff/nix-cache-info",
            "/nix/main%252f/nix-cache-info",
            "/nix/main/log/..",
            "/nix/main/nar/..%2fx.nar",
            "/nix/main/short.narinfo",
            "/nix/main/index.html",
            "/nix/main/debuginfo/../x.debug",
            "/nix/main/nar/short.nar",
            "/nix/main/nar/1b8m03r63zqhnjf7l5wnldhh7c134ap5vpj0850ymkq1iyzicy5s.nar.exe",
            "/nix/main/nar/1b8m03r63zqhnjf7l5wnldhh7c134ap5vpj0850ymkq1iyzicy5s",
            "/nix/main/nar/2s4rw9nqymidjbnrk72ccxyn6yxcjdf4.nar.xz",
            "/nix/_api/v1/cache-config/..",
            "/nix/_api/v1/nothing",
            "/nix/_api/v2/upload-path",
            &long,
        ] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }
}
