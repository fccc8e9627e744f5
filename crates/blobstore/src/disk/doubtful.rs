//! What the disk failed to read when it was last asked to: not known to be lost, and not to be counted on.
//!
//! Of such a blob it is said that it is missing, since it could not be served; who then brings the bytes is believed that
//! they are needed, and they are stored anew. A read that succeeds after all ends the doubt. One that fails again says that
//! the blob is not here, for a client can make up for what is missing, and not for what is unavailable.
//!
//! Only failures of the medium count: a process without memory, threads or files to open says nothing about the disk. What
//! is remembered is bounded, and forgotten by a restart, after which the next read finds out anew. Deliberately absent: the
//! index, which is read once, and what recovery reads.

use std::collections::HashMap;
use std::io;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use gf_digest::Digest;
use rustix::io::Errno;

use super::core::Core;
use super::index::{IndexKey, Place, Slot};
use super::read::MAX_DEPTH;
use super::segments::lock;

/// Keys that are remembered. A disk that fails to read more has failed as a whole.
const MAX_DOUBTS: usize = 64 << 10;

/// Which part of its bytes could not be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Extract {
    /// The record, or header and table of the large file.
    Head,
    /// A block of the large file.
    Block(usize),
}

#[derive(Debug)]
struct Doubt {
    place: Place,
    extract: Extract,
    failed: u32,
}

/// What the disk failed to read.
#[derive(Debug, Default)]
pub(crate) struct Doubtful {
    doubts: Mutex<HashMap<IndexKey, Doubt>>,
    /// How many there are: asked before each look, and nearly always none.
    count: AtomicUsize,
}

impl Doubtful {
    /// Remembers that a read failed. Returns how often it did, one after the other.
    pub(crate) fn add(&self, slot: &Slot, extract: Extract) -> u32 {
        let mut doubts = lock(&self.doubts);
        if doubts.len() >= MAX_DOUBTS && !doubts.contains_key(&slot.key) {
            return 1;
        }
        let doubt = doubts.entry(slot.key).or_insert(Doubt { place: slot.place, extract, failed: 0 });
        if doubt.place != slot.place {
            *doubt = Doubt { place: slot.place, extract, failed: 0 };
        }
        doubt.failed = doubt.failed.saturating_add(1);
        doubt.extract = extract;
        let failed = doubt.failed;
        self.count.store(doubts.len(), Ordering::Relaxed);
        failed
    }

    /// Whether the last read of something of this slot failed.
    pub(crate) fn has(&self, slot: &Slot) -> bool {
        !self.is_empty() && lock(&self.doubts).get(&slot.key).is_some_and(|doubt| doubt.place == slot.place)
    }

    /// Something was read: ends the doubt, if it was about just that.
    pub(crate) fn was_read(&self, slot: &Slot, extract: Extract) {
        self.end(&slot.key, |doubt| doubt.place == slot.place && doubt.extract == extract);
    }

    /// Ends the doubt, whatever it was about: all was read, or is elsewhere or gone now.
    pub(crate) fn forget(&self, key: &IndexKey) {
        self.end(key, |_| true);
    }

    fn end(&self, key: &IndexKey, condition: impl FnOnce(&Doubt) -> bool) {
        if self.is_empty() {
            return;
        }
        let mut doubts = lock(&self.doubts);
        if doubts.get(key).is_some_and(condition) {
            doubts.remove(key);
            self.count.store(doubts.len(), Ordering::Relaxed);
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.count.load(Ordering::Relaxed) == 0
    }
}

/// Whether an error is the medium's: it, or the file system on it, fails to give back what it was given.
pub(crate) fn is_of_medium(error: &io::Error) -> bool {
    use Errno as E;
    matches!(Errno::from_io_error(error), Some(E::IO | E::NODATA | E::UCLEAN | E::BADMSG | E::ILSEQ | E::REMOTEIO))
}

impl Core {
    /// Whether the disk failed to read something of what is here, or of what that is made of.
    pub(crate) async fn is_doubtful(&self, slot: &Slot, digest: &Digest) -> bool {
        !self.doubtful.is_empty() && self.has_doubtful_part(slot, digest, MAX_DEPTH).await
    }

    /// Whether all bytes of a slot are here, and the disk did not fail to read them. Not so where that cannot be known.
    pub(crate) async fn is_readable(&self, slot: &Slot, digest: &Digest) -> bool {
        matches!(self.is_here(slot, digest).await, Ok(true)) && !self.is_doubtful(slot, digest).await
    }

    async fn has_doubtful_part(&self, slot: &Slot, digest: &Digest, depth: u8) -> bool {
        if self.doubtful.has(slot) {
            return true;
        }
        if !slot.place.has_dependencies() || depth == 0 {
            return false;
        }
        let Ok(parts) = self.parts(slot, digest).await else { return self.doubtful.has(slot) };
        for part in parts {
            if let Ok(Some(slot)) = self.any_owner_untouched(&part.blob)
                && Box::pin(self.has_doubtful_part(&slot, &part.blob, depth - 1)).await
            {
                return true;
            }
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use gf_digest::DigestFunction;

    use super::*;
    use crate::{Encoding, OwnerId};

    fn slot(number: u32, file: u64) -> Slot {
        Slot {
            key: IndexKey::blob(&Digest::of(DigestFunction::Sha256, &number.to_le_bytes())),
            place: Place::large(file, Encoding::Identity, 1 << 20),
            size_bytes: 4,
            touched: 1,
            owner: OwnerId(1),
        }
    }

    #[test]
    fn a_doubt_ends_when_just_that_is_read_or_it_is_elsewhere() {
        let doubtful = Doubtful::default();
        let (here, elsewhere) = (slot(1, 1), slot(1, 2));
        assert_eq!((doubtful.add(&here, Extract::Block(7)), doubtful.add(&here, Extract::Block(7))), (1, 2));
        doubtful.was_read(&here, Extract::Head);
        doubtful.was_read(&here, Extract::Block(6));
        assert!(doubtful.has(&here) && !doubtful.has(&elsewhere) && !doubtful.has(&slot(2, 1)));
        doubtful.was_read(&here, Extract::Block(7));
        assert!(!doubtful.has(&here) && doubtful.is_empty());
        doubtful.add(&here, Extract::Head);
        assert_eq!(doubtful.add(&elsewhere, Extract::Head), 1, "another place begins anew");
        assert!(doubtful.has(&elsewhere) && !doubtful.has(&here));
        doubtful.forget(&here.key);
        assert!(doubtful.is_empty());
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let doubtful = Doubtful::default();
        for number in 0..u32::try_from(MAX_DOUBTS).unwrap() + 10 {
            doubtful.add(&slot(number, 1), Extract::Head);
        }
        assert_eq!(lock(&doubtful.doubts).len(), MAX_DOUBTS);
    }

    #[test]
    fn a_process_without_means_says_nothing_about_the_disk() {
        assert!(is_of_medium(&io::Error::from(Errno::IO)));
        for other in [Errno::MFILE, Errno::NOMEM, Errno::NOSPC, Errno::INTR] {
            assert!(!is_of_medium(&io::Error::from(other)));
        }
        assert!(!is_of_medium(&io::Error::other("the runtime shuts down")));
    }
}
