//! Entries that several write at once: what everybody reads is what is found again when the index is lost.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::sync::{Arc, Barrier};

use gf_blobstore::{BlobStore, DiskBlobStore, FileLayer, MachineTime, OwnerId, StoreConfig};
use gf_testkit::LossyFiles;
use gf_testkit::disk_store::{entry_key, index_is_whole};

const OWNER: OwnerId = OwnerId(1);
const KEYS: u64 = 4000;
const WRITERS: u64 = 3;

#[test]
fn index_and_log_agree_about_entries_that_are_written_at_once() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let directory = tempfile::tempdir().unwrap();
    let files = LossyFiles::new(directory.path());
    let open = || {
        let config = StoreConfig::new(directory.path().to_owned());
        let store = DiskBlobStore::open_on(Arc::new(files.clone()), Arc::new(MachineTime::default()), config);
        runtime.block_on(store).unwrap()
    };
    let store = open();
    let together = Barrier::new(usize::try_from(WRITERS).unwrap());
    std::thread::scope(|scope| {
        for writer in 0..WRITERS {
            let (store, together, runtime) = (&store, &together, &runtime);
            scope.spawn(move || {
                for key in 0..KEYS {
                    together.wait();
                    let key = entry_key(OWNER, key);
                    if writer == 2 {
                        runtime.block_on(store.remove_entry(&key)).unwrap();
                    } else {
                        runtime.block_on(store.put_entry(&key, writer.to_string().into())).unwrap();
                    }
                }
            });
        }
    });
    let read = |store: &DiskBlobStore| -> Vec<_> {
        (0..KEYS).map(|key| runtime.block_on(store.get_entry(&entry_key(OWNER, key))).unwrap()).collect()
    };
    let before = read(&store);
    store.close().unwrap();
    drop(store);
    for (path, _) in files.files().iter().filter(|(path, _)| path.starts_with(directory.path().join("index"))) {
        FileLayer::remove(&files, path).unwrap();
    }
    let store = open();
    runtime.block_on(index_is_whole(&store));
    let differ = before.iter().zip(read(&store)).filter(|(before, after)| *before != after).count();
    assert_eq!(differ, 0, "of {KEYS} entries");
}
