//! Maps in which things are looked up, and which are never walked for an order: that differs from run to run.

use std::collections::HashMap;

use foldhash::fast::RandomState;

/// A map with a hash that is keyed, since some keys are chosen outside, and short, since a decision takes many look-ups.
pub(super) type Lookup<K, V> = HashMap<K, V, RandomState>;
