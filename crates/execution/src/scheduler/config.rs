//! The bounds of the scheduler.

use std::time::Duration;

/// The bounds.
#[derive(Clone, Copy, Debug)]
pub struct SchedulerConfig {
    /// More executions are refused.
    pub max_queued: usize,
    /// And of one tenant more than these, so that there is room for others.
    pub max_queued_of_tenant: usize,
    /// How often an execution is tried when workers fail, or do not come to an end with it; and, counted by itself, when
    /// they vanish.
    pub max_attempts: u32,
    /// How often workers may hand an execution back without having begun it; that uses up none of its attempts.
    pub max_hand_backs: u32,
    /// A worker that is silent for so long is lost.
    pub worker_silence: Duration,
    /// Fetching and uploading may take so long beyond the action's own timeout, each time that a worker says that it
    /// goes on.
    pub overstay: Duration,
    /// And all in all so long beyond it, whatever the worker says; then the assignment is withdrawn.
    pub longest_overstay: Duration,
    /// A worker that is told to stop what overstayed, and does not within this time, is lost.
    pub withdrawal: Duration,
    /// How long an execution goes on when nobody waits: clients come back after a broken connection.
    pub abandon_after: Duration,
    /// How long an execution may wait for a kind of worker that was here lately, or that may be about to come just
    /// after the start; after that it fails for want of one.
    pub worker_return: Duration,
    /// One step of priority counts like having waited so much longer.
    pub ageing_step: Duration,
    /// An execution that waited so long because smaller ones took the room has a worker kept free for it.
    pub patience: Duration,
    /// For so long at most.
    pub kept_free: Duration,
}

impl Default for SchedulerConfig {
    fn default() -> Self {
        Self {
            max_queued: 100_000,
            max_queued_of_tenant: 50_000,
            max_attempts: 3,
            max_hand_backs: 16,
            worker_silence: Duration::from_secs(30),
            overstay: Duration::from_secs(600),
            longest_overstay: Duration::from_secs(3600),
            withdrawal: Duration::from_secs(60),
            abandon_after: Duration::from_secs(20),
            worker_return: Duration::from_secs(60),
            ageing_step: Duration::from_secs(10),
            patience: Duration::from_secs(30),
            kept_free: Duration::from_secs(120),
        }
    }
}
