//! What fails on a worker goes elsewhere, and nobody waits for that.

use super::*;

/// Both of two workers are busy, others wait, and what the first runs fails there.
fn failed_while_others_wait(play: &mut Play) -> (ExecutionId, Vec<ExecutionId>, Vec<Effect>) {
    play.worker(1, 1, &[]);
    let (fails, effects) = play.submit(job());
    play.worker(2, 1, &[]);
    play.submit(job());
    let waiting = (0..3).map(|_| play.submit(job()).0).collect();
    let effects = play.finish(WorkerId(1), assigned(&effects)[0].1, Outcome::WorkerFailed);
    (fails, waiting, effects)
}

#[test]
fn a_worker_that_failed_takes_what_comes_after() {
    let mut play = Play::new();
    let (fails, waiting, effects) = failed_while_others_wait(&mut play);
    assert_eq!(effects[0], Effect::Queued(fails));
    let (worker, _, execution) = assigned(&effects)[0];
    assert_eq!((worker, execution), (WorkerId(1), waiting[0]));
}

#[test]
fn a_worker_that_failed_goes_on_when_the_one_that_avoids_it_is_gone() {
    let mut play = Play::new();
    let (worker, _) = play.worker(1, 1, &[]);
    let (fails, effects) = play.submit(job());
    let (waits, _) = play.submit(job());
    let mut effects = play.finish(worker, assigned(&effects)[0].1, Outcome::WorkerFailed);
    effects.extend(play.happen(Event::Cancel(fails)));
    assert_eq!(assigned(&effects)[0].2, waits);
    assert_eq!(ended(&effects), [(fails, End::Cancelled)]);
}

#[test]
fn who_comes_to_a_line_that_avoids_the_worker_has_it() {
    for payer in [1, 2] {
        let mut play = Play::new();
        let (worker, _) = play.worker(1, 1, &[]);
        let (fails, effects) = play.submit(job());
        assert_eq!(play.finish(worker, assigned(&effects)[0].1, Outcome::WorkerFailed), [Effect::Queued(fails)]);
        let (new, effects) = play.submit(by(payer, "another"));
        assert_eq!(assigned(&effects)[0].2, new);
        assert_eq!(ended(&play.happen(Event::Cancel(fails))).len(), 1);
    }
}

#[test]
fn what_fails_is_not_waited_for_by_priority_either() {
    let mut play = Play::new();
    let (worker, _) = play.worker(1, 1, &[]);
    let (_, effects) = play.submit(Submission { priority: -5, ..job() });
    let (waits, _) = play.submit(job());
    let effects = play.finish(worker, assigned(&effects)[0].1, Outcome::WorkerFailed);
    assert_eq!(assigned(&effects)[0].2, waits);
}

#[test]
fn losses_and_failures_are_counted_apart() {
    let mut play = Play::new();
    play.worker(1, 1, &[]);
    let (one, effects) = play.submit(job());
    let mut at = assigned(&effects)[0];
    // Lost twice.
    for id in 2..4 {
        assert_eq!(play.happen(Event::WorkerLeft(at.0)), [Effect::Queued(one)]);
        at = assigned(&play.worker(id, 1, &[]).1)[0];
    }
    // Failed twice.
    for _ in 0..2 {
        assert_eq!(play.finish(at.0, at.1, Outcome::WorkerFailed), [Effect::Queued(one)]);
        at = assigned(&play.pass(AVOIDED_FOR))[0];
    }
    let effects = play.happen(Event::WorkerLeft(at.0));
    assert_eq!(ended(&effects), [(one, End::GivenUp { attempts: 5 })], "lost three times");
}

#[test]
fn what_is_handed_back_costs_nobody_anything() {
    let mut play = Play::new();
    let (leaving, _) = play.worker(1, 8, &[]);
    let given: Vec<_> = (0..8).map(|_| assigned(&play.submit(job()).1)[0]).collect();
    let (other, _) = play.worker(2, 8, &[]);
    play.happen(Event::WorkerDraining(leaving));
    for (_, assignment, execution) in &given {
        let effects = play.finish(leaving, *assignment, Outcome::HandedBack);
        let again = assigned(&effects);
        assert_eq!((effects[0].clone(), again[0].0, again[0].2), (Effect::Queued(*execution), other, *execution));
    }
    let rests = play.scheduler.snapshot(play.now).workers[0].rests;
    assert_eq!(rests, None);
}

#[test]
fn what_is_handed_back_for_ever_is_given_up() {
    let mut play = Play::with(SchedulerConfig { worker_silence: secs(100_000), ..Default::default() });
    let (worker, _) = play.worker(1, 1, &[]);
    let (one, effects) = play.submit(job());
    let mut assignment = assigned(&effects)[0].1;
    for _ in 0..15 {
        assert_eq!(play.finish(worker, assignment, Outcome::HandedBack), [Effect::Queued(one)]);
        assignment = assigned(&play.pass(AVOIDED_FOR))[0].1;
    }
    let effects = play.finish(worker, assignment, Outcome::HandedBack);
    assert_eq!(ended(&effects), [(one, End::GivenUp { attempts: 16 })]);
}

#[test]
fn one_that_fails_again_and_again_does_not_make_its_worker_rest() {
    let config = SchedulerConfig { max_attempts: 20, worker_silence: secs(100_000), ..Default::default() };
    let mut play = Play::with(config);
    let (worker, _) = play.worker(1, 1, &[]);
    let (_, effects) = play.submit(job());
    let mut assignment = assigned(&effects)[0].1;
    for _ in 0..10 {
        play.finish(worker, assignment, Outcome::WorkerFailed);
        assert_eq!(play.scheduler.snapshot(play.now).workers[0].rests, None);
        assignment = assigned(&play.pass(AVOIDED_FOR))[0].1;
    }
}
