//! From requests into the log, also when the database does not answer.

use tokio::sync::oneshot;

use super::*;
use crate::audit::{Search, TraceId, Verdict};
use crate::testing::Place;

fn event(subject: &str) -> Event {
    Event::new(&Principal::TokenHolder, "cache.publish", subject, Outcome::Done)
}

/// Ends the trail, which writes what is left.
async fn finish(trail: &Trail) {
    trail.write_until(std::future::ready(())).await;
}

async fn found(trail: &Trail) -> Vec<Event> {
    let records = trail.log().after(0).await.unwrap();
    records.into_iter().map(|record| record.event).collect()
}

#[tokio::test]
async fn what_is_recorded_and_counted_is_written() {
    for place in [Place::sqlite(), Place::postgres()] {
        let trail = Trail::new(AuditLog::new(place.open().await));
        let origin = Origin { source: Some("::ffff:192.0.2.7".parse().unwrap()), trace: TraceId::new([0xab; 16]) };
        trail.record(event("first"), origin);
        trail.record(event("second"), Origin::default());
        trail.count(&Principal::Anonymous, "cas.write", "ci", None, Amount::once(7), origin);
        trail.count(&Principal::Anonymous, "cas.write", "ci", None, Amount::once(5), Origin { trace: None, ..origin });
        finish(&trail).await;
        let events = found(&trail).await;
        let shown: Vec<String> =
            events.iter().map(|event| format!("{} {} {}", event.action, event.subject, event.detail)).collect();
        assert_eq!(shown, ["cache.publish first ", "cache.publish second ", "cas.write ci 2 times, 12 bytes"]);
        assert_eq!((events[0].source.as_str(), events[0].trace.as_str()), ("192.0.2.7", &*"ab".repeat(16)));
        assert_eq!((&events[2].source, &events[2].trace), (&events[0].source, &events[0].trace));
        assert!(matches!(trail.log().verify().await.unwrap(), Verdict::Whole(3, _)));
        assert_eq!(trail.stats(), TrailStats { queued: 0, written: 3, lost: 0 });
    }
}

#[tokio::test]
async fn it_is_written_while_requests_go_on() {
    let place = Place::sqlite();
    let trail = Trail::new(AuditLog::new(place.open().await));
    let (stop, stopped) = oneshot::channel::<()>();
    let writer = tokio::spawn({
        let trail = trail.clone();
        async move { trail.write_until(async { drop(stopped.await) }).await }
    });
    // More than what it waits a second for.
    for number in 0..BATCH {
        trail.record(event(&number.to_string()), Origin::default());
    }
    let written = async {
        while trail.stats().written < BATCH as u64 {
            tokio::task::yield_now().await;
        }
    };
    timeout(Duration::from_secs(30), written).await.unwrap();
    drop(stop);
    writer.await.unwrap();
    let search = Search { action: Some("cache".to_owned()), ..Search::default() };
    assert_eq!(trail.log().search(&search).await.unwrap().len(), BATCH);
}

#[tokio::test]
async fn a_full_queue_counts_instead() {
    let place = Place::sqlite();
    let trail = Trail::new(AuditLog::new(place.open().await));
    for _ in 0..MAX_QUEUED + 3 {
        trail.record(event("flood"), Origin::default());
    }
    assert_eq!(trail.stats().queued, MAX_QUEUED as u64);
    finish(&trail).await;
    let last = trail.log().search(&Search::default()).await.unwrap().remove(0);
    assert_eq!((last.number, last.event.detail.as_str()), (MAX_QUEUED as u64 + 1, "3 times"));
}

#[tokio::test]
async fn what_cannot_be_kept_is_said() {
    let place = Place::sqlite();
    let database = place.open().await;
    let trail = Trail::new(AuditLog::new(database.clone()));
    database.execute(gf_database::sql("ALTER TABLE tenancy_audit RENAME TO elsewhere")).await.unwrap();
    for _ in 0..MAX_QUEUED {
        trail.record(event("kept"), Origin::default());
    }
    trail.count(&Principal::Anonymous, "cas.write", "ci", None, Amount::once(1), Origin::default());
    trail.write(Some(0)).await;
    assert_eq!(trail.stats(), TrailStats { queued: MAX_QUEUED as u64, written: 0, lost: 1 });
    database.execute(gf_database::sql("ALTER TABLE elsewhere RENAME TO tenancy_audit")).await.unwrap();
    finish(&trail).await;
    let search = Search { action: Some("audit.lost".to_owned()), ..Search::default() };
    let said = trail.log().search(&search).await.unwrap();
    assert_eq!(said.len(), 1);
    assert_eq!(said[0].event.detail, "1 records could not be kept");
}
