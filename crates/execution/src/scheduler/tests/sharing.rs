//! Who is served when there is not enough for all.

use std::collections::VecDeque;

use super::*;

/// What is submitted, and in which order one slot serves it.
fn check(submissions: Vec<Submission>, order: &[u64]) {
    let mut play = Play::new();
    let (worker, _) = play.worker(1, 1, &[]);
    let (_, first) = play.submit(Submission { invocation: "before".into(), payer: Payer(99), ..job() });
    let count = submissions.len();
    submissions.into_iter().for_each(|submission| {
        play.submit(submission);
        play.now = play.now.after(Duration::from_millis(1));
    });
    let served = play.serve(worker, &first, count + 1);
    // The one before all others took the slot.
    let served: Vec<_> = served[1..].iter().map(|execution| execution.0 - 1).collect();
    assert_eq!(served, order);
}

#[test]
fn an_invocation_is_first_in_first_out() {
    check(vec![job(), job(), job()], &[1, 2, 3]);
}

#[test]
fn lower_priority_numbers_run_first() {
    let of = |priority| Submission { priority, ..job() };
    check(vec![of(5), of(-1), of(0), of(i32::MAX), of(i32::MIN)], &[5, 2, 3, 1, 4]);
}

#[test]
fn the_least_urgent_is_served_although_something_more_urgent_is_always_there() {
    let mut play = Play::new();
    let (worker, _) = play.worker(1, 1, &[]);
    let urgent = || Submission { priority: i32::MIN, ..job() };
    let (_, mut running) = play.submit(urgent());
    let (patient, _) = play.submit(Submission { priority: i32::MAX, ..job() });
    let begun = play.now;
    // Older by all steps that there are, it is older than what is as urgent as can be.
    let steps = u64::try_from(PRIORITIES.end() - PRIORITIES.start()).unwrap();
    let longest = SchedulerConfig::default().ageing_step * u32::try_from(steps).unwrap();
    let pause = secs(20);
    while assigned(&running)[0].2 != patient {
        assert!(play.now.since(begun) <= longest + pause, "it starves");
        play.submit(urgent());
        play.pass(pause);
        play.happen(Event::WorkerHeard(worker));
        let assignment = assigned(&running)[0].1;
        running = play.finish(worker, assignment, Outcome::Answered);
    }
    assert!(play.now.since(begun) > longest - pause * 2, "it is as patient as it says");
}

#[test]
fn invocations_take_turns() {
    check(vec![by(1, "a"), by(1, "a"), by(1, "a"), by(1, "b"), by(1, "b")], &[1, 4, 2, 5, 3]);
}

#[test]
fn tenants_take_turns_whatever_number_of_invocations_they_have() {
    let a = ["a1", "a2", "a3", "a4"].map(|invocation| by(1, invocation));
    check([a.to_vec(), vec![by(2, "b"), by(2, "b")]].concat(), &[1, 5, 2, 6, 3, 4]);
}

#[test]
fn priority_counts_within_a_tenant_only() {
    let urgent = Submission { priority: -100, ..by(2, "b") };
    check(vec![by(1, "a"), by(1, "a"), urgent.clone(), urgent], &[1, 3, 2, 4]);
}

#[test]
fn tenants_take_turns_over_different_platforms() {
    let plain = |submission| Submission { platform: platform(&[]), ..submission };
    let a = vec![by(1, "a"), plain(by(1, "a")), by(1, "a"), plain(by(1, "a"))];
    check([a, vec![by(2, "b"), by(2, "b")]].concat(), &[1, 5, 2, 6, 3, 4]);
}

/// Dispatches of two tenants that both have enough waiting, of one core each, on workers of many sizes.
#[test]
fn two_tenants_with_work_get_the_same_within_two_dispatches() {
    let mut play = Play::new();
    for _ in 0..2000 {
        play.submit_for_later(by(1, "a"));
    }
    let mut running: Vec<_> = (1..=20)
        .flat_map(|id| {
            let size = 1 + u32::try_from(id % 5).unwrap();
            assigned(&play.worker(id, size, &[]).1)
        })
        .collect();
    for number in 0..1500 {
        play.submit(by(2, if number % 3 == 0 { "b" } else { "c" }));
    }
    let (mut a, mut b) = (0_i32, 0_i32);
    for turn in 0..1500_usize {
        // Who ends next is up to chance.
        let (worker, assignment, _) = running.swap_remove((turn * 7919) % running.len());
        for next in assigned(&play.finish(worker, assignment, Outcome::Answered)) {
            if next.2.0 <= 2000 {
                a += 1
            } else {
                b += 1
            }
            running.push(next);
        }
        assert!((a - b).abs() <= 2, "{a} and {b} after {turn}");
    }
}

impl Play {
    /// Before there is any worker, but hoping for one.
    fn submit_for_later(&mut self, submission: Submission) {
        if self.scheduler.queues.queued() == 0 && self.scheduler.fleet.len() == 0 {
            self.worker(1000, 1, &[]);
            self.happen(Event::WorkerLeft(WorkerId(1000)));
        }
        self.submit(submission);
    }
}

#[test]
fn who_comes_and_goes_gains_nothing() {
    let mut play = Play::new();
    let (worker, _) = play.worker(1, 1, &[]);
    let (_, first) = play.submit(by(1, "a"));
    for _ in 0..100 {
        play.submit(by(1, "a"));
    }
    // Tenant 2 submits one at a time, whenever its last one was served.
    let (mut theirs, _) = play.submit(by(2, "b"));
    let (mut a, mut b) = (0_i32, 0_i32);
    let mut next = assigned(&first);
    for _ in 0..60 {
        let (_, assignment, _) = next[0];
        next = assigned(&play.finish(worker, assignment, Outcome::Answered));
        if next[0].2 == theirs {
            b += 1;
            theirs = play.submit(by(2, "b")).0;
        } else {
            a += 1;
        }
        assert!((a - b).abs() <= 2, "{a} and {b}");
    }
}

#[test]
fn nothing_starves_behind_invocations_that_keep_coming() {
    let mut play = Play::new();
    let (worker, _) = play.worker(1, 1, &[]);
    let (_, first) = play.submit(by(1, "old"));
    let old: Vec<_> = (0..5).map(|_| play.submit(by(1, "old")).0).collect();
    let mut next = assigned(&first);
    let mut served = Vec::new();
    for turn in 0..200 {
        // Two new invocations for each that is served.
        play.submit(by(1, &format!("new {turn}")));
        play.submit(by(1, &format!("newer {turn}")));
        play.pass(secs(1));
        play.happen(Event::WorkerHeard(worker));
        let (_, assignment, _) = next[0];
        next = assigned(&play.finish(worker, assignment, Outcome::Answered));
        served.push(next[0].2);
    }
    // Once they waited for two minutes, every second dispatch is for the oldest; of those 120 are older than the last.
    assert!(old.iter().all(|old| served.contains(old)), "{served:?}");
}

#[test]
fn nothing_starves_behind_better_priorities_that_keep_coming() {
    let mut play = Play::new();
    let (worker, _) = play.worker(1, 1, &[]);
    let (_, first) = play.submit(job());
    let (patient, _) = play.submit(Submission { priority: 3, ..job() });
    let mut next = assigned(&first);
    let mut turns = 0;
    while next[0].2 != patient {
        play.submit(Submission { priority: -1, ..job() });
        play.pass(secs(1));
        play.happen(Event::WorkerHeard(worker));
        let (_, assignment, _) = next[0];
        next = assigned(&play.finish(worker, assignment, Outcome::Answered));
        turns += 1;
        // Four steps of ten seconds, at one a second.
        assert!(turns <= 43);
    }
    assert!(turns >= 39, "{turns}");
}

#[test]
fn a_large_demand_has_a_worker_kept_free() {
    let mut play = Play::new();
    let (worker, _) = play.worker(1, 4, &[]);
    let mut running = Vec::new();
    for _ in 0..4 {
        running.extend(assigned(&play.submit(by(1, "small")).1));
    }
    for _ in 0..300 {
        play.submit(by(1, "small"));
    }
    let (large, _) = play.submit(Submission { demand: cores(4), ..by(2, "large") });
    let mut turns = 0;
    while running.iter().all(|(_, _, execution)| *execution != large) {
        play.pass(secs(1));
        play.happen(Event::WorkerHeard(worker));
        let (_, assignment, _) = running.remove(0);
        running.extend(assigned(&play.finish(worker, assignment, Outcome::Answered)));
        turns += 1;
        // The patience, and what ran then.
        assert!(turns <= 30 + 5, "{turns}");
    }
    assert_eq!(running.len(), 1);
    let end = assigned(&play.finish(worker, running[0].1, Outcome::Answered));
    assert_eq!(end.len(), 4, "the small ones go on");
}

/// Smaller ones that never have to wait, since half of the worker is always free, do not keep it from what is large.
#[test]
fn a_large_demand_is_served_although_smaller_ones_find_room_at_once() {
    let mut play = Play::new();
    let (worker, _) = play.worker(1, 4, &[]);
    let mut running: VecDeque<_> = (0..2).flat_map(|_| assigned(&play.submit(by(1, "small")).1)).collect();
    assert_eq!(running.len(), 2);
    let (large, _) = play.submit(Submission { demand: cores(4), ..by(2, "large") });
    let mut turns = 0;
    while running.iter().all(|(_, _, execution)| *execution != large) {
        play.pass(secs(1));
        let (_, assignment, _) = running.pop_front().unwrap();
        running.extend(assigned(&play.finish(worker, assignment, Outcome::Answered)));
        running.extend(assigned(&play.submit(by(1, "small")).1));
        turns += 1;
        // The patience, and what ran then.
        assert!(turns <= 30 + 3, "{turns}");
    }
    assert_eq!(play.scheduler.overlooked(), None);
}

/// What is too large for a small worker does not keep it from what is not, neither of the same tenant nor of others.
#[test]
fn odd_demands_that_wait_for_a_large_worker_leave_the_small_one_its_work() {
    let mut play = Play::new();
    let (small, _) = play.worker(1, 1, &[]);
    let (_, first) = play.submit(job());
    play.worker(2, 16, &[]);
    play.submit(Submission { demand: cores(16), ..job() });
    for number in 0..300 {
        let demand = Resources { milli_cores: 10_000 + number, memory_bytes: 1 << 30 };
        play.submit(Submission { demand, ..by(1, "odd") });
    }
    play.pass(secs(1));
    let (mine, _) = play.submit(by(1, "plain"));
    let (theirs, _) = play.submit(by(2, "plain"));
    assert_eq!(play.serve(small, &first, 4)[1..], [mine, theirs]);
    assert_eq!(play.scheduler.overlooked(), None);
}

/// A worker that serves one of very many kinds of demand looks at a bounded number of them, and others pass.
#[test]
fn a_tenant_with_very_many_kinds_of_demand_is_alone_in_waiting_for_them() {
    let mut play = Play::new();
    play.worker(1, 8, &[]);
    play.submit(Submission { demand: cores(4), ..job() });
    for number in 0..300 {
        let demand = Resources { milli_cores: 5000 + number, memory_bytes: 1 << 30 };
        play.submit(Submission { demand, ..by(1, "odd") });
    }
    play.pass(secs(1));
    let (_, effects) = play.submit(Submission { demand: cores(4), ..job() });
    let (_, assignment, _) = assigned(&effects)[0];
    play.submit(Submission { demand: cores(4), ..job() });
    play.finish(WorkerId(1), assignment, Outcome::Answered);
    let (theirs, effects) = play.submit(Submission { demand: cores(4), ..by(2, "plain") });
    assert_eq!(assigned(&effects)[0].2, theirs, "in the same line as one that was not looked at");
}

#[test]
fn what_was_kept_free_is_given_up_with_its_cause() {
    let mut play = Play::new();
    let (worker, _) = play.worker(1, 2, &[]);
    let one = assigned(&play.submit(job()).1)[0];
    play.submit(job());
    let (large, _) = play.submit(Submission { demand: cores(2), ..job() });
    play.pass(secs(20));
    play.happen(Event::WorkerHeard(worker));
    play.pass(secs(20));
    let (waits, _) = play.submit(job());
    assert_eq!(play.finish(worker, one.1, Outcome::Answered).len(), 1, "kept free");
    let effects = play.happen(Event::Cancel(large));
    assert_eq!(assigned(&effects)[0].2, waits);
}

/// Four workers of two cores each run one that takes a day, and a tenant asks for two cores in ever other words.
fn large_demands_behind_long_ones() -> Play {
    let mut play = Play::with(SchedulerConfig { worker_silence: secs(100_000), ..Default::default() });
    let (_, filler) = play.worker(100, 8, &[]);
    assert_eq!(filler, []);
    for id in 1..=4 {
        play.worker(id, 2, &[]);
    }
    play.happen(Event::WorkerDraining(WorkerId(100)));
    for id in 0..4 {
        let long = Submission { timeout: secs(86_400), ..by(9, &format!("long {id}")) };
        assert_eq!(assigned(&play.submit(long).1).len(), 1);
    }
    for number in 0..8 {
        let demand = Resources { milli_cores: 1900 + number, memory_bytes: 1 << 30 };
        play.submit(Submission { demand, ..by(1, "large") });
    }
    play
}

fn kept_free(play: &Play) -> Vec<WorkerId> {
    let workers = play.scheduler.snapshot(play.now).workers;
    workers.iter().filter(|worker| worker.kept_free_for.is_some()).map(|worker| worker.id).collect()
}

/// Lets small ones of another tenant come and go, so that every worker looks for work while something waits.
fn look_for_work(play: &mut Play) {
    let mut runs: Vec<_> = (0..12).flat_map(|_| assigned(&play.submit(by(2, "small")).1)).collect();
    let mut ran = 0;
    while let Some((worker, assignment, _)) = runs.pop() {
        runs.extend(assigned(&play.finish(worker, assignment, Outcome::Answered)));
        ran += 1;
    }
    assert_eq!(ran, 12);
}

#[test]
fn one_worker_is_kept_free_for_a_tenant_and_not_for_ever() {
    let mut play = large_demands_behind_long_ones();
    for (passes, kept) in [(29, 0), (1, 1), (119, 1)] {
        play.pass(secs(passes));
        look_for_work(&mut play);
        assert_eq!(kept_free(&play).len(), kept, "of four, for eight");
    }
    // It was in vain; after a while there is another chance.
    for (passes, kept) in [(1, 0), (29, 0), (1, 1)] {
        play.pass(secs(passes));
        look_for_work(&mut play);
        assert_eq!(kept_free(&play).len(), kept);
    }
}

#[test]
fn an_invocation_stays_where_its_inputs_are_while_half_is_free() {
    let mut play = Play::new();
    play.worker(1, 4, &[]);
    play.worker(2, 4, &[]);
    let on = |play: &mut Play, invocation: &str| assigned(&play.submit(by(1, invocation)).1)[0].0.0;
    let ran: Vec<_> = ["a", "a", "b", "a", "a", "b"].map(|invocation| on(&mut play, invocation)).to_vec();
    assert_eq!(ran, [1, 1, 2, 1, 2, 2]);
}

/// Each asks for next to nothing, and a worker of eight cores is free: it is not given thousands.
#[test]
fn the_smallest_demands_count_and_a_worker_has_a_bounded_number() {
    for (size, milli_cores, given) in [(8, 1, 144), (8, 60, 133), (1, 1, 20), (100, 50, 1024)] {
        let mut play = Play::new();
        let (worker, _) = play.worker(1, size, &[]);
        let (_, all) = play.submit(Submission { demand: cores(size), ..job() });
        for _ in 0..5000 {
            play.submit(Submission { demand: Resources { milli_cores, memory_bytes: 0 }, ..job() });
        }
        let effects = play.finish(worker, assigned(&all)[0].1, Outcome::Answered);
        assert_eq!(assigned(&effects).len(), given);
        assert_eq!(assigned(&play.submit(job()).1), []);
        let next = play.finish(worker, assigned(&effects)[0].1, Outcome::Answered);
        assert_eq!(assigned(&next).len(), 1, "each that ends makes place for one");
    }
}

mod order {
    use proptest::prelude::*;

    use super::super::super::fairness::FairOrder;

    proptest! {
        /// Two flows that wait all the time are never further apart than one dispatch of the dearer, whatever others do.
        #[test]
        fn flows_that_wait_get_the_same(deeds in prop::collection::vec((0_u8..6, 0_u64..8, 1_u64..5), 0..400)) {
            const UNIT: u64 = 1 << 20;
            let mut order = FairOrder::default();
            let (mut first, mut second) = (0_u64, 0_u64);
            order.join(&100);
            order.join(&101);
            for (deed, other, cost) in deeds {
                match deed {
                    0 => order.join(&other),
                    1 => order.leave(&other),
                    _ => {
                        let next = *order.iter().next().unwrap();
                        order.charge(&next, cost * UNIT);
                        first += if next == 100 { cost } else { 0 };
                        second += if next == 101 { cost } else { 0 };
                    }
                }
                prop_assert!(first.abs_diff(second) <= 4, "{} and {}", first, second);
            }
            (0..8).chain([100, 101]).for_each(|flow| order.leave(&flow));
            prop_assert_eq!(order.len(), 0);
        }
    }
}
