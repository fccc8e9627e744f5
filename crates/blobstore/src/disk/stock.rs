//! Taking stock: what the store holds for whom, and how much of it is under lease, by one look at the whole index.
//!
//! These are figures, for people and for quotas; nothing is evicted by them. What always holds: they are whole or old. While
//! the index has lost something no stock is taken, since too little would pass for the truth.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use super::collect::bytes_at_rest;
use super::core::Core;
use super::index::SHARDS;
use super::segments::lock;
use crate::OwnerId;

/// What the store held at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stock {
    /// What was written before this moment is counted; what came later may be.
    pub began: Instant,
    /// Bytes at rest by owner, records about blobs included. A blob that several owners have counts for the one who brought
    /// it; when that one's promises end and it goes, it goes for all.
    pub owned: BTreeMap<OwnerId, u64>,
    /// Bytes that nothing may evict now.
    pub leased_bytes: u64,
}

impl Core {
    /// Looks at every slot. Costs about a second of one core for ten million of them, and holds up look-ups only while it
    /// copies one part in 64.
    pub(crate) fn take_stock(&self) -> io::Result<()> {
        if !self.index.load_all()? {
            return Ok(());
        }
        let mut stock = Stock { began: Instant::now(), owned: BTreeMap::new(), leased_bytes: 0 };
        let now = self.time_to_evict_by()?;
        let mut held = Vec::new();
        for shard in 0..SHARDS {
            // Sums are made when the shard is free again: whoever takes stock may have to wait for a processor.
            self.index.visit_shard(shard, |slot| held.push((slot.owner, slot.touched, bytes_at_rest(slot))))?;
            for (owner, touched, bytes) in held.drain(..) {
                *stock.owned.entry(owner).or_default() += bytes;
                if !self.lease.may_evict(touched, now) {
                    stock.leased_bytes += bytes;
                }
            }
        }
        let mut last = lock(&self.stock);
        // Another one that began later may have ended before.
        if last.as_ref().is_none_or(|last| last.began < stock.began) {
            self.counters.leased_bytes.store(stock.leased_bytes, Ordering::Relaxed);
            *last = Some(Arc::new(stock));
        }
        Ok(())
    }
}
