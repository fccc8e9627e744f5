//! How many bytes the store may use: reserved before they are written, given back when they are not.

use std::sync::{Arc, Mutex};

use super::segments::lock;

/// The account. One lock over all of it: what moves from reserved to used is never counted twice, nor what was refused
/// at all, so nobody is refused space that is there.
#[derive(Debug)]
pub(crate) struct Capacity(Mutex<Account>);

#[derive(Debug)]
struct Account {
    limit_bytes: u64,
    used_bytes: u64,
    reserved_bytes: u64,
    /// Times that files began to go.
    removals: u64,
    /// Of these, how many have not ended.
    removals_under_way: u64,
}

impl Capacity {
    pub(crate) fn new(limit_bytes: u64) -> Arc<Self> {
        Arc::new(Self(Mutex::new(Account {
            limit_bytes,
            used_bytes: 0,
            reserved_bytes: 0,
            removals: 0,
            removals_under_way: 0,
        })))
    }

    pub(crate) fn limit_bytes(&self) -> u64 {
        lock(&self.0).limit_bytes
    }

    pub(crate) fn set_limit_bytes(&self, limit_bytes: u64) {
        lock(&self.0).limit_bytes = limit_bytes;
    }

    pub(crate) fn used_bytes(&self) -> u64 {
        lock(&self.0).used_bytes
    }

    pub(crate) fn reserved_bytes(&self) -> u64 {
        lock(&self.0).reserved_bytes
    }

    /// Sets aside `bytes`, or says by how many bytes they do not fit. Nothing at all always fits, however full it is.
    pub(crate) fn reserve(self: &Arc<Self>, bytes: u64) -> Result<Reservation, u64> {
        let mut account = lock(&self.0);
        let wanted = account.used_bytes.saturating_add(account.reserved_bytes).saturating_add(bytes);
        match wanted.saturating_sub(account.limit_bytes) {
            excess if excess == 0 || bytes == 0 => {
                account.reserved_bytes += bytes;
                Ok(Reservation { capacity: Arc::clone(self), bytes })
            }
            excess => Err(excess),
        }
    }

    /// No space set aside: for what must be written however full the store is.
    pub(crate) fn unreserved(self: &Arc<Self>) -> Reservation {
        Reservation { capacity: Arc::clone(self), bytes: 0 }
    }

    /// Held from before a file goes until its bytes are given back: who counts files meanwhile counts anew.
    pub(crate) fn removing(&self) -> Removing<'_> {
        let mut account = lock(&self.0);
        account.removals += 1;
        account.removals_under_way += 1;
        Removing(self)
    }

    /// How often files went; `None` while some are going.
    pub(crate) fn removals(&self) -> Option<u64> {
        let account = lock(&self.0);
        (account.removals_under_way == 0).then_some(account.removals)
    }

    pub(crate) fn add_used(&self, bytes: u64) {
        lock(&self.0).used_bytes += bytes;
    }

    pub(crate) fn sub_used(&self, bytes: u64) {
        let mut account = lock(&self.0);
        account.used_bytes = account.used_bytes.saturating_sub(bytes);
    }
}

/// Files are going while this lives.
pub(crate) struct Removing<'a>(&'a Capacity);

impl Drop for Removing<'_> {
    fn drop(&mut self) {
        lock(&self.0.0).removals_under_way -= 1;
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
        let mut account = lock(&self.capacity.0);
        account.used_bytes += bytes;
        account.reserved_bytes -= from_reservation;
    }

    /// Adds what was set aside by another of the same store.
    pub(crate) fn merge(&mut self, mut other: Self) {
        self.bytes += std::mem::take(&mut other.bytes);
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        lock(&self.capacity.0).reserved_bytes -= self.bytes;
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
        let mut grown = capacity.reserve(20).unwrap();
        grown.merge(capacity.reserve(40).unwrap());
        assert_eq!((grown.bytes, capacity.reserved_bytes()), (60, 60));
        drop(grown);
        assert_eq!(capacity.reserved_bytes(), 0);
        capacity.sub_used(1000);
        assert_eq!(capacity.used_bytes(), 0);
        capacity.add_used(101);
        assert!(capacity.reserve(0).is_ok() && capacity.reserve(1).is_err());
    }

    #[test]
    fn nobody_is_refused_what_is_free() {
        let capacity = Capacity::new(100);
        let done = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !done.load(std::sync::atomic::Ordering::Relaxed) {
                    assert!(capacity.reserve(1000).is_err());
                }
            });
            let refused = (0..200_000).filter(|_| capacity.reserve(50).is_err()).count();
            done.store(true, std::sync::atomic::Ordering::Relaxed);
            assert_eq!(refused, 0);
        });
    }
}
