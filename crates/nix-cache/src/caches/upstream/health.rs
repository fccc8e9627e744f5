//! What is known of each upstream: how many questions are out, and whether it fails.
//!
//! An upstream that fails is left alone for a while, longer each time; then one question finds out whether it is back.
//! Meanwhile what it has is unknown at once, without a wait. Each upstream has its own turns: one that does not answer holds
//! up none of the others.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use gf_fetch::{Client, Networks};
use tokio::sync::Semaphore;

/// Questions to one upstream at the same time; bodies that are read do not count.
const QUESTIONS: usize = 16;

/// The longest that an upstream is left alone, in seconds.
const LONGEST_S: u64 = 60;

/// So long one question has to find out whether an upstream is back, in seconds, before another one tries.
const TRIAL_S: u64 = 45;

/// Upstreams that are remembered: more than the caches of a server name.
const MAX_UPSTREAMS: usize = 4096;

/// All upstreams, by their URLs.
pub(super) struct Health {
    networks: Arc<Networks>,
    upstreams: Mutex<HashMap<String, Arc<Upstream>>>,
}

/// One of them.
pub(super) struct Upstream {
    /// Its own, whose connections and turns no other upstream takes.
    pub(super) client: Arc<Client>,
    questions: Semaphore,
    failing: Mutex<Option<Failing>>,
}

struct Failing {
    /// How often in a row, each after being left alone.
    times: u32,
    /// When it is asked again, in seconds since 1970.
    until_s: u64,
    /// A question is out that finds out whether it is back.
    is_trial: bool,
    reason: String,
}

impl Health {
    /// Upstreams that are in these networks.
    pub(super) fn new(networks: Networks) -> Self {
        Self { networks: Arc::new(networks), upstreams: Mutex::default() }
    }

    /// Why a URL cannot be that of an upstream, as far as it says where it leads.
    pub(super) fn check(&self, url: &str) -> Result<(), String> {
        self.networks.check_url(url)
    }

    pub(super) fn of(&self, url: &str) -> Arc<Upstream> {
        let mut upstreams = self.upstreams.lock().unwrap_or_else(PoisonError::into_inner);
        if upstreams.len() >= MAX_UPSTREAMS && !upstreams.contains_key(url) {
            upstreams.clear();
        }
        let upstream = upstreams.entry(url.to_owned());
        Arc::clone(upstream.or_insert_with(|| Arc::new(Upstream::new(Arc::clone(&self.networks)))))
    }
}

impl Upstream {
    fn new(networks: Arc<Networks>) -> Self {
        Self {
            client: Arc::new(Client::within(networks)),
            questions: Semaphore::new(QUESTIONS),
            failing: Mutex::default(),
        }
    }

    /// Asks a question, unless the upstream is left alone now.
    pub(super) async fn ask<T>(
        &self,
        now_s: impl Fn() -> u64,
        question: impl Future<Output = Result<T, String>>,
    ) -> Result<T, String> {
        // Who finds out whether a failing one is back waits for nobody, and all others are told at once.
        let is_trial = self.admit(now_s())?;
        let turn = if is_trial { None } else { self.questions.acquire().await.ok() };
        if !is_trial {
            // It may have begun to fail while this one waited for its turn.
            self.admit(now_s())?;
        }
        let answer = question.await;
        drop(turn);
        self.note(now_s(), &answer);
        answer
    }

    /// Whether a question may go out, and is the one that finds out whether a failing upstream is back.
    fn admit(&self, now_s: u64) -> Result<bool, String> {
        let mut failing = self.failing.lock().unwrap_or_else(PoisonError::into_inner);
        match &mut *failing {
            None => Ok(false),
            Some(failing) if now_s < failing.until_s => Err(failing.reason.clone()),
            Some(failing) => {
                failing.until_s = now_s.saturating_add(TRIAL_S);
                failing.is_trial = true;
                Ok(true)
            }
        }
    }

    fn note<T>(&self, now_s: u64, answer: &Result<T, String>) {
        let mut failing = self.failing.lock().unwrap_or_else(PoisonError::into_inner);
        let Err(reason) = answer else {
            *failing = None;
            return;
        };
        let times = match &*failing {
            None => 1,
            Some(failing) if failing.is_trial => failing.times.saturating_add(1),
            // One of those that were out when the first failed.
            Some(_) => return,
        };
        let alone_s = 1_u64.checked_shl(times - 1).unwrap_or(LONGEST_S).min(LONGEST_S);
        let until_s = now_s.saturating_add(alone_s);
        *failing = Some(Failing { times, until_s, is_trial: false, reason: reason.clone() });
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use futures::FutureExt as _;
    use futures::future::join_all;

    use super::*;

    async fn fail(upstream: &Upstream, now_s: u64) {
        upstream.ask(|| now_s, async { Err::<(), _>("down".to_owned()) }).await.unwrap_err();
    }

    async fn is_asked(upstream: &Upstream, now_s: u64) -> bool {
        upstream.ask(|| now_s, async { Ok(()) }).await.is_ok()
    }

    #[tokio::test]
    async fn a_failing_upstream_is_left_alone_longer_each_time() {
        let upstream = Upstream::new(Arc::default());
        fail(&upstream, 1000).await;
        assert!(!is_asked(&upstream, 1000).await);
        fail(&upstream, 1001).await;
        assert!(!is_asked(&upstream, 1002).await, "it is left alone for two seconds now");
        assert!(is_asked(&upstream, 1003).await && is_asked(&upstream, 1003).await);
        fail(&upstream, 1003).await;
        assert!(is_asked(&upstream, 1004).await, "it was back, so it begins anew");
    }

    #[tokio::test]
    async fn one_question_at_a_time_finds_out_whether_it_is_back() {
        let upstream = Upstream::new(Arc::default());
        fail(&upstream, 1000).await;
        let trial = upstream.ask(|| 1001, std::future::pending::<Result<(), String>>());
        tokio::pin!(trial);
        assert!(futures::poll!(&mut trial).is_pending());
        assert!(!is_asked(&upstream, 1001).await);
        assert!(is_asked(&upstream, 1001 + TRIAL_S).await, "the first one does not find out");
    }

    #[tokio::test]
    async fn those_who_wait_for_their_turn_learn_of_the_failure_at_once() {
        let (upstream, asked) = (Upstream::new(Arc::default()), AtomicU64::new(0));
        let (fail, failed) = tokio::sync::oneshot::channel::<()>();
        let failed = failed.shared();
        let question = || {
            let (failed, asked) = (failed.clone(), &asked);
            upstream.ask(|| 1000, async move {
                asked.fetch_add(1, Ordering::SeqCst);
                let _ = failed.await;
                Err::<(), _>("down".to_owned())
            })
        };
        let mut all = Box::pin(join_all((0..10 * QUESTIONS).map(|_| question())));
        assert!(futures::poll!(&mut all).is_pending());
        fail.send(()).unwrap();
        assert!(all.await.iter().all(Result::is_err));
        assert_eq!(asked.load(Ordering::SeqCst), QUESTIONS as u64);
    }
}
