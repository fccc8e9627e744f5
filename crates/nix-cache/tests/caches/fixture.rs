//! Caches over a store in memory and a database of their own, and paths to put into them.

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::io::Write as _;
use std::sync::Arc;

use bytes::Bytes;
use futures::TryStreamExt;
use futures::stream::{self, Stream};
use gf_blobstore::{BlobStore, ByteRange};
use gf_database::{Database, Location};
use gf_digest::InstanceName;
use gf_fetch::Networks;
use gf_nix_cache::archives::{ArchiveLimits, Archives};
use gf_nix_cache::{
    Accepted, ArchiveFile, ArchiveName, Lookup, MIGRATIONS, NewCache, NewKey, NixCaches, Order, Parts, Publication,
    PublishError, Settings, UploadedPath,
};
use gf_nix_formats::nar::{NarEvent, NarLimits, NarWriter};
use gf_nix_formats::{Compression, NarHash, NarInfo, NarUrl, Signatures, StoreDir, StorePath, StorePathHash};
use gf_tenancy::{
    Access, AccessConfig, Authorized, Execute, NixPermission, NixPull, NixPush, NixScope, Principal, TenantConfig,
    TenantName, Visibility,
};
use gf_testkit::{ManualTime, MemoryBlobStore, PostgresServer};
use tempfile::TempDir;

pub(crate) const START_S: u64 = 1_700_000_000;
pub(crate) const DAY_S: u64 = 24 * 60 * 60;
pub(crate) const OURS: &str = "default";
pub(crate) const THEIRS: &str = "org-other";

pub(crate) struct Fixture {
    pub(crate) caches: NixCaches,
    pub(crate) store: MemoryBlobStore,
    pub(crate) time: Arc<ManualTime>,
    pub(crate) access: Access,
    pub(crate) database: Database,
    location: Location,
    limits: ArchiveLimits,
    scratch: TempDir,
    _server: Option<Arc<PostgresServer>>,
}

impl Fixture {
    pub(crate) async fn sqlite() -> Self {
        Self::with_store(MemoryBlobStore::default()).await
    }

    pub(crate) async fn with_store(store: MemoryBlobStore) -> Self {
        Self::with(store, ArchiveLimits::default()).await
    }

    pub(crate) async fn with(store: MemoryBlobStore, limits: ArchiveLimits) -> Self {
        let scratch = tempfile::tempdir().unwrap();
        let location = Location::Sqlite(scratch.path().join("facts.db"));
        Self::open(store, limits, scratch, location, None).await
    }

    pub(crate) async fn postgres() -> Self {
        let server = PostgresServer::shared().unwrap();
        let location = server.database().unwrap().parse().unwrap();
        let scratch = tempfile::tempdir().unwrap();
        Self::open(MemoryBlobStore::default(), ArchiveLimits::default(), scratch, location, Some(server)).await
    }

    async fn open(
        store: MemoryBlobStore,
        limits: ArchiveLimits,
        scratch: TempDir,
        location: Location,
        server: Option<Arc<PostgresServer>>,
    ) -> Self {
        let time = Arc::new(ManualTime::new(START_S));
        let tenant = |name: &str| TenantConfig {
            name: TenantName::new(name).unwrap(),
            instances: vec![InstanceName::new(name).unwrap()],
        };
        let tenants = vec![tenant(OURS), tenant(THEIRS)];
        let access = Access::new(AccessConfig { tenants, token: None, anonymous_read: false }).unwrap();
        let database = Database::open(&location, &[MIGRATIONS]).await.unwrap();
        let caches = new_caches(&database, &store, limits, &time, &scratch);
        caches.ensure_main(access.tenant(&TenantName::new(OURS).unwrap()).unwrap()).await.unwrap();
        Self { caches, store, time, access, database, location, limits, scratch, _server: server }
    }

    /// As after a killed process: all that was in memory is gone.
    pub(crate) async fn restart(&mut self) {
        self.database.close().await;
        self.database = Database::open(&self.location, &[MIGRATIONS]).await.unwrap();
        self.caches = new_caches(&self.database, &self.store, self.limits, &self.time, &self.scratch);
    }

    pub(crate) fn grant<P: NixPermission>(&self, cache: &str) -> Authorized<P> {
        self.grant_of(OURS, cache)
    }

    pub(crate) fn grant_of<P: NixPermission>(&self, tenant: &str, cache: &str) -> Authorized<P> {
        let tenant = TenantName::new(tenant).unwrap();
        let scope = NixScope::Existing { name: cache, tenant: &tenant, visibility: Visibility::Private };
        self.access.authorize_nix(Principal::Anonymous, scope).unwrap()
    }

    pub(crate) fn execute(&self) -> Authorized<Execute> {
        self.access.authorize(Principal::Anonymous, &InstanceName::new(OURS).unwrap()).unwrap()
    }

    pub(crate) async fn create(&self, tenant: &str, name: &str, settings: Settings) {
        let cache = NewCache { key: NewKey::Generate, settings };
        self.caches.create(&self.grant_of(tenant, name), cache).await.unwrap();
    }

    /// Uploads an archive as `nix copy` does.
    pub(crate) async fn upload(&self, sample: &Sample, compression: Compression) -> Result<Accepted, PublishError> {
        let push = self.grant::<NixPush>("main");
        let file = sample.file(compression);
        self.caches.accept_archive(&push, file.name, None, body(&file.bytes)).await
    }

    pub(crate) async fn publish(&self, sample: &Sample) -> Result<Publication, PublishError> {
        self.publish_info(sample.narinfo(Compression::None)).await
    }

    pub(crate) async fn publish_info(&self, narinfo: NarInfo) -> Result<Publication, PublishError> {
        let push = self.grant::<NixPush>("main");
        self.caches.publish(&push, narinfo.store_path.hash(), narinfo, Order::ReferencesFirst).await
    }

    /// Uploads and publishes.
    pub(crate) async fn push(&self, sample: &Sample) {
        self.upload(sample, Compression::None).await.unwrap();
        assert_eq!(self.publish(sample).await.unwrap(), Publication::New);
    }

    pub(crate) async fn narinfo(&self, path: &StorePath) -> Option<NarInfo> {
        match self.caches.lookup(&self.grant("main"), path.hash()).await.unwrap() {
            Lookup::Present(bytes) => Some(NarInfo::parse(&StoreDir::default(), &bytes).unwrap()),
            Lookup::Absent => None,
        }
    }

    pub(crate) async fn is_visible(&self, path: &StorePath) -> bool {
        self.narinfo(path).await.is_some()
    }

    pub(crate) async fn read(&self, name: ArchiveName) -> Option<Vec<u8>> {
        self.read_as(&self.grant("main"), name).await
    }

    pub(crate) async fn read_as(&self, grant: &Authorized<NixPull>, name: ArchiveName) -> Option<Vec<u8>> {
        let opened = self.caches.open_archive(grant, name).await.unwrap()?;
        let pieces: Vec<Bytes> = opened.archive.read(ByteRange::ALL).unwrap().try_collect().await.unwrap();
        assert_eq!(pieces.iter().map(|piece| piece.len() as u64).sum::<u64>(), opened.facts.nar_size);
        Some(pieces.concat())
    }
}

fn new_caches(
    database: &Database,
    store: &MemoryBlobStore,
    limits: ArchiveLimits,
    time: &Arc<ManualTime>,
    scratch: &TempDir,
) -> NixCaches {
    let store: Arc<dyn BlobStore> = Arc::new(store.clone());
    let archives = Archives::new(Arc::clone(&store), scratch.path().to_owned(), limits);
    NixCaches::new(Parts {
        database: database.clone(),
        store,
        archives: Arc::new(archives),
        time: Arc::clone(time) as Arc<dyn gf_blobstore::TimeSource>,
        upstream_networks: Networks::with_this_machine(),
    })
}

/// A body in small pieces.
pub(crate) fn body(bytes: &[u8]) -> impl Stream<Item = Result<Bytes, Infallible>> + Send + use<> {
    let pieces: Vec<_> = bytes.chunks(1000).map(|piece| Ok(Bytes::copy_from_slice(piece))).collect();
    stream::iter(pieces)
}

/// A path with a single file.
#[derive(Clone)]
pub(crate) struct Sample {
    pub(crate) path: StorePath,
    pub(crate) nar: Vec<u8>,
    pub(crate) references: BTreeSet<StorePath>,
}

pub(crate) struct SampleFile {
    pub(crate) name: ArchiveFile,
    pub(crate) bytes: Vec<u8>,
}

impl Sample {
    /// A path called `name`, whose file says its name, and which refers to others.
    pub(crate) fn new(name: &str, references: &[&Self]) -> Self {
        Self::with_contents(name, format!("the contents of {name}\n").as_bytes(), references)
    }

    pub(crate) fn with_contents(name: &str, contents: &[u8], references: &[&Self]) -> Self {
        let mut hash = [0; 20];
        hash.copy_from_slice(&NarHash::of(name.as_bytes()).as_bytes()[..20]);
        let path = StorePath::new(StorePathHash::new(hash), name).unwrap();
        let references = references.iter().map(|sample| sample.path.clone()).collect();
        Self { path, nar: nar(contents), references }
    }

    pub(crate) fn nar_hash(&self) -> NarHash {
        NarHash::of(&self.nar)
    }

    pub(crate) fn file(&self, compression: Compression) -> SampleFile {
        let bytes = match compression {
            Compression::None => self.nar.clone(),
            Compression::Zstd => zstd::bulk::compress(&self.nar, 3).unwrap(),
            Compression::Gzip => {
                let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
                encoder.write_all(&self.nar).unwrap();
                encoder.finish().unwrap()
            }
            other => panic!("no test has {}", other.name()),
        };
        SampleFile { name: ArchiveFile { hash: *NarHash::of(&bytes).as_bytes(), compression }, bytes }
    }

    /// As Attic's client sends it.
    pub(crate) fn uploaded(&self) -> UploadedPath {
        UploadedPath {
            path: self.path.clone(),
            nar_hash: self.nar_hash(),
            nar_size: self.nar.len() as u64,
            references: self.references.clone(),
            deriver: None,
            system: None,
            content_address: None,
            signatures: Signatures::default(),
        }
    }

    /// As `nix copy` sends it.
    pub(crate) fn narinfo(&self, compression: Compression) -> NarInfo {
        let file = self.file(compression);
        let hash = NarHash::new(file.name.hash);
        NarInfo {
            store_path: self.path.clone(),
            url: NarUrl::new(&format!("nar/{}.nar{}", hash.base32(), compression.suffix())).unwrap(),
            compression,
            file_hash: Some(hash.into()),
            file_size: Some(file.bytes.len() as u64),
            nar_hash: self.nar_hash(),
            nar_size: self.nar.len() as u64,
            references: self.references.clone(),
            deriver: None,
            system: None,
            signatures: Signatures::default(),
            content_address: None,
        }
    }
}

fn nar(contents: &[u8]) -> Vec<u8> {
    let mut writer = NarWriter::new(NarLimits { size_bytes: 1 << 30, entries: 10, depth: 10 });
    let mut chunks = Vec::new();
    let mut events = vec![NarEvent::File { executable: false, size_bytes: contents.len() as u64 }];
    if !contents.is_empty() {
        events.push(NarEvent::Contents(Bytes::copy_from_slice(contents)));
    }
    events.push(NarEvent::FileEnd);
    for event in &events {
        writer.write(event, &mut chunks).unwrap();
    }
    writer.finish(&mut chunks).unwrap();
    chunks.concat()
}
