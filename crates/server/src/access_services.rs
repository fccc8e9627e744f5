//! Opens the one database of a server, and what tenancy keeps in it: tokens and the audit log.
//!
//! What always holds: every service's tables are in this database, opened once and migrated as one; what is found wrong
//! keeps the server from starting. Deliberately absent: what a credential grants, which `Access` says.

use std::sync::Arc;
use std::time::Duration;

use gf_database::{Database, Location, Migrations, OpenError};
use gf_tenancy::audit::{Origin, Trail};
use gf_tenancy::{
    Access, AccessConfigError, AuditLog, Denied, Grant, NewToken, Principal, Role, Secret, TokenError, Tokens,
};
use thiserror::Error;
use tokio::time::{Instant, Interval, MissedTickBehavior, interval_at};
use tokio_util::sync::CancellationToken;

use crate::config::Config;
use crate::edges::Gate;
use crate::quotas;

/// Every service with tables: one that is not here has none.
pub(crate) const SERVICES: [Migrations; 4] =
    [gf_nix_cache::MIGRATIONS, gf_tenancy::MIGRATIONS, gf_execution::MIGRATIONS, quotas::MIGRATIONS];

/// How soon a token that another process revoked is refused by this one.
const FOLLOW_EVERY: Duration = Duration::from_secs(5);
/// How often it is written down which tokens were used.
const SAVE_EVERY: Duration = Duration::from_secs(60);
/// How often what has ended is removed.
const SWEEP_EVERY: Duration = Duration::from_secs(3600);

/// How long the token of the first administrator is good.
const FIRST_LIFETIME: Duration = Duration::from_secs(365 * 24 * 3600);

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

/// Why the first token was not made.
#[derive(Debug, Error)]
pub enum FirstTokenError {
    /// The facts cannot be opened.
    #[error(transparent)]
    Facts(#[from] AccessStartError),
    /// The configuration gives nobody anything to administer.
    #[error("the configuration names nothing to administer: {0}")]
    Denied(#[from] Denied),
    /// The tenants or instances clash.
    #[error(transparent)]
    Access(#[from] AccessConfigError),
    /// The token could not be made.
    #[error(transparent)]
    Token(#[from] TokenError),
}

/// Makes a token that grants everything but attaching workers, good for a year, in the database of a configuration:
/// the way in for whoever sets up a server. The machine is the authority here, since whoever can write to the database
/// can do this anyway.
///
/// # Errors
/// [`FirstTokenError`].
pub async fn issue_first_token(config: &Config) -> Result<Secret, FirstTokenError> {
    let services = AccessServices::open(&config.database).await?;
    let access = Access::new(config.access.clone())?;
    let admin = access.authorize_somewhere(Principal::Server)?;
    let grants = vec![Grant::role(Role::Admin)];
    let new = NewToken { name: "first administrator".to_owned(), grants, lifetime: FIRST_LIFETIME };
    let issued = services.tokens.issue(&admin, new, &Origin::default()).await?;
    services.database.close().await;
    Ok(issued.secret)
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

    /// How long ago it was known what other processes revoked.
    pub(crate) fn followed_ago(&self) -> impl Fn() -> Duration + Send + Sync + 'static {
        let tokens = Arc::clone(&self.tokens);
        move || tokens.followed_ago()
    }

    /// The gate that edges let requests through.
    pub(crate) fn gate(&self, access: &Arc<Access>) -> Gate {
        Gate::new(Arc::clone(access), self.trail.clone())
    }

    /// Keeps the tokens in step with the database until the server stops, and then once more.
    pub(crate) async fn tend_until(self, stopping: CancellationToken) {
        tokio::join!(self.follow_until(&stopping), self.tidy_until(&stopping));
    }

    /// By itself: what was revoked elsewhere is not good for longer because something here takes its time.
    async fn follow_until(&self, stopping: &CancellationToken) {
        let mut follow = ticks(FOLLOW_EVERY);
        while stopping.run_until_cancelled(follow.tick()).await.is_some() {
            if let Err(error) = self.tokens.follow().await {
                tracing::warn!(%error, "tokens that others issued or revoked are not known here");
            }
        }
    }

    async fn tidy_until(&self, stopping: &CancellationToken) {
        let tokens = &*self.tokens;
        let [mut save, mut sweep] = [SAVE_EVERY, SWEEP_EVERY].map(ticks);
        loop {
            // Whatever cannot be done now is done at the next tick.
            let (what, done) = tokio::select! {
                () = stopping.cancelled() => break,
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

#[cfg(test)]
mod tests {
    use gf_database::sql;
    use gf_testkit::PostgresServer;

    use super::*;

    const SQLITE_TABLES: &str = "SELECT name || ': ' || COALESCE(sql, '') AS made FROM sqlite_master ORDER BY made";
    const POSTGRES_TABLES: &str = "SELECT table_name || '.' || column_name || ' ' || data_type || ' ' || is_nullable || ' ' \
         || COALESCE(column_default, '') AS made FROM information_schema.columns WHERE table_schema = current_schema() \
         UNION ALL SELECT indexdef FROM pg_indexes WHERE schemaname = current_schema() ORDER BY made";

    /// All tables and indices, in words of the database.
    async fn tables(database: &Database, question: &'static str) -> Vec<String> {
        let rows = database.all(sql(question)).await.unwrap();
        rows.iter().map(|row| row.get::<String>("made").unwrap()).collect()
    }

    async fn goes_back_and_forward(location: &Location, question: &'static str) {
        let database = Database::open(location, &SERVICES).await.unwrap();
        let all = tables(&database, question).await;
        for service in &SERVICES {
            let own = |tables: Vec<String>| {
                let begins = format!("{}_", service.service);
                tables.into_iter().filter(|made| made.contains(&begins)).collect::<Vec<_>>()
            };
            let whole = own(all.clone());
            assert!(!whole.is_empty(), "{} has no tables", service.service);
            let steps = service.steps.len();
            for step in (0..steps).rev() {
                database.migrate(service, step).await.unwrap();
                // Whatever an older program left behind goes forward again.
                database.migrate(service, steps).await.unwrap();
                assert_eq!(
                    own(tables(&database, question).await).len(),
                    whole.len(),
                    "{} from {step}",
                    service.service
                );
                database.migrate(service, step).await.unwrap();
            }
            assert_eq!(own(tables(&database, question).await), [""; 0], "{}", service.service);
        }
        for service in &SERVICES {
            database.migrate(service, service.steps.len()).await.unwrap();
        }
        assert_eq!(tables(&database, question).await, all);
        database.close().await;
    }

    #[tokio::test]
    async fn the_tables_of_every_service_go_back_and_forward_on_sqlite() {
        let folder = tempfile::tempdir().unwrap();
        goes_back_and_forward(&Location::Sqlite(folder.path().join("facts.db")), SQLITE_TABLES).await;
    }

    #[tokio::test]
    async fn the_tables_of_every_service_go_back_and_forward_on_postgres() {
        let server = PostgresServer::shared().unwrap();
        let location = server.database().unwrap().parse().unwrap();
        goes_back_and_forward(&location, POSTGRES_TABLES).await;
    }
}
