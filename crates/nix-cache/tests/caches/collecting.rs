use std::collections::BTreeSet;
use std::time::{Duration, UNIX_EPOCH};

use gf_blobstore::{ErrorKind, OwnerId};
use gf_digest::{Digest, DigestFunction};
use gf_nix_cache::{Collection, Retention, RetentionChange, WhyRemoved};
use gf_nix_formats::{Compression, StorePath};
use gf_tenancy::{NixConfigureRetention, NixPull};
use gf_testkit::MemoryBlobStore;
use gf_testkit::blob_store_suite::noise;

use crate::fixture::{DAY_S, Fixture, OURS, START_S, Sample};

async fn retain(fixture: &Fixture, change: RetentionChange) {
    let grant = fixture.grant::<NixConfigureRetention>("main");
    fixture.caches.configure_retention(&grant, change).await.unwrap();
}

fn unused(days: u64) -> RetentionChange {
    RetentionChange { retention: Some(Retention::Unused { period_s: days * DAY_S }), ..RetentionChange::default() }
}

async fn collect(fixture: &Fixture) -> Collection {
    fixture.caches.collect(&fixture.grant("main")).await.unwrap()
}

fn gone(collection: &Collection) -> Vec<&StorePath> {
    collection.removals.iter().map(|removal| &removal.path).collect()
}

fn contents(name: &str) -> Digest {
    Digest::of(DigestFunction::Sha256, format!("the contents of {name}\n").as_bytes())
}

fn owner(fixture: &Fixture) -> OwnerId {
    OwnerId(fixture.grant::<NixPull>("main").tenant().id().number())
}

#[tokio::test]
async fn unused_paths_go_with_their_promises_and_a_plan_says_so_before() {
    for fixture in [Fixture::sqlite().await, Fixture::postgres().await] {
        let shared = Sample::new("shared", &[]);
        let (old, pinned) = (Sample::new("old", &[&shared]), Sample::new("pinned", &[&shared]));
        // The same file under another name.
        let twin = Sample::with_contents("twin", b"the contents of old\n", &[]);
        for sample in [&shared, &old, &pinned, &twin] {
            fixture.push(sample).await;
        }
        let owner = owner(&fixture);
        assert!(fixture.store.promised_until(owner, contents("old")).is_some());
        fixture.caches.pin(&fixture.grant("main"), "release", &pinned.path, None).await.unwrap();
        retain(&fixture, unused(10)).await;
        fixture.time.advance(9 * DAY_S);
        assert_eq!(collect(&fixture).await.removals, []);
        assert!(fixture.is_visible(&twin.path).await);
        fixture.time.advance(2 * DAY_S);

        let plan = fixture.caches.plan_collection(&fixture.grant("main")).await.unwrap();
        assert_eq!(gone(&plan), [&old.path]);
        assert_eq!(plan.removals[0].why, WhyRemoved::Unused { for_s: 11 * DAY_S });
        assert!(fixture.caches.why(&fixture.grant("main"), old.path.hash()).await.unwrap().broken().is_none());

        assert_eq!(gone(&collect(&fixture).await), [&old.path]);
        for (sample, stays) in [(&old, false), (&shared, true), (&pinned, true), (&twin, true)] {
            assert_eq!(fixture.is_visible(&sample.path).await, stays, "{}", sample.path);
        }
        fixture.caches.tend().await.unwrap();
        // The twin has the same archive, so nothing of it was let go.
        assert!(fixture.store.promised_until(owner, contents("old")).is_some());

        retain(&fixture, RetentionChange { grace_s: Some(0), ..unused(1) }).await;
        fixture.time.advance(50 * DAY_S);
        assert_eq!(gone(&collect(&fixture).await), [&twin.path]);
        assert_eq!(fixture.store.promised_until(owner, contents("old")), None);
        assert!(fixture.store.promised_until(owner, contents("shared")).is_some());
    }
}

#[tokio::test]
async fn a_narinfo_that_was_served_keeps_its_path_for_the_grace() {
    let fixture = Fixture::sqlite().await;
    let (served, other) = (Sample::new("served", &[]), Sample::new("other", &[]));
    fixture.push(&served).await;
    fixture.push(&other).await;
    retain(&fixture, unused(1)).await;
    fixture.time.advance(DAY_S);
    assert!(fixture.is_visible(&served.path).await);
    // Uses count from when they are written down, which is twice a minute.
    fixture.caches.tend().await.unwrap();
    fixture.time.advance(29 * DAY_S);
    assert_eq!(gone(&collect(&fixture).await), [&other.path]);
    fixture.time.advance(DAY_S);
    assert_eq!(gone(&collect(&fixture).await), [&served.path]);
}

#[tokio::test]
async fn the_quota_takes_what_was_used_least_recently() {
    let fixture = Fixture::sqlite().await;
    let samples: Vec<Sample> = (0..4).map(|number| Sample::new(&format!("s{number}"), &[])).collect();
    for sample in &samples {
        fixture.push(sample).await;
        fixture.time.advance(3600);
    }
    let one = samples[0].nar.len() as u64;
    retain(&fixture, RetentionChange { quota_bytes: Some(Some(2 * one)), ..RetentionChange::default() }).await;
    let collection = collect(&fixture).await;
    let removed: BTreeSet<&StorePath> = gone(&collection).into_iter().collect();
    assert_eq!(removed, BTreeSet::from([&samples[0].path, &samples[1].path]));
    assert!(fixture.is_visible(&samples[2].path).await && fixture.is_visible(&samples[3].path).await);
}

#[tokio::test]
async fn archives_without_a_path_stay_for_two_days() {
    let fixture = Fixture::sqlite().await;
    let (orphan, renewed) = (Sample::new("orphan", &[]), Sample::new("renewed", &[]));
    fixture.upload(&orphan, Compression::Zstd).await.unwrap();
    fixture.upload(&renewed, Compression::Zstd).await.unwrap();
    let owner = owner(&fixture);
    fixture.time.advance(DAY_S);
    // A client that is told that an archive is here is about to name it.
    let file = renewed.file(Compression::Zstd).name;
    assert!(fixture.caches.has_archive(&fixture.grant("main"), file).await.unwrap().is_some());
    collect(&fixture).await;
    assert!(fixture.store.promised_until(owner, contents("orphan")).is_some());
    fixture.time.advance(DAY_S);
    collect(&fixture).await;
    assert_eq!(fixture.store.promised_until(owner, contents("orphan")), None);
    assert!(fixture.store.promised_until(owner, contents("renewed")).is_some());
    let error = fixture.publish_info(orphan.narinfo(Compression::Zstd)).await.unwrap_err();
    assert!(error.to_string().contains("upload it first"), "{error}");
    assert!(fixture.publish_info(renewed.narinfo(Compression::Zstd)).await.is_ok());
}

#[tokio::test]
async fn promises_are_renewed_while_a_path_lives() {
    for fixture in [Fixture::sqlite().await, Fixture::postgres().await] {
        let sample = Sample::new("a", &[]);
        fixture.push(&sample).await;
        fixture.create(OURS, "other", gf_nix_cache::Settings::default()).await;
        let owner = owner(&fixture);
        let promised_days = |fixture: &Fixture| {
            let until = fixture.store.promised_until(owner, contents("a")).unwrap();
            until.duration_since(UNIX_EPOCH + Duration::from_secs(START_S)).unwrap().as_secs() / DAY_S
        };
        assert_eq!(promised_days(&fixture), 60);
        fixture.time.advance(20 * DAY_S);
        fixture.caches.tend().await.unwrap();
        assert_eq!(promised_days(&fixture), 60);
        fixture.time.advance(20 * DAY_S);
        fixture.caches.tend().await.unwrap();
        assert_eq!(promised_days(&fixture), 100);
    }
}

#[tokio::test]
async fn what_is_referred_to_by_a_new_path_is_not_collected() {
    let fixture = Fixture::sqlite().await;
    let old = Sample::new("old", &[]);
    fixture.push(&old).await;
    retain(&fixture, unused(1)).await;
    fixture.time.advance(2 * DAY_S);
    fixture.push(&Sample::new("new", &[&old])).await;
    assert_eq!(collect(&fixture).await.removals, []);
    assert!(fixture.is_visible(&old.path).await);
}

#[tokio::test]
async fn a_full_store_is_collected_while_it_refuses_writes() {
    let fixture = Fixture::with_store(MemoryBlobStore::with_capacity(20_000)).await;
    let old = Sample::new("old", &[]);
    fixture.push(&old).await;
    let large = Sample::with_contents("large", &noise(1, 30_000), &[]);
    let error = fixture.upload(&large, Compression::None).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Exhausted, "{error}");
    retain(&fixture, unused(1)).await;
    fixture.time.advance(3 * DAY_S);
    assert_eq!(gone(&collect(&fixture).await), [&old.path]);
    assert_eq!(fixture.store.promised_until(owner(&fixture), contents("old")), None);
}

/// What a collection did not come to do is done by the next one, although the archive is gone from the database.
#[tokio::test]
async fn a_collection_that_fails_loses_no_work() {
    let fixture = Fixture::sqlite().await;
    fixture.upload(&Sample::new("orphan", &[]), Compression::None).await.unwrap();
    let owner = owner(&fixture);
    fixture.time.advance(3 * DAY_S);
    fixture.store.set_failing(true);
    assert_eq!(collect(&fixture).await, Collection::default());
    fixture.store.set_failing(false);
    let archives = gf_database::sql("SELECT nar_hash FROM nix_archives");
    assert!(fixture.database.all(archives).await.unwrap().is_empty());
    assert!(fixture.store.promised_until(owner, contents("orphan")).is_some());
    collect(&fixture).await;
    assert_eq!(fixture.store.promised_until(owner, contents("orphan")), None);
}

#[tokio::test]
async fn one_bad_list_stops_no_other() {
    let fixture = Fixture::sqlite().await;
    let owner = owner(&fixture);
    let (bad, orphan, kept) = (Sample::new("bad", &[]), Sample::new("orphan", &[]), Sample::new("kept", &[]));
    fixture.upload(&bad, Compression::None).await.unwrap();
    fixture.upload(&orphan, Compression::None).await.unwrap();
    fixture.push(&kept).await;
    // Lists that are none: the contents of files.
    for sample in [(&bad, "bad"), (&kept, "kept")] {
        let file = contents(sample.1);
        let change = gf_database::sql("UPDATE nix_archives SET blobs = $1 WHERE nar_hash = $2");
        let text = format!("{}/{}", file.hash_hex().as_str(), file.size_bytes());
        fixture.database.execute(change.bind(text).bind(sample.0.nar_hash().base32())).await.unwrap();
    }
    fixture.time.advance(3 * DAY_S);
    collect(&fixture).await;
    assert_eq!(fixture.store.promised_until(owner, contents("orphan")), None);
    // What it needs was found by a walk through it.
    assert!(fixture.store.promised_until(owner, contents("kept")).is_some());
    assert!(fixture.is_visible(&kept.path).await);
}
