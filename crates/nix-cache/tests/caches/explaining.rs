use gf_nix_cache::{Keeper, Link};

use crate::fixture::{Fixture, Sample};

#[tokio::test]
async fn the_first_broken_link_is_named() {
    let fixture = Fixture::sqlite().await;
    let a = Sample::new("a", &[]);
    let b = Sample::new("b", &[&a]);
    let pull = fixture.grant("main");
    let why = async |sample: &Sample| fixture.caches.why(&pull, sample.path.hash()).await.unwrap();
    assert_eq!(why(&a).await.broken(), Some(&Link::NotPublished { asked: Vec::new() }));

    fixture.push(&a).await;
    fixture.push(&b).await;
    fixture.caches.pin(&fixture.grant("main"), "keep", &b.path, None).await.unwrap();
    let explanation = why(&a).await;
    assert_eq!(explanation.broken(), None);
    assert_eq!(explanation.links.last(), Some(&Link::ArchiveHere { nar_bytes: a.nar.len() as u64 }));
    assert!(explanation.kept_by.contains(&Keeper::Pin("keep".to_owned())), "{explanation:?}");
    assert!(explanation.kept_by.contains(&Keeper::Referrers(vec![b.path.clone()], 0)), "{explanation:?}");

    let contents = gf_digest::Digest::of(gf_digest::DigestFunction::Sha256, b"the contents of a\n");
    fixture.store.evict(contents);
    assert_eq!(why(&a).await.broken(), Some(&Link::ArchiveMissing));
    // It said so, so pushing it again helps: a client that asks is told that it is missing.
    assert_eq!(why(&b).await.broken(), Some(&Link::WaitsFor(vec![a.path.clone()])));
    let asked = [a.path.hash(), b.path.hash()];
    assert_eq!(fixture.caches.missing_paths(&fixture.grant("main"), &asked).await.unwrap(), asked[..1]);
    fixture.push(&a).await;
    assert!(why(&a).await.broken().is_none() && why(&b).await.broken().is_none());
}

#[tokio::test]
async fn a_cache_is_proved_and_what_is_wrong_is_named() {
    let fixture = Fixture::sqlite().await;
    let (a, b) = (Sample::new("a", &[]), Sample::new("b", &[]));
    fixture.push(&a).await;
    fixture.push(&b).await;
    let pull = fixture.grant("main");
    let whole = fixture.caches.verify(&pull).await.unwrap();
    assert_eq!((whole.paths, whole.nar_bytes), (2, (a.nar.len() + b.nar.len()) as u64));
    assert_eq!(whole.problems, []);
    fixture.store.evict(gf_digest::Digest::of(gf_digest::DigestFunction::Sha256, b"the contents of b\n"));
    let broken = fixture.caches.verify(&pull).await.unwrap();
    assert_eq!((broken.problem_count, &broken.problems[0].path), (1, &b.path));
    // It is withdrawn, so pushing it again brings it back.
    assert_eq!(fixture.caches.show(&pull).await.unwrap().paths, 1);
    assert!(!fixture.is_visible(&b.path).await);
    fixture.push(&b).await;
    let whole = fixture.caches.verify(&pull).await.unwrap();
    assert_eq!((whole.paths, whole.problems), (2, Vec::new()));
}
