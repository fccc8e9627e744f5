//! Tenants that may have only so many executions on workers.

use std::num::NonZeroU32;

use super::*;

impl Play {
    fn cap(&mut self, payer: u32, most: Option<u32>) -> Vec<Effect> {
        let cap =
            most.map(|most| Cap { tenant: format!("org-{payer}").into(), executions: NonZeroU32::new(most).unwrap() });
        self.happen(Event::Capped { payer: Payer(payer), cap })
    }

    fn given(&self, payer: u32) -> u32 {
        self.scheduler.running_of(Payer(payer))
    }

    fn scarce(&self, id: ExecutionId) -> Option<Scarce> {
        match self.scheduler.explain(id, self.now)?.situation {
            Situation::Queued { scarce, .. } => Some(scarce),
            Situation::Running { .. } => None,
        }
    }
}

fn of(payer: u32) -> Submission {
    by(payer, "build")
}

fn large(payer: u32, size: u32) -> Submission {
    Submission { demand: cores(size), ..by(payer, "large") }
}

/// Who was given something, in order.
fn executions(effects: &[Effect]) -> Vec<ExecutionId> {
    assigned(effects).into_iter().map(|(_, _, execution)| execution).collect()
}

#[test]
fn a_tenant_at_its_cap_waits_beside_an_idle_worker_and_others_do_not() {
    let mut play = Play::new();
    let (worker, _) = play.worker(1, 8, &[]);
    play.worker(2, 8, &[]);
    play.cap(1, Some(2));
    let runs = [play.submit(of(1)), play.submit(of(1))];
    let (waits, effects) = play.submit(of(1));
    assert_eq!(effects, [Effect::Queued(waits)]);
    assert_eq!(executions(&play.submit(of(2)).1).len(), 1, "others are not concerned");
    assert_eq!((play.given(1), play.given(2), play.scheduler.overlooked()), (2, 1, None));
    let said = play.scheduler.explain(waits, play.now).unwrap().to_string();
    assert!(said.ends_with("the tenant org-1 runs 2 of its 2 executions"), "{said}");
    let caps = play.scheduler.snapshot(play.now).caps;
    assert_eq!(caps, [CapState { tenant: "org-1".into(), queued: 1, running: 2, most: 2 }]);

    let on = |effects: &[Effect]| assigned(effects)[0];
    let (first_on, first, _) = on(&runs[0].1);
    assert_eq!(
        executions(&play.finish(first_on, first, Outcome::Answered)),
        [waits],
        "in the place of the one that ended"
    );
    play.happen(Event::WorkerLeft(worker));
    assert_eq!(play.scheduler.overlooked(), None);
}

#[test]
fn whoever_joins_what_runs_takes_nothing() {
    let mut play = Play::new();
    play.worker(1, 8, &[]);
    play.cap(1, Some(1));
    let (one, effects) = play.submit(same("a"));
    assert_eq!(executions(&effects), [one]);
    let (two, effects) = play.submit(same("a"));
    assert_eq!(effects, [Effect::Merged { submitted: two, into: one }]);
    assert_eq!(play.given(1), 1);
    let (other, effects) = play.submit(same("b"));
    assert_eq!(effects, [Effect::Queued(other)]);
    let (joins, effects) = play.submit(same("b"));
    assert_eq!(effects, [Effect::Merged { submitted: joins, into: other }], "what waits is joined as well");
}

#[test]
fn a_cap_that_is_changed_or_removed_counts_at_once() {
    let mut play = Play::new();
    let (worker, _) = play.worker(1, 8, &[]);
    play.cap(1, Some(1));
    let (_, first) = play.submit(of(1));
    let waiting: Vec<_> = (0..5).map(|_| play.submit(of(1)).0).collect();
    assert_eq!(executions(&play.cap(1, Some(3))), waiting[..2]);
    assert_eq!(executions(&play.cap(1, Some(1))), []);
    assert_eq!(play.given(1), 3, "what runs runs on");
    assert_eq!(executions(&play.finish(worker, assigned(&first)[0].1, Outcome::Answered)), []);
    assert_eq!(play.scarce(waiting[2]), Some(Scarce::Share { tenant: "org-1".into(), runs: 2, most: 1 }));
    assert_eq!(executions(&play.cap(1, None)), waiting[2..]);
    assert_eq!(play.scheduler.snapshot(play.now).caps, []);
}

#[test]
fn nobody_gets_more_by_cancelling() {
    let mut play = Play::new();
    let (worker, _) = play.worker(1, 8, &[]);
    play.cap(1, Some(1));
    let (one, effects) = play.submit(of(1));
    let (_, assignment, _) = assigned(&effects)[0];
    let (two, _) = play.submit(of(1));
    let effects = play.happen(Event::Cancel(one));
    assert_eq!((executions(&effects), play.given(1)), (vec![], 1), "its worker has not ended it yet");
    assert_eq!(executions(&play.finish(worker, assignment, Outcome::Cancelled)), [two]);
}

#[test]
fn what_failed_or_lost_its_worker_gives_its_place_back_and_takes_it_again() {
    let mut play = Play::new();
    let (first, _) = play.worker(1, 1, &[]);
    let (second, _) = play.worker(2, 1, &[]);
    play.cap(1, Some(1));
    let (one, effects) = play.submit(of(1));
    let (on, assignment, _) = assigned(&effects)[0];
    let other = if on == first { second } else { first };
    play.submit(of(1));
    let effects = play.finish(on, assignment, Outcome::WorkerFailed);
    assert_eq!(assigned(&effects).iter().map(|(worker, _, id)| (*worker, *id)).collect::<Vec<_>>(), [(other, one)]);
    let effects = play.happen(Event::WorkerLeft(other));
    assert_eq!((executions(&effects), play.given(1)), (vec![one], 1));
}

/// A tenant at its cap has lent its turns: it has some of them back, and not all.
#[test]
fn a_tenant_below_its_cap_again_is_served_and_nobody_else_starves() {
    let mut play = Play::new();
    let (worker, _) = play.worker(1, 4, &[]);
    play.cap(1, Some(1));
    for _ in 0..60 {
        play.submit(of(1));
        play.submit(of(2));
    }
    let mut running: Vec<_> =
        play.scheduler.snapshot(play.now).workers[0].running.iter().map(|run| run.assignment).collect();
    let mut most_of_one = 0;
    for turn in 0..40 {
        let ended = running.remove(if turn % 3 == 0 { running.len() - 1 } else { 0 });
        let effects = play.finish(worker, ended, Outcome::Answered);
        running.extend(assigned(&effects).iter().map(|(_, assignment, _)| *assignment));
        assert_eq!((play.given(1) + play.given(2), running.len()), (4, 4), "no room is left idle");
        assert_eq!(play.given(1), 1, "it is always given what it may have");
        most_of_one = most_of_one.max(play.given(2));
    }
    assert_eq!(most_of_one, 3);
    // Without a cap both have the same again before long: what was lent is not asked back without end.
    assert_eq!(executions(&play.cap(1, None)), [], "there is no room");
    for _ in 0..24 {
        let effects = play.finish(worker, running.remove(0), Outcome::Answered);
        running.extend(assigned(&effects).iter().map(|(_, assignment, _)| *assignment));
    }
    assert_eq!((play.given(1), play.given(2)), (2, 2));
}

/// What needs a whole worker has one kept free. Smaller ones of its tenant, and there are always some, must not take its place.
#[test]
fn what_is_large_does_not_starve_below_a_cap() {
    let mut play = Play::with(SchedulerConfig { worker_silence: secs(1_000_000), ..Default::default() });
    play.worker(1, 2, &[]);
    let (big, _) = play.worker(2, 4, &[]);
    play.cap(1, Some(2));
    // Others keep a core of the large worker busy.
    let (_, others) = play.submit(of(2));
    assert_eq!(assigned(&others)[0].0, big);
    let mut running: Vec<_> = (0..2).flat_map(|_| assigned(&play.submit(of(1)).1)).collect();
    let (whole, effects) = play.submit(large(1, 4));
    assert_eq!(effects, [Effect::Queued(whole)]);
    let mut others = Some(assigned(&others)[0].1);
    for _ in 0..200 {
        play.pass(secs(5));
        play.submit(of(1));
        if let Some((worker, assignment, _)) = running.pop() {
            running.extend(assigned(&play.finish(worker, assignment, Outcome::Answered)));
        }
        assert!(play.given(1) <= 2, "{running:?}");
        assert_eq!(play.scheduler.overlooked(), None);
        if matches!(play.scarce(whole), Some(Scarce::KeptFree { .. }))
            && let Some(other) = others.take()
        {
            running.extend(assigned(&play.finish(big, other, Outcome::Answered)));
        }
        if play.scarce(whole).is_none() {
            return;
        }
    }
    panic!("it starves");
}

/// A tenant that may run one, and has a worker kept free for it.
fn kept() -> (Play, ExecutionId, ExecutionId, AssignmentId) {
    let mut play = Play::with(SchedulerConfig { worker_silence: secs(1_000_000), ..Default::default() });
    let (worker, _) = play.worker(1, 4, &[]);
    play.cap(1, Some(1));
    let held: Vec<_> = (0..4).flat_map(|_| assigned(&play.submit(of(2)).1)).collect();
    let (whole, _) = play.submit(large(1, 4));
    play.pass(secs(40));
    let (next, _) = play.submit(of(1));
    play.finish(worker, held[0].1, Outcome::Answered);
    for (_, assignment, _) in &held[1..3] {
        play.finish(worker, *assignment, Outcome::Answered);
    }
    assert_eq!(play.scarce(whole), Some(Scarce::KeptFree { worker: "worker-1".into() }));
    (play, whole, next, held[3].1)
}

#[test]
fn the_one_that_a_worker_is_kept_free_for_has_the_place() {
    let (mut play, whole, next, last) = kept();
    let said = play.scheduler.explain(next, play.now).unwrap().to_string();
    let wants = "the tenant org-1 runs 0 of its 1 executions, and a worker is kept free for one that is next";
    assert!(said.ends_with(wants), "{said}");
    assert_eq!(executions(&play.finish(WorkerId(1), last, Outcome::Answered)), [whole]);
}

#[test]
fn the_one_that_a_worker_is_kept_free_for_takes_another_that_comes() {
    let (mut play, whole, _, _) = kept();
    let (worker, effects) = play.worker(2, 4, &[]);
    assert_eq!(assigned(&effects).iter().map(|(on, _, id)| (*on, *id)).collect::<Vec<_>>(), [(worker, whole)]);
    assert_eq!((play.given(1), play.scheduler.overlooked()), (1, None));
}

#[test]
fn what_is_kept_free_in_vain_or_for_what_is_cancelled_gives_the_place_back() {
    let (mut play, whole, next, _) = kept();
    assert_eq!(executions(&play.happen(Event::Cancel(whole))), [next]);
    let (mut play, _, next, _) = kept();
    assert_eq!(executions(&play.pass(SchedulerConfig::default().kept_free)), [next]);
}

/// Another worker stands idle, too small for what a worker is kept free for, and what would fit it waits for the place.
#[test]
fn whatever_gives_a_kept_worker_up_gives_the_place_to_what_has_room_elsewhere() {
    type GiveUp = fn(&mut Play, ExecutionId) -> Vec<Effect>;
    let gives_up: [(&str, GiveUp); 4] = [
        ("drains", |play, _| play.happen(Event::WorkerDraining(WorkerId(1)))),
        ("leaves", |play, _| play.happen(Event::WorkerLeft(WorkerId(1)))),
        ("is cancelled", |play, whole| play.happen(Event::Cancel(whole))),
        ("is kept in vain", |play, _| play.pass(SchedulerConfig::default().kept_free)),
    ];
    for (what, give_up) in gives_up {
        let (mut play, whole, next, _) = kept();
        let (_, effects) = play.worker(2, 2, &[("idle", "1")]);
        assert_eq!(
            (executions(&effects), play.scheduler.overlooked()),
            (vec![], None),
            "{what}: it waits for its turn"
        );
        let effects = give_up(&mut play, whole);
        assert!(executions(&effects).contains(&next), "{what}: {effects:?}");
        assert_eq!(play.scheduler.overlooked(), None, "{what}");
    }
}

#[test]
fn a_worker_that_fails_too_often_is_kept_free_no_more() {
    let mut play =
        Play::with(SchedulerConfig { worker_silence: secs(1_000_000), max_attempts: 100, ..Default::default() });
    let (worker, _) = play.worker(1, 6, &[]);
    play.cap(1, Some(1));
    let held: Vec<_> = (0..6).flat_map(|_| assigned(&play.submit(of(2)).1)).collect();
    let (whole, _) = play.submit(large(1, 6));
    play.pass(secs(40));
    let (next, _) = play.submit(of(1));
    play.finish(worker, held[0].1, Outcome::WorkerFailed);
    assert_eq!(play.scarce(whole), Some(Scarce::KeptFree { worker: "worker-1".into() }));
    play.worker(2, 1, &[("idle", "1")]);
    let mut given = Vec::new();
    for (_, assignment, _) in &held[1..5] {
        given.extend(executions(&play.finish(worker, *assignment, Outcome::WorkerFailed)));
        assert_eq!(play.scheduler.overlooked(), None);
    }
    // The idle worker runs what failed meanwhile; then it is the turn of what waited.
    for _ in 0..8 {
        let runs: Vec<_> =
            play.scheduler.snapshot(play.now).workers[1].running.iter().map(|run| run.assignment).collect();
        runs.iter().for_each(|run| given.extend(executions(&play.finish(WorkerId(2), *run, Outcome::Answered))));
        assert_eq!(play.scheduler.overlooked(), None);
    }
    assert!(given.contains(&next), "{given:?}");
}

#[test]
fn a_cap_below_what_runs_keeps_no_worker_free() {
    let mut play = Play::with(SchedulerConfig { worker_silence: secs(1_000_000), ..Default::default() });
    let (worker, _) = play.worker(1, 4, &[]);
    play.cap(1, Some(2));
    let own = assigned(&play.submit(of(1)).1)[0].1;
    let held: Vec<_> = (0..3).flat_map(|_| assigned(&play.submit(of(2)).1)).collect();
    let (whole, _) = play.submit(large(1, 4));
    play.pass(secs(40));
    play.submit(of(1));
    play.finish(worker, held[0].1, Outcome::Answered);
    assert_eq!(play.scarce(whole), Some(Scarce::KeptFree { worker: "worker-1".into() }));
    play.cap(1, Some(1));
    assert_eq!(play.scarce(whole), Some(Scarce::Share { tenant: "org-1".into(), runs: 1, most: 1 }));
    assert_eq!(executions(&play.submit(of(2)).1).len(), 1, "the room is everybody's");
    play.finish(worker, own, Outcome::Answered);
    assert_eq!(play.scheduler.overlooked(), None);
}
