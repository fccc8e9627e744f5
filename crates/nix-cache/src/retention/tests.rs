use proptest::prelude::*;

use super::*;

const NOW_S: u64 = 1_000_000_000;
const DAY_S: u64 = 24 * 60 * 60;

/// A path and what it refers to.
#[derive(Clone)]
struct Path {
    observed: Observed,
    references: Vec<StorePathHash>,
}

impl Path {
    fn with(mut self, change: impl FnOnce(&mut Observed)) -> Self {
        change(&mut self.observed);
        self
    }
}

/// Path number `number`, which refers to others and was used and served so many days ago.
fn path(number: u8, references: &[u8], used_days: u64, served_days: Option<u64>) -> Path {
    Path {
        observed: Observed {
            path: store_path(number),
            nar_hash: NarHash::new([number; 32]),
            stored_bytes: 10,
            is_visible: true,
            used_s: NOW_S - used_days * DAY_S,
            served_s: served_days.map_or(0, |days| NOW_S - days * DAY_S),
        },
        references: references.iter().map(|number| store_path(*number).hash()).collect(),
    }
}

fn plan_of(paths: &[Path], pinned: &BTreeSet<StorePathHash>, rules: &Rules) -> Vec<Removal> {
    let mut graph = Graph::default();
    for path in paths {
        graph.insert(path.observed.path.hash(), &path.references);
    }
    let observed: Vec<Observed> = paths.iter().map(|path| path.observed.clone()).collect();
    plan(&observed, &graph, pinned, rules)
}

fn store_path(number: u8) -> StorePath {
    StorePath::new(StorePathHash::new([number; 20]), "x").unwrap()
}

fn unused(period_days: u64) -> Rules {
    let retention = Retention::Unused { period_s: period_days * DAY_S };
    Rules { retention, quota_bytes: None, grace_s: 30 * DAY_S, now_s: NOW_S }
}

fn quota(bytes: u64) -> Rules {
    Rules { retention: Retention::Forever, quota_bytes: Some(bytes), grace_s: 30 * DAY_S, now_s: NOW_S }
}

#[track_caller]
fn check(paths: &[Path], pinned: &[u8], rules: Rules, expected: &[u8]) -> Vec<Removal> {
    let pinned = pinned.iter().map(|number| store_path(*number).hash()).collect();
    let removals = plan_of(paths, &pinned, &rules);
    let gone: Vec<u8> = removals.iter().map(|removal| removal.path.hash().as_bytes()[0]).collect();
    assert_eq!(gone, expected);
    removals
}

#[test]
fn unused_paths_go_and_used_ones_stay() {
    let gone = check(&[path(1, &[], 11, None), path(2, &[], 9, None)], &[], unused(10), &[1]);
    assert_eq!(gone[0].why, WhyRemoved::Unused { for_s: 11 * DAY_S });
    check(&[path(1, &[], 4000, None)], &[], quota(10), &[]);
}

#[test]
fn what_stays_is_complete() {
    // 1 -> 2 -> 3, and 4 -> 3, and 5 alone.
    let tree = [
        path(1, &[2], 1, None),
        path(2, &[3], 99, None),
        path(3, &[3], 99, None),
        path(4, &[3], 99, None),
        path(5, &[], 99, None),
    ];
    check(&tree, &[], unused(10), &[5, 4]);
    check(&tree, &[4], unused(10), &[5]);
    // Every path goes before what it refers to.
    check(&tree, &[], Rules { now_s: NOW_S + 20 * DAY_S, ..unused(10) }, &[5, 4, 1, 2, 3]);
}

#[test]
fn a_narinfo_that_was_served_is_a_promise() {
    let rules = unused(1);
    check(&[path(1, &[2], 20, Some(20)), path(2, &[], 99, None)], &[], rules, &[]);
    check(&[path(1, &[2], 31, Some(31)), path(2, &[], 99, None)], &[], rules, &[1, 2]);
    check(&[path(1, &[], 20, Some(20))], &[], quota(0), &[]);
}

#[test]
fn what_is_over_the_quota_goes_by_last_use_and_from_the_top() {
    // 1 -> 2: 2 was used longer ago, but 1 needs it.
    let paths = [path(1, &[2], 50, None), path(2, &[], 99, None), path(3, &[], 60, None), path(4, &[], 5, None)];
    let gone = check(&paths, &[], quota(30), &[3]);
    assert_eq!(gone[0].why, WhyRemoved::OverQuota);
    check(&paths, &[], quota(20), &[3, 1]);
    check(&paths, &[], quota(10), &[3, 1, 2]);
    check(&paths, &[1], quota(10), &[4, 3]);
    // Paths of one archive share its bytes.
    let twins = [path(1, &[], 50, None), path(2, &[], 40, None).with(|twin| twin.nar_hash = NarHash::new([1; 32]))];
    check(&twins, &[], quota(10), &[]);
}

#[test]
fn what_was_used_a_moment_ago_stays_and_what_never_got_complete_goes() {
    let rules = Rules { retention: Retention::Unused { period_s: 1 }, ..unused(1) };
    let moment = path(1, &[], 0, None).with(|path| path.used_s = NOW_S - RECENT_S + 1);
    check(std::slice::from_ref(&moment), &[], rules, &[]);
    check(&[moment.with(|path| path.used_s = NOW_S - RECENT_S)], &[], rules, &[1]);
    let waiting = |days| path(1, &[9], days, None).with(|path| path.is_visible = false);
    check(&[waiting(6)], &[], rules, &[]);
    assert_eq!(check(&[waiting(7)], &[], quota(99), &[1])[0].why, WhyRemoved::NeverComplete);
}

proptest! {
    #[test]
    fn every_plan_leaves_a_complete_cache(
        edges in proptest::collection::vec((0_u8..40, 0_u8..40), 0..120),
        ages in proptest::collection::vec((0_u64..60, proptest::option::of(0_u64..60)), 40),
        pinned in proptest::collection::btree_set(0_u8..40, 0..4),
        quota_bytes in proptest::option::of(0_u64..400),
        period_days in 1_u64..60,
    ) {
        // References go to higher numbers, so there is no circle.
        let paths: Vec<Path> = (0_u8..40).zip(&ages).map(|(number, (used, served))| {
            let references: Vec<u8> = edges.iter().filter(|(from, to)| *from == number && to > from).map(|(_, to)| *to).collect();
            path(number, &references, *used, *served)
        }).collect();
        let rules = Rules { quota_bytes, ..unused(period_days) };
        let pins = pinned.iter().map(|number| store_path(*number).hash()).collect();
        let removals = plan_of(&paths, &pins, &rules);
        let gone: Vec<StorePathHash> = removals.iter().map(|removal| removal.path.hash()).collect();
        let distinct: BTreeSet<StorePathHash> = gone.iter().copied().collect();
        prop_assert_eq!(distinct.len(), gone.len());
        for path in &paths {
            let hash = path.observed.path.hash();
            if !distinct.contains(&hash) {
                prop_assert!(path.references.iter().all(|reference| !distinct.contains(reference)));
                continue;
            }
            prop_assert!(!pins.contains(&hash));
            let served_s = path.observed.served_s;
            prop_assert!(served_s == 0 || NOW_S >= served_s + rules.grace_s);
            let at = gone.iter().position(|other| *other == hash);
            for reference in path.references.iter().filter(|reference| distinct.contains(reference)) {
                prop_assert!(at < gone.iter().position(|other| other == reference));
            }
        }
    }
}
