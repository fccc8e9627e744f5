//! Identical work, lost workers, cancelled work, late answers.

use super::*;

#[test]
fn identical_work_runs_once() {
    let mut play = Play::new();
    let (worker, _) = play.worker(1, 1, &[]);
    let (one, effects) = play.submit(same("x"));
    let assignment = assigned(&effects)[0].1;
    let (two, effects) = play.submit(same("x"));
    assert_eq!(effects, [Effect::Merged { submitted: two, into: one }]);
    let (_, effects) = play.submit(Submission { merge: None, ..same("x") });
    assert!(matches!(effects[..], [Effect::Queued(_)]), "{effects:?}");
    let effects = play.finish(worker, assignment, Outcome::Answered);
    assert_eq!(effects[0], Effect::Complete { execution: one, end: End::Answered(assignment) });
    let (_, effects) = play.submit(same("x"));
    assert!(matches!(effects[..], [Effect::Queued(_)]), "what is over is not merged with: {effects:?}");
}

#[test]
fn who_joins_with_a_better_priority_hurries_all() {
    let mut play = Play::new();
    let (worker, _) = play.worker(1, 1, &[]);
    let (_, first) = play.submit(job());
    play.submit(job());
    let (slow, _) = play.submit(Submission { priority: 5, ..same("x") });
    play.submit(Submission { priority: -1, ..same("x") });
    play.submit(Submission { priority: 7, ..same("x") });
    assert_eq!(play.serve(worker, &first, 2)[1], slow);
}

#[test]
fn work_goes_on_until_nobody_waits_for_long() {
    let mut play = Play::new();
    play.worker(1, 1, &[]);
    let (one, effects) = play.submit(same("x"));
    let (worker, assignment, _) = assigned(&effects)[0];
    play.submit(same("x"));
    play.happen(Event::WaiterLeft(one));
    assert_eq!(ended(&play.pass(secs(25))), []);
    play.happen(Event::WorkerHeard(worker));
    play.happen(Event::WaiterLeft(one));
    play.pass(secs(19));
    play.happen(Event::WaiterJoined(one));
    play.happen(Event::WorkerHeard(worker));
    assert_eq!(ended(&play.pass(secs(25))), []);
    play.happen(Event::WorkerHeard(worker));
    play.happen(Event::WaiterLeft(one));
    let effects = play.pass(secs(20));
    let end = Effect::Complete { execution: one, end: End::Cancelled };
    assert_eq!(effects, [Effect::Withdraw { worker, assignment }, end]);
}

#[test]
fn what_was_withdrawn_takes_its_room_until_the_worker_says_so() {
    let mut play = Play::new();
    let (worker, _) = play.worker(1, 1, &[]);
    let (one, effects) = play.submit(job());
    let assignment = assigned(&effects)[0].1;
    let (two, _) = play.submit(job());
    let effects = play.happen(Event::Cancel(one));
    assert_eq!((effects.len(), assigned(&effects)), (2, vec![]));
    assert_eq!(play.happen(Event::Cancel(one)), [], "it is over");
    let stage = RunStage::Uploading;
    assert_eq!(play.happen(Event::Progressed { worker, assignment, stage }), []);
    let effects = play.finish(worker, assignment, Outcome::Answered);
    assert_eq!(effects.len(), 1, "no second end: {effects:?}");
    assert_eq!(assigned(&effects)[0].2, two);
}

#[test]
fn a_lost_worker_gives_back_what_it_ran_until_that_is_too_often() {
    let mut play = Play::new();
    let (one, _, attempts) = lose_again_and_again(&mut play);
    assert_eq!(attempts, 3);
    assert_eq!(play.scheduler.explain(one, play.now), None);
}

fn lose_again_and_again(play: &mut Play) -> (ExecutionId, Vec<Effect>, u32) {
    play.worker(1, 1, &[]);
    let (one, _) = play.submit(job());
    for id in 1..10 {
        let effects = play.happen(Event::WorkerLeft(WorkerId(id)));
        if let [(_, End::GivenUp { attempts })] = ended(&effects)[..] {
            return (one, effects, attempts);
        }
        assert_eq!(effects, [Effect::Queued(one)]);
        assert_eq!(assigned(&play.worker(id + 1, 1, &[]).1)[0].2, one);
    }
    unreachable!("it is given up");
}

#[test]
fn what_comes_back_goes_to_the_front_of_its_invocation() {
    let mut play = Play::new();
    play.worker(1, 1, &[]);
    let (one, _) = play.submit(job());
    play.pass(secs(1));
    play.submit(job());
    play.happen(Event::WorkerLeft(WorkerId(1)));
    assert_eq!(assigned(&play.worker(2, 1, &[]).1)[0].2, one);
}

#[test]
fn what_failed_goes_to_another_worker_if_there_is_one() {
    let mut play = Play::new();
    let (first, _) = play.worker(1, 8, &[]);
    let (one, effects) = play.submit(job());
    let assignment = assigned(&effects)[0].1;
    play.worker(2, 1, &[]);
    let effects = play.finish(first, assignment, Outcome::WorkerFailed);
    assert_eq!(effects[0], Effect::Queued(one));
    let (second, assignment, _) = assigned(&effects)[0];
    assert_eq!(second, WorkerId(2));
    play.happen(Event::WorkerLeft(first));
    // No other worker: it waits a moment for one, and comes back.
    assert_eq!(play.finish(second, assignment, Outcome::WorkerFailed), [Effect::Queued(one)]);
    assert_eq!(assigned(&play.pass(AVOIDED_FOR))[0].0, second);
}

#[test]
fn a_worker_that_fails_again_and_again_rests_for_a_bounded_time() {
    let mut play = Play::with(SchedulerConfig { max_attempts: 1, worker_silence: secs(100_000), ..Default::default() });
    let (worker, _) = play.worker(1, 1, &[]);
    let (_, mut effects) = play.submit(job());
    for _ in 0..20 {
        play.submit(job());
    }
    let mut rests = Vec::new();
    for _ in 0..12 {
        let assignment = assigned(&effects)[0].1;
        effects = play.finish(worker, assignment, Outcome::WorkerFailed);
        let failed = play.now;
        while assigned(&effects).is_empty() {
            effects = play.pass(secs(1));
        }
        rests.push(play.now.since(failed).as_secs());
    }
    assert_eq!(rests, [0, 0, 0, 0, 10, 20, 40, 80, 160, 300, 300, 300]);
    let assignment = assigned(&effects)[0].1;
    effects = play.finish(worker, assignment, Outcome::Answered);
    let assignment = assigned(&effects)[0].1;
    assert_eq!(assigned(&play.finish(worker, assignment, Outcome::WorkerFailed)).len(), 1, "one is forgiven again");
}

#[test]
fn a_silent_worker_is_dismissed() {
    let mut play = Play::new();
    let (worker, _) = play.worker(1, 1, &[]);
    let (one, _) = play.submit(job());
    play.pass(secs(29));
    play.happen(Event::WorkerHeard(worker));
    assert_eq!(play.pass(secs(29)), []);
    assert_eq!(play.pass(secs(1)), [Effect::Dismiss(worker), Effect::Queued(one)]);
    assert_eq!(play.happen(Event::WorkerLeft(worker)), [], "known already");
}

#[test]
fn late_and_strange_answers_are_ignored() {
    let mut play = Play::new();
    let (silent, _) = play.worker(1, 1, &[]);
    let (one, effects) = play.submit(job());
    let late = assigned(&effects)[0].1;
    play.pass(secs(20));
    let (other, _) = play.worker(2, 1, &[]);
    assert_eq!(play.finish(other, late, Outcome::Answered), [], "not its own");
    let stage = RunStage::Running;
    assert_eq!(play.happen(Event::Progressed { worker: other, assignment: late, stage }), []);
    let effects = play.pass(secs(10));
    let now_with = assigned(&effects)[0];
    assert_eq!((now_with.0, now_with.2), (other, one));
    assert_eq!(play.finish(silent, late, Outcome::Answered), []);
    assert_eq!(play.finish(other, AssignmentId(77), Outcome::Answered), []);
    assert_eq!(play.happen(Event::Cancel(ExecutionId(77))), []);
    let ends = play.finish(other, now_with.1, Outcome::Answered);
    assert_eq!(ends, [Effect::Complete { execution: one, end: End::Answered(now_with.1) }]);
}

#[test]
fn stages_are_told_once() {
    let mut play = Play::new();
    let (worker, _) = play.worker(1, 1, &[]);
    let (one, effects) = play.submit(job());
    let assignment = assigned(&effects)[0].1;
    let stage = RunStage::Running;
    assert_eq!(play.happen(Event::Progressed { worker, assignment, stage }), [Effect::Stage { execution: one, stage }]);
    assert_eq!(play.happen(Event::Progressed { worker, assignment, stage }), []);
}

#[test]
fn a_draining_worker_ends_what_it_runs_and_takes_nothing_more() {
    let mut play = Play::new();
    let (worker, _) = play.worker(1, 1, &[]);
    let (one, effects) = play.submit(job());
    let assignment = assigned(&effects)[0].1;
    play.submit(job());
    play.happen(Event::WorkerDraining(worker));
    let effects = play.finish(worker, assignment, Outcome::Answered);
    assert_eq!(effects, [Effect::Complete { execution: one, end: End::Answered(assignment) }]);
}

#[test]
fn a_clock_that_steps_back_stands_still() {
    let mut play = Play::new();
    play.worker(1, 1, &[]);
    play.submit(job());
    let mut effects = Vec::new();
    play.scheduler.apply(Event::Tick, Now::default(), &mut effects);
    play.scheduler.apply(Event::WorkerHeard(WorkerId(1)), Now::default(), &mut effects);
    assert_eq!(effects, []);
    assert!(play.scheduler.wake_at().unwrap() >= play.now);
}

#[test]
fn a_full_queue_refuses() {
    let mut play = Play::with(SchedulerConfig { max_queued: 2, ..Default::default() });
    play.worker(1, 1, &[]);
    (0..3).for_each(|_| assert_eq!(ended(&play.submit(job()).1), []));
    let (last, effects) = play.submit(job());
    assert_eq!(effects, [Effect::Complete { execution: last, end: End::QueueFull }]);
}

#[test]
fn a_tenant_does_not_fill_the_queue_for_others() {
    let mut play = Play::with(SchedulerConfig { max_queued: 5, max_queued_of_tenant: 2, ..Default::default() });
    let (worker, _) = play.worker(1, 1, &[]);
    let (_, first) = play.submit(job());
    (0..2).for_each(|_| assert_eq!(ended(&play.submit(job()).1), []));
    let (refused, effects) = play.submit(job());
    assert_eq!(effects, [Effect::Complete { execution: refused, end: End::QueueFull }]);
    (0..2).for_each(|_| assert_eq!(ended(&play.submit(by(2, "b")).1), []));
    // Whoever was served has room for one more.
    play.serve(worker, &first, 2);
    assert_eq!(ended(&play.submit(job()).1), []);
}
