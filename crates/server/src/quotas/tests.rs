//! Shares of a real store, in made-up time.

use std::path::Path;

use gf_blobstore::{Accept, BlobStore, ByteRange, Encoding, NewBlob, StoreConfig, TimeSource};
use gf_database::Location;
use gf_digest::{Digest, DigestFunction};
use gf_tenancy::{Access, AccessConfig, TenantConfig};
use gf_testkit::disk_store::index_is_whole;
use gf_testkit::{LossyFiles, ManualTime};

use super::*;

const LEASE_S: u64 = 1600;
const BEGIN_S: u64 = 1_000_000;
const SHARE_BYTES: u64 = 100_000;
const BLOB_BYTES: usize = 40_000;

/// A tenant's share of a store, as one process has it.
struct Share {
    owner: OwnerId,
    time: Arc<ManualTime>,
    store: Arc<DiskBlobStore>,
    shared: QuotaStore,
    quotas: Arc<Quotas>,
    database: Database,
}

impl Share {
    async fn open(folder: &Path) -> Self {
        Self::of(SHARE_BYTES, folder).await
    }

    /// One of so many bytes.
    async fn of(bytes: u64, folder: &Path) -> Self {
        std::fs::create_dir_all(folder.join("store")).unwrap();
        Self::open_with(bytes, folder, &LossyFiles::new(&folder.join("store"))).await
    }

    async fn open_on(folder: &Path, files: &LossyFiles) -> Self {
        Self::open_with(SHARE_BYTES, folder, files).await
    }

    async fn open_with(bytes: u64, folder: &Path, files: &LossyFiles) -> Self {
        let time = Arc::new(ManualTime::new(BEGIN_S));
        let lease = Duration::from_secs(LEASE_S);
        let config = StoreConfig { lease, ..StoreConfig::new(folder.join("store")) };
        let clock: Arc<dyn TimeSource> = Arc::clone(&time) as _;
        let store = DiskBlobStore::open_on(Arc::new(files.clone()), clock, config).await.unwrap();
        index_is_whole(&store).await;
        let database = Database::open(&Location::file(&folder.join("facts")), &[MIGRATIONS]).await.unwrap();
        let name = TenantName::new("default").unwrap();
        let tenants = vec![TenantConfig { name: name.clone(), instances: Vec::new() }];
        let access = Access::new(AccessConfig { tenants, token: None, anonymous_read: false }).unwrap();
        let share = Quota { stored_bytes: Some(bytes), ..Quota::default() };
        let own = Some(Arc::clone(&store));
        let shares = HashMap::from([(name.clone(), share)]);
        let quotas = Arc::new(Quotas::open(own, Some(&database), access.tenants(), &shares).await.unwrap());
        let owner = OwnerId(access.tenant(&name).unwrap().id().number());
        let shared = QuotaStore::new(Arc::clone(&store) as Arc<dyn BlobStore>, Arc::clone(&quotas));
        Self { owner, time, store, shared, quotas, database }
    }

    /// Writes a blob that does not compress.
    async fn put(&self, number: u32) -> Result<Digest, StoreError> {
        let block = |at: u32| *Digest::of(DigestFunction::Sha256, &[number, at].map(u32::to_le_bytes).concat()).hash();
        let bytes: Vec<u8> = (0..).flat_map(block).take(BLOB_BYTES).collect();
        let digest = Digest::of(DigestFunction::Sha256, &bytes);
        let blob = NewBlob { digest, encoding: Encoding::Identity, bytes: bytes.into() };
        self.shared.write_batch(self.owner, vec![blob]).await.remove(0).map(|()| digest)
    }

    async fn has(&self, digest: Digest) -> bool {
        self.shared.read(self.owner, digest, ByteRange::ALL, Accept::Identity).await.is_ok()
    }

    fn look(&self) {
        self.store.take_stock().unwrap();
        self.quotas.note_stock();
    }
}

/// A share that is large enough changes nothing of what a store promises.
#[tokio::test(flavor = "multi_thread")]
async fn a_store_in_shares_does_what_every_store_does() {
    let folder = tempfile::tempdir().unwrap();
    let share = Share::of(1 << 30, folder.path()).await;
    // The suite makes promises from the present on.
    let present = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    share.time.advance(present.as_secs() - BEGIN_S);
    gf_testkit::blob_store_suite::check_as(share.owner, Arc::new(share.shared)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_kept_for_longer_than_a_lease_takes_its_part_of_the_share() {
    for is_kept in [true, false] {
        let folder = tempfile::tempdir().unwrap();
        let share = Share::open(folder.path()).await;
        let first = share.put(1).await.unwrap();
        if is_kept {
            let until = UNIX_EPOCH + Duration::from_secs(BEGIN_S + 100 * LEASE_S);
            assert_eq!(share.shared.keep_until(share.owner, &[first], until).await.unwrap(), []);
        }
        share.time.advance(3 * LEASE_S);
        share.look();
        let second = share.put(2).await.unwrap();
        match share.put(3).await {
            Err(StoreError::OverQuota { reason, retry_after: None }) if is_kept => {
                assert!(reason.contains("nothing of it may go yet"), "{reason}");
            }
            Ok(third) if !is_kept => assert!(share.has(third).await),
            other => panic!("kept: {is_kept}; {other:?}"),
        }
        assert_eq!((share.has(first).await, share.has(second).await), (is_kept, true));
    }
}

fn blob(bytes: Vec<u8>, size_bytes: u64, encoding: Encoding) -> NewBlob {
    let hash = *Digest::of(DigestFunction::Sha256, &bytes).hash();
    NewBlob { digest: Digest::new(DigestFunction::Sha256, hash, size_bytes), encoding, bytes: bytes.into() }
}

/// A false size is a matter of its own entry, however large.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_refused_of_a_batch_is_refused_alone() {
    let folder = tempfile::tempdir().unwrap();
    let share = Share::open(folder.path()).await;
    let small = |number: u8| blob(vec![number; 5], 5, Encoding::Identity);
    let large = blob(vec![7; 2 * usize::try_from(SHARE_BYTES).unwrap()], 2 * SHARE_BYTES, Encoding::Identity);
    let false_size = |number: u8, encoding| blob(vec![number; 5], i64::MAX as u64, encoding);
    let blobs = vec![
        small(1),
        large.clone(),
        false_size(2, Encoding::Identity),
        false_size(3, Encoding::Identity),
        false_size(4, Encoding::Zstd),
        large,
        small(5),
        small(1),
    ];
    let (first, last) = (blobs[0].digest, blobs[6].digest);
    let answers = share.shared.write_batch(share.owner, blobs).await;
    let is_ok: Vec<bool> = answers.iter().map(Result::is_ok).collect();
    assert_eq!(is_ok, [true, false, false, false, false, false, true, true], "{answers:?}");
    for at in [1, 5] {
        assert!(matches!(answers[at], Err(StoreError::OverQuota { .. })), "{answers:?}");
    }
    assert!(share.has(first).await && share.has(last).await);
    let used = share.quotas.accounts[&share.owner].meter().used(now_s());
    assert_eq!((used.stored_bytes, used.uploaded_bytes), (10, 10), "what was refused takes nothing");
}

#[test]
fn what_is_told_is_not_to_the_byte() {
    assert_eq!([0, 1, 63, 64, 65].map(|used| roughly(used, 64 * 64)), [0, 64, 64, 64, 128]);
    assert_eq!((roughly(5, 1), roughly(u64::MAX, u64::MAX - 1)), (5, u64::MAX));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_stored_counts_from_the_start_of_the_next_process_on() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir_all(folder.path().join("store")).unwrap();
    let files = LossyFiles::new(&folder.path().join("store"));
    let share = Share::open_on(folder.path(), &files).await;
    share.look();
    share.put(1).await.unwrap();
    share.put(2).await.unwrap();
    share.quotas.save(&share.database).await;
    let held = share.quotas.accounts[&share.owner].meter().stored().unwrap();
    assert!(held >= 2 * BLOB_BYTES as u64);
    share.store.close().unwrap();
    drop(share);

    let share = Share::open_on(folder.path(), &files).await;
    assert_eq!(share.quotas.accounts[&share.owner].meter().stored(), Some(held));
    assert!(!share.quotas.accounts[&share.owner].meter().has_looked(), "nobody did yet");
    let refused = share.put(3).await.unwrap_err();
    assert!(matches!(refused, StoreError::OverQuota { .. }), "{refused:?}");
}

/// A figure of an earlier process may be too large: nothing goes because of that.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_goes_before_the_store_was_looked_at() {
    let folder = tempfile::tempdir().unwrap();
    let share = Share::open(folder.path()).await;
    let first = share.put(1).await.unwrap();
    share.time.advance(3 * LEASE_S);
    share.quotas.accounts[&share.owner].meter().resume_stored(10 * SHARE_BYTES);
    let second = share.put(2).await.unwrap();
    assert!(share.has(first).await && share.has(second).await);
}
