//! What refers to what in one cache. Pure.

use std::collections::{BTreeMap, BTreeSet};

use gf_nix_formats::StorePathHash;

/// Paths and what they refer to, themselves left out.
#[derive(Debug, Default)]
pub(crate) struct Graph {
    references: BTreeMap<StorePathHash, Vec<StorePathHash>>,
}

impl Graph {
    pub(crate) fn insert(&mut self, path: StorePathHash, references: &[StorePathHash]) {
        let others = references.iter().copied().filter(|reference| *reference != path);
        self.references.insert(path, others.collect());
    }

    pub(crate) fn references(&self, path: StorePathHash) -> &[StorePathHash] {
        self.references.get(&path).map_or(&[], Vec::as_slice)
    }

    /// These and all that they refer to, directly or not.
    pub(crate) fn closure(&self, roots: impl IntoIterator<Item = StorePathHash>) -> BTreeSet<StorePathHash> {
        reach(roots, |path| self.references(path))
    }

    /// These and all that refer to them, directly or not.
    pub(crate) fn referrers(&self, leaves: impl IntoIterator<Item = StorePathHash>) -> BTreeSet<StorePathHash> {
        let turned = self.turned();
        reach(leaves, |path| turned.get(&path).map_or(&[], Vec::as_slice))
    }

    /// What directly refers to each path.
    pub(crate) fn turned(&self) -> BTreeMap<StorePathHash, Vec<StorePathHash>> {
        let mut turned: BTreeMap<StorePathHash, Vec<StorePathHash>> = BTreeMap::new();
        for (path, references) in &self.references {
            for reference in references {
                turned.entry(*reference).or_default().push(*path);
            }
        }
        turned
    }
}

fn reach<'a>(
    from: impl IntoIterator<Item = StorePathHash>,
    next: impl Fn(StorePathHash) -> &'a [StorePathHash],
) -> BTreeSet<StorePathHash> {
    let mut queue: Vec<StorePathHash> = from.into_iter().collect();
    let mut seen: BTreeSet<StorePathHash> = queue.iter().copied().collect();
    while let Some(path) = queue.pop() {
        queue.extend(next(path).iter().filter(|path| seen.insert(**path)));
    }
    seen
}
