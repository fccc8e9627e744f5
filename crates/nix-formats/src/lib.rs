//! What Nix writes and reads, as values: [`StorePath`], [`struct@Hash`], the archive format ([`nar`]), [`NarInfo`],
//! [`CacheInfo`], [`Signature`], [`ContentAddress`], [`Listing`] and realisations of both generations.
//!
//! Pure: no I/O, no clock, no environment, no randomness. Bytes come in as chunks and go out as chunks, so an
//! asynchronous server and a test drive the same code. Text from outside becomes a value once, through a fallible
//! constructor; every parser is strict and bounded, and says what it refuses.
//!
//! Deliberately absent: derivations, the daemon protocol, decompression, and any notion of whether a path exists.
//!
//! What always holds: what was accepted and is written again has the bytes that Nix would write. For an archive these
//! are the bytes that came in.

mod base32;
mod cache_info;
mod content_address;
mod hash;
mod key;
mod listing;
pub mod nar;
mod nar_info;
mod realisation;
mod signature;
mod store_path;

pub use base32::{Base32Error, decode_base32, encode_base32, encoded_base32_length};
pub use cache_info::{CacheInfo, CacheInfoError};
pub use content_address::{ContentAddress, ContentAddressError, FileMethod};
pub use hash::{Hash, HashAlgorithm, HashError, NarHash};
pub use key::{KeyError, KeyName, PublicKey, SecretKey};
pub use listing::{Listing, ListingBuilder, ListingNode, NotUtf8};
pub use nar_info::{Compression, NarInfo, NarInfoError, NarUrl, SystemName, fingerprint};
pub use realisation::{BuildTrace, BuildTraceKey, DerivationOutput, OutputName, Realisation, RealisationError};
pub use signature::{Signature, SignatureError, Signatures};
pub use store_path::{StoreDir, StorePath, StorePathError, StorePathHash};
