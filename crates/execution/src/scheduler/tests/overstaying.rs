//! What lasts too long is ended, and what runs beside it goes on.

use super::*;

/// One worker of two cores that nobody takes for silent runs something for which it has 60 s, beside a neighbour for
/// which it has a day.
struct Pair {
    play: Play,
    worker: WorkerId,
    long: ExecutionId,
    assignment: AssignmentId,
}

fn pair() -> Pair {
    let mut play = Play::with(SchedulerConfig { worker_silence: secs(100_000), ..Default::default() });
    let (worker, _) = play.worker(1, 2, &[]);
    let (long, effects) = play.submit(job());
    play.submit(Submission { timeout: secs(86_400), ..job() });
    Pair { play, worker, long, assignment: assigned(&effects)[0].1 }
}

impl Pair {
    /// The bound is over so much later, and not before.
    fn is_withdrawn_after(&mut self, time: u64) -> Vec<Effect> {
        assert_eq!(self.play.pass(secs(time - 1)), []);
        let effects = self.play.pass(secs(1));
        let (worker, assignment) = (self.worker, self.assignment);
        assert_eq!(effects[0], Effect::Withdraw { worker, assignment });
        effects
    }

    fn says(&mut self, stage: RunStage) {
        self.play.happen(Event::Progressed { worker: self.worker, assignment: self.assignment, stage });
    }
}

#[test]
fn what_overstays_is_tried_elsewhere_and_its_neighbour_goes_on() {
    let mut pair = pair();
    assert_eq!(pair.is_withdrawn_after(660)[1..], [Effect::Queued(pair.long)]);
    let (other, effects) = pair.play.worker(2, 1, &[]);
    assert_eq!(assigned(&effects)[0].2, pair.long);
    pair.play.finish(pair.worker, pair.assignment, Outcome::Cancelled);
    assert_eq!(pair.play.pass(secs(600)), []);
    let answer = assigned(&effects)[0].1;
    let end = Effect::Complete { execution: pair.long, end: End::Answered(answer) };
    assert_eq!(pair.play.finish(other, answer, Outcome::Answered), [end]);
}

#[test]
fn a_worker_that_does_not_stop_what_was_withdrawn_is_dismissed() {
    let mut pair = pair();
    pair.is_withdrawn_after(660);
    assert_eq!(pair.play.pass(secs(59)), []);
    assert_eq!(pair.play.pass(secs(1))[0], Effect::Dismiss(pair.worker));
}

#[test]
fn what_is_cancelled_has_its_time_to_stop() {
    for (runs, stops) in [(0, 600), (650, 60)] {
        let mut pair = pair();
        assert_eq!(pair.play.pass(secs(runs)), []);
        assert_eq!(ended(&pair.play.happen(Event::Cancel(pair.long))).len(), 1);
        assert_eq!(pair.play.pass(secs(stops - 1)), []);
        assert_eq!(pair.play.pass(secs(1))[0], Effect::Dismiss(pair.worker));
    }
}

#[test]
fn what_goes_on_has_more_time() {
    let mut fetching = pair();
    fetching.play.pass(secs(500));
    fetching.says(RunStage::Running);
    fetching.is_withdrawn_after(660);
    let mut uploading = pair();
    uploading.play.pass(secs(500));
    uploading.says(RunStage::Uploading);
    uploading.is_withdrawn_after(600);
}

#[test]
fn what_goes_on_for_ever_is_ended_all_the_same() {
    let mut pair = pair();
    for _ in 0..36 {
        assert_eq!(ended(&pair.play.pass(secs(100))), []);
        pair.says(RunStage::Uploading);
    }
    pair.is_withdrawn_after(60);
}

#[test]
fn what_overstays_again_and_again_is_given_up() {
    let mut pair = pair();
    for _ in 0..2 {
        assert_eq!(pair.is_withdrawn_after(660)[1..], [Effect::Queued(pair.long)]);
        assert_eq!(pair.play.finish(pair.worker, pair.assignment, Outcome::Cancelled), []);
        pair.assignment = assigned(&pair.play.pass(AVOIDED_FOR))[0].1;
    }
    assert_eq!(ended(&pair.is_withdrawn_after(660)), [(pair.long, End::GivenUp { attempts: 3 })]);
}
