//! Which paths of a cache may go. Pure: what is observed comes in, a plan goes out.
//!
//! What always holds of a plan:
//! - what stays is complete: nothing goes that anything which stays refers to;
//! - neither a pinned path goes, nor one whose narinfo was served within the grace, nor one used a moment ago;
//! - the order is one in which every path goes before what it refers to.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};

use gf_nix_formats::{NarHash, StorePath, StorePathHash};

use crate::Retention;
use crate::graph::Graph;

/// What was used so lately stays in any case: who publishes a path takes note of a use of what it refers to, but not twice
/// a minute.
pub(crate) const RECENT_S: u64 = 300;

/// A path that waits this long for what it refers to was given up.
const GIVEN_UP_S: u64 = 7 * 24 * 60 * 60;

/// A path as it was observed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Observed {
    pub(crate) path: StorePath,
    pub(crate) nar_hash: NarHash,
    /// Bytes of its archive; 0 while only an upstream has it.
    pub(crate) stored_bytes: u64,
    pub(crate) is_visible: bool,
    pub(crate) used_s: u64,
    /// When its narinfo was served last; 0 for never.
    pub(crate) served_s: u64,
}

/// What the plan must obey.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rules {
    pub(crate) retention: Retention,
    pub(crate) quota_bytes: Option<u64>,
    pub(crate) grace_s: u64,
    pub(crate) now_s: u64,
}

/// Why a path goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WhyRemoved {
    /// Nobody used it for longer than the retention period.
    Unused {
        /// For so many seconds.
        for_s: u64,
    },
    /// The cache holds more than its quota, and this was used least recently.
    OverQuota,
    /// What it refers to never came.
    NeverComplete,
}

/// A path that goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Removal {
    /// The path.
    pub path: StorePath,
    /// Why.
    pub why: WhyRemoved,
    /// Bytes of its archive, uncompressed. Other paths may have the same archive, and others its files.
    pub nar_bytes: u64,
    /// When it was used last, in seconds since 1970. A path that is used after this was planned stays.
    pub used_s: u64,
}

/// Plans what goes. `graph` says what the observed paths refer to.
pub(crate) fn plan(
    observed: &[Observed],
    graph: &Graph,
    pinned: &BTreeSet<StorePathHash>,
    rules: &Rules,
) -> Vec<Removal> {
    let by_hash: BTreeMap<StorePathHash, &Observed> = observed.iter().map(|path| (path.path.hash(), path)).collect();
    let hashes = |choose: &dyn Fn(&Observed) -> bool| {
        observed.iter().filter(|path| choose(path)).map(|path| path.path.hash()).collect::<Vec<_>>()
    };
    let untouchable = hashes(&|path| pinned.contains(&path.path.hash()) || rules.is_promised(path));
    let untouchable = graph.closure(untouchable);
    let mut stays = graph.closure(hashes(&|path| rules.is_retained(path)));
    stays.extend(&untouchable);

    let mut removals = Vec::new();
    for path in observed.iter().filter(|path| !stays.contains(&path.path.hash())) {
        removals.push(path.removal(rules.why(path)));
    }
    for hash in over_quota(&by_hash, graph, &stays, &untouchable, rules) {
        removals.extend(by_hash.get(&hash).map(|path| path.removal(WhyRemoved::OverQuota)));
    }
    in_order(removals, graph)
}

impl Rules {
    /// Whether a client was told of it, or uses it now.
    fn is_promised(&self, path: &Observed) -> bool {
        let within = |since_s: u64, period_s: u64| self.now_s < since_s.saturating_add(period_s);
        within(path.used_s, RECENT_S) || (path.served_s > 0 && within(path.served_s, self.grace_s))
    }

    fn is_retained(&self, path: &Observed) -> bool {
        if !path.is_visible {
            return self.now_s < path.used_s.saturating_add(GIVEN_UP_S);
        }
        match self.retention {
            Retention::Forever => true,
            Retention::Unused { period_s } => self.now_s < path.used_s.saturating_add(period_s),
        }
    }

    fn why(&self, path: &Observed) -> WhyRemoved {
        if path.is_visible {
            return WhyRemoved::Unused { for_s: self.now_s.saturating_sub(path.used_s) };
        }
        WhyRemoved::NeverComplete
    }
}

impl Observed {
    fn removal(&self, why: WhyRemoved) -> Removal {
        Removal { path: self.path.clone(), why, nar_bytes: self.stored_bytes, used_s: self.used_s }
    }
}

/// The least recently used of what nothing that stays refers to, again and again until the rest fits.
fn over_quota(
    by_hash: &BTreeMap<StorePathHash, &Observed>,
    graph: &Graph,
    stays: &BTreeSet<StorePathHash>,
    untouchable: &BTreeSet<StorePathHash>,
    rules: &Rules,
) -> Vec<StorePathHash> {
    let Some(quota_bytes) = rules.quota_bytes else { return Vec::new() };
    // Paths of one archive share its bytes.
    let mut sharers: BTreeMap<NarHash, u64> = BTreeMap::new();
    let mut bytes = 0;
    let mut referrers: BTreeMap<StorePathHash, usize> = BTreeMap::new();
    for path in stays.iter().filter_map(|hash| by_hash.get(hash)) {
        let sharers = sharers.entry(path.nar_hash).or_default();
        *sharers += 1;
        bytes += if *sharers == 1 { path.stored_bytes } else { 0 };
        for reference in graph.references(path.path.hash()) {
            *referrers.entry(*reference).or_default() += 1;
        }
    }
    let may_go = |hash: &StorePathHash| stays.contains(hash) && !untouchable.contains(hash);
    let candidate = |hash: StorePathHash| by_hash.get(&hash).map(|path| Reverse((path.used_s, hash)));
    let unreferenced = stays.iter().filter(|hash| may_go(hash) && referrers.get(hash).is_none_or(|count| *count == 0));
    let mut queue: BinaryHeap<_> = unreferenced.filter_map(|hash| candidate(*hash)).collect();
    let mut gone = Vec::new();
    while bytes > quota_bytes {
        let Some(Reverse((_, hash))) = queue.pop() else { break };
        let Some(path) = by_hash.get(&hash) else { continue };
        let sharers = sharers.entry(path.nar_hash).or_default();
        *sharers = sharers.saturating_sub(1);
        bytes -= if *sharers == 0 { path.stored_bytes } else { 0 };
        gone.push(hash);
        for reference in graph.references(hash) {
            let count = referrers.entry(*reference).or_default();
            *count = count.saturating_sub(1);
            if *count == 0 && may_go(reference) {
                queue.extend(candidate(*reference));
            }
        }
    }
    gone
}

/// Every path before what it refers to.
fn in_order(removals: Vec<Removal>, graph: &Graph) -> Vec<Removal> {
    let mut waiting: BTreeMap<StorePathHash, Removal> =
        removals.into_iter().map(|removal| (removal.path.hash(), removal)).collect();
    let mut referrers: BTreeMap<StorePathHash, usize> = BTreeMap::new();
    for reference in waiting.keys().flat_map(|path| graph.references(*path)) {
        *referrers.entry(*reference).or_default() += 1;
    }
    let is_free = |path: &StorePathHash, referrers: &BTreeMap<StorePathHash, usize>| {
        referrers.get(path).is_none_or(|count| *count == 0)
    };
    let mut queue: Vec<StorePathHash> = waiting.keys().filter(|path| is_free(path, &referrers)).copied().collect();
    let mut ordered = Vec::with_capacity(waiting.len());
    while let Some(path) = queue.pop() {
        ordered.extend(waiting.remove(&path));
        for reference in graph.references(path) {
            let count = referrers.entry(*reference).or_default();
            *count = count.saturating_sub(1);
            if *count == 0 && waiting.contains_key(reference) {
                queue.push(*reference);
            }
        }
    }
    // Paths that refer to each other in a circle, which no store has, would stay.
    ordered
}

#[cfg(test)]
mod tests;
