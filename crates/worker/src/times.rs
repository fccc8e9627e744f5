//! When what happened. Times of one assignment never go backwards, whatever is done to the clock of the machine.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use prost_types::Timestamp;

/// A clock that is set once.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock {
    began: Instant,
    at: SystemTime,
}

impl Clock {
    pub(crate) fn start() -> Self {
        Self { began: Instant::now(), at: SystemTime::now() }
    }

    pub(crate) fn now(&self) -> SystemTime {
        self.at + self.began.elapsed()
    }
}

/// As the protocol writes it.
pub(crate) fn timestamp(time: SystemTime) -> Timestamp {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    let seconds = i64::try_from(since.as_secs()).unwrap_or(i64::MAX);
    Timestamp { seconds, nanos: since.subsec_nanos().cast_signed() }
}

/// As the protocol writes it.
pub(crate) fn wire_duration(duration: Duration) -> prost_types::Duration {
    let seconds = i64::try_from(duration.as_secs()).unwrap_or(i64::MAX);
    prost_types::Duration { seconds, nanos: duration.subsec_nanos().cast_signed() }
}

/// What the protocol wrote; `None` for what is below zero.
pub(crate) fn read_duration(duration: &prost_types::Duration) -> Option<Duration> {
    let seconds = u64::try_from(duration.seconds).ok()?;
    let nanos = u32::try_from(duration.nanos).ok()?;
    (nanos < 1_000_000_000).then(|| Duration::new(seconds, nanos))
}
