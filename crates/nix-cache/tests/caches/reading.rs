use gf_blobstore::ErrorKind;
use gf_nix_cache::{ArchiveName, CacheError, Lookup, Publication, Settings};
use gf_nix_formats::{Compression, NarHash};
use gf_tenancy::{NixPull, NixPush};

use crate::fixture::{Fixture, OURS, Sample, THEIRS};

#[tokio::test]
async fn what_cannot_be_known_is_not_called_absent() {
    let fixture = Fixture::sqlite().await;
    let (sample, absent) = (Sample::new("a", &[]), Sample::new("b", &[]));
    fixture.push(&sample).await;
    let pull = fixture.grant::<NixPull>("main");
    assert_eq!(fixture.caches.lookup(&pull, absent.path.hash()).await.unwrap(), Lookup::Absent);

    fixture.store.set_failing(true);
    let error = fixture.caches.open_archive(&pull, ArchiveName::Nar(sample.nar_hash())).await.err().unwrap();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
    fixture.store.set_failing(false);
    assert!(fixture.read(ArchiveName::Nar(sample.nar_hash())).await.is_some());

    fixture.database.close().await;
    let error = fixture.caches.lookup(&pull, absent.path.hash()).await.unwrap_err();
    assert!(matches!(error, CacheError::Database(_)) && error.kind() == ErrorKind::Unavailable, "{error}");
    let known = sample.file(Compression::None).name;
    assert!(fixture.caches.has_archive(&fixture.grant("main"), known).await.is_err());
    assert!(fixture.caches.missing_paths(&fixture.grant("main"), &[absent.path.hash()]).await.is_err());
}

#[tokio::test]
async fn readers_of_one_cache_see_nothing_of_another() {
    let fixture = Fixture::sqlite().await;
    fixture.create(OURS, "secret", Settings::default()).await;
    fixture.create(THEIRS, "theirs", Settings::default()).await;
    let sample = Sample::new("a", &[]);
    let file = sample.file(Compression::None).name;
    let push = fixture.grant::<NixPush>("secret");
    fixture.upload(&sample, Compression::None).await.unwrap();
    let narinfo = sample.narinfo(Compression::None);
    let publication =
        fixture.caches.publish(&push, sample.path.hash(), narinfo.clone(), gf_nix_cache::Order::ReferencesFirst).await;
    assert_eq!(publication.unwrap(), Publication::New);
    for name in [ArchiveName::Nar(sample.nar_hash()), ArchiveName::File(file), ArchiveName::Path(sample.path.hash())] {
        assert_eq!(fixture.read(name).await, None, "{name:?}");
        assert_eq!(fixture.caches.find(&fixture.grant("main"), name).await.unwrap(), None);
        let theirs = fixture.grant_of::<NixPull>(THEIRS, "theirs");
        assert_eq!(fixture.read_as(&theirs, name).await, None, "{name:?}");
        assert!(fixture.read_as(&fixture.grant("secret"), name).await.is_some(), "{name:?}");
    }
    // Another tenant uploads it all again, and names nothing that it did not upload.
    let push = fixture.grant_of::<NixPush>(THEIRS, "theirs");
    assert_eq!(fixture.caches.has_archive(&push, file).await.unwrap(), None);
    let publish = fixture.caches.publish(&push, sample.path.hash(), narinfo, gf_nix_cache::Order::ReferencesFirst);
    assert!(publish.await.is_err());
}

#[tokio::test]
async fn a_lost_archive_hides_what_refers_to_it_until_it_is_back() {
    for fixture in [Fixture::sqlite().await, Fixture::postgres().await] {
        let a = Sample::new("a", &[]);
        let b = Sample::new("b", &[&a]);
        let c = Sample::new("c", &[&b]);
        let d = Sample::new("d", &[]);
        for sample in [&a, &b, &c, &d] {
            fixture.push(sample).await;
            assert!(fixture.is_visible(&sample.path).await);
        }
        let contents = gf_digest::Digest::of(gf_digest::DigestFunction::Sha256, b"the contents of a\n");
        fixture.store.evict(contents);
        assert_eq!(fixture.read(ArchiveName::Nar(a.nar_hash())).await, None);
        for (sample, is_visible) in [(&a, false), (&b, false), (&c, false), (&d, true)] {
            assert_eq!(fixture.is_visible(&sample.path).await, is_visible, "{}", sample.path);
        }
        let file = a.file(Compression::None).name;
        assert_eq!(fixture.caches.has_archive(&fixture.grant("main"), file).await.unwrap(), None);
        fixture.push(&a).await;
        for sample in [&a, &b, &c, &d] {
            assert!(fixture.is_visible(&sample.path).await, "{}", sample.path);
        }
    }
}

#[tokio::test]
async fn closures_name_what_is_missing() {
    for fixture in [Fixture::sqlite().await, Fixture::postgres().await] {
        let a = Sample::new("a", &[]);
        let b = Sample::new("b", &[&a]);
        let c = Sample::new("c", &[&b, &a]);
        let d = Sample::new("d", &[]);
        for sample in [&a, &b, &c] {
            fixture.push(sample).await;
        }
        let execute = fixture.execute();
        let closure = fixture.caches.closure(&execute, std::slice::from_ref(&c.path)).await.unwrap();
        assert!(closure.is_complete());
        let paths: Vec<_> = closure.paths.iter().map(|path| &path.path).collect();
        let mut expected = vec![&a.path, &b.path, &c.path];
        expected.sort();
        assert_eq!(paths, expected);
        let closure = fixture.caches.closure(&execute, &[b.path.clone(), d.path.clone()]).await.unwrap();
        assert_eq!((closure.paths.len(), closure.missing), (2, vec![d.path]));
    }
}

#[tokio::test]
async fn uses_are_counted_in_batches() {
    for fixture in [Fixture::sqlite().await, Fixture::postgres().await] {
        let samples: Vec<Sample> = (0..3).map(|number| Sample::new(&format!("s{number}"), &[])).collect();
        for sample in &samples {
            fixture.push(sample).await;
        }
        fixture.time.advance(1000);
        for _ in 0..5 {
            assert!(fixture.is_visible(&samples[0].path).await);
        }
        assert!(fixture.read(ArchiveName::Nar(samples[1].nar_hash())).await.is_some());
        assert_eq!(fixture.read(ArchiveName::Nar(NarHash::of(b"x"))).await, None);
        let uses = async || {
            let rows = gf_database::sql("SELECT narinfos_served, archives_read, used_s FROM nix_paths ORDER BY name");
            let row = |row: &gf_database::Row| {
                ["narinfos_served", "archives_read", "used_s"].map(|column| row.get::<i64>(column).unwrap())
            };
            fixture.database.all(rows).await.unwrap().iter().map(row).collect::<Vec<_>>()
        };
        let start_s = i64::try_from(crate::fixture::START_S).unwrap();
        assert_eq!(uses().await, [[0, 0, start_s]; 3]);
        fixture.caches.tend().await.unwrap();
        let later_s = start_s + 1000;
        assert_eq!(uses().await, [[5, 0, later_s], [0, 1, later_s], [0, 0, start_s]]);
        assert!(fixture.is_visible(&samples[0].path).await);
        fixture.caches.tend().await.unwrap();
        fixture.caches.tend().await.unwrap();
        assert_eq!(uses().await[0], [6, 0, later_s]);
    }
}
