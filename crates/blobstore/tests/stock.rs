//! Taking stock: whose bytes are here and how many are under lease, as of now and not as of the last collection.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::sync::Arc;
use std::time::Duration;

use gf_blobstore::{BlobStore, DiskBlobStore, OwnerId, StoreConfig, TimeSource};
use gf_testkit::blob_store_suite::{noise, put};
use gf_testkit::disk_store::{entry_key, index_is_whole, new_blob, upload, wait_until};
use gf_testkit::{LossyFiles, ManualTime};

const LEASE_S: u64 = 1600;
const MINE: OwnerId = OwnerId(1);
const YOURS: OwnerId = OwnerId(2);

async fn open(files: &LossyFiles, time: &Arc<ManualTime>, directory: &std::path::Path) -> Arc<DiskBlobStore> {
    let config = StoreConfig {
        lease: Duration::from_secs(LEASE_S),
        large_blob_bytes: 40_000,
        ..StoreConfig::new(directory.to_owned())
    };
    let clock: Arc<dyn TimeSource> = Arc::clone(time) as _;
    let store = DiskBlobStore::open_on(Arc::new(files.clone()), clock, config).await.unwrap();
    index_is_whole(&store).await;
    store
}

/// Whether a figure is that of so many bytes of blobs, and of the records about them.
fn is_about(figure: u64, bytes: u64) -> bool {
    (bytes..bytes + bytes / 20).contains(&figure)
}

#[tokio::test(flavor = "multi_thread")]
async fn figures_are_those_of_now() {
    let (directory, time) = (tempfile::tempdir().unwrap(), Arc::new(ManualTime::new(1_000_000)));
    let files = LossyFiles::new(directory.path());
    let store = open(&files, &time, directory.path()).await;
    wait_until("the store takes stock by itself", || store.stock().is_some());
    assert_eq!(store.stats().leased_bytes, 0);

    let old = new_blob(noise(1, 200_000));
    upload(store.as_ref(), MINE, &old).await;
    put(store.as_ref(), YOURS, new_blob(noise(2, 30_000))).await.unwrap();
    store.put_entry(&entry_key(YOURS, 1), vec![7; 20_000].into()).await.unwrap();
    // Who brings what is here already owns none of its bytes.
    upload(store.as_ref(), YOURS, &old).await;
    store.take_stock().unwrap();
    let stock = store.stock().unwrap();
    assert!(is_about(stock.owned[&MINE], 200_000) && is_about(stock.owned[&YOURS], 50_000), "{stock:?}");
    assert!(is_about(store.stats().leased_bytes, 250_000), "{stock:?}");

    time.advance(2 * LEASE_S);
    store.take_stock().unwrap();
    assert_eq!(store.stats().leased_bytes, 0, "the lease is over");
    assert_eq!(store.find_missing(MINE, &[old.digest]).await.unwrap(), []);
    store.take_stock().unwrap();
    assert!(is_about(store.stats().leased_bytes, 200_000), "asking renews the lease");
    store.close().unwrap();
    drop(store);

    let store = open(&files, &time, directory.path()).await;
    wait_until("a store that was opened takes stock", || store.stock().is_some());
    assert_eq!(store.stock().unwrap().owned, stock.owned);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_owner_makes_room_with_its_own() {
    let (directory, time) = (tempfile::tempdir().unwrap(), Arc::new(ManualTime::new(1_000_000)));
    let store = open(&LossyFiles::new(directory.path()), &time, directory.path()).await;
    let bring = async |owner: OwnerId, number: u64| {
        let blob = new_blob(noise(number, 50_000));
        upload(store.as_ref(), owner, &blob).await;
        time.advance(10);
        blob.digest
    };
    let yours = bring(YOURS, 1).await;
    let (older, old, used) = (bring(MINE, 2).await, bring(MINE, 3).await, bring(MINE, 4).await);
    assert_eq!(store.collect_of(MINE, 1).unwrap().evicted, 0, "all is under lease");
    time.advance(2 * LEASE_S);
    assert_eq!(store.find_missing(MINE, &[used]).await.unwrap(), []);

    assert_eq!(store.collect_of(MINE, 40_000).unwrap().evicted, 1);
    assert_eq!(store.find_missing(MINE, &[older]).await.unwrap(), [older], "the least recently used goes first");
    assert_eq!(store.collect_of(MINE, 1 << 30).unwrap().evicted_bytes / 50_000, 1);
    assert_eq!(store.find_missing(MINE, &[old, used]).await.unwrap(), [old]);
    assert_eq!(store.find_missing(YOURS, &[yours]).await.unwrap(), [], "older, and of another");
    store.take_stock().unwrap();
    let stock = store.stock().unwrap();
    assert!(is_about(stock.owned[&MINE], 50_000) && is_about(stock.owned[&YOURS], 50_000), "{stock:?}");
}
