//! Turns of those who are about to do the same work at the same time.
//!
//! What always holds: nobody waits for longer than the patience. Who has the turns may be slow, or never come to an end,
//! and the work of one who waited so long is worth more than doing it once too often.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

/// Lets a stated number of those who do the same work go on at a time. As large as the number of works under way.
pub(crate) struct Flights<K: Eq + Hash + Clone> {
    at_a_time: usize,
    patience: Duration,
    under_way: Mutex<HashMap<K, Weak<Semaphore>>>,
}

/// A turn; dropping it lets the next one in.
pub(crate) struct Turn<'a, K: Eq + Hash + Clone> {
    flights: &'a Flights<K>,
    key: K,
    /// Taken before the table is swept.
    held: Option<Held>,
}

/// One who waits holds the semaphore alone, and the permit once it came; so does one who waited long enough.
struct Held {
    _semaphore: Arc<Semaphore>,
    _permit: Option<OwnedSemaphorePermit>,
}

impl<K: Eq + Hash + Clone> Flights<K> {
    pub(crate) fn new(at_a_time: usize, patience: Duration) -> Self {
        Self { at_a_time, patience, under_way: Mutex::default() }
    }

    /// Waits for a turn, until the patience is over.
    pub(crate) async fn enter(&self, key: K) -> Turn<'_, K> {
        let semaphore = self.semaphore(&key);
        let held = Held { _semaphore: Arc::clone(&semaphore), _permit: None };
        let mut turn = Turn { flights: self, key, held: Some(held) };
        // Fails only when it is closed, which none ever is.
        let permit = timeout(self.patience, Arc::clone(&semaphore).acquire_owned()).await.ok().and_then(Result::ok);
        turn.held = Some(Held { _semaphore: semaphore, _permit: permit });
        turn
    }

    fn semaphore(&self, key: &K) -> Arc<Semaphore> {
        // Nothing panics under the lock, and a map is whole between two of its calls.
        let mut under_way = self.under_way.lock().unwrap_or_else(PoisonError::into_inner);
        let place = under_way.entry(key.clone()).or_default();
        place.upgrade().unwrap_or_else(|| {
            let semaphore = Arc::new(Semaphore::new(self.at_a_time));
            *place = Arc::downgrade(&semaphore);
            semaphore
        })
    }
}

impl<K: Eq + Hash + Clone> Drop for Turn<'_, K> {
    fn drop(&mut self) {
        self.held = None;
        let mut under_way = self.flights.under_way.lock().unwrap_or_else(PoisonError::into_inner);
        if under_way.get(&self.key).is_some_and(|semaphore| semaphore.strong_count() == 0) {
            under_way.remove(&self.key);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    /// Longer than any test.
    const PATIENT: Duration = Duration::from_secs(3600);

    #[tokio::test]
    async fn who_waited_long_enough_goes_on_and_leaves_nothing() {
        let flights = Flights::new(1, Duration::from_millis(1));
        let slow = flights.enter("key").await;
        let (second, third) = (flights.enter("key").await, flights.enter("key").await);
        assert!(second.held.as_ref().is_some_and(|held| held._permit.is_none()));
        drop((second, slow, third));
        assert!(flights.under_way.lock().unwrap().is_empty());
    }

    #[tokio::test]
    async fn so_many_go_on_at_a_time_and_nothing_is_left() {
        let flights = Arc::new(Flights::new(2, PATIENT));
        let (now, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let works = (0..20).map(|_| {
            let (flights, now, most) = (Arc::clone(&flights), Arc::clone(&now), Arc::clone(&most));
            tokio::spawn(async move {
                let _turn = flights.enter("key").await;
                most.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                tokio::task::yield_now().await;
                now.fetch_sub(1, Ordering::SeqCst);
            })
        });
        for work in works.collect::<Vec<_>>() {
            work.await.unwrap();
        }
        assert_eq!(most.load(Ordering::SeqCst), 2);
        assert!(flights.under_way.lock().unwrap().is_empty());
    }

    #[tokio::test]
    async fn one_who_gives_up_waiting_leaves_nothing() {
        let flights = Flights::new(1, PATIENT);
        let turn = flights.enter(1).await;
        {
            let waiting = flights.enter(1);
            tokio::pin!(waiting);
            assert!(futures::poll!(&mut waiting).is_pending());
        }
        drop(turn);
        drop(flights.enter(1).await);
        assert!(flights.under_way.lock().unwrap().is_empty());
    }
}
