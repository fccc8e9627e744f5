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
