//! Whether there is a worker, or may be one soon.

use super::*;

fn no_worker(effects: &[Effect]) -> Option<NoWorker> {
    match ended(effects).pop() {
        Some((_, End::NoWorker(why))) => Some(why),
        _ => None,
    }
}

/// Fails at once, since no worker here has this; and why, for people.
fn check(submission: Submission, why: &str) {
    let mut play = Play::new();
    play.worker(1, 2, &[("cpu", "arm64"), ("gpu", "1")]);
    play.worker(2, 8, &[("cpu", "x86_64"), ("cpu", "i686")]);
    play.pass(secs(10));
    let (_, effects) = play.submit(submission);
    assert_eq!(no_worker(&effects).expect("it fails at once").to_string(), why);
}

#[test]
fn what_no_worker_has_fails_at_once_and_says_what_differs() {
    let asking = |wanted: &[(&str, &str)]| Submission { platform: platform(wanted), ..job() };
    check(
        asking(&[("OSFamily", "plan9")]),
        "none of 2 workers can run it; the nearest, worker-2, has OSFamily=linux, while OSFamily=plan9 is wanted",
    );
    check(
        asking(&[("OSFamily", "linux"), ("cpu", "x86_64"), ("kvm", "1")]),
        "none of 2 workers can run it; the nearest, worker-2, has no kvm, while kvm=1 is wanted",
    );
    check(
        asking(&[("cpu", "mips")]),
        "none of 2 workers can run it; the nearest, worker-2, has cpu=i686 or x86_64, while cpu=mips is wanted",
    );
    check(
        Submission { demand: cores(9), ..job() },
        "none of 2 workers can run it; the nearest, worker-2, has 8 cores and 8192 MiB of memory, while 9 cores and \
         9216 MiB of memory are wanted",
    );
    check(
        Submission { demand: cores(4), ..asking(&[("gpu", "1")]) },
        "none of 2 workers can run it; the nearest, worker-1, has 2 cores and 2048 MiB of memory, while 4 cores and \
         4096 MiB of memory are wanted",
    );
}

#[test]
fn without_any_worker_it_says_so() {
    let mut play = Play::new();
    let (_, effects) = play.submit(job());
    assert_eq!(no_worker(&effects).unwrap().to_string(), "there is no worker");
}

#[test]
fn after_the_start_workers_may_be_about_to_come() {
    let mut play = Play { scheduler: Scheduler::new(SchedulerConfig::default()), now: Now(secs(7)), next_execution: 1 };
    let (one, effects) = play.submit(job());
    assert_eq!(effects, [Effect::Queued(one)]);
    assert_eq!(play.pass(secs(59)), []);
    assert!(no_worker(&play.pass(secs(1))).is_some());
}

#[test]
fn once_a_worker_came_the_others_follow_soon_or_not_at_all() {
    let mut play = Play { scheduler: Scheduler::new(SchedulerConfig::default()), now: Now(secs(7)), next_execution: 1 };
    let gpu = || Submission { platform: platform(&[("gpu", "1")]), ..job() };
    play.submit(gpu());
    play.pass(secs(10));
    play.worker(1, 1, &[]);
    let (late, effects) = play.submit(gpu());
    assert_eq!(effects, [Effect::Queued(late)]);
    assert_eq!(play.pass(secs(4)), []);
    assert_eq!(ended(&play.pass(secs(1))).len(), 2);
    assert!(no_worker(&play.submit(gpu()).1).is_some());
}

#[test]
fn when_the_last_worker_of_a_kind_left_it_waits_for_another_one() {
    for draining in [false, true] {
        let mut play = Play::new();
        let (worker, _) = play.worker(1, 1, &[]);
        play.submit(job());
        let (waits, _) = play.submit(job());
        if draining {
            play.happen(Event::WorkerDraining(worker));
        } else {
            play.happen(Event::WorkerLeft(worker));
        }
        play.pass(secs(30));
        play.happen(Event::WorkerHeard(worker));
        let (new, effects) = play.submit(job());
        assert_eq!(effects, [Effect::Queued(new)], "one of its kind was here lately");
        let effects = play.pass(secs(30));
        assert!(ended(&effects).iter().any(|(ended, _)| *ended == waits), "{effects:?}");
        assert!(ended(&effects).iter().any(|(ended, _)| *ended == new), "{effects:?}");
        assert!(no_worker(&play.submit(job()).1).is_some());
    }
}

#[test]
fn a_worker_that_returns_in_time_takes_what_waits() {
    let mut play = Play::new();
    play.worker(1, 1, &[]);
    play.happen(Event::WorkerLeft(WorkerId(1)));
    play.pass(secs(59));
    let (waits, _) = play.submit(job());
    assert_eq!(assigned(&play.worker(2, 1, &[]).1)[0].2, waits);
    assert_eq!(play.pass(secs(10)), []);
}

#[test]
fn workers_that_come_under_ever_new_names_are_forgotten() {
    let mut play = Play::new();
    for id in 0..3000 {
        let name = id.to_string();
        play.worker(id, 1, &[("hostname", &name)]);
        play.happen(Event::WorkerLeft(WorkerId(id)));
    }
    let classes = |play: &Play| play.scheduler.held().into_iter().find(|(what, _)| *what == "classes").unwrap().1;
    assert_eq!(classes(&play), super::super::workers::MAX_DEPARTED);
    play.pass(secs(60));
    assert_eq!(classes(&play), 0);
    assert_eq!(play.scheduler.wake_at(), None);
}
