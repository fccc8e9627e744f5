//! Which classes of workers have what a platform asks for. Found once for each platform and class, and kept.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::lookup::Lookup;
use super::workers::{Class, ClassId, Fleet, Worker};
use super::{Nearest, NoWorker, Platform, Property, Resources};

/// Platforms of which nothing runs or waits are remembered up to this number.
const MAX_UNUSED: usize = 1024;

/// A platform that is in use, or was lately.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct PlatformId(u64);

#[derive(Debug)]
struct Known {
    platform: Arc<Platform>,
    classes: BTreeSet<ClassId>,
    /// Executions that live.
    users: usize,
}

/// The platforms, and who matches them.
#[derive(Debug, Default)]
pub(super) struct Platforms {
    ids: Lookup<Arc<Platform>, PlatformId>,
    known: BTreeMap<PlatformId, Known>,
    unused: BTreeSet<PlatformId>,
    next: u64,
}

impl Platforms {
    /// One more execution asks for it.
    pub(super) fn enter(&mut self, platform: &Arc<Platform>, fleet: &Fleet) -> PlatformId {
        let id = match self.ids.get(platform) {
            Some(id) => *id,
            None => self.learn(platform, fleet),
        };
        if let Some(known) = self.known.get_mut(&id) {
            known.users += 1;
            self.unused.remove(&id);
        }
        id
    }

    /// One less.
    pub(super) fn exit(&mut self, id: PlatformId) {
        let Some(known) = self.known.get_mut(&id) else { return };
        known.users = known.users.saturating_sub(1);
        if known.users == 0 {
            self.unused.insert(id);
        }
        if self.unused.len() > MAX_UNUSED
            && let Some(oldest) = self.unused.pop_first()
            && let Some(known) = self.known.remove(&oldest)
        {
            self.ids.remove(&known.platform);
        }
    }

    /// A class that was not known. The platforms that it matches.
    pub(super) fn class_came(&mut self, id: ClassId, properties: &[Property]) -> Vec<PlatformId> {
        let matched = self.known.iter_mut().filter(|(_, known)| matches(&known.platform, properties));
        matched
            .map(|(platform, known)| {
                known.classes.insert(id);
                *platform
            })
            .collect()
    }

    /// A class that is forgotten.
    pub(super) fn class_went(&mut self, id: ClassId) {
        for known in self.known.values_mut() {
            known.classes.remove(&id);
        }
    }

    /// Whether the workers of the class have all that it asks for.
    pub(super) fn is_matched(&self, id: PlatformId, class: ClassId) -> bool {
        self.known.get(&id).is_some_and(|known| known.classes.contains(&class))
    }

    /// The classes whose workers have all that it asks for.
    pub(super) fn classes(&self, id: PlatformId) -> impl Iterator<Item = ClassId> {
        self.known.get(&id).into_iter().flat_map(|known| known.classes.iter().copied())
    }

    pub(super) fn get(&self, id: PlatformId) -> Option<&Arc<Platform>> {
        self.known.get(&id).map(|known| &known.platform)
    }

    /// How many are in use.
    pub(super) fn used(&self) -> usize {
        self.known.len() - self.unused.len()
    }

    fn learn(&mut self, platform: &Arc<Platform>, fleet: &Fleet) -> PlatformId {
        let id = PlatformId(self.next);
        self.next += 1;
        let matched = fleet.classes().filter(|(_, class)| matches(platform, &class.properties));
        let classes = matched.map(|(class, _)| class).collect();
        self.ids.insert(platform.clone(), id);
        self.known.insert(id, Known { platform: platform.clone(), classes, users: 0 });
        id
    }
}

/// What of the platform is not among the properties, which are in order.
fn missing<'a>(platform: &'a Platform, properties: &[Property]) -> impl Iterator<Item = &'a Property> {
    platform.properties().iter().filter(move |wanted| properties.binary_search(wanted).is_err())
}

fn matches(platform: &Platform, properties: &[Property]) -> bool {
    missing(platform, properties).next().is_none()
}

/// Why nobody can run it, and who comes nearest.
pub(super) fn no_worker(platform: &Platform, demand: Resources, fleet: &Fleet) -> NoWorker {
    let best = fleet.classes().filter_map(|(_, class)| {
        let members = class.members.iter().filter_map(|id| fleet.get(*id));
        let largest = members.reduce(|best, next| if size(next, demand) > size(best, demand) { next } else { best })?;
        Some((class, largest))
    });
    let lacks = |(class, largest): &(&Class, &Worker)| {
        (missing(platform, &class.properties).count(), Reverse(size(largest, demand)))
    };
    let nearest = best.min_by_key(lacks).map(|(class, largest)| nearest(platform, demand, class, largest));
    NoWorker { workers: fleet.len(), nearest }
}

/// Large enough first, then larger first.
fn size(worker: &Worker, demand: Resources) -> (bool, Resources) {
    (demand.fits(&worker.capacity), worker.capacity)
}

fn nearest(platform: &Platform, demand: Resources, class: &Class, worker: &Worker) -> Nearest {
    let differs = missing(platform, &class.properties).map(|wanted| {
        let there = class.properties.iter().filter(|property| property.name == wanted.name);
        (wanted.clone(), there.map(|property| property.value.clone()).collect())
    });
    let too_small = (!demand.fits(&worker.capacity)).then_some((demand, worker.capacity));
    Nearest { worker: worker.name.clone(), differs: differs.collect(), too_small }
}
