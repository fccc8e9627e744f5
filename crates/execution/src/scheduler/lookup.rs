//! Maps in which things are looked up, and which are never walked for an order: that differs from run to run.

use std::collections::HashMap;

use foldhash::fast::RandomState;

/// A map whose hash is keyed at random, since some keys are chosen outside, and short, since a decision takes many look-ups.
/// Foldhash is made for just that: it withstands whoever does not see hashes or an order of iteration, and nobody does.
pub(super) type Lookup<K, V> = HashMap<K, V, RandomState>;
