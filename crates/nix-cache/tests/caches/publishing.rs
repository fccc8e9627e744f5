use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use futures::future::join_all;
use futures::stream;
use gf_blobstore::ErrorKind;
use gf_nix_cache::archives::ArchiveLimits;
use gf_nix_cache::{
    Accepted, ArchiveFile, ArchiveName, CacheError, Lookup, Order, Publication, PublishError, Settings, SettingsChange,
};
use gf_nix_formats::{
    Compression, ContentAddress, Hash, KeyName, NarHash, NarInfo, SecretKey, Signature, StoreDir, StorePath,
};
use gf_tenancy::{NixConfigureCache, NixPull, NixPush};
use gf_testkit::MemoryBlobStore;

use crate::fixture::{DAY_S, Fixture, OURS, Sample, body};

#[tokio::test]
async fn what_is_pushed_is_served_signed_and_whole() {
    for fixture in [Fixture::sqlite().await, Fixture::postgres().await] {
        let library = Sample::new("library", &[]);
        let program = Sample::new("program", &[&library]);
        for (sample, compression) in [(&library, Compression::Zstd), (&program, Compression::None)] {
            assert!(matches!(fixture.upload(sample, compression).await.unwrap(), Accepted::Stored(_)));
            let known = sample.file(compression).name;
            assert!(fixture.caches.has_archive(&fixture.grant("main"), known).await.unwrap().is_some());
            assert!(!fixture.is_visible(&sample.path).await);
            assert_eq!(fixture.publish_info(sample.narinfo(compression)).await.unwrap(), Publication::New);

            let narinfo = fixture.narinfo(&sample.path).await.unwrap();
            assert_eq!(narinfo.url.as_str(), format!("nar/{}.nar", sample.nar_hash().base32()));
            assert_eq!((narinfo.compression, &narinfo.references), (Compression::None, &sample.references));
            let key = fixture.caches.all().await.unwrap()[0].public_key();
            let fingerprint = narinfo.fingerprint(&StoreDir::default());
            assert!(narinfo.signatures.verified_by(fingerprint.as_bytes(), &[key]).is_some());
            for name in
                [ArchiveName::Nar(sample.nar_hash()), ArchiveName::File(known), ArchiveName::Path(sample.path.hash())]
            {
                assert!(fixture.read(name).await.unwrap() == sample.nar);
            }
            let listing = fixture.caches.listing(&fixture.grant("main"), sample.path.hash()).await.unwrap().unwrap();
            assert!(listing.contains("\"type\":\"regular\""), "{listing}");
        }
        let report = fixture.caches.show(&fixture.grant("main")).await.unwrap();
        let nar_bytes = (library.nar.len() + program.nar.len()) as u64;
        assert_eq!((report.paths, report.nar_bytes, report.waiting_paths, report.pins), (2, nar_bytes, 0, 0));
    }
}

#[tokio::test]
async fn a_restart_between_archive_and_narinfo_loses_nothing() {
    let mut fixture = Fixture::sqlite().await;
    let sample = Sample::new("a", &[]);
    let key = fixture.caches.all().await.unwrap()[0].public_key().to_string();
    fixture.upload(&sample, Compression::Zstd).await.unwrap();
    fixture.restart().await;
    assert_eq!(fixture.publish_info(sample.narinfo(Compression::Zstd)).await.unwrap(), Publication::New);
    fixture.restart().await;
    assert!(fixture.is_visible(&sample.path).await);
    // A second start makes no second `main`, and keeps its key.
    let all = fixture.caches.all().await.unwrap();
    assert_eq!((all.len(), all[0].name().as_str(), all[0].public_key().to_string()), (1, "main", key));
    assert!(all[0].is_public() && all[0].info().priority == 40);
}

#[tokio::test]
async fn what_is_not_so_is_refused_and_leaves_nothing() {
    let fixture = Fixture::sqlite().await;
    let (sample, other) = (Sample::new("a", &[]), Sample::new("b", &[]));
    fixture.upload(&sample, Compression::Zstd).await.unwrap();
    let right = || sample.narinfo(Compression::Zstd);
    let push = fixture.grant::<NixPush>("main");

    let asked = other.path.hash();
    let error = fixture.caches.publish(&push, asked, right(), Order::ReferencesFirst).await.unwrap_err();
    assert!(matches!(error, PublishError::OtherPath { .. }), "{error}");
    let wrong = |change: fn(&mut NarInfo)| {
        let mut narinfo = right();
        change(&mut narinfo);
        narinfo
    };
    let error = fixture.publish_info(other.narinfo(Compression::None)).await.unwrap_err();
    assert!(matches!(error, PublishError::NoArchive(_)), "{error}");
    let error = fixture.publish_info(wrong(|narinfo| narinfo.nar_hash = NarHash::of(b"x"))).await.unwrap_err();
    assert!(matches!(error, PublishError::OtherArchive { .. }), "{error}");
    let error = fixture.publish_info(wrong(|narinfo| narinfo.nar_size += 1)).await.unwrap_err();
    assert!(matches!(error, PublishError::OtherSize { .. }), "{error}");
    let error = fixture.publish_info(NarInfo { references: Sample::new("c", &[&other]).references, ..right() }).await;
    let error = error.unwrap_err();
    assert!(matches!(&error, PublishError::MissingReference { missing, .. } if *missing == other.path), "{error}");
    assert!(error.to_string().contains(other.path.as_str()), "{error}");
    assert_eq!(error.kind(), ErrorKind::Invalid);

    // Signed, it says, with the key of the cache.
    let ours = fixture.caches.all().await.unwrap()[0].public_key();
    let forged = SecretKey::from_seed(ours.name().clone(), [7; 32]).unwrap();
    let mut narinfo = right();
    narinfo.sign(&StoreDir::default(), &forged).unwrap();
    let error = fixture.publish_info(narinfo).await.unwrap_err();
    assert!(matches!(error, PublishError::ForgedSignature(_)), "{error}");

    assert!(!fixture.is_visible(&sample.path).await);
    assert_eq!(fixture.publish_info(right()).await.unwrap(), Publication::New);
}

#[tokio::test]
async fn an_upload_that_is_not_what_its_name_says_is_refused() {
    let fixture = Fixture::sqlite().await;
    let sample = Sample::new("a", &[]);
    let push = fixture.grant::<NixPush>("main");
    let file = sample.file(Compression::None);
    let cut = &file.bytes[..file.bytes.len() - 8];
    let other = Sample::new("b", &[]).nar;
    for wrong in [cut, &other, b"no archive at all"] {
        let error = fixture.caches.accept_archive(&push, file.name, None, body(wrong)).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid, "{error}");
        assert_eq!(fixture.caches.has_archive(&push, file.name).await.unwrap(), None);
    }
    assert!(fixture.upload(&sample, Compression::None).await.is_ok());
}

#[tokio::test]
async fn content_addresses_are_checked() {
    let fixture = Fixture::sqlite().await;
    let store = StoreDir::default();
    let sample = Sample::with_contents("a", b"flat contents", &[]);
    fixture.upload(&sample, Compression::None).await.unwrap();
    let addressed = |text: String| {
        let address = ContentAddress::parse(&text).unwrap();
        let path = address.path(&store, "a", &Default::default(), false).unwrap();
        NarInfo { store_path: path, content_address: Some(address), ..sample.narinfo(Compression::None) }
    };
    let (flat, wrong) = (Hash::sha256(b"flat contents"), Hash::sha256(b"other contents"));
    let nar = Hash::from(sample.nar_hash());
    for right in [format!("fixed:{flat}"), format!("text:{flat}"), format!("fixed:r:{nar}")] {
        assert_eq!(fixture.publish_info(addressed(right)).await.unwrap(), Publication::New);
    }
    for bad in [format!("fixed:{wrong}"), format!("text:{wrong}"), format!("fixed:r:{wrong}")] {
        let error = fixture.publish_info(addressed(bad)).await.unwrap_err();
        assert!(matches!(error, PublishError::ContentAddress { .. }), "{error}");
    }
    let misnamed = NarInfo { store_path: sample.path.clone(), ..addressed(format!("fixed:{flat}")) };
    let error = fixture.publish_info(misnamed).await.unwrap_err();
    assert!(matches!(error, PublishError::ContentAddress { .. }), "{error}");
}

#[tokio::test]
async fn the_first_writer_wins_and_signatures_add_up() {
    for fixture in [Fixture::sqlite().await, Fixture::postgres().await] {
        let sample = Sample::new("a", &[]);
        fixture.push(&sample).await;
        assert_eq!(fixture.publish(&sample).await.unwrap(), Publication::Known);
        assert_eq!(fixture.narinfo(&sample.path).await.unwrap().signatures.len(), 1);

        let key = SecretKey::from_seed(KeyName::new("builder-1").unwrap(), [1; 32]).unwrap();
        let mut signed = sample.narinfo(Compression::None);
        signed.sign(&StoreDir::default(), &key).unwrap();
        assert_eq!(fixture.publish_info(signed.clone()).await.unwrap(), Publication::Signed);
        assert_eq!(fixture.publish_info(signed).await.unwrap(), Publication::Known);
        // What was rendered before is not served any more.
        let signatures = fixture.narinfo(&sample.path).await.unwrap().signatures;
        assert_eq!(signatures.iter().map(Signature::key_name).filter(|name| *name == "builder-1").count(), 1);
        assert_eq!(signatures.len(), 2);

        let mut other = Sample::with_contents("a", b"built again, and different", &[]);
        other.path = sample.path.clone();
        fixture.upload(&other, Compression::None).await.unwrap();
        assert_eq!(fixture.publish(&other).await.unwrap(), Publication::KeptFirst(sample.nar_hash()));
        assert_eq!(fixture.narinfo(&sample.path).await.unwrap().nar_hash, sample.nar_hash());
    }
}

async fn upload_path(fixture: &Fixture, cache: &str, sample: &Sample) -> (Publication, bool) {
    let push = fixture.grant::<NixPush>(cache);
    let done = fixture.caches.upload_path(&push, sample.uploaded(), body(&sample.nar)).await.unwrap();
    (done.publication, done.is_deduplicated)
}

#[tokio::test]
async fn paths_in_any_order_wait_for_what_they_refer_to() {
    for fixture in [Fixture::sqlite().await, Fixture::postgres().await] {
        let a = Sample::new("a", &[]);
        let b = Sample::new("b", &[&a]);
        let c = Sample::new("c", &[&a, &b]);
        let push = fixture.grant::<NixPush>("main");
        let all: Vec<_> = [&a, &b, &c, &a].iter().map(|sample| sample.path.hash()).collect();
        assert_eq!(fixture.caches.missing_paths(&push, &all).await.unwrap(), all[..3]);

        let (waiting, _) = upload_path(&fixture, "main", &c).await;
        assert_eq!(waiting, Publication::Waiting([a.path.clone(), b.path.clone()].into()));
        assert_eq!(upload_path(&fixture, "main", &b).await.0, Publication::Waiting([a.path.clone()].into()));
        // What waits is here, and nobody sees it.
        assert_eq!(fixture.caches.missing_paths(&push, &all).await.unwrap(), [a.path.hash()]);
        assert!(!fixture.is_visible(&b.path).await && !fixture.is_visible(&c.path).await);
        assert_eq!(fixture.read(ArchiveName::Nar(c.nar_hash())).await, None);

        assert_eq!(upload_path(&fixture, "main", &a).await, (Publication::New, false));
        for sample in [&a, &b, &c] {
            assert!(fixture.is_visible(&sample.path).await);
        }
        assert_eq!(fixture.caches.missing_paths(&push, &all).await.unwrap(), []);
    }
}

#[tokio::test]
async fn what_no_client_announced_is_taken_to_be_in_an_upstream_known_by_its_key() {
    let fixture = Fixture::sqlite().await;
    let upstream_key_names = vec![KeyName::new("cache.nixos.org-1").unwrap()];
    fixture.create(OURS, "attic", Settings { upstream_key_names, ..Settings::default() }).await;
    let (libc, tool) = (Sample::new("libc", &[]), Sample::new("tool", &[]));
    let program = Sample::new("program", &[&libc, &tool]);
    // The client left `libc` out, since an upstream signed it.
    let push = fixture.grant::<NixPush>("attic");
    let asked = [program.path.hash(), tool.path.hash()];
    assert_eq!(fixture.caches.missing_paths(&push, &asked).await.unwrap(), asked);
    assert_eq!(upload_path(&fixture, "attic", &program).await.0, Publication::Waiting([tool.path.clone()].into()));
    assert_eq!(upload_path(&fixture, "attic", &tool).await.0, Publication::New);
    let pull = fixture.grant::<NixPull>("attic");
    assert!(matches!(fixture.caches.lookup(&pull, program.path.hash()).await.unwrap(), Lookup::Present(_)));
}

/// A push that is cut off, and whatever time or restarts come after, never make visible what is not complete.
#[tokio::test]
async fn what_was_announced_and_never_came_keeps_its_referrers_hidden() {
    let mut fixture = Fixture::sqlite().await;
    let upstream_key_names = vec![KeyName::new("cache.nixos.org-1").unwrap()];
    fixture.create(OURS, "attic", Settings { upstream_key_names, ..Settings::default() }).await;
    let (push, pull) = (fixture.grant::<NixPush>("attic"), fixture.grant::<NixPull>("attic"));
    let tool = Sample::new("tool", &[]);
    let (early, late) = (Sample::new("early", &[&tool]), Sample::new("late", &[&tool]));
    let asked = [tool.path.hash(), early.path.hash(), late.path.hash()];
    assert_eq!(fixture.caches.missing_paths(&push, &asked).await.unwrap(), asked);
    let waits = Publication::Waiting([tool.path.clone()].into());
    assert_eq!(upload_path(&fixture, "attic", &early).await.0, waits);
    fixture.restart().await;
    assert_eq!(upload_path(&fixture, "attic", &late).await.0, waits);
    for _ in 0..4 {
        fixture.time.advance(DAY_S);
        fixture.caches.tend().await.unwrap();
        for hidden in [&early, &late] {
            assert_eq!(fixture.caches.lookup(&pull, hidden.path.hash()).await.unwrap(), Lookup::Absent);
        }
    }
    // Nobody said that an upstream has it: who did not ask declared nothing.
    let unasked = Sample::new("unasked", &[&tool]);
    assert_eq!(upload_path(&fixture, "attic", &unasked).await.0, waits);
    // The next client has it from an upstream, and leaves it out; it is asked for what waits.
    let asked = [early.path.hash(), late.path.hash()];
    assert_eq!(fixture.caches.missing_paths(&push, &asked).await.unwrap(), asked);
    assert_eq!(upload_path(&fixture, "attic", &early).await, (Publication::New, true));
    assert!(matches!(fixture.caches.lookup(&pull, early.path.hash()).await.unwrap(), Lookup::Present(_)));
    assert_eq!(upload_path(&fixture, "attic", &tool).await.0, Publication::New);
    for visible in [&late, &unasked] {
        assert!(matches!(fixture.caches.lookup(&pull, visible.path.hash()).await.unwrap(), Lookup::Present(_)));
    }
}

#[tokio::test]
async fn who_wrote_what_nobody_saw_blocks_nobody() {
    for fixture in [Fixture::sqlite().await, Fixture::postgres().await] {
        let never = Sample::new("never", &[]);
        let wrong = Sample::with_contents("path", b"what refers to nothing that comes", &[&never]);
        let right = Sample::with_contents("path", b"what is complete", &[]);
        let above = Sample::new("above", &[&right]);
        assert!(matches!(upload_path(&fixture, "main", &wrong).await.0, Publication::Waiting(_)));
        assert!(matches!(upload_path(&fixture, "main", &above).await.0, Publication::Waiting(_)));
        // Of two that wait, the first stays.
        let other = Sample::with_contents("path", b"another one", &[&never]);
        assert_eq!(upload_path(&fixture, "main", &other).await.0, Publication::KeptFirst(wrong.nar_hash()));
        fixture.push(&right).await;
        assert_eq!(fixture.narinfo(&right.path).await.unwrap().nar_hash, right.nar_hash());
        assert!(fixture.is_visible(&above.path).await);
        assert_eq!(upload_path(&fixture, "main", &wrong).await.0, Publication::KeptFirst(right.nar_hash()));
    }
}

#[tokio::test]
async fn archives_that_have_no_suffix_for_their_compression_are_known_by_their_beginning() {
    let fixture = Fixture::sqlite().await;
    let sample = Sample::new("a", &[]);
    let file = sample.file(Compression::Gzip);
    let named = ArchiveFile { compression: Compression::None, ..file.name };
    let push = fixture.grant::<NixPush>("main");
    fixture.caches.accept_archive(&push, named, None, body(&file.bytes)).await.unwrap();
    let found = fixture.caches.has_archive(&push, named).await.unwrap().unwrap();
    assert_eq!((found.facts.nar_hash, found.compression), (sample.nar_hash(), Compression::Gzip));
    assert_eq!(fixture.publish_info(sample.narinfo(Compression::Gzip)).await.unwrap(), Publication::New);
    let name = ArchiveName::Nar(NarHash::new(file.name.hash));
    let opened = fixture.caches.open_archive(&fixture.grant("main"), name).await.unwrap().unwrap();
    assert_eq!((opened.facts.nar_hash, opened.compression), (sample.nar_hash(), Compression::Gzip));
}

#[tokio::test]
async fn caches_of_a_tenant_share_archives() {
    let fixture = Fixture::sqlite().await;
    fixture.create(OURS, "second", Settings::default()).await;
    let sample = Sample::new("a", &[]);
    fixture.push(&sample).await;
    assert_eq!(upload_path(&fixture, "second", &sample).await, (Publication::New, true));
}

#[tokio::test]
async fn a_new_key_signs_what_was_published_before() {
    let fixture = Fixture::sqlite().await;
    let sample = Sample::new("a", &[]);
    fixture.push(&sample).await;
    assert!(fixture.is_visible(&sample.path).await);
    let key = SecretKey::from_seed(KeyName::new("next-1").unwrap(), [9; 32]).unwrap();
    let configure = fixture.grant::<NixConfigureCache>("main");
    let change = SettingsChange { priority: Some(30), ..SettingsChange::default() };
    let cache = fixture.caches.configure(&configure, change, Some(gf_nix_cache::NewKey::Given(key))).await.unwrap();
    assert_eq!((cache.public_key().name().as_str(), cache.settings().priority), ("next-1", 30));
    let narinfo = fixture.narinfo(&sample.path).await.unwrap();
    let fingerprint = narinfo.fingerprint(&StoreDir::default());
    assert!(narinfo.signatures.verified_by(fingerprint.as_bytes(), &[cache.public_key()]).is_some());
    assert_eq!(narinfo.signatures.len(), 2);
    assert!(!format!("{cache:?}").contains("CQkJCQ"), "the secret is shown");
}

#[tokio::test]
async fn names_belong_to_one_cache_only() {
    let fixture = Fixture::sqlite().await;
    let new = || gf_nix_cache::NewCache { key: gf_nix_cache::NewKey::Generate, settings: Settings::default() };
    let theirs = fixture.grant_of(crate::fixture::THEIRS, "main");
    let error = fixture.caches.create(&theirs, new()).await.unwrap_err();
    assert!(matches!(error, CacheError::Exists(_)), "{error}");
    let error = fixture.caches.create(&fixture.grant("../.."), new()).await.unwrap_err();
    assert!(matches!(error, CacheError::Name(_)), "{error}");
    let path: StorePath = Sample::new("a", &[]).path;
    let pull = fixture.grant_of::<NixPull>(crate::fixture::THEIRS, "main");
    let error = fixture.caches.lookup(&pull, path.hash()).await.unwrap_err();
    assert!(matches!(error, CacheError::NoSuchCache(_)), "{error}");
}

/// Two who send a file slowly, or not to its end, keep a third from sending the same for as long as they are borne with,
/// and no longer.
#[tokio::test]
async fn slow_uploads_of_a_file_hold_up_a_third_for_a_while_alone() {
    let limits = ArchiveLimits { patience: Duration::from_millis(50), ..ArchiveLimits::default() };
    let fixture = Arc::new(Fixture::with(MemoryBlobStore::default(), limits).await);
    let sample = Sample::new("slow", &[]);
    let file = sample.file(Compression::Zstd);
    let begun = Arc::new(AtomicUsize::new(0));
    for _ in 0..2 {
        let (fixture, name, begun) = (Arc::clone(&fixture), file.name, Arc::clone(&begun));
        let endless = stream::poll_fn(move |_| {
            begun.fetch_add(1, Ordering::SeqCst);
            Poll::<Option<Result<Bytes, Infallible>>>::Pending
        });
        tokio::spawn(async move {
            let grant = fixture.grant::<NixPush>("main");
            fixture.caches.accept_archive(&grant, name, None, endless).await
        });
    }
    while begun.load(Ordering::SeqCst) < 2 {
        tokio::task::yield_now().await;
    }
    let accepted = fixture.upload(&sample, Compression::Zstd).await.unwrap();
    assert!(matches!(accepted, Accepted::Stored(_)), "{accepted:?}");
}

/// What is the matter with one is no concern of those who publish at the same time.
#[tokio::test]
async fn many_publish_at_once_and_each_is_answered_by_itself() {
    let fixture = Fixture::sqlite().await;
    let samples: Vec<Sample> = (0..40).map(|number| Sample::new(&format!("sample-{number}"), &[])).collect();
    for sample in samples.iter().step_by(2) {
        fixture.upload(sample, Compression::None).await.unwrap();
    }
    let published = join_all(samples.iter().map(|sample| {
        let narinfo = sample.narinfo(Compression::None);
        let fixture = &fixture;
        async move {
            let grant = fixture.grant::<NixPush>("main");
            fixture.caches.publish(&grant, sample.path.hash(), narinfo, Order::ReferencesFirst).await
        }
    }));
    for (number, published) in published.await.into_iter().enumerate() {
        match published {
            Ok(Publication::New) => assert_eq!(number % 2, 0),
            Err(PublishError::NoArchive(_)) => assert_eq!(number % 2, 1),
            other => panic!("{number}: {other:?}"),
        }
    }
    for (number, sample) in samples.iter().enumerate() {
        assert_eq!(fixture.is_visible(&sample.path).await, number % 2 == 0);
    }
}
