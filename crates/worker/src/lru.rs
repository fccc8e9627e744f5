//! A map that knows what was used least recently. Bounds are its owner's: it only keeps weights and order.

use std::collections::{BTreeMap, HashMap};
use std::hash::Hash;

/// Values with a weight, in the order of their last use.
#[derive(Debug)]
pub(crate) struct Lru<K, V> {
    entries: HashMap<K, Entry<V>>,
    order: BTreeMap<u64, K>,
    now: u64,
    weight: u64,
}

#[derive(Debug)]
struct Entry<V> {
    value: V,
    weight: u64,
    used: u64,
}

impl<K: Clone + Eq + Hash, V> Lru<K, V> {
    pub(crate) fn new() -> Self {
        Self { entries: HashMap::new(), order: BTreeMap::new(), now: 0, weight: 0 }
    }

    /// The weights of all entries.
    pub(crate) const fn weight(&self) -> u64 {
        self.weight
    }

    /// The value, which counts as used now.
    pub(crate) fn get(&mut self, key: &K) -> Option<&mut V> {
        let entry = self.entries.get_mut(key)?;
        self.now += 1;
        self.order.remove(&entry.used);
        self.order.insert(self.now, key.clone());
        entry.used = self.now;
        Some(&mut entry.value)
    }

    /// The value, whose use does not count.
    pub(crate) fn peek(&mut self, key: &K) -> Option<&mut V> {
        self.entries.get_mut(key).map(|entry| &mut entry.value)
    }

    pub(crate) fn insert(&mut self, key: K, value: V, weight: u64) {
        self.remove(&key);
        self.now += 1;
        self.order.insert(self.now, key.clone());
        self.weight += weight;
        self.entries.insert(key, Entry { value, weight, used: self.now });
    }

    pub(crate) fn remove(&mut self, key: &K) -> Option<V> {
        let entry = self.entries.remove(key)?;
        self.order.remove(&entry.used);
        self.weight -= entry.weight;
        Some(entry.value)
    }

    /// The key used least recently of those that may go.
    pub(crate) fn oldest(&self, may_go: impl Fn(&V) -> bool) -> Option<K> {
        let may_go = |key: &&K| self.entries.get(*key).is_some_and(|entry| may_go(&entry.value));
        self.order.values().find(may_go).cloned()
    }

    /// The keys used least recently of those that may go, as many as weigh `weight` together.
    pub(crate) fn oldest_until(&self, weight: u64, may_go: impl Fn(&V) -> bool) -> Vec<K> {
        let mut left = weight;
        let mut oldest = Vec::new();
        let mut candidates = self.order.values();
        while left > 0 {
            let Some(key) = candidates.next() else { break };
            if let Some(entry) = self.entries.get(key).filter(|entry| may_go(&entry.value)) {
                left = left.saturating_sub(entry.weight);
                oldest.push(key.clone());
            }
        }
        oldest
    }

    /// Values, the one used last first.
    pub(crate) fn recent(&self) -> impl Iterator<Item = (&K, &V)> {
        self.order.values().rev().filter_map(|key| Some((key, &self.entries.get(key)?.value)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_used_becomes_young() {
        let mut lru = Lru::new();
        for key in ["a", "b", "c"] {
            lru.insert(key, key.len(), 2);
        }
        assert_eq!((lru.weight(), lru.oldest(|_| true)), (6, Some("a")));
        assert_eq!(lru.get(&"a"), Some(&mut 1));
        assert_eq!(lru.oldest(|_| true), Some("b"));
        assert_eq!(lru.recent().map(|(key, _)| *key).collect::<Vec<_>>(), ["a", "c", "b"]);
        assert_eq!(lru.oldest_until(3, |_| true), ["b", "c"]);
        assert_eq!((lru.oldest_until(0, |_| true).len(), lru.oldest_until(9, |_| false).len()), (0, 0));
        assert_eq!(lru.remove(&"b"), Some(1));
        lru.insert("c", 1, 5);
        assert_eq!((lru.weight(), lru.oldest(|_| true), lru.oldest(|_| false)), (7, Some("a"), None));
    }
}
