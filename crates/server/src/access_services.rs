//! Opens the one database of a server, and what tenancy keeps in it: tokens and the audit log.
//!
//! What always holds: every service's tables are in this database, opened once and migrated as one; what is found wrong
//! keeps the server from starting. Deliberately absent: what a credential grants, which `Access` says.

use std::sync::Arc;
use std::time::Duration;

use gf_database::{Database, Location, Migrations, OpenError};
use gf_tenancy::audit::Trail;
use gf_tenancy::{Access, AuditLog, TokenError, Tokens};
use thiserror::Error;
use tokio::time::{Instant, Interval, MissedTickBehavior, interval_at};
use tokio_util::sync::CancellationToken;

use crate::edges::Gate;

/// Every service with tables: one that is not here has none.
pub(crate) const SERVICES: [Migrations; 2] = [gf_nix_cache::MIGRATIONS, gf_tenancy::MIGRATIONS];

/// How soon a token that another process revoked is refused by this one.
const FOLLOW_EVERY: Duration = Duration::from_secs(5);
/// How often it is written down which tokens were used.
const SAVE_EVERY: Duration = Duration::from_secs(60);
/// How often what has ended is removed.
const SWEEP_EVERY: Duration = Duration::from_secs(3600);

/// Why there is nothing to check credentials by.
#[derive(Debug, Error)]
pub enum AccessStartError {
    /// The database cannot be opened.
    #[error(transparent)]
    Database(#[from] OpenError),
    /// The tokens cannot be read.
    #[error("the tokens cannot be read: {0}")]
    Tokens(#[from] TokenError),
}

/// What services share that keep facts, and what tenancy keeps. Cheap to clone.
#[derive(Clone)]
pub(crate) struct AccessServices {
    /// The facts of all services.
    pub(crate) database: Database,
    /// Tokens of our own.
    pub(crate) tokens: Arc<Tokens>,
    /// Who did what: the way into the audit log.
    pub(crate) trail: Trail,
}

impl AccessServices {
    /// Opens the database, brings all tables up to date, and reads the tokens.
    ///
    /// # Errors
    /// [`AccessStartError`].
    pub(crate) async fn open(location: &Location) -> Result<Self, AccessStartError> {
        let database = Database::open(location, &SERVICES).await?;
        let tokens = Arc::new(Tokens::open(database.clone()).await?);
        let trail = Trail::new(AuditLog::new(database.clone()));
        Ok(Self { database, tokens, trail })
    }

    /// Lets the credentials that are kept here count.
    pub(crate) fn attach_to(&self, access: Access) -> Access {
        access.with_tokens(Arc::clone(&self.tokens))
    }

    /// The gate that edges let requests through.
    pub(crate) fn gate(&self, access: &Arc<Access>) -> Gate {
        Gate::new(Arc::clone(access), self.trail.clone())
    }

    /// Keeps the tokens in step with the database until the server stops, and then once more.
    pub(crate) async fn tend_until(self, stopping: CancellationToken) {
        let tokens = &*self.tokens;
        let [mut follow, mut save, mut sweep] = [FOLLOW_EVERY, SAVE_EVERY, SWEEP_EVERY].map(ticks);
        loop {
            // Whatever cannot be done now is done at the next tick.
            let (what, done) = tokio::select! {
                () = stopping.cancelled() => break,
                _ = follow.tick() => ("tokens that others issued or revoked are not known here", tokens.follow().await),
                _ = save.tick() => ("when tokens were used last is not written down", tokens.save_uses().await),
                _ = sweep.tick() => ("tokens that ended are not removed", tokens.sweep().await),
            };
            if let Err(error) = done {
                tracing::warn!(%error, "{what}");
            }
        }
        if let Err(error) = tokens.save_uses().await {
            tracing::warn!(%error, "when tokens were used last is not written down");
        }
    }
}

fn ticks(every: Duration) -> Interval {
    let mut ticks = interval_at(Instant::now() + every, every);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks
}
