//! A disk without room: writes get a clear answer, reads go on, and all is well again once there is room. And what
//! opening a store reads, which must not grow with the store.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use gf_blobstore::{
    Accept, BlobStore, DiskBlobStore, Encoding, EntryKey, EntryTable, ErrorKind, FileLayer, MachineTime, NewBlob,
    OwnerId, Repair, StoreConfig, StoreError, SystemFiles,
};
use gf_digest::{Digest, DigestFunction, InstanceName};
use gf_testkit::blob_store_suite::{noise, put};
use gf_testkit::{FileOperation, InterceptedFiles, LossyFiles};

const OWNER: OwnerId = OwnerId(1);

async fn open(files: Arc<dyn FileLayer>, directory: &Path) -> Arc<DiskBlobStore> {
    let config = StoreConfig { large_blob_bytes: 100_000, ..StoreConfig::new(directory.to_owned()) };
    DiskBlobStore::open_on(files, Arc::new(MachineTime::default()), config).await.unwrap()
}

fn new_blob(number: u64, size: usize) -> NewBlob {
    let bytes = noise(number + 1, size);
    NewBlob { digest: Digest::of(DigestFunction::Sha256, &bytes), bytes: bytes.into(), encoding: Encoding::Identity }
}

async fn write(store: &DiskBlobStore, blob: &NewBlob) -> Result<(), StoreError> {
    if blob.digest.size_bytes() < 100_000 {
        return put(store, OWNER, blob.clone()).await;
    }
    let mut upload = store.upload(OWNER, blob.digest, Encoding::Identity).await?;
    upload.write(blob.bytes.clone()).await?;
    upload.finish().await
}

/// Writes until there is no room, small and large. Returns what was taken.
async fn fill(store: &DiskBlobStore, from: u64) -> Vec<NewBlob> {
    let mut stored = Vec::new();
    let mut refused = [false; 2];
    for number in from..from + 20_000 {
        let is_large = number % 10 == 0;
        let blob = new_blob(number, if is_large { 400_000 } else { 20_000 });
        match write(store, &blob).await {
            Ok(()) => stored.push(blob),
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::Exhausted, "{error}");
                refused[usize::from(is_large)] = true;
            }
        }
        if refused == [true, true] {
            return stored;
        }
    }
    panic!("the disk never fills");
}

async fn all_can_be_read(store: &DiskBlobStore, blobs: &[NewBlob]) {
    for blob in blobs {
        let read = store.read_batch(OWNER, &[blob.digest], Accept::Identity).await.pop().unwrap();
        assert!(read.unwrap().0 == blob.bytes);
    }
}

/// The story of a full disk. `make_room` gives some back.
async fn fills_and_recovers(files: Arc<dyn FileLayer>, directory: &Path, make_room: impl FnOnce()) {
    let store = open(Arc::clone(&files), directory).await;
    let key = EntryKey {
        table: EntryTable::ActionResult,
        owner: OWNER,
        instance: InstanceName::new("").unwrap(),
        digest: Digest::of(DigestFunction::Sha256, b"action"),
    };
    store.put_entry(&key, "before".into()).await.unwrap();
    let stored = fill(&store, 0).await;
    assert!(stored.len() > 50, "{}", stored.len());
    all_can_be_read(&store, &stored).await;
    assert_eq!(store.get_entry(&key).await.unwrap().unwrap(), "before");
    make_room();
    let later = new_blob(900_000, 20_000);
    let deadline = Instant::now() + Duration::from_secs(120);
    while let Err(error) = write(&store, &later).await {
        assert_eq!(error.kind(), ErrorKind::Exhausted, "{error}");
        assert!(Instant::now() < deadline, "there is room again, but: {error}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    write(&store, &new_blob(900_010, 400_000)).await.unwrap();
    store.put_entry(&key, "after".into()).await.unwrap();
    all_can_be_read(&store, &stored).await;
    store.close().unwrap();
    drop(store);
    let store = open(files, directory).await;
    all_can_be_read(&store, &stored).await;
    assert_eq!(store.get_entry(&key).await.unwrap().unwrap(), "after");
    let report = store.verify(Repair::Yes).await.unwrap();
    assert!(report.is_clean(), "{report:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_refuses_writes_serves_reads_and_recovers() {
    let directory = tempfile::tempdir().unwrap();
    let room = Arc::new(AtomicU64::new(8 << 20));
    let files = InterceptedFiles::with_room(Arc::new(LossyFiles::new(directory.path())), Arc::clone(&room));
    fills_and_recovers(Arc::new(files), directory.path(), || room.store(64 << 20, Ordering::SeqCst)).await;
}

/// A small file system in a file; gone when dropped.
struct SmallDisk {
    directory: tempfile::TempDir,
}

impl SmallDisk {
    /// `None` when this machine does not let us mount.
    fn mount() -> Option<Self> {
        let disk = Self { directory: tempfile::tempdir().unwrap() };
        let image = disk.directory.path().join("image");
        std::fs::File::create(&image).unwrap().set_len(48 << 20).unwrap();
        std::fs::create_dir(disk.path()).unwrap();
        let ran = |command: &mut Command| command.output().is_ok_and(|output| output.status.success());
        let made = ran(Command::new("mkfs.ext4").args(["-q", "-m", "0"]).arg(&image));
        (made && ran(Command::new("mount").args(["-o", "loop"]).arg(&image).arg(disk.path()))).then_some(disk)
    }

    fn path(&self) -> std::path::PathBuf {
        self.directory.path().join("disk")
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // A thread of the store that still has a file open must not keep the mount: the loop device goes with it. Not mounted
        // after all: nothing to undo.
        let _ = Command::new("umount").arg("--lazy").arg(self.path()).output();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_file_system_does_too() {
    let Some(disk) = SmallDisk::mount() else {
        return gf_testkit::skip("this machine lets us mount nothing: only the full disk in memory was tried");
    };
    let ballast = disk.path().join("ballast");
    std::fs::write(&ballast, vec![1; 16 << 20]).unwrap();
    fills_and_recovers(Arc::new(SystemFiles), &disk.path().join("store"), || std::fs::remove_file(&ballast).unwrap())
        .await;
}

/// What is read when a store of so many small blobs is opened and answers one question, in operations.
async fn reads_to_open(blobs: u64) -> u64 {
    let directory = tempfile::tempdir().unwrap();
    let disk: Arc<dyn FileLayer> = Arc::new(LossyFiles::new(directory.path()));
    let store = open(Arc::clone(&disk), directory.path()).await;
    for batch in 0..blobs / 500 {
        let blobs = (0..500).map(|at| new_blob(batch * 500 + at, 24)).collect();
        assert!(store.write_batch(OWNER, blobs).await.iter().all(Result::is_ok));
    }
    store.close().unwrap();
    drop(store);
    let reads = Arc::new(AtomicU64::new(0));
    let counting = {
        let reads = Arc::clone(&reads);
        InterceptedFiles::new(disk, move |path, operation| {
            // The tables are read one by one, in the background, and each when it is first asked.
            let in_background = matches!(std::thread::current().name(), Some("gf-store-idle" | "gf-store-scrub"));
            let counts = matches!(operation, FileOperation::Read(_) | FileOperation::Open | FileOperation::List);
            if counts && !in_background && !path.ends_with("incoming") {
                reads.fetch_add(1, Ordering::SeqCst);
            }
            Ok(())
        })
    };
    let store = open(Arc::new(counting), directory.path()).await;
    let reads = reads.load(Ordering::SeqCst);
    assert_eq!(store.find_missing(OWNER, &[new_blob(3, 24).digest]).await.unwrap(), []);
    store.close().unwrap();
    reads
}

#[tokio::test(flavor = "multi_thread")]
async fn opening_reads_no_more_of_a_large_store() {
    let (small, large) = (reads_to_open(1000).await, reads_to_open(200_000).await);
    assert!(large <= small, "{small} reads to open 1,000 blobs, {large} to open 200,000");
    assert!(small < 50, "{small} reads");
}

/// A table that could not take its place: once the disk is willing again, all goes on, and not only when it grows again.
#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_could_not_grow_keeps_nothing_else_from_it() {
    let directory = tempfile::tempdir().unwrap();
    let refuses = Arc::new(AtomicBool::new(true));
    let files = InterceptedFiles::new(Arc::new(LossyFiles::new(directory.path())), {
        let refuses = Arc::clone(&refuses);
        move |path, operation| {
            let is_table =
                operation == FileOperation::Rename && path.parent().is_some_and(|folder| folder.ends_with("index"));
            if is_table && refuses.load(Ordering::SeqCst) {
                Err(std::io::ErrorKind::StorageFull.into())
            } else {
                Ok(())
            }
        }
    });
    refuses.store(false, Ordering::SeqCst);
    let store = open(Arc::new(files), directory.path()).await;
    refuses.store(true, Ordering::SeqCst);
    let mut stored = Vec::new();
    for number in 0..20_000 {
        let blob = new_blob(number, 10);
        if write(&store, &blob).await.is_err() {
            break;
        }
        stored.push(blob.digest);
    }
    assert!((100..20_000).contains(&stored.len()), "{} were taken", stored.len());
    refuses.store(false, Ordering::SeqCst);
    store.checkpoint().unwrap();
    assert_eq!(store.find_missing(OWNER, &stored).await.unwrap(), []);
}
