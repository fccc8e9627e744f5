//! What happens because time passes.

use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};

use super::Operations;
use super::desk::Renewal;
use crate::scheduler::{Event, Now};

/// Without anything due, the time is looked at so often.
const ROUND: Duration = Duration::from_secs(60);
/// The shortest time between two ticks: something that is always due must not keep a processor busy.
const PAUSE: Duration = Duration::from_millis(1);
/// Executions whose inputs are leased again at one time.
pub(super) const RENEWALS: usize = 8;
/// The store answers such questions in milliseconds.
const RENEWAL_DEADLINE: Duration = Duration::from_secs(600);

impl Operations {
    /// Tells the scheduler the time when it wants to know. However often something changes meanwhile, what is due is
    /// done: it is looked at before each wait, and the end of a round does not move.
    pub(super) async fn keep_time(self) {
        let mut round = Now(self.now().0 + ROUND);
        loop {
            let now = self.now();
            let wake_at = self.desk().wake_at().map_or(round, |wake_at| wake_at.min(round));
            if wake_at <= now {
                self.act(|desk, at| desk.happen(Event::Tick, at));
                round = Now(now.0 + ROUND);
                sleep(PAUSE).await;
                continue;
            }
            tokio::select! {
                () = self.0.stopping.cancelled() => return,
                () = self.0.changed.notified() => {}
                () = sleep(wake_at.0.saturating_sub(now.0)) => {}
            }
        }
    }

    /// Leases again what executions need, a few at a time: each reads all directories of an input root.
    pub(super) async fn keep_leases(self) {
        let mut rounds = interval((self.0.config.lease / 12).clamp(Duration::from_secs(1), ROUND));
        rounds.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let stopping = self.0.stopping.clone();
        while stopping.run_until_cancelled(rounds.tick()).await.is_some() {
            let due = self.desk().due_renewals(self.now());
            if stopping.run_until_cancelled(self.renew_all(due)).await.is_none() {
                return;
            }
        }
    }

    async fn renew_all(&self, due: Vec<Renewal>) {
        let mut renewals = JoinSet::new();
        for renewal in due {
            if renewals.len() >= RENEWALS {
                renewals.join_next().await;
            }
            renewals.spawn(self.clone().renew(renewal));
        }
        // One that failed as a program does must not end the others, and all later ones.
        while renewals.join_next().await.is_some() {}
    }

    /// What fails is tried again in the next round, which comes long before the lease ends.
    async fn renew(self, (id, action, grant): Renewal) {
        if !self.desk().is_kept(id) {
            return;
        }
        let renewed = timeout(RENEWAL_DEADLINE, action.renew(&*self.0.store, &grant, &self.0.toolchains)).await;
        match renewed {
            Ok(Ok(())) => {
                let now = self.now();
                self.desk().renewed(id, now);
            }
            Ok(Err(error)) => tracing::warn!(action = %action.digest, %error, "inputs could not be leased again"),
            Err(_) => tracing::warn!(action = %action.digest, "leasing inputs again took too long"),
        }
    }
}
