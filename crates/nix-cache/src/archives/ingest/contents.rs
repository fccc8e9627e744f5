//! The contents of the file that is being read.

use std::io;

use bytes::{Bytes, BytesMut};
use gf_digest::{Digest, DigestFunction, Hasher};

use super::spool::{Room, Spool, Spooled};

/// Files up to this size are written to the store in batches, larger ones as uploads of their own.
pub(super) const SMALL_BYTES: u64 = 1 << 20;

/// A file being gathered.
pub(super) enum Contents {
    /// A small one, as the pieces that it came in.
    Small(Vec<Bytes>),
    /// A large one.
    Large(Box<(Hasher, Spool)>),
}

/// A file that was gathered.
pub(super) enum Gathered {
    /// A small one.
    Small(Bytes),
    /// A large one.
    Large(Spooled),
}

impl Contents {
    /// Begins a file of `size_bytes`; a large one waits in `room`.
    pub(super) fn new(size_bytes: u64, room: &Room) -> Self {
        if size_bytes <= SMALL_BYTES {
            Self::Small(Vec::new())
        } else {
            Self::Large(Box::new((Hasher::new(DigestFunction::Sha256), Spool::new(room))))
        }
    }

    /// Takes the next bytes.
    pub(super) fn add(&mut self, bytes: Bytes) -> io::Result<()> {
        match self {
            Self::Small(pieces) => {
                pieces.push(bytes);
                Ok(())
            }
            Self::Large(large) => {
                let (hasher, spool) = large.as_mut();
                hasher.update(&bytes);
                spool.add(bytes)
            }
        }
    }

    /// The digest of the file, and the file.
    pub(super) fn finish(self) -> io::Result<(Digest, Gathered)> {
        match self {
            Self::Small(pieces) => {
                let bytes = joined(pieces);
                Ok((Digest::of(DigestFunction::Sha256, &bytes), Gathered::Small(bytes)))
            }
            Self::Large(large) => {
                let (hasher, spool) = *large;
                Ok((hasher.finish(), Gathered::Large(spool.finish()?)))
            }
        }
    }
}

/// One piece is taken as it is; several are copied.
fn joined(mut pieces: Vec<Bytes>) -> Bytes {
    match pieces.len() {
        0 => Bytes::new(),
        1 => pieces.swap_remove(0),
        _ => {
            let mut whole = BytesMut::with_capacity(pieces.iter().map(Bytes::len).sum());
            pieces.iter().for_each(|piece| whole.extend_from_slice(piece));
            whole.freeze()
        }
    }
}
