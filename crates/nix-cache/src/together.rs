//! Work that many bring at the same time and that costs as much for all of them as for one: a transaction, whose commit
//! waits for the disk.
//!
//! Whoever has the turn does what has come until then, for everybody; meanwhile the next work gathers. So nobody waits
//! for others to come, and the more there are, the more are done at once.
//!
//! What always holds: an answer is given only after the work was done; what nobody waits for any more is not begun; when
//! one who has the turn gives up, the next one does the work.

use std::collections::VecDeque;
use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{Mutex as Turns, oneshot};

/// The most that is done at once: others wait for the same connection.
const AT_ONCE: usize = 64;

/// Work of one kind, by whoever brings it. What waits is as much as there are who wait.
pub(crate) struct Together<J, R> {
    waiting: Mutex<VecDeque<Waiting<J, R>>>,
    turns: Turns<()>,
}

struct Waiting<J, R> {
    job: Arc<J>,
    answer: oneshot::Sender<R>,
}

impl<J, R> Default for Together<J, R> {
    fn default() -> Self {
        Self { waiting: Mutex::default(), turns: Turns::new(()) }
    }
}

impl<J, R> Together<J, R> {
    /// Has a job done, with those of others: `do_all` gives an answer for each, in their order.
    pub(crate) async fn bring<F>(&self, job: J, do_all: impl Fn(Vec<Arc<J>>) -> F) -> R
    where
        F: Future<Output = Vec<R>>,
    {
        let (answer, mut answered) = oneshot::channel();
        self.waiting().push_back(Waiting { job: Arc::new(job), answer });
        let _turn = self.turns.lock().await;
        loop {
            // Done by one before, or now; or it is further behind.
            if let Ok(answer) = answered.try_recv() {
                return answer;
            }
            let mut batch = Batch::take(self);
            let answers = do_all(batch.jobs()).await;
            batch.answer(answers);
        }
    }

    fn waiting(&self) -> std::sync::MutexGuard<'_, VecDeque<Waiting<J, R>>> {
        // Nothing panics under the lock, and a queue is whole between two of its calls.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What is being done; dropped before it was, it waits again.
struct Batch<'a, J, R> {
    together: &'a Together<J, R>,
    taken: Vec<Waiting<J, R>>,
}

impl<'a, J, R> Batch<'a, J, R> {
    fn take(together: &'a Together<J, R>) -> Self {
        let mut waiting = together.waiting();
        let mut taken = Vec::new();
        while taken.len() < AT_ONCE
            && let Some(next) = waiting.pop_front()
        {
            if !next.answer.is_closed() {
                taken.push(next);
            }
        }
        drop(waiting);
        Self { together, taken }
    }

    fn jobs(&self) -> Vec<Arc<J>> {
        self.taken.iter().map(|waiting| Arc::clone(&waiting.job)).collect()
    }

    fn answer(&mut self, answers: Vec<R>) {
        for (waiting, answer) in self.taken.drain(..).zip(answers) {
            // Who gave up meanwhile wants none.
            let _ = waiting.answer.send(answer);
        }
    }
}

impl<J, R> Drop for Batch<'_, J, R> {
    fn drop(&mut self) {
        let mut waiting = self.together.waiting();
        while let Some(last) = self.taken.pop() {
            waiting.push_front(last);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use futures::future::join_all;
    use tokio::sync::Notify;

    use super::*;

    async fn doubled(jobs: Vec<Arc<u32>>) -> Vec<u32> {
        tokio::task::yield_now().await;
        jobs.iter().map(|job| **job * 2).collect()
    }

    #[tokio::test]
    async fn each_gets_its_own_answer_and_few_batches_are_done() {
        let (together, batches) = (Together::<u32, u32>::default(), AtomicUsize::new(0));
        let count = 3 * AT_ONCE + 1;
        let all = (0..count).map(|number| {
            let number = u32::try_from(number).unwrap();
            let (together, batches) = (&together, &batches);
            async move {
                let answer = together.bring(number, |jobs| {
                    batches.fetch_add(1, Ordering::SeqCst);
                    assert!(jobs.len() <= AT_ONCE);
                    doubled(jobs)
                });
                assert_eq!(answer.await, number * 2);
            }
        });
        join_all(all).await;
        assert_eq!(batches.load(Ordering::SeqCst), 4);
        assert!(together.waiting().is_empty());
    }

    #[tokio::test]
    async fn one_alone_waits_for_nobody() {
        let together = Together::default();
        assert_eq!(together.bring(1, doubled).await, 2);
        assert_eq!(together.bring(2, doubled).await, 4);
    }

    #[tokio::test]
    async fn when_one_who_has_the_turn_gives_up_the_next_one_does_the_work() {
        let (together, stuck) = (Together::<u32, u32>::default(), Notify::new());
        {
            let first = together.bring(1, async |jobs: Vec<Arc<u32>>| {
                stuck.notified().await;
                doubled(jobs).await
            });
            tokio::pin!(first);
            assert!(futures::poll!(&mut first).is_pending());
            let second = together.bring(2, doubled);
            tokio::pin!(second);
            assert!(futures::poll!(&mut second).is_pending(), "it waits for its turn");
        }
        // Both gave up: nothing of theirs is done.
        let done = together.bring(3, async |jobs: Vec<Arc<u32>>| {
            assert_eq!(jobs, [Arc::new(3)]);
            doubled(jobs).await
        });
        assert_eq!(done.await, 6);

        let first = Box::pin(together.bring(4, async |_: Vec<Arc<u32>>| std::future::pending().await));
        let mut first = Some(first);
        assert!(futures::poll!(first.as_mut().unwrap()).is_pending());
        let second = together.bring(5, doubled);
        tokio::pin!(second);
        assert!(futures::poll!(&mut second).is_pending());
        first = None;
        assert!(first.is_none());
        assert_eq!(second.await, 10);
    }
}
