//! Quotas: what each tenant uses of the store and of the server, and what it may.
//!
//! What a tenant stores is what the store finds when it looks at its whole index, about once a minute, and what came since.
//! A tenant that has reached its share makes room as the store does: what it used least recently goes first, and nothing
//! within its lease; only where nothing may go is it refused. What is promised for longer than a lease, as by the retention
//! of Nix caches, counts like all else until it is let go. What came today and what is stored are written down once a
//! minute, so that both count from the start of the next process on; a killed one forgets that much of it.
//!
//! What several tenants have counts for the one who brought it first, also while only another keeps it; whoever brings it
//! too pays for it until the next look, and with what it may upload a day.
//!
//! What always holds: what one tenant is refused follows from its own share; a refusal says the number, though not to the
//! byte, and the limit. Deliberately absent: shares that change by themselves.

mod meter;
mod store;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use gf_blobstore::{DiskBlobStore, OwnerId, Stock, StoreError};
use gf_database::{Database, DatabaseError, Migration, Migrations, sql};
use gf_execution::Operations;
use gf_execution::scheduler::Cap;
use gf_tenancy::{Authorized, Permission, Principal, Tenant, TenantId, TenantName};
use thiserror::Error;
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use crate::config::show_size;
use crate::operator;
use crate::operator::report::{QuotaReport, TenantReport};
pub use meter::{BURST_S, Quota};
use meter::{Excess, Meter};
pub(crate) use store::QuotaStore;

/// What the database must be opened with.
pub(crate) const MIGRATIONS: Migrations = Migrations {
    service: "quota",
    steps: &[
        Migration {
            name: "uploads of a day",
            forward: "
            -- `day` counts from 1970.
            CREATE TABLE quota_upload (
                tenant {text} PRIMARY KEY,
                day BIGINT NOT NULL,
                bytes BIGINT NOT NULL
            );",
            back: "DROP TABLE quota_upload;",
        },
        Migration {
            name: "what tenants store",
            forward: "
            CREATE TABLE quota_stock (
                tenant {text} PRIMARY KEY,
                bytes BIGINT NOT NULL
            );",
            back: "DROP TABLE quota_stock;",
        },
    ],
};

/// How soon a new look of the store at itself is noticed.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// How often what came today and what is stored are written down, in looks.
const SAVE_EVERY: u32 = 12;
/// How long a tenant is left alone in whose share nothing may go.
const NOTHING_TO_FREE_FOR: Duration = Duration::from_secs(10);
/// How finely a tenant is told what it stores.
const TOLD_STEPS: u64 = 64;
/// How much of a share is freed beyond what is needed, so that one collection serves many writes.
const SLACK_SHARE: u64 = 32;

/// A tenant has used what it may.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{text}")]
pub struct OverQuota {
    text: String,
    /// When asking again may help; `None` when it does not help by itself.
    pub retry_after: Option<Duration>,
}

impl From<OverQuota> for StoreError {
    fn from(over: OverQuota) -> Self {
        Self::OverQuota { reason: over.text, retry_after: over.retry_after }
    }
}

/// The longest wait that a client is told to sit through: until the next day it has better things to do than to try again.
const LONGEST_WAIT: Duration = Duration::from_secs(60);

/// When asking again helps, if that is worth waiting for. What clients are told follows from it, whatever they speak.
pub(crate) fn worth_waiting(retry_after: Option<Duration>) -> Option<Duration> {
    retry_after.filter(|wait| *wait <= LONGEST_WAIT)
}

/// The meters of all tenants.
pub struct Quotas {
    began: Instant,
    /// `None` in tests.
    store: Option<Arc<DiskBlobStore>>,
    accounts: HashMap<OwnerId, Arc<Account>>,
}

struct Account {
    began: Instant,
    id: TenantId,
    tenant: TenantName,
    meter: Mutex<Meter>,
    /// One at a time makes room in this share; until when it is known that nothing may go.
    making_room: Arc<tokio::sync::Mutex<Option<Instant>>>,
    refused: Mutex<Refusals>,
}

/// How often each quota was in the way since the start.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Refusals {
    pub(crate) stored: u64,
    pub(crate) uploaded: u64,
    pub(crate) requests: u64,
}

/// Space that is set aside for what is being written. Dropping it gives it back.
pub(crate) struct Held {
    account: Option<Arc<Account>>,
    bytes: u64,
}

/// What is about to be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Coming {
    /// It comes from a client.
    Uploaded,
    /// It is made of what is here.
    PutTogether,
}

impl Held {
    /// For what is here already.
    const fn nothing() -> Self {
        Self { account: None, bytes: 0 }
    }

    /// Holds what another one of the same tenant holds, too.
    fn add(&mut self, mut other: Self) {
        self.bytes += std::mem::take(&mut other.bytes);
        self.account = other.account.take().or(self.account.take());
    }

    /// All was stored, and nothing came from a client.
    fn settle_put_together(mut self) {
        if let Some(account) = self.account.take() {
            account.meter().settle_put_together(self.bytes, account.began.elapsed());
        }
    }

    /// So many of the bytes were stored; the others were not.
    fn settle(mut self, stored_bytes: u64) {
        if let Some(account) = self.account.take() {
            let mut meter = account.meter();
            meter.settle(stored_bytes.min(self.bytes), now_s(), account.began.elapsed());
            meter.release(self.bytes.saturating_sub(stored_bytes));
        }
    }

    fn settle_all(self) {
        let bytes = self.bytes;
        self.settle(bytes);
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if let Some(account) = self.account.take() {
            account.meter().release(self.bytes);
        }
    }
}

impl Quotas {
    /// Meters for `tenants`, with what the database says of them.
    ///
    /// # Errors
    /// [`DatabaseError`].
    pub(crate) async fn open<'t>(
        store: Option<Arc<DiskBlobStore>>,
        database: Option<&Database>,
        tenants: impl IntoIterator<Item = &'t Tenant>,
        quotas: &HashMap<TenantName, Quota>,
    ) -> Result<Self, DatabaseError> {
        let began = Instant::now();
        let mut accounts = HashMap::new();
        for tenant in tenants {
            let quota = quotas.get(tenant.name()).copied().unwrap_or_default();
            let mut meter = Meter::new(quota);
            if let Some(database) = database {
                let row = sql("SELECT day, bytes FROM quota_upload WHERE tenant = $1").bind(tenant.name().as_str());
                if let Some(row) = database.first(row).await? {
                    meter.resume(unsigned(row.get("day")?), unsigned(row.get("bytes")?), now_s());
                }
                let row = sql("SELECT bytes FROM quota_stock WHERE tenant = $1").bind(tenant.name().as_str());
                if let Some(row) = database.first(row).await? {
                    meter.resume_stored(unsigned(row.get("bytes")?));
                }
            }
            let account = Account {
                began,
                id: tenant.id(),
                tenant: tenant.name().clone(),
                meter: Mutex::new(meter),
                making_room: Arc::default(),
                refused: Mutex::default(),
            };
            accounts.insert(OwnerId(tenant.id().number()), Arc::new(account));
        }
        Ok(Self { began, store, accounts })
    }

    /// Of nobody: nothing is counted, and nothing refused.
    #[must_use]
    pub fn none() -> Self {
        Self { began: Instant::now(), store: None, accounts: HashMap::new() }
    }

    /// Tells those who run actions how many they may run for each tenant.
    pub(crate) fn cap_executions(&self, operations: &Operations) {
        for account in self.accounts.values() {
            if let Some(executions) = account.meter().quota().executions {
                operations.cap_executions(account.id, Some(Cap { tenant: account.tenant.as_str().into(), executions }));
            }
        }
    }

    /// Counts a request of a tenant. What runs its actions is not its own doing.
    ///
    /// # Errors
    /// [`OverQuota`].
    pub(crate) fn request<P: Permission>(&self, grant: &Authorized<P>) -> Result<(), OverQuota> {
        if matches!(grant.principal(), Principal::Worker(_)) {
            return Ok(());
        }
        let owner = OwnerId(grant.tenant().id().number());
        let Some(account) = self.accounts.get(&owner) else { return Ok(()) };
        let admitted = account.meter().request(self.began.elapsed());
        admitted.map_err(|excess| account.refuse(excess))
    }

    /// Sets space aside for what is about to be written, and makes room for it in the share of its tenant if it must.
    async fn admit(&self, owner: OwnerId, bytes: u64, coming: Coming) -> Result<Held, OverQuota> {
        // What is the server's own has no share.
        let Some(account) = self.accounts.get(&owner) else { return Ok(Held::nothing()) };
        let held = || Held { account: Some(Arc::clone(account)), bytes };
        let reserve = || match coming {
            Coming::Uploaded => account.meter().reserve(bytes, now_s()),
            Coming::PutTogether => account.meter().reserve_stored(bytes, now_s()),
        };
        let excess = match reserve() {
            Ok(()) => return Ok(held()),
            Err(excess) => excess,
        };
        if let Excess::Stored { limit_bytes, .. } = excess
            && bytes <= limit_bytes
        {
            self.make_room(owner, account, bytes).await;
            return reserve().map(|()| held()).map_err(|excess| account.refuse(excess));
        }
        Err(account.refuse(excess))
    }

    /// Lets go of what the tenant used least recently, as far as leases allow.
    async fn make_room(&self, owner: OwnerId, account: &Arc<Account>, bytes: u64) {
        let Some(store) = &self.store else { return };
        let mut nothing_until = Arc::clone(&account.making_room).lock_owned().await;
        if nothing_until.is_some_and(|until| Instant::now() < until) {
            return;
        }
        // Whoever came before may have made room for all.
        let excess = account.excess(bytes);
        if excess == 0 {
            return;
        }
        let account = Arc::clone(account);
        let collected = operator::blocking(store, move |store| {
            account.look_first(owner, store);
            let excess = account.excess(bytes);
            if excess == 0 {
                return;
            }
            let slack = account.meter().quota().stored_bytes.unwrap_or(u64::MAX) / SLACK_SHARE;
            let evicted = store.collect_of(owner, excess.saturating_add(slack)).and_then(|report| {
                store.take_stock()?;
                Ok(report.evicted)
            });
            if let Some(stock) = store.stock() {
                account.note(owner, &stock);
            }
            match evicted {
                Ok(evicted) => tracing::debug!(tenant = %account.tenant, evicted, "made room in the share of a tenant"),
                Err(error) => tracing::warn!(%error, tenant = %account.tenant, "no room was made in a share"),
            }
            // In here, since whoever asked may be gone: the next scan waits until this one has ended, and is not worth
            // its while soon when this one did not help.
            *nothing_until = (account.excess(bytes) > 0).then(|| Instant::now() + NOTHING_TO_FREE_FOR);
        });
        if let Err(error) = collected.await {
            tracing::warn!(%error, "the system refuses the threads that make room");
        }
    }

    /// Takes over what the store found when it last looked at itself.
    pub(crate) fn note_stock(&self) {
        let Some(stock) = self.store.as_ref().and_then(|store| store.stock()) else { return };
        for (owner, account) in &self.accounts {
            account.note(*owner, &stock);
        }
    }

    /// Keeps figures and database up to date until the server stops, and writes down what came last.
    pub(crate) async fn tend_until(self: Arc<Self>, database: Database, stopping: CancellationToken) {
        let mut ticks = interval(LOOK_EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut looks = 0_u32;
        while stopping.run_until_cancelled(ticks.tick()).await.is_some() {
            self.note_stock();
            looks = looks.wrapping_add(1);
            if looks.is_multiple_of(SAVE_EVERY) {
                self.save(&database).await;
            }
        }
        self.save(&database).await;
    }

    async fn save(&self, database: &Database) {
        for account in self.accounts.values() {
            let (day, bytes) = account.meter().today();
            let upsert = sql("INSERT INTO quota_upload (tenant, day, bytes) VALUES ($1, $2, $3) \
                 ON CONFLICT (tenant) DO UPDATE SET day = excluded.day, bytes = excluded.bytes")
            .bind(account.tenant.as_str())
            .bind(signed(day))
            .bind(signed(bytes));
            if let Err(error) = database.execute(upsert).await {
                tracing::warn!(%error, tenant = %account.tenant, "what came today is not written down");
            }
            let Some(stored) = account.meter().stored() else { continue };
            let upsert = sql("INSERT INTO quota_stock (tenant, bytes) VALUES ($1, $2) \
                 ON CONFLICT (tenant) DO UPDATE SET bytes = excluded.bytes")
            .bind(account.tenant.as_str())
            .bind(signed(stored));
            if let Err(error) = database.execute(upsert).await {
                tracing::warn!(%error, tenant = %account.tenant, "what a tenant stores is not written down");
            }
        }
    }

    /// What every tenant uses, by name.
    pub(crate) fn report(&self, operations: &Operations) -> Vec<TenantReport> {
        let of = |account: &Arc<Account>| account.report(operations.running_of(account.id).into());
        let mut tenants: Vec<TenantReport> = self.accounts.values().map(of).collect();
        tenants.sort_by(|a, b| a.name.cmp(&b.name));
        tenants
    }
}

impl fmt::Debug for Quotas {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Quotas").field("tenants", &self.accounts.len()).finish_non_exhaustive()
    }
}

impl Account {
    fn meter(&self) -> MutexGuard<'_, Meter> {
        // Each change is one of numbers: a panic in its midst leaves nothing half done.
        self.meter.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is stored beyond the share if so much comes.
    fn excess(&self, bytes: u64) -> u64 {
        let mut meter = self.meter();
        let limit = meter.quota().stored_bytes.unwrap_or(u64::MAX);
        meter.used(now_s()).stored_bytes.saturating_add(bytes).saturating_sub(limit)
    }

    /// Takes over what the store found when it last looked at itself.
    fn note(&self, owner: OwnerId, stock: &Stock) {
        let began = stock.began.saturating_duration_since(self.began);
        self.meter().found(stock.owned.get(&owner).copied().unwrap_or(0), began);
    }

    /// Looks at the store if this process has not yet: what an earlier one knew is no reason to let go of anything.
    fn look_first(&self, owner: OwnerId, store: &DiskBlobStore) {
        if self.meter().has_looked() {
            return;
        }
        if let Err(error) = store.take_stock() {
            tracing::warn!(%error, tenant = %self.tenant, "what a tenant stores could not be counted");
        }
        if let Some(stock) = store.stock() {
            self.note(owner, &stock);
        }
    }

    fn refuse(&self, excess: Excess) -> OverQuota {
        let tenant = &self.tenant;
        let mut refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
        let (text, retry_after) = match excess {
            Excess::Stored { used_bytes, limit_bytes } => {
                refused.stored += 1;
                let (used, limit) = (show_size(roughly(used_bytes, limit_bytes)), show_size(limit_bytes));
                let text = format!(
                    "the tenant {tenant} stores about {used} of its {limit}, and nothing of it may go yet: \
                     wait for leases to end, let its Nix caches keep less, or ask the operator for a larger tenant.quota.stored"
                );
                (text, None)
            }
            Excess::Uploaded { used_bytes, limit_bytes, wait } => {
                refused.uploaded += 1;
                let (used, limit) = (show_size(used_bytes), show_size(limit_bytes));
                let text = format!(
                    "the tenant {tenant} has uploaded {used} ({used_bytes} bytes) of its {limit} today: the next day begins \
                     in {} min (UTC), or ask the operator for a larger tenant.quota.uploaded_a_day",
                    wait.as_secs().div_ceil(60)
                );
                (text, Some(wait))
            }
            Excess::Requests { limit, wait } => {
                refused.requests += 1;
                let text = format!(
                    "the tenant {tenant} sends more than its {limit} requests a second: try again in {} ms",
                    wait.as_millis()
                );
                (text, Some(wait))
            }
        };
        OverQuota { text, retry_after }
    }

    fn report(&self, running: u64) -> TenantReport {
        let mut meter = self.meter();
        let (used, quota) = (meter.used(now_s()), *meter.quota());
        drop(meter);
        let refused = *self.refused.lock().unwrap_or_else(PoisonError::into_inner);
        let of = |used, limit| QuotaReport { used, limit, refused: 0 };
        TenantReport {
            name: self.tenant.to_string(),
            stored_bytes: QuotaReport { refused: refused.stored, ..of(used.stored_bytes, quota.stored_bytes) },
            uploaded_bytes_today: QuotaReport {
                refused: refused.uploaded,
                ..of(used.uploaded_bytes, quota.uploaded_bytes_a_day)
            },
            executions: of(running, quota.executions.map(|most| most.get().into())),
            requests_a_second: QuotaReport {
                refused: refused.requests,
                ..of(0, quota.requests_a_second.map(u64::from))
            },
        }
    }
}

/// In steps of the limit. What a tenant brings that another has already counts for that one alone: to the byte, the figure
/// would say who has what.
fn roughly(used_bytes: u64, limit_bytes: u64) -> u64 {
    let step = (limit_bytes / TOLD_STEPS).max(1);
    used_bytes.checked_next_multiple_of(step).unwrap_or(used_bytes)
}

fn now_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

fn unsigned(number: i64) -> u64 {
    u64::try_from(number).unwrap_or_default()
}
