//! What the operator of the server asks and does: its state, what is run, and the maintenance of its store.
//!
//! Functions that take [`Authorized`] are the service; `routes` is REST over them, and nothing more. Deliberately
//! absent: configuration, which is a file.
//!
//! What always holds: one maintenance at a time, also when its caller has gone; a second one is told so.

pub(crate) mod action_results;
mod advice;
mod execution;
pub mod report;
mod routes;

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use gf_blobstore::{
    CollectionReport, DiskBlobStore, OpenError, Repair, ScrubStats, StoreError, StoreStats, VerifyReport,
};
use gf_execution::Operations;
use gf_tenancy::{Authorized, Operate};
use thiserror::Error;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::app::{blob_store_config, store_folder};
use crate::builtin_worker::Condition;
use crate::capacity::Background;
use crate::config::StoreSettings;
use crate::edges::{Gate, NotRecorded};
use crate::health::{Readiness, Ready};
use crate::quotas::Quotas;
use report::{GcRequest, GcResult, Repaired, ScrubStatus, Status, StoreStatus, VerifyRequest, VerifyResult};
pub(crate) use routes::router;

/// Why maintenance did not happen.
#[derive(Debug, Error)]
pub enum OperateError {
    /// One maintenance at a time.
    #[error("the store is being verified or collected already: wait for it to end")]
    Busy,
    /// The store failed.
    #[error("the store failed: {0}; look at the server's log and its disk")]
    Store(#[from] StoreError),
    /// The store cannot be opened.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// It could not be recorded.
    #[error(transparent)]
    NotRecorded(#[from] NotRecorded),
    /// There is no store in the folder.
    #[error("there is no store in {0}: name the folder that `gf serve --data-dir` was given")]
    NoStore(String),
    /// The server stops before the work is done.
    #[error("the server is stopping: ask again when it is up")]
    Stopping,
    /// The threads that the work needs cannot be had.
    #[error("the system refuses what the work needs: {0}")]
    System(#[from] std::io::Error),
}

/// The operator's side of a running server.
pub(crate) struct Operator {
    pub(crate) gate: Gate,
    pub(crate) store: Arc<DiskBlobStore>,
    pub(crate) settings: StoreSettings,
    pub(crate) readiness: Readiness,
    pub(crate) began: Instant,
    pub(crate) maintenance: Arc<Semaphore>,
    pub(crate) background: Background,
    pub(crate) operations: Operations,
    pub(crate) own_worker: Condition,
    pub(crate) quotas: Arc<Quotas>,
}

impl Operator {
    async fn status(&self, operator: &Authorized<Operate>) -> Result<Status, OperateError> {
        let (not_ready, full) = match self.readiness.check().await {
            Ok(Ready::Whole) => (None, None),
            Ok(Ready::Full(reason)) => (None, Some(reason)),
            Err(reason) => (Some(reason.to_string()), None),
        };
        let tenants = self.gate.access().tenants().iter().map(|tenant| tenant.name().to_string()).collect();
        Ok(Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            uptime_seconds: self.began.elapsed().as_secs(),
            not_ready,
            full,
            tenants,
            tenant_use: self.quotas.report(&self.operations),
            store: self.store_stats(operator).await?,
            execution: Some(self.execution_summary(operator)),
        })
    }

    async fn store_stats(&self, _: &Authorized<Operate>) -> Result<StoreStatus, OperateError> {
        Ok(store_status(&stats(&self.store).await?, &self.settings))
    }

    /// Begins when it was recorded, which is done when it can begin.
    async fn verify(
        &self,
        _: &Authorized<Operate>,
        request: VerifyRequest,
        recorded: impl Future<Output = Result<(), NotRecorded>>,
    ) -> Result<VerifyResult, OperateError> {
        let only_one = self.only_one()?;
        recorded.await?;
        let store = Arc::clone(&self.store);
        tracing::info!(repair = request.repair, "verifying the store");
        let verified = self.background.run(async move {
            let _only_one = only_one;
            let report = store.verify(repair_of(request)).await?;
            tracing::info!(blobs = report.blobs, lost = report.lost_count, "verified the store");
            Ok(verify_result(report))
        });
        verified.await.map_err(std::io::Error::other)?.unwrap_or(Err(OperateError::Stopping))
    }

    /// As [`Self::verify`].
    async fn collect_garbage(
        &self,
        _: &Authorized<Operate>,
        request: GcRequest,
        recorded: impl Future<Output = Result<(), NotRecorded>>,
    ) -> Result<GcResult, OperateError> {
        let only_one = self.only_one()?;
        recorded.await?;
        let GcRequest { free_bytes, dry_run } = request;
        let report = blocking(&self.store, move |store| {
            // It goes on when the caller has gone, so it keeps its turn.
            let _only_one = only_one;
            match dry_run {
                true => store.plan_collection(free_bytes),
                false => store.collect(free_bytes),
            }
        });
        let report = report.await??;
        tracing::info!(dry_run, evicted = report.evicted, freed_bytes = report.freed_bytes, "collected");
        Ok(gc_result(report, request))
    }

    /// The turn, for as long as the work runs and not only for as long as its caller waits.
    fn only_one(&self) -> Result<OwnedSemaphorePermit, OperateError> {
        Arc::clone(&self.maintenance).try_acquire_owned().map_err(|_| OperateError::Busy)
    }
}

/// Verifies the store in a data folder that no server has open. For the command line; blocks.
///
/// # Errors
/// [`OperateError`]; above all when a server has the folder open.
pub fn verify_offline(data_dir: &Path, request: VerifyRequest) -> Result<VerifyResult, OperateError> {
    // Opening makes a store of an empty folder; asking about one must not.
    if !store_folder(data_dir).is_dir() {
        return Err(OperateError::NoStore(data_dir.display().to_string()));
    }
    let config = blob_store_config(data_dir, &StoreSettings::default());
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        let store = DiskBlobStore::open(config).await?;
        let report = store.verify(repair_of(request)).await?;
        blocking(&store, DiskBlobStore::close).await??;
        Ok(verify_result(report))
    })
}

/// The figures of the store; reading them asks the file system, which may hang.
pub(crate) async fn stats(store: &Arc<DiskBlobStore>) -> Result<StoreStats, std::io::Error> {
    blocking(store, DiskBlobStore::stats).await
}

/// Runs what blocks where it may.
pub(crate) async fn blocking<T: Send + 'static>(
    store: &Arc<DiskBlobStore>,
    work: impl FnOnce(&DiskBlobStore) -> T + Send + 'static,
) -> Result<T, std::io::Error> {
    let store = Arc::clone(store);
    tokio::task::spawn_blocking(move || work(&store)).await.map_err(std::io::Error::other)
}

const fn repair_of(request: VerifyRequest) -> Repair {
    if request.repair { Repair::Yes } else { Repair::No }
}

fn store_status(stats: &StoreStats, settings: &StoreSettings) -> StoreStatus {
    StoreStatus {
        capacity_bytes: stats.capacity_bytes,
        used_bytes: stats.used_bytes,
        reserved_bytes: stats.reserved_bytes,
        leased_bytes: stats.leased_bytes,
        lease_seconds: settings.lease.as_secs(),
        sync_window_ms: u64::try_from(settings.sync_window.as_millis()).unwrap_or(u64::MAX),
        free_disk_bytes: stats.free_disk_bytes,
        keys: stats.keys,
        deduplicated_bytes: stats.deduplicated_bytes,
        evicted_blobs: stats.evicted,
        evicted_bytes: stats.evicted_bytes,
        youngest_evicted_age_seconds: stats.youngest_evicted_age_s,
        quarantined_blobs: stats.quarantined,
        scrub: Some(scrub_status(&stats.scrub)),
    }
}

const fn scrub_status(stats: &ScrubStats) -> ScrubStatus {
    let ScrubStats { passes, last_pass_age_s, blobs, bytes, entries, damaged, unreadable } = *stats;
    ScrubStatus { passes, last_pass_age_seconds: last_pass_age_s, blobs, bytes, entries, damaged, unreadable }
}

fn verify_result(report: VerifyReport) -> VerifyResult {
    let orphans_removed = report.orphans_removed;
    VerifyResult {
        clean: report.is_clean(),
        blobs: report.blobs,
        bytes: report.bytes,
        entries: report.entries,
        lost_count: report.lost_count,
        lost: report.lost,
        index_was_whole: report.index_was_whole,
        repaired: report.rebuilt.map(|rebuilt| Repaired {
            restored: rebuilt.restored,
            dropped: rebuilt.dropped,
            orphans_removed,
        }),
    }
}

const fn gc_result(report: CollectionReport, request: GcRequest) -> GcResult {
    GcResult {
        dry_run: request.dry_run,
        evicted_blobs: report.evicted,
        evicted_bytes: report.evicted_bytes,
        freed_bytes: report.freed_bytes,
        leased_bytes: report.leased_bytes,
        compacted_segments: report.compacted_segments,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::task::{Context, Waker};
    use std::time::Duration;

    use gf_blobstore::BlobStore;
    use gf_digest::{Digest, DigestFunction, InstanceName};
    use gf_execution::operations::Request;
    use gf_execution::{ActionCache, Inlining, OperationsConfig};
    use gf_tenancy::{Access, AccessConfig, Execute, TenantConfig, TenantName};

    use super::*;

    fn instance() -> InstanceName {
        InstanceName::new("").unwrap()
    }

    fn recorded() -> impl Future<Output = Result<(), NotRecorded>> {
        std::future::ready(Ok(()))
    }

    async fn operator(data_dir: &Path) -> Operator {
        let settings = StoreSettings { capacity_bytes: Some(1 << 30), ..StoreSettings::default() };
        let store = DiskBlobStore::open(blob_store_config(data_dir, &settings)).await.unwrap();
        let tenant = TenantConfig { name: TenantName::new("default").unwrap(), instances: vec![instance()] };
        let access = AccessConfig { tenants: vec![tenant], token: None, anonymous_read: false };
        let access = Arc::new(Access::new(access).unwrap());
        let blobs: Arc<dyn BlobStore> = Arc::clone(&store) as Arc<dyn BlobStore>;
        let cache = ActionCache::new(Arc::clone(&blobs));
        Operator {
            operations: Operations::start(blobs, cache, Arc::clone(&access), OperationsConfig::default()),
            own_worker: Condition::default(),
            quotas: Arc::new(Quotas::none()),
            gate: Gate::without_log(access),
            readiness: Readiness::new(Arc::clone(&store) as Arc<dyn gf_blobstore::BlobStore>, data_dir),
            background: Background::start(&store, data_dir, &settings).await,
            store,
            settings,
            began: Instant::now(),
            maintenance: Arc::new(Semaphore::new(1)),
        }
    }

    #[tokio::test]
    async fn an_operation_is_explained_after_its_end_too() {
        let data = tempfile::tempdir().unwrap();
        let operator = operator(data.path()).await;
        let who = operator.gate.access().authenticate(None).unwrap();
        let client = operator.gate.access().authorize::<Execute>(&who, &instance()).unwrap();
        let who = operator.gate.access().authorize::<Operate>(who, &instance()).unwrap();
        let request = Request {
            action: Digest::of(DigestFunction::Sha256, b"an action that is not there"),
            skip_cache_lookup: false,
            priority: 0,
            invocation: "test".into(),
            inlining: Inlining::NONE,
        };
        let mut watch = operator.operations.execute(client, request).unwrap();
        let name = watch.name().to_string();
        while watch.next().await.is_some() {}

        let report = operator.operation(&who, &name).unwrap();
        assert_eq!((report.name, report.stage.as_str()), (name, "completed"));
        assert_eq!(report.end.map(|end| end.verdict).as_deref(), Some("missing"));
        assert!(report.sentence.contains("must be uploaded first"), "{}", report.sentence);
        assert!(report.next_step.contains("execute the action again"), "{}", report.next_step);
        assert!(operator.operation(&who, "operations/none").is_none());
        let execution = operator.execution(&who);
        assert!(execution.workers.is_empty() && execution.queues.is_empty());
        operator.background.stop().await;
    }

    #[test]
    fn a_caller_who_leaves_does_not_let_in_a_second_maintenance() {
        let data = tempfile::tempdir().unwrap();
        let mut runtime = tokio::runtime::Builder::new_current_thread();
        // One thread for blocking work: while the test holds it, no collection ends.
        let runtime = runtime.enable_all().max_blocking_threads(1).build().unwrap();
        runtime.block_on(async {
            let operator = operator(data.path()).await;
            let who = operator.gate.access().authenticate(None).unwrap();
            let who = operator.gate.access().authorize::<Operate>(who, &instance()).unwrap();
            let mut context = Context::from_waker(Waker::noop());
            let (release, held) = mpsc::channel::<()>();
            let holding = tokio::task::spawn_blocking(move || held.recv());

            let mut collecting =
                Box::pin(operator.collect_garbage(&who, GcRequest { free_bytes: 0, dry_run: false }, recorded()));
            assert!(collecting.as_mut().poll(&mut context).is_pending());
            drop(collecting);
            let verified = operator.verify(&who, VerifyRequest { repair: false }, recorded()).await;
            assert!(matches!(verified, Err(OperateError::Busy)), "{verified:?}");
            drop(release);
            let _ = holding.await.unwrap();
            let turn = tokio::time::timeout(Duration::from_secs(20), operator.maintenance.acquire()).await;
            drop(turn.unwrap().unwrap());

            let mut verifying = Box::pin(operator.verify(&who, VerifyRequest { repair: false }, recorded()));
            assert!(verifying.as_mut().poll(&mut context).is_pending());
            drop(verifying);
            let unseen = async { panic!("what cannot be done is not recorded as done") };
            let collected = operator.collect_garbage(&who, GcRequest { free_bytes: 0, dry_run: true }, unseen).await;
            assert!(matches!(collected, Err(OperateError::Busy)), "{collected:?}");
            operator.background.stop().await;
            assert_eq!(operator.maintenance.available_permits(), 1);
        });
    }
}
