//! Why is this action waiting?

use super::*;

fn text(play: &Play, id: ExecutionId) -> String {
    play.scheduler.explain(id, play.now).expect("it is known").to_string()
}

#[test]
fn the_position_is_the_order_in_which_they_are_served() {
    let mut play = Play::new();
    let (worker, _) = play.worker(1, 1, &[]);
    let (_, first) = play.submit(by(1, "a"));
    let lines =
        [(1, "a", 0), (2, "x", 0), (1, "b", 0), (1, "a", 0), (2, "y", 0), (3, "z", 0), (1, "b", 2), (1, "a", 0)];
    let mut waiting = Vec::new();
    for (payer, invocation, priority) in lines.iter().chain(&lines) {
        waiting.push(play.submit(Submission { priority: *priority, ..by(*payer, invocation) }).0);
        play.now = play.now.after(Duration::from_millis(1));
    }
    let position = |play: &Play, id| match play.scheduler.explain(id, play.now).unwrap().situation {
        Situation::Queued { ahead, .. } => ahead.position(),
        Situation::Running { .. } => 0,
    };
    let mut next = first;
    for left in (1..=waiting.len()).rev() {
        let mut positions: Vec<_> = waiting.iter().map(|id| (position(&play, *id), *id)).collect();
        positions.sort_unstable();
        assert_eq!(positions.iter().map(|(place, _)| *place).collect::<Vec<_>>(), (1..=left).collect::<Vec<_>>());
        next = play.finish(worker, assigned(&next)[0].1, Outcome::Answered);
        assert_eq!(assigned(&next)[0].2, positions[0].1);
        waiting.retain(|id| *id != positions[0].1);
    }
}

#[test]
fn it_tells_what_runs_where() {
    let mut play = Play::new();
    let (worker, _) = play.worker(1, 1, &[]);
    let (one, effects) = play.submit(job());
    let (assignment, stage) = (assigned(&effects)[0].1, RunStage::Running);
    play.happen(Event::Progressed { worker, assignment, stage });
    play.pass(secs(5));
    assert_eq!(text(&play, one), "it runs on worker-1 since 5 s, running");
}

#[test]
fn it_counts_what_is_ahead_and_names_no_other_tenant() {
    let mut play = Play::new();
    play.worker(1, 1, &[]);
    play.worker(2, 1, &[("gpu", "1")]);
    for _ in 0..6 {
        play.submit(by(2, "secret"));
    }
    play.submit(by(1, "mine too"));
    play.submit(by(1, "mine"));
    let (one, _) = play.submit(by(1, "mine"));
    play.pass(secs(9));
    let said = text(&play, one);
    assert!(!said.contains("secret"));
    assert_eq!(
        said,
        "it waits since 9 s; it is number 6 in its line, after 2 of yours (some of 1 other invocations), after 3 of 1 \
         other tenants; 2 workers match, 2 busy; it needs 1 cores, and no worker open to it has more than 0 free"
    );
}

/// After two workers of 2 cores, one with a GPU, were given one execution of one core each: what this one waits for.
fn check(submission: Submission, wants: &str) {
    let mut play = Play::new();
    play.worker(1, 2, &[]);
    play.worker(2, 2, &[("gpu", "1")]);
    let half = Submission { demand: Resources { memory_bytes: 3 << 29, ..cores(1) }, ..job() };
    play.submit(Submission { invocation: "one".into(), ..half.clone() });
    play.submit(Submission { invocation: "two".into(), ..half });
    let (one, effects) = play.submit(submission);
    assert_eq!(effects, [Effect::Queued(one)]);
    let said = text(&play, one);
    assert!(said.ends_with(wants), "{said}");
}

#[test]
fn it_names_what_is_scarce() {
    check(
        Submission { demand: cores(2), ..job() },
        "2 workers match, 2 busy; it needs 2 cores, and no worker open to it has more than 1 free",
    );
    check(
        Submission { demand: Resources { memory_bytes: 1 << 30, ..cores(1) }, ..job() },
        "2 workers match, 2 busy; it needs 1024 MiB of memory, and no worker open to it has more than 512 MiB free",
    );
    check(
        Submission { platform: platform(&[("gpu", "1")]), ..job() },
        "1 workers match, 1 busy; it needs 1024 MiB of memory, and no worker open to it has more than 512 MiB free",
    );
}

/// After each of three workers was given what makes it so, what an execution of one core that wants a GPU waits for.
fn check_gpu(happens: impl Fn(&mut Play), wants: &str) {
    let mut play = Play::with(SchedulerConfig { worker_silence: secs(100_000), ..Default::default() });
    for id in 1..=3 {
        play.worker(id, 1, if id < 3 { &[("gpu", "1")] } else { &[] });
    }
    happens(&mut play);
    let (one, effects) = play.submit(Submission { platform: platform(&[("gpu", "1")]), ..by(1, "one") });
    assert_eq!(effects, [Effect::Queued(one)]);
    let said = text(&play, one);
    assert!(said.ends_with(wants), "{said}");
}

fn fill(play: &mut Play, workers: usize) {
    for number in 0..workers {
        let gpu = if number < 2 { platform(&[("gpu", "1")]) } else { platform(&[]) };
        assert_eq!(assigned(&play.submit(Submission { platform: gpu, ..by(2, &number.to_string()) }).1).len(), 1);
    }
}

#[test]
fn a_property_is_scarce_while_a_worker_without_it_has_room() {
    check_gpu(|play| fill(play, 2), "2 workers match, 2 busy; only 2 of 3 workers have gpu=1");
    check_gpu(
        |play| fill(play, 3),
        "2 workers match, 2 busy; it needs 1 cores, and no worker open to it has more than 0 free",
    );
}

#[test]
fn what_is_free_of_a_worker_that_takes_nothing_is_not_counted() {
    let nobody = |play: &mut Play| {
        play.happen(Event::WorkerDraining(WorkerId(1)));
        fill(play, 1);
        play.happen(Event::WorkerLeft(WorkerId(3)));
    };
    check_gpu(
        nobody,
        "2 workers match, 1 busy, 1 taking nothing now; it needs 1 cores, and no worker open to it has more than 0 free",
    );
}

#[test]
fn it_says_that_it_waits_for_another_worker_only_if_this_one_had_room() {
    let mut play = Play::new();
    let (worker, _) = play.worker(1, 1, &[]);
    let (fails, effects) = play.submit(job());
    play.finish(worker, assigned(&effects)[0].1, Outcome::WorkerFailed);
    let said = text(&play, fails);
    assert!(
        said.contains("; the worker that has room failed it or handed it back, and it waits a moment for another;"),
        "{said}"
    );
    play.submit(job());
    let said = text(&play, fails);
    assert!(said.contains("it needs 1 cores, and no worker open to it has more than 0 free"), "{said}");
    assert_eq!(play.scheduler.overlooked(), None);
}

#[test]
fn the_most_that_is_free_is_less_than_what_is_wanted() {
    let mut play = Play::new();
    let with = |milli_cores, gib: u64| Resources { milli_cores, memory_bytes: gib << 30 };
    for (id, runs) in [(1, with(1000, 4)), (2, with(4000, 1))] {
        play.worker(id, 4, &[]);
        assert_eq!(assigned(&play.submit(Submission { demand: runs, ..by(2, &id.to_string()) }).1).len(), 1);
    }
    let (one, _) = play.submit(Submission { demand: with(2000, 1), ..job() });
    let said = text(&play, one);
    assert!(said.ends_with("it needs 2 cores, and no worker open to it has more than 0 free"), "{said}");
}

#[test]
fn it_says_that_there_is_no_worker_and_until_when_it_hopes() {
    let mut play = Play::new();
    play.worker(1, 1, &[]);
    play.worker(2, 1, &[("gpu", "1")]);
    play.happen(Event::WorkerLeft(WorkerId(2)));
    let (one, _) = play.submit(Submission { platform: platform(&[("gpu", "1")]), ..job() });
    play.pass(secs(12));
    assert_eq!(
        text(&play, one),
        "it waits since 12 s; it is number 1 in its line; 0 workers match; none of 1 workers can run it; the nearest, \
         worker-1, has no gpu, while gpu=1 is wanted; it fails in 48 s"
    );
}

#[test]
fn the_snapshot_counts_everything() {
    let mut play = Play::new();
    let (worker, _) = play.worker(1, 2, &[]);
    let (runs, effects) = play.submit(job());
    play.submit(Submission { demand: cores(2), ..job() });
    play.submit(Submission { demand: cores(2), platform: platform(&[]), ..job() });
    play.happen(Event::WorkerDraining(worker));
    play.pass(secs(3));
    let snapshot = play.scheduler.snapshot(play.now);
    assert_eq!((snapshot.queued, snapshot.running), (2, 1));
    let counts: Vec<_> = snapshot.queues.iter().map(|queue| (queue.queued, queue.running, queue.oldest_wait)).collect();
    assert_eq!(counts, [(1, 1, Some(secs(3))), (1, 0, Some(secs(3)))]);
    let worker = &snapshot.workers[0];
    assert_eq!((&*worker.name, worker.draining, worker.capacity, worker.free), ("worker-1", true, cores(2), cores(1)));
    let running = RunningState {
        assignment: assigned(&effects)[0].1,
        execution: Some(runs),
        stage: RunStage::Fetching,
        lasts: secs(3),
    };
    assert_eq!(worker.running, [running]);
}
