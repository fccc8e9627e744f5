//! Drives callers against one server for one round and says what came of it.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context;
use tokio::task::JoinSet;

/// How long a round lasts.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Length {
    /// So many calls in all; for work that must be prepared, such as fresh uploads.
    Calls(usize),
    /// Until the time is up.
    Time(Duration),
}

/// What one round showed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Round {
    /// Units of work done.
    pub(crate) units: f64,
    /// Units of work a second.
    pub(crate) per_second: f64,
    /// Half of the calls took at most so long.
    pub(crate) p50: Duration,
    /// All but one of a hundred calls took at most so long.
    pub(crate) p99: Duration,
}

/// Runs `callers` at once. Each takes the next number, calls `call(caller, number)` and waits for its answer, which
/// is the units of work done; the first error ends the round.
pub(crate) async fn drive<F, Done>(callers: usize, length: Length, call: F) -> anyhow::Result<Round>
where
    F: Fn(usize, usize) -> Done + Clone + Send + Sync + 'static,
    Done: Future<Output = anyhow::Result<u64>> + Send + 'static,
{
    let next = Arc::new(AtomicUsize::new(0));
    let mut tasks = JoinSet::new();
    let started = Instant::now();
    for caller in 0..callers {
        tasks.spawn(one_caller(caller, length, started, Arc::clone(&next), call.clone()));
    }
    let mut units = 0;
    let mut latencies = Vec::new();
    while let Some(joined) = tasks.join_next().await {
        let (done, mut took) = joined.context("a caller stopped")??;
        units += done;
        latencies.append(&mut took);
    }
    let elapsed = started.elapsed();
    latencies.sort_unstable();
    let units = as_float(units);
    Ok(Round {
        units,
        per_second: units / elapsed.as_secs_f64(),
        p50: percentile(&latencies, 50),
        p99: percentile(&latencies, 99),
    })
}

async fn one_caller<F, Done>(
    caller: usize,
    length: Length,
    started: Instant,
    next: Arc<AtomicUsize>,
    call: F,
) -> anyhow::Result<(u64, Vec<Duration>)>
where
    F: Fn(usize, usize) -> Done,
    Done: Future<Output = anyhow::Result<u64>>,
{
    let mut units = 0;
    let mut latencies = Vec::with_capacity(1 << 16);
    let mut before = started;
    loop {
        let number = next.fetch_add(1, Ordering::Relaxed);
        let over = match length {
            Length::Calls(calls) => number >= calls,
            Length::Time(time) => before.duration_since(started) >= time,
        };
        if over {
            return Ok((units, latencies));
        }
        units += call(caller, number).await?;
        let now = Instant::now();
        latencies.push(now.duration_since(before));
        before = now;
    }
}

fn percentile(sorted: &[Duration], percent: usize) -> Duration {
    let rank = (sorted.len() * percent).div_ceil(100).saturating_sub(1);
    sorted.get(rank).copied().unwrap_or_default()
}

/// A count as a float; counts here stay far below the 2^53 up to which that is exact.
#[expect(clippy::cast_precision_loss, reason = "counts of one run stay far below 2^53")]
pub(crate) fn as_float(count: u64) -> f64 {
    count as f64
}

/// The middle of some figures, or the mean of the two in the middle; 0 of none.
pub(crate) fn median(figures: impl IntoIterator<Item = f64>) -> f64 {
    let mut figures: Vec<f64> = figures.into_iter().collect();
    figures.sort_unstable_by(f64::total_cmp);
    let (low, high) = (figures.len().saturating_sub(1) / 2, figures.len() / 2);
    match (figures.get(low), figures.get(high)) {
        (Some(low), Some(high)) => f64::midpoint(*low, *high),
        _ => 0.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_taken_from_the_calls_themselves() {
        let calls: Vec<Duration> = (1..=200).map(Duration::from_millis).collect();
        assert_eq!(percentile(&calls, 50), Duration::from_millis(100));
        assert_eq!(percentile(&calls, 99), Duration::from_millis(198));
        assert_eq!(percentile(&calls[..1], 99), Duration::from_millis(1));
        assert_eq!(percentile(&[], 99), Duration::ZERO);
    }

    #[test]
    fn the_median_ignores_one_bad_round() {
        assert!((median([5.0, 1.0, 900.0]) - 5.0).abs() < 1e-9);
        assert!((median([1.0, 2.0]) - 1.5).abs() < 1e-9);
        assert!(median([]).abs() < 1e-9);
    }

    #[tokio::test]
    async fn every_call_is_made_once() {
        let round = drive(16, Length::Calls(100), |_, _| async { Ok(3) }).await.unwrap();
        assert!(round.per_second > 0.0);
        let seen = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&seen);
        let call = move |_, number| {
            let count = Arc::clone(&count);
            async move {
                count.fetch_add(number, Ordering::Relaxed);
                Ok(1)
            }
        };
        drive(7, Length::Calls(100), call).await.unwrap();
        assert_eq!(seen.load(Ordering::Relaxed), (0..100).sum::<usize>());
    }

    #[tokio::test]
    async fn a_failed_call_fails_the_round() {
        let call = |_, number| async move { if number == 5 { anyhow::bail!("wrong") } else { Ok(1) } };
        assert!(drive(3, Length::Calls(10), call).await.is_err());
    }
}
