//! How many bytes the store may use: reserved before they are written, given back when they are not.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// The account.
#[derive(Debug)]
pub(crate) struct Capacity {
    limit_bytes: AtomicU64,
    used_bytes: AtomicU64,
    reserved_bytes: AtomicU64,
}

impl Capacity {
    pub(crate) fn new(limit_bytes: u64) -> Arc<Self> {
        Arc::new(Self {
            limit_bytes: AtomicU64::new(limit_bytes),
            used_bytes: AtomicU64::new(0),
            reserved_bytes: AtomicU64::new(0),
        })
    }

    pub(crate) fn limit_bytes(&self) -> u64 {
        self.limit_bytes.load(Ordering::Relaxed)
    }

    pub(crate) fn set_limit_bytes(&self, limit_bytes: u64) {
        self.limit_bytes.store(limit_bytes, Ordering::Relaxed);
    }

    pub(crate) fn used_bytes(&self) -> u64 {
        self.used_bytes.load(Ordering::Relaxed)
    }

    pub(crate) fn reserved_bytes(&self) -> u64 {
        self.reserved_bytes.load(Ordering::Relaxed)
    }

    /// Sets aside `bytes`, or says by how many bytes they do not fit.
    pub(crate) fn reserve(self: &Arc<Self>, bytes: u64) -> Result<Reservation, u64> {
        // Added first and taken back on failure: two callers can then never both take the last byte.
        let reserved = self.reserved_bytes.fetch_add(bytes, Ordering::AcqRel) + bytes;
        let excess = (self.used_bytes() + reserved).saturating_sub(self.limit_bytes());
        let reservation = Reservation { capacity: Arc::clone(self), bytes };
        if excess > 0 { Err(excess) } else { Ok(reservation) }
    }

    pub(crate) fn add_used(&self, bytes: u64) {
        self.used_bytes.fetch_add(bytes, Ordering::AcqRel);
    }

    pub(crate) fn sub_used(&self, bytes: u64) {
        let _ =
            self.used_bytes.fetch_update(Ordering::AcqRel, Ordering::Acquire, |used| Some(used.saturating_sub(bytes)));
    }
}

/// Bytes set aside. Dropping it gives back what was not used.
#[derive(Debug)]
pub(crate) struct Reservation {
    capacity: Arc<Capacity>,
    bytes: u64,
}

impl Reservation {
    /// Turns `bytes` of it into used ones.
    pub(crate) fn use_bytes(&mut self, bytes: u64) {
        let from_reservation = bytes.min(self.bytes);
        self.bytes -= from_reservation;
        self.capacity.add_used(bytes);
        self.capacity.reserved_bytes.fetch_sub(from_reservation, Ordering::AcqRel);
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.capacity.reserved_bytes.fetch_sub(self.bytes, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_used_comes_back() {
        let capacity = Capacity::new(100);
        let mut first = capacity.reserve(60).unwrap();
        assert_eq!(capacity.reserve(50).unwrap_err(), 10);
        first.use_bytes(40);
        drop(first);
        assert_eq!((capacity.used_bytes(), capacity.reserved_bytes()), (40, 0));
        drop(capacity.reserve(60).unwrap());
        capacity.sub_used(1000);
        assert_eq!(capacity.used_bytes(), 0);
    }
}
