use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use futures::StreamExt;
use gf_blobstore::ErrorKind;
use gf_nix_cache::{Order, Publication, PublishError};
use gf_nix_formats::Compression;
use gf_tenancy::NixPush;

use crate::fixture::{Fixture, Sample, body};

const CLIENTS: usize = 64;

/// Each path refers to the two before it.
fn chain(length: usize) -> Vec<Sample> {
    let mut samples: Vec<Sample> = Vec::new();
    for number in 0..length {
        let references: Vec<&Sample> = samples.iter().rev().take(2).collect();
        samples.push(Sample::new(&format!("link-{number}"), &references));
    }
    samples
}

/// Pushes as `nix copy` does, and counts what was read of its bodies.
async fn push(fixture: &Fixture, sample: &Sample, bodies: &Arc<AtomicUsize>) -> Result<Publication, PublishError> {
    let grant = fixture.grant::<NixPush>("main");
    let file = sample.file(Compression::None);
    let begun = Arc::clone(bodies);
    let mut is_first = true;
    let counted = body(&file.bytes).inspect(move |_| {
        begun.fetch_add(usize::from(std::mem::take(&mut is_first)), Ordering::SeqCst);
    });
    fixture.caches.accept_archive(&grant, file.name, None, counted).await?;
    let narinfo = sample.narinfo(Compression::None);
    fixture.caches.publish(&grant, sample.path.hash(), narinfo, Order::ReferencesFirst).await
}

/// Pushes again for a while when there was no turn for it, as clients do, and counts how often.
async fn push_in_the_end(
    fixture: &Fixture,
    sample: &Sample,
    bodies: &Arc<AtomicUsize>,
    refused: &mut usize,
) -> Result<Publication, PublishError> {
    let deadline = Instant::now() + Duration::from_secs(300);
    loop {
        match push(fixture, sample, bodies).await {
            Err(error) if error.kind() == ErrorKind::Unavailable && Instant::now() < deadline => *refused += 1,
            pushed => return pushed,
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn many_clients_push_overlapping_closures(fixture: Fixture) {
    let samples = Arc::new(chain(12));
    let (fixture, bodies) = (Arc::new(fixture), Arc::new(AtomicUsize::new(0)));
    let clients = (0..CLIENTS).map(|client| {
        let (fixture, samples, bodies) = (Arc::clone(&fixture), Arc::clone(&samples), Arc::clone(&bodies));
        tokio::spawn(async move {
            let mut refused = 0;
            // Closures of different ends, so that they overlap in different parts.
            for sample in &samples[..samples.len() - client % 3] {
                match push_in_the_end(&fixture, sample, &bodies, &mut refused).await.unwrap() {
                    Publication::New | Publication::Known => {}
                    other => panic!("{}: {other:?}", sample.path),
                }
            }
            refused
        })
    });
    let mut refused = 0;
    for client in clients.collect::<Vec<_>>() {
        refused += client.await.unwrap();
    }
    for sample in samples.iter() {
        assert!(fixture.is_visible(&sample.path).await);
    }
    // Two uploads of one file are read at a time, and none after one was taken in.
    let read = bodies.load(Ordering::SeqCst);
    let most = 2 * samples.len() + refused;
    assert!((samples.len()..=most).contains(&read), "{read} bodies were read, {refused} pushes refused for the moment");
    let count = gf_database::sql("SELECT COUNT(*) AS archives FROM nix_archives");
    let count = fixture.database.first(count).await.unwrap().unwrap().get::<i64>("archives").unwrap();
    assert_eq!(usize::try_from(count).unwrap(), samples.len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn clients_push_overlapping_closures_into_sqlite() {
    many_clients_push_overlapping_closures(Fixture::sqlite().await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn clients_push_overlapping_closures_into_postgres() {
    many_clients_push_overlapping_closures(Fixture::postgres().await).await;
}
