//! Uploads that may be gone on with: those under way, and those that were cut off and wait for their client.
//!
//! What always holds: at most so many wait, each for so long; one that is dropped here gives its space back. Where one has
//! to, it is one of who has most of them, and no tenant ends the waiting of another before its own. Only
//! uncompressed uploads wait: a compressed one goes on with a new frame at an uncompressed offset, which the state of
//! a decoder does not allow, so its client begins anew.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use bytes::Bytes;
use gf_blobstore::{StoreError, Upload};
use gf_digest::{Digest, InstanceName};
use gf_tenancy::TenantId;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep, timeout_at};
use tokio_util::task::AbortOnDropHandle;

/// How long a client that comes back waits for its own earlier call to let go.
const HANDOVER: Duration = Duration::from_secs(2);

/// What tells one upload from another: the parts of its resource name, without what the client may add at the end.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct UploadKey {
    pub(super) tenant: TenantId,
    pub(super) instance: InstanceName,
    pub(super) uuid: Box<str>,
    pub(super) digest: Digest,
}

/// All uploads that may be gone on with.
pub(super) struct Uploads {
    state: Mutex<State>,
    max_parked: usize,
    ttl: Duration,
    /// Told when an upload is parked or ends.
    changed: Notify,
    _sweeper: AbortOnDropHandle<()>,
}

#[derive(Default)]
struct State {
    active: HashMap<UploadKey, Arc<Active>>,
    parked: HashMap<UploadKey, Parked>,
}

impl State {
    /// The upload that waits longest, of the tenant that has most of them when `newcomer` has one more.
    fn oldest_of_who_has_most(&self, newcomer: TenantId) -> Option<UploadKey> {
        let mut counts = HashMap::from([(newcomer, 1_usize)]);
        for key in self.parked.keys() {
            *counts.entry(key.tenant).or_default() += 1;
        }
        let order = |key: &UploadKey, parked: &Parked| (Reverse(counts.get(&key.tenant).copied()), parked.since);
        let oldest = self.parked.iter().min_by_key(|(key, parked)| order(key, parked));
        oldest.map(|(key, _)| key.clone())
    }
}

/// What others may know of, and ask from, an upload under way.
#[derive(Default)]
struct Active {
    received_bytes: AtomicU64,
    give_way: Notify,
}

struct Parked {
    upload: Box<dyn Upload>,
    since: Instant,
}

impl Uploads {
    /// At most `max_parked` wait, each for `ttl`. Must be called within a runtime: a task ends the waiting.
    pub(super) fn new(max_parked: usize, ttl: Duration) -> Arc<Self> {
        Arc::new_cyclic(|uploads| Self {
            state: Mutex::default(),
            max_parked,
            ttl,
            changed: Notify::new(),
            _sweeper: AbortOnDropHandle::new(tokio::spawn(sweep(Weak::clone(uploads), ttl))),
        })
    }

    /// Bytes taken of an upload that is under way or waits.
    pub(super) fn received_bytes(&self, key: &UploadKey) -> Option<u64> {
        let state = self.state();
        let active = state.active.get(key).map(|active| active.received_bytes.load(Ordering::Relaxed));
        active.or_else(|| state.parked.get(key).map(|parked| parked.upload.received_bytes()))
    }

    /// Follows an upload that begins or goes on under this key.
    pub(super) fn follow(self: &Arc<Self>, key: UploadKey, upload: Box<dyn Upload>) -> Running {
        let active = Arc::new(Active::default());
        active.received_bytes.store(upload.received_bytes(), Ordering::Relaxed);
        let mut state = self.state();
        let stale = state.parked.remove(&key);
        state.active.insert(key.clone(), Arc::clone(&active));
        drop(state);
        drop(stale);
        Running { uploads: Arc::clone(self), key, active, upload: Some(upload) }
    }

    /// The upload that waits under this key. If it is still under way, since its caller vanished unnoticed or lost
    /// patience, it is made to give way.
    pub(super) async fn take(&self, key: &UploadKey) -> Option<Box<dyn Upload>> {
        let deadline = Instant::now() + HANDOVER;
        loop {
            let changed = self.changed.notified();
            {
                let mut state = self.state();
                if let Some(parked) = state.parked.remove(key) {
                    return Some(parked.upload);
                }
                state.active.get(key)?.give_way.notify_one();
            }
            timeout_at(deadline, changed).await.ok()?;
        }
    }

    /// Ends the waiting of as many as set `short_bytes` aside, so that a tenant can use the space: first of its own, then of
    /// others, the oldest first. None if all together would not do. Returns how many were given up.
    pub(super) fn give_up_parked(&self, tenant: TenantId, short_bytes: u64) -> usize {
        let mut state = self.state();
        let mut waiting: Vec<_> =
            state.parked.iter().map(|(key, parked)| (key.tenant != tenant, parked.since, key.clone())).collect();
        waiting.sort_by_key(|(is_of_other, since, _)| (*is_of_other, *since));
        let mut left = short_bytes;
        let mut doomed = Vec::new();
        for (_, _, key) in waiting {
            if left == 0 {
                break;
            }
            left = left.saturating_sub(key.digest.size_bytes());
            doomed.push(key);
        }
        if left > 0 {
            return 0;
        }
        let given_up: Vec<Parked> = doomed.iter().filter_map(|key| state.parked.remove(key)).collect();
        drop(state);
        given_up.len()
    }

    fn park(&self, key: UploadKey, upload: Box<dyn Upload>) {
        if self.max_parked == 0 {
            return;
        }
        let mut state = self.state();
        let victim = if state.parked.len() < self.max_parked { None } else { state.oldest_of_who_has_most(key.tenant) };
        let given_up = victim.and_then(|key| state.parked.remove(&key));
        let replaced = state.parked.insert(key, Parked { upload, since: Instant::now() });
        drop(state);
        // Giving space back may take time: not under the lock.
        drop((given_up, replaced));
    }

    fn expire(&self) {
        let mut state = self.state();
        let expired: Vec<Parked> =
            state.parked.extract_if(|_, parked| parked.since.elapsed() >= self.ttl).map(|(_, parked)| parked).collect();
        drop(state);
        drop(expired);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn sweep(uploads: Weak<Uploads>, ttl: Duration) {
    loop {
        sleep((ttl / 4).max(Duration::from_millis(10))).await;
        let Some(uploads) = uploads.upgrade() else { return };
        uploads.expire();
    }
}

/// An upload under way. Dropped before it is finished, it waits for its client.
pub(super) struct Running {
    uploads: Arc<Uploads>,
    key: UploadKey,
    active: Arc<Active>,
    /// Taken when the upload is finished or void.
    upload: Option<Box<dyn Upload>>,
}

impl Running {
    /// Takes the next bytes.
    pub(super) async fn write(&mut self, bytes: Bytes) -> Result<(), StoreError> {
        let Some(mut upload) = self.upload.take() else { return Err(StoreError::Closed) };
        upload.write(bytes).await?;
        self.active.received_bytes.store(upload.received_bytes(), Ordering::Relaxed);
        self.upload = Some(upload);
        Ok(())
    }

    /// Whether the blob came to be here by other ways.
    pub(super) fn already_present(&self) -> bool {
        self.upload.as_ref().is_some_and(|upload| upload.already_present())
    }

    /// Ends when another call wants to go on with this upload.
    pub(super) fn asked_to_give_way(&self) -> impl Future<Output = ()> + Send + use<> {
        let active = Arc::clone(&self.active);
        async move { active.give_way.notified().await }
    }

    /// Lets go of the upload for good: nothing waits.
    pub(super) fn discard(mut self) {
        self.upload = None;
    }

    /// Makes the blob visible.
    pub(super) async fn finish(mut self) -> Result<(), StoreError> {
        match self.upload.take() {
            Some(upload) => upload.finish().await,
            None => Err(StoreError::Closed),
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let mut state = self.uploads.state();
        if state.active.get(&self.key).is_some_and(|active| Arc::ptr_eq(active, &self.active)) {
            state.active.remove(&self.key);
        }
        drop(state);
        if let Some(upload) = self.upload.take()
            && upload.received_bytes() > 0
        {
            self.uploads.park(self.key.clone(), upload);
        }
        self.uploads.changed.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use gf_blobstore::{BlobStore, Encoding, OwnerId};
    use gf_digest::DigestFunction;
    use gf_tenancy::{Access, AccessConfig, TenantConfig, TenantName};
    use gf_testkit::MemoryBlobStore;

    use super::*;

    fn tenant(name: &str) -> TenantId {
        let tenant = TenantConfig { name: TenantName::new(name).unwrap(), instances: vec![instance()] };
        let access = Access::new(AccessConfig { tenants: vec![tenant], token: None, anonymous_read: true }).unwrap();
        access.tenants()[0].id()
    }

    fn instance() -> InstanceName {
        InstanceName::new("").unwrap()
    }

    fn key(uuid: &str) -> UploadKey {
        key_of("default", uuid)
    }

    fn key_of(name: &str, uuid: &str) -> UploadKey {
        let digest = Digest::of(DigestFunction::Sha256, &[7; 100]);
        UploadKey { tenant: tenant(name), instance: instance(), uuid: uuid.into(), digest }
    }

    async fn cut_off(uploads: &Arc<Uploads>, store: &MemoryBlobStore, key: UploadKey) {
        let upload = store.upload(OwnerId(1), key.digest, Encoding::Identity).await.unwrap();
        let mut running = uploads.follow(key, upload);
        running.write(Bytes::from_static(&[7; 40])).await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_tenant_that_needs_space_ends_its_own_waiting_first_and_no_more_than_helps() {
        let store = MemoryBlobStore::default();
        let uploads = Uploads::new(10, Duration::from_secs(60));
        let keys = ["a", "b", "c"].map(|uuid| [key_of("default", uuid), key_of("org-other", uuid)]).concat();
        for key in &keys {
            cut_off(&uploads, &store, key.clone()).await;
            sleep(Duration::from_secs(1)).await;
        }
        let waiting = || -> Vec<usize> { (0..6).filter(|at| uploads.received_bytes(&keys[*at]).is_some()).collect() };
        let other = tenant("org-other");
        for never in [601, u64::MAX] {
            assert_eq!((uploads.give_up_parked(other, never), waiting().len()), (0, 6), "in vain");
        }
        assert_eq!((uploads.give_up_parked(other, 101), waiting()), (2, vec![0, 2, 4, 5]));
        assert_eq!((uploads.give_up_parked(other, 200), waiting()), (2, vec![2, 4]));
        assert_eq!(store.reserved_bytes(), 200);
    }

    #[tokio::test(start_paused = true)]
    async fn who_lets_many_wait_ends_the_waiting_of_nobody_else() {
        let store = MemoryBlobStore::default();
        let uploads = Uploads::new(4, Duration::from_secs(600));
        cut_off(&uploads, &store, key_of("org-other", "first")).await;
        for number in 0..20 {
            sleep(Duration::from_secs(1)).await;
            cut_off(&uploads, &store, key_of("default", &number.to_string())).await;
        }
        let is_waiting = |key: UploadKey| uploads.received_bytes(&key).is_some();
        assert!(is_waiting(key_of("org-other", "first")) && is_waiting(key("19")) && !is_waiting(key("16")));
        for uuid in ["second", "third"] {
            sleep(Duration::from_secs(1)).await;
            cut_off(&uploads, &store, key_of("org-other", uuid)).await;
        }
        assert!(is_waiting(key_of("org-other", "second")) && is_waiting(key("19")), "each has its half");
        assert_eq!(store.reserved_bytes(), 400);
    }

    #[tokio::test(start_paused = true)]
    async fn waiting_ends_and_gives_space_back() {
        let store = MemoryBlobStore::default();
        let uploads = Uploads::new(2, Duration::from_secs(60));
        for uuid in ["a", "b", "c"] {
            cut_off(&uploads, &store, key(uuid)).await;
            sleep(Duration::from_secs(1)).await;
        }
        assert_eq!(store.reserved_bytes(), 200, "two wait, the oldest was given up");
        assert_eq!(uploads.received_bytes(&key("a")), None);
        assert_eq!(uploads.received_bytes(&key("c")), Some(40));
        assert_eq!(uploads.take(&key("b")).await.unwrap().received_bytes(), 40);
        sleep(Duration::from_secs(90)).await;
        assert!(uploads.take(&key("c")).await.is_none());
        assert_eq!(store.reserved_bytes(), 0);
    }

    #[tokio::test]
    async fn an_upload_under_way_gives_way() {
        let store = MemoryBlobStore::default();
        let uploads = Uploads::new(2, Duration::from_secs(60));
        let upload = store.upload(OwnerId(1), key("a").digest, Encoding::Identity).await.unwrap();
        let mut running = uploads.follow(key("a"), upload);
        running.write(Bytes::from_static(&[7; 40])).await.unwrap();
        let stuck = async {
            running.asked_to_give_way().await;
            drop(running);
        };
        let wanted = key("a");
        let (taken, ()) = tokio::join!(uploads.take(&wanted), stuck);
        assert_eq!(taken.unwrap().received_bytes(), 40);
    }

    #[tokio::test]
    async fn what_is_void_or_discarded_does_not_wait() {
        let store = MemoryBlobStore::default();
        let uploads = Uploads::new(2, Duration::from_secs(60));
        let upload = store.upload(OwnerId(1), key("a").digest, Encoding::Identity).await.unwrap();
        let mut running = uploads.follow(key("a"), upload);
        running.write(Bytes::from_static(&[7; 101])).await.unwrap_err();
        drop(running);
        cut_off(&uploads, &store, key("b")).await;
        assert_eq!(uploads.give_up_parked(tenant("default"), 1), 1);
        assert_eq!(store.reserved_bytes(), 0);
    }
}
