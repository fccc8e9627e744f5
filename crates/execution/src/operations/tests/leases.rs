//! What queued and running actions need is leased again, however long they wait.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::SystemTime;

use async_trait::async_trait;
use bytes::Bytes;
use gf_blobstore::{BlobRead, EntryKey, HashedBlob, NamelessUpload, OwnerId, StoreError, Upload};
use gf_reapi::execution::{Directory, FileNode};

use super::*;
use crate::operations::time::RENEWALS;

const LEASE: Duration = Duration::from_secs(720);
/// Those one after the other would take two thirds of the lease.
const QUEUED: usize = 1000;
const ANSWER_TIME: Duration = Duration::from_millis(240);

/// A store that is slow, and knows when it was last asked for what.
#[derive(Clone, Default)]
struct Touched {
    store: MemoryBlobStore,
    notes: Arc<Notes>,
}

#[derive(Default)]
struct Notes {
    touches: Mutex<HashMap<Digest, Vec<Instant>>>,
    asking: AtomicUsize,
    most_asking: AtomicUsize,
    is_down: AtomicBool,
}

impl Notes {
    /// As long as it takes to answer; whether there is an answer.
    async fn answer(&self) -> Result<(), StoreError> {
        let asking = self.asking.fetch_add(1, Ordering::SeqCst) + 1;
        self.most_asking.fetch_max(asking, Ordering::SeqCst);
        sleep(ANSWER_TIME).await;
        self.asking.fetch_sub(1, Ordering::SeqCst);
        match self.is_down.load(Ordering::SeqCst) {
            true => Err(StoreError::Io { doing: "answering", source: std::io::Error::other("down") }),
            false => Ok(()),
        }
    }

    fn touch(&self, digests: impl IntoIterator<Item = Digest>) {
        let mut touches = self.touches.lock().unwrap();
        digests.into_iter().for_each(|digest| touches.entry(digest).or_default().push(Instant::now()));
    }

    /// The longest time for which any of these was not touched, since it was first.
    fn longest_gap(&self, digests: &HashSet<Digest>) -> Duration {
        let touches = self.touches.lock().unwrap();
        let gaps = digests.iter().flat_map(|digest| {
            let times = touches.get(digest).unwrap_or_else(|| panic!("{digest} was never leased"));
            times.windows(2).map(|pair| pair[1] - pair[0]).chain([times.last().unwrap().elapsed()])
        });
        gaps.max().unwrap()
    }
}

#[async_trait]
impl BlobStore for Touched {
    async fn find_missing(&self, owner: OwnerId, digests: &[Digest]) -> Result<Vec<Digest>, StoreError> {
        self.notes.answer().await?;
        let missing = self.store.find_missing(owner, digests).await?;
        self.notes.touch(digests.iter().filter(|digest| !missing.contains(digest)).copied());
        Ok(missing)
    }

    async fn read_batch(
        &self,
        owner: OwnerId,
        digests: &[Digest],
        accept: Accept,
    ) -> Vec<Result<(Bytes, Encoding), StoreError>> {
        if self.notes.answer().await.is_err() {
            let down = || StoreError::Io { doing: "answering", source: std::io::Error::other("down") };
            return digests.iter().map(|_| Err(down())).collect();
        }
        let answers = self.store.read_batch(owner, digests, accept).await;
        self.notes.touch(digests.iter().zip(&answers).filter(|(_, answer)| answer.is_ok()).map(|(digest, _)| *digest));
        answers
    }

    async fn read(
        &self,
        owner: OwnerId,
        digest: Digest,
        range: ByteRange,
        accept: Accept,
    ) -> Result<BlobRead, StoreError> {
        self.store.read(owner, digest, range, accept).await
    }

    async fn get_entry(&self, key: &EntryKey) -> Result<Option<Bytes>, StoreError> {
        self.store.get_entry(key).await
    }

    async fn keep_until(
        &self,
        owner: OwnerId,
        digests: &[Digest],
        until: SystemTime,
    ) -> Result<Vec<Digest>, StoreError> {
        self.store.keep_until(owner, digests, until).await
    }

    async fn let_go(&self, owner: OwnerId, digests: &[Digest]) -> Result<(), StoreError> {
        self.store.let_go(owner, digests).await
    }

    async fn make_durable(&self) -> Result<(), StoreError> {
        self.store.make_durable().await
    }

    async fn size_of(
        &self,
        owner: OwnerId,
        function: DigestFunction,
        hash: [u8; 32],
    ) -> Result<Option<Digest>, StoreError> {
        self.store.size_of(owner, function, hash).await
    }

    async fn write_batch(&self, owner: OwnerId, blobs: Vec<NewBlob>) -> Vec<Result<(), StoreError>> {
        self.store.write_batch(owner, blobs).await
    }

    async fn write_hashed(&self, owner: OwnerId, blobs: Vec<HashedBlob>) -> Vec<Result<(), StoreError>> {
        self.store.write_hashed(owner, blobs).await
    }

    async fn upload(&self, owner: OwnerId, digest: Digest, encoding: Encoding) -> Result<Box<dyn Upload>, StoreError> {
        self.store.upload(owner, digest, encoding).await
    }

    async fn upload_nameless(
        &self,
        owner: OwnerId,
        function: DigestFunction,
    ) -> Result<Box<dyn NamelessUpload>, StoreError> {
        self.store.upload_nameless(owner, function).await
    }

    async fn split(&self, owner: OwnerId, digest: Digest) -> Result<Vec<Digest>, StoreError> {
        self.store.split(owner, digest).await
    }

    async fn splice(&self, owner: OwnerId, digest: Digest, chunks: &[Digest]) -> Result<(), StoreError> {
        self.store.splice(owner, digest, chunks).await
    }

    async fn put_entry(&self, key: &EntryKey, value: Bytes) -> Result<(), StoreError> {
        self.store.put_entry(key, value).await
    }

    async fn remove_entry(&self, key: &EntryKey) -> Result<bool, StoreError> {
        self.store.remove_entry(key).await
    }
}

/// One action runs and many wait behind it.
struct Waiting {
    setting: Setting,
    notes: Arc<Notes>,
    /// Actions, commands, directories and files.
    needed: HashSet<Digest>,
    _watches: Vec<Watch>,
    worker: Attachment,
}

impl Waiting {
    async fn begin() -> Self {
        let touched = Touched::default();
        let (store, notes) = (touched.store.clone(), Arc::clone(&touched.notes));
        let day = Duration::from_secs(24 * 3600);
        let timeouts = Timeouts { default: day, max: day };
        let config = OperationsConfig { lease: LEASE, timeouts, ..OperationsConfig::default() };
        let setting = Setting::on(store, Arc::new(touched), Arc::new(NoCaches), config);
        let capacity = Resources { milli_cores: 1000, memory_bytes: 1 << 30 };
        let offer = Offer { name: "small".into(), properties: Vec::new(), capacity, limitations: Arc::default() };
        let mut worker = setting.operations.attach(offer).unwrap();
        let mut needed = HashSet::new();
        let mut watches = Vec::new();
        for n in 0..=QUEUED {
            let digests = setting.with_input(&format!("{n}")).await;
            watches.push(setting.execute(digests[0]));
            needed.extend(digests);
        }
        assignment(&mut worker).await;
        let waiting = Self { setting, notes, needed, _watches: watches, worker };
        waiting.pass_while(|waiting| waiting.setting.operations.snapshot().queued < QUEUED).await;
        waiting.notes.most_asking.store(0, Ordering::SeqCst);
        waiting
    }

    async fn pass_while(&self, condition: impl Fn(&Self) -> bool) {
        while condition(self) {
            self.pass(Duration::from_secs(10)).await;
        }
    }

    /// Time passes, and the worker lives.
    async fn pass(&self, time: Duration) {
        let end = Instant::now() + time;
        while Instant::now() < end {
            self.worker.reports().heartbeat();
            sleep(Duration::from_secs(10)).await;
        }
    }
}

impl Setting {
    /// An action, and all that it needs.
    async fn with_input(&self, name: &str) -> [Digest; 4] {
        let file = self.put(format!("the input of {name}").into_bytes()).await;
        let node = FileNode { name: "input".to_owned(), digest: Some(file.into()), ..FileNode::default() };
        let root = self.put(Directory { files: vec![node], ..Directory::default() }.encode_to_vec()).await;
        let command = Command { arguments: vec![name.to_owned()], ..Command::default() };
        let command = self.put(command.encode_to_vec()).await;
        let action =
            Action { command_digest: Some(command.into()), input_root_digest: Some(root.into()), ..Action::default() };
        [self.put(action.encode_to_vec()).await, command, root, file]
    }
}

#[tokio::test(start_paused = true)]
async fn inputs_are_leased_as_long_as_actions_wait_or_run() {
    let waiting = Waiting::begin().await;
    waiting.pass(LEASE * 5).await;
    assert_eq!(waiting.setting.operations.snapshot().queued, QUEUED, "they wait still");
    // A third until they are due, a twelfth until that is seen, and no more than a third until all are done.
    let gap = waiting.notes.longest_gap(&waiting.needed);
    assert!(gap <= LEASE * 3 / 4, "something was not touched for {gap:?}");
    let most = waiting.notes.most_asking.load(Ordering::SeqCst);
    assert!((2..=RENEWALS).contains(&most), "{most} at one time");
}

#[tokio::test(start_paused = true)]
async fn a_lease_that_could_not_be_renewed_is_tried_again() {
    let waiting = Waiting::begin().await;
    waiting.pass(LEASE).await;
    // In whichever third of the lease it comes, it takes a part of all renewals.
    for _ in 0..3 {
        waiting.notes.is_down.store(true, Ordering::SeqCst);
        waiting.pass(LEASE / 6).await;
        waiting.notes.is_down.store(false, Ordering::SeqCst);
        waiting.pass(LEASE).await;
    }
    let gap = waiting.notes.longest_gap(&waiting.needed);
    assert!(gap > LEASE / 3 + LEASE / 6, "nothing failed: {gap:?}");
    assert!(gap < LEASE, "something was not touched for {gap:?}");
}
