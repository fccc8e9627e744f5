//! The names that blobs go by in ByteStream calls.
//!
//! ```text
//! {instance/}blobs/{function/}{hash}/{size}
//! {instance/}compressed-blobs/{compressor}/{function/}{hash}/{size}
//! {instance/}uploads/{uuid}/blobs/{function/}{hash}/{size}{/anything}
//! {instance/}uploads/{uuid}/compressed-blobs/{compressor}/{function/}{hash}/{size}{/anything}
//! ```
//!
//! The function stands there for BLAKE3 and must not for SHA-256; an empty instance leaves no slash behind. The
//! first reserved word ends the instance name, which is why none may occur in it.

use std::fmt;

use gf_digest::{Digest, DigestError, DigestFunction, InstanceName, InstanceNameError};
use thiserror::Error;

/// The longest resource name that is looked at, in bytes.
pub const MAX_RESOURCE_NAME_BYTES: usize = 4096;

/// The longest upload identifier accepted, in bytes. A UUID has 36; some clients send other unique text.
const MAX_UUID_BYTES: usize = 128;

/// What a ByteStream call is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ResourceName {
    /// A blob to be read.
    Read {
        /// The instance asked.
        instance: InstanceName,
        /// How the bytes are to be sent.
        compressor: Compressor,
        /// The blob, by its uncompressed bytes.
        digest: Digest,
    },
    /// A blob to be written.
    Write {
        /// The instance asked.
        instance: InstanceName,
        /// Which of several uploads this is; chosen by the client, unique for the blob.
        uuid: Box<str>,
        /// How the bytes are sent.
        compressor: Compressor,
        /// The blob, by its uncompressed bytes.
        digest: Digest,
    },
}

/// How bytes are compressed on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Compressor {
    /// Not at all.
    Identity,
    /// As zstd frames.
    Zstd,
}

/// Why text is not a resource name. All are the caller's fault.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ResourceNameError {
    /// Over [`MAX_RESOURCE_NAME_BYTES`].
    #[error("the resource name has {0} bytes; at most {MAX_RESOURCE_NAME_BYTES} are allowed")]
    TooLong(usize),
    /// None of the words that begin a blob's name is there.
    #[error("the resource name has none of the segments `blobs`, `compressed-blobs` and `uploads`")]
    NoKeyword,
    /// The instance name in front is wrong.
    #[error("in the resource name: {0}")]
    Instance(#[from] InstanceNameError),
    /// The name ends early.
    #[error("the resource name ends where {0} should follow")]
    Missing(&'static str),
    /// The upload identifier is empty or too long.
    #[error("the upload identifier has {0} bytes; 1 to {MAX_UUID_BYTES} are allowed")]
    Uuid(usize),
    /// After `uploads/{uuid}` comes something else than a blob.
    #[error("after the upload identifier `blobs` or `compressed-blobs` must follow")]
    UploadOfNoBlob,
    /// The compressor is not served. It may be one of the specification's or none at all.
    #[error("the compressor `{0}` is not supported; `zstd` is")]
    UnsupportedCompressor(String),
    /// The digest function is not served.
    #[error("the digest function `{0}` is not supported")]
    UnsupportedDigestFunction(&'static str),
    /// The digest function is told by the length of the hash and must not be named.
    #[error("the digest function `{0}` must not be named in a resource name")]
    NeedlessDigestFunction(&'static str),
    /// The size is no number.
    #[error("the size is not a decimal number of 64 bits")]
    Size,
    /// Hash or size are wrong.
    #[error("in the resource name: {0}")]
    Digest(#[from] DigestError),
    /// A name for reading goes on after the size.
    #[error("the resource name goes on after the size")]
    TrailingSegments,
}

impl ResourceName {
    /// Takes a name apart.
    ///
    /// # Errors
    /// [`ResourceNameError`] says which part is wrong.
    pub fn parse(name: &str) -> Result<Self, ResourceNameError> {
        if name.len() > MAX_RESOURCE_NAME_BYTES {
            return Err(ResourceNameError::TooLong(name.len()));
        }
        let (instance, keyword, mut rest) = split_at_keyword(name)?;
        if keyword != Keyword::Uploads {
            let compressor = compressor(keyword, &mut rest)?;
            let digest = digest(&mut rest)?;
            return match rest.next() {
                None => Ok(Self::Read { instance, compressor, digest }),
                Some(_) => Err(ResourceNameError::TrailingSegments),
            };
        }
        let uuid = rest.next().ok_or(ResourceNameError::Missing("the upload identifier"))?;
        if uuid.is_empty() || uuid.len() > MAX_UUID_BYTES {
            return Err(ResourceNameError::Uuid(uuid.len()));
        }
        let keyword = match rest.next().and_then(Keyword::of) {
            Some(Keyword::Uploads) | None => return Err(ResourceNameError::UploadOfNoBlob),
            Some(keyword) => keyword,
        };
        let compressor = compressor(keyword, &mut rest)?;
        let digest = digest(&mut rest)?;
        Ok(Self::Write { instance, uuid: uuid.into(), compressor, digest })
    }

    /// The instance asked.
    #[must_use]
    pub const fn instance(&self) -> &InstanceName {
        match self {
            Self::Read { instance, .. } | Self::Write { instance, .. } => instance,
        }
    }

    /// The blob, by its uncompressed bytes.
    #[must_use]
    pub const fn digest(&self) -> &Digest {
        match self {
            Self::Read { digest, .. } | Self::Write { digest, .. } => digest,
        }
    }

    /// How the bytes are compressed on the wire.
    #[must_use]
    pub const fn compressor(&self) -> Compressor {
        match self {
            Self::Read { compressor, .. } | Self::Write { compressor, .. } => *compressor,
        }
    }
}

type Segments<'a> = std::str::Split<'a, char>;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Keyword {
    Blobs,
    CompressedBlobs,
    Uploads,
}

impl Keyword {
    fn of(segment: &str) -> Option<Self> {
        match segment {
            "blobs" => Some(Self::Blobs),
            "compressed-blobs" => Some(Self::CompressedBlobs),
            "uploads" => Some(Self::Uploads),
            _ => None,
        }
    }
}

/// The instance name, the word that ends it, and the segments that follow.
fn split_at_keyword(name: &str) -> Result<(InstanceName, Keyword, Segments<'_>), ResourceNameError> {
    let mut segments = name.split('/');
    let mut instance_bytes = 0;
    while let Some(segment) = segments.next() {
        if let Some(keyword) = Keyword::of(segment) {
            let instance = match name.get(..instance_bytes).unwrap_or_default() {
                "" => InstanceName::new("")?,
                "/" => return Err(InstanceNameError::EmptySegment.into()),
                with_slash => InstanceName::new(with_slash.strip_suffix('/').unwrap_or(with_slash))?,
            };
            return Ok((instance, keyword, segments));
        }
        instance_bytes += segment.len() + 1;
    }
    Err(ResourceNameError::NoKeyword)
}

fn compressor(keyword: Keyword, rest: &mut Segments<'_>) -> Result<Compressor, ResourceNameError> {
    if keyword == Keyword::Blobs {
        return Ok(Compressor::Identity);
    }
    match rest.next() {
        Some("zstd") => Ok(Compressor::Zstd),
        Some(other) => Err(ResourceNameError::UnsupportedCompressor(other.chars().take(32).collect())),
        None => Err(ResourceNameError::Missing("the compressor")),
    }
}

fn digest(rest: &mut Segments<'_>) -> Result<Digest, ResourceNameError> {
    const WITHOUT_SEGMENT: [&str; 7] = ["sha256", "sha1", "md5", "vso", "sha384", "sha512", "murmur3"];
    const NOT_SERVED: [&str; 2] = ["sha256tree", "gitsha1"];

    let first = rest.next().ok_or(ResourceNameError::Missing("the hash"))?;
    if let Some(name) = WITHOUT_SEGMENT.into_iter().find(|name| *name == first) {
        return Err(ResourceNameError::NeedlessDigestFunction(name));
    }
    if let Some(name) = NOT_SERVED.into_iter().find(|name| *name == first) {
        return Err(ResourceNameError::UnsupportedDigestFunction(name));
    }
    let (function, hash) = if first == DigestFunction::Blake3.name() {
        (DigestFunction::Blake3, rest.next().ok_or(ResourceNameError::Missing("the hash"))?)
    } else {
        (DigestFunction::Sha256, first)
    };
    let size = rest.next().ok_or(ResourceNameError::Missing("the size"))?;
    if size.starts_with('+') {
        return Err(ResourceNameError::Size);
    }
    let size_bytes = size.parse::<i64>().map_err(|_| ResourceNameError::Size)?;
    Ok(Digest::parse(function, hash, size_bytes)?)
}

impl fmt::Display for ResourceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.instance().as_str().is_empty() {
            write!(f, "{}/", self.instance())?;
        }
        if let Self::Write { uuid, .. } = self {
            write!(f, "uploads/{uuid}/")?;
        }
        f.write_str(match self.compressor() {
            Compressor::Identity => "blobs/",
            Compressor::Zstd => "compressed-blobs/zstd/",
        })?;
        let digest = self.digest();
        if digest.function() == DigestFunction::Blake3 {
            f.write_str("blake3/")?;
        }
        write!(f, "{}/{}", digest.hash_hex(), digest.size_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HASH: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

    fn instance(name: &str) -> InstanceName {
        InstanceName::new(name).unwrap()
    }

    fn abc(function: DigestFunction) -> Digest {
        Digest::parse(function, HASH, 3).unwrap()
    }

    #[test]
    fn names_for_reading() {
        let check = |name: &str, at: &str, compressor, function| {
            let expected = ResourceName::Read { instance: instance(at), compressor, digest: abc(function) };
            assert_eq!(ResourceName::parse(name), Ok(expected.clone()), "{name}");
            assert_eq!(expected.to_string(), name);
        };
        let (sha256, blake3) = (DigestFunction::Sha256, DigestFunction::Blake3);
        check(&format!("blobs/{HASH}/3"), "", Compressor::Identity, sha256);
        check(&format!("default/blobs/{HASH}/3"), "default", Compressor::Identity, sha256);
        check(&format!("a/b/c/blobs/{HASH}/3"), "a/b/c", Compressor::Identity, sha256);
        check(&format!("blobs/blake3/{HASH}/3"), "", Compressor::Identity, blake3);
        check(&format!("compressed-blobs/zstd/{HASH}/3"), "", Compressor::Zstd, sha256);
        check(&format!("x/compressed-blobs/zstd/blake3/{HASH}/3"), "x", Compressor::Zstd, blake3);
    }

    #[test]
    fn names_for_writing() {
        let check = |name: &str, at: &str, compressor| {
            let expected = ResourceName::Write {
                instance: instance(at),
                uuid: "u-1".into(),
                compressor,
                digest: abc(DigestFunction::Sha256),
            };
            assert_eq!(ResourceName::parse(name), Ok(expected), "{name}");
        };
        check(&format!("uploads/u-1/blobs/{HASH}/3"), "", Compressor::Identity);
        check(&format!("a/b/uploads/u-1/blobs/{HASH}/3/some/file.txt"), "a/b", Compressor::Identity);
        check(&format!("uploads/u-1/compressed-blobs/zstd/{HASH}/3/"), "", Compressor::Zstd);
    }

    #[test]
    fn wrong_names_say_what_is_wrong() {
        use ResourceNameError as E;
        let check = |name: &str, error: E| assert_eq!(ResourceName::parse(name), Err(error), "{name}");
        check("", E::NoKeyword);
        check("default", E::NoKeyword);
        check(&format!("/blobs/{HASH}/3"), InstanceNameError::EmptySegment.into());
        check(&format!("a//blobs/{HASH}/3"), InstanceNameError::EmptySegment.into());
        check(&format!("a/actions/blobs/{HASH}/3"), InstanceNameError::ReservedSegment("actions").into());
        check(&format!("blobs/x/blobs/{HASH}/3"), E::Size);
        check("blobs/ba78/3", DigestError::Length { actual: 4, function: DigestFunction::Sha256 }.into());
        check("blobs", E::Missing("the hash"));
        check(&format!("blobs/{HASH}"), E::Missing("the size"));
        check(&format!("blobs/{HASH}/+3"), E::Size);
        check(&format!("blobs/{HASH}/three"), E::Size);
        check(&format!("blobs/{HASH}/99999999999999999999"), E::Size);
        check(&format!("blobs/{HASH}/-3"), DigestError::NegativeSize(-3).into());
        check(&format!("blobs/{}/3", HASH.to_uppercase()), DigestError::NotLowerHex.into());
        check(&format!("blobs/{HASH}/3/more"), E::TrailingSegments);
        check(&format!("blobs/sha256/{HASH}/3"), E::NeedlessDigestFunction("sha256"));
        check(&format!("blobs/sha256tree/{HASH}/3"), E::UnsupportedDigestFunction("sha256tree"));
        check("compressed-blobs", E::Missing("the compressor"));
        check(&format!("compressed-blobs/brotli/{HASH}/3"), E::UnsupportedCompressor("brotli".into()));
        check("uploads", E::Missing("the upload identifier"));
        check(&format!("uploads//blobs/{HASH}/3"), E::Uuid(0));
        check(&format!("uploads/u/uploads/u/blobs/{HASH}/3"), E::UploadOfNoBlob);
        check(&format!("uploads/u/actions/{HASH}/3"), E::UploadOfNoBlob);
        check(&"x".repeat(1 << 20), E::TooLong(1 << 20));
    }

    proptest::proptest! {
        #[test]
        fn anything_is_parsed_or_refused(name in "(a/|blobs/|uploads/|compressed-blobs/|zstd/|blake3/|-?[0-9a-f]{1,4}/|/){0,9}") {
            if let Ok(parsed) = ResourceName::parse(&name) {
                assert_eq!(ResourceName::parse(&parsed.to_string()), Ok(parsed));
            }
        }

        #[test]
        fn printed_names_are_read_back(
            hash: [u8; 32],
            size in 0..i64::MAX,
            at in "[a-z]{0,5}",
            upload: bool,
            zstd: bool,
            blake3: bool,
        ) {
            let function = if blake3 { DigestFunction::Blake3 } else { DigestFunction::Sha256 };
            let digest = Digest::new(function, hash, size.unsigned_abs());
            let compressor = if zstd { Compressor::Zstd } else { Compressor::Identity };
            let instance = instance(&at);
            let name = if upload {
                ResourceName::Write { instance, uuid: "5".into(), compressor, digest }
            } else {
                ResourceName::Read { instance, compressor, digest }
            };
            assert_eq!(ResourceName::parse(&name.to_string()), Ok(name));
        }
    }
}
