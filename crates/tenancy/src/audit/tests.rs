//! The log, as it was written and as somebody changed it.

use super::*;
use crate::PermissionName;
use crate::testing::Place;

fn event(action: &str, subject: &str) -> Event {
    Event::new(&Principal::TokenHolder, action, subject, Outcome::Done)
}

/// A log of five records on each kind of database.
async fn logs() -> Vec<(AuditLog, Place)> {
    let mut logs = Vec::new();
    for place in [Place::sqlite(), Place::postgres()] {
        let log = AuditLog::new(place.open().await);
        assert_eq!(log.verify().await.unwrap(), Verdict::Whole(0, ChainHash::default()));
        log.append(&[event("cache.create", "ci"), event("cache.configure", "ci")]).await.unwrap();
        let denied = Denied::Forbidden(PermissionName::NixDestroyCache);
        log.append(&[Event::denied(&Principal::Anonymous, "cache.destroy", "ci", &denied)]).await.unwrap();
        log.append(&[event("cache.destroy", "ci"), event("token.issue", "0123")]).await.unwrap();
        logs.push((log, place));
    }
    logs
}

#[tokio::test]
async fn what_is_searched_is_found() {
    for (log, _place) in logs().await {
        let check = async |search: Search, expected: &[u64]| {
            let found = log.search(&search).await.unwrap();
            let numbers: Vec<u64> = found.iter().map(|record| record.number).collect();
            assert_eq!(numbers, expected, "{search:?}");
        };
        let none = Search::default;
        check(none(), &[5, 4, 3, 2, 1]).await;
        check(Search { who: Some("anonymous".into()), ..none() }, &[3]).await;
        check(Search { action: Some("cache".into()), ..none() }, &[4, 3, 2, 1]).await;
        check(Search { action: Some("cache.destroy".into()), ..none() }, &[4, 3]).await;
        check(Search { action: Some("cach".into()), ..none() }, &[]).await;
        check(Search { subject: Some("0123".into()), ..none() }, &[5]).await;
        check(Search { outcome: Some(Outcome::Denied), ..none() }, &[3]).await;
        check(Search { before: Some(3), ..none() }, &[2, 1]).await;
        for text in ["zero\0", "line\n"] {
            check(Search { who: Some(text.into()), ..none() }, &[]).await;
            check(Search { action: Some(text.into()), ..none() }, &[]).await;
            check(Search { subject: Some(text.into()), ..none() }, &[]).await;
        }
        check(Search { since_ms: Some(1), ..none() }, &[5, 4, 3, 2, 1]).await;
        check(Search { since_ms: Some(u64::MAX), ..none() }, &[]).await;
        let denied = &log.search(&Search { before: Some(4), ..none() }).await.unwrap()[0];
        assert_eq!(denied.event.detail, "this credential does not grant nix:destroy");
        assert_eq!(log.after(3).await.unwrap().len(), 2);
        let traced = Event { trace: "00ff".into(), ..event("token.exchange", "x") };
        log.append(&[traced]).await.unwrap();
        check(Search { trace: Some("00ff".into()), ..none() }, &[6]).await;
    }
}

#[tokio::test]
async fn every_change_shows() {
    let cases = [
        ("UPDATE tenancy_audit SET subject = 'other' WHERE number = 2", Verdict::Changed(2)),
        ("UPDATE tenancy_audit SET at_ms = at_ms + 1 WHERE number = 5", Verdict::Changed(5)),
        ("UPDATE tenancy_audit SET outcome = 'failed' WHERE number = 3", Verdict::Changed(3)),
        ("UPDATE tenancy_audit SET outcome = 'fine' WHERE number = 4", Verdict::Changed(4)),
        ("UPDATE tenancy_audit SET who = who || action, action = '' WHERE number = 1", Verdict::Changed(1)),
        ("DELETE FROM tenancy_audit WHERE number = 1", Verdict::Missing(1)),
        ("DELETE FROM tenancy_audit WHERE number = 4", Verdict::Missing(4)),
        // Counting anew does not help: the hash is of the number, and of the record before.
        (
            "DELETE FROM tenancy_audit WHERE number < 3; UPDATE tenancy_audit SET number = number - 2",
            Verdict::Changed(1),
        ),
    ];
    for (change, expected) in cases {
        let place = Place::sqlite();
        let database = place.open().await;
        let log = AuditLog::new(database.clone());
        let events: Vec<Event> = (1..=5).map(|number| event("cache.create", &number.to_string())).collect();
        log.append(&events).await.unwrap();
        let Verdict::Whole(5, hash) = log.verify().await.unwrap() else { panic!("not whole") };
        assert_eq!(log.head().await.unwrap(), (5, hash));
        for statement in change.split("; ") {
            assert!(database.execute(sql(statement)).await.unwrap() > 0, "{change}");
        }
        assert_eq!(log.verify().await.unwrap(), expected, "{change}");
    }
}

#[tokio::test]
async fn a_log_of_many_pages_is_whole() {
    let place = Place::sqlite();
    let log = AuditLog::new(place.open().await);
    let events: Vec<Event> = (0..2500).map(|number| event("cache.create", &number.to_string())).collect();
    log.append(&events).await.unwrap();
    assert!(matches!(log.verify().await.unwrap(), Verdict::Whole(2500, _)));
    assert_eq!(log.search(&Search::default()).await.unwrap().len(), PAGE as usize);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn those_who_write_at_once_make_one_chain() {
    for place in [Place::sqlite(), Place::postgres()] {
        let log = AuditLog::new(place.open().await);
        let writers = (0..4).map(|writer| {
            let log = log.clone();
            tokio::spawn(async move {
                let mut written = 0;
                for _ in 0..5 {
                    // Bounded: PostgreSQL may choose the same one to give way too often.
                    match log.append(&[event("cache.create", &writer.to_string())]).await {
                        Ok(()) => written += 1,
                        Err(error) => assert!(matches!(error, DatabaseError::Contended(_)), "{error:?}"),
                    }
                }
                written
            })
        });
        let mut written = 0;
        for writer in writers.collect::<Vec<_>>() {
            written += writer.await.unwrap();
        }
        assert!(written > 0);
        assert!(matches!(log.verify().await.unwrap(), Verdict::Whole(number, _) if number == written));
    }
}

#[tokio::test]
async fn a_record_is_one_line_of_json() {
    let place = Place::sqlite();
    let log = AuditLog::new(place.open().await);
    let odd = Event { detail: "a\nb\u{1b}[31m".to_owned(), ..event("cache.create", &"x".repeat(2000)) };
    log.append(&[odd]).await.unwrap();
    let record = &log.after(0).await.unwrap()[0];
    let line = serde_json::to_value(record).unwrap();
    assert_eq!((line["number"].as_u64(), line["who"].as_str()), (Some(1), Some("static-token")));
    assert_eq!((line["outcome"].as_str(), line["detail"].as_str()), (Some("done"), Some("ab[31m")));
    assert_eq!(line["subject"].as_str().unwrap().len(), MAX_TEXT);
    assert_eq!(line["hash"].as_str(), Some(record.hash.to_string().as_str()));
    assert!(matches!(log.verify().await.unwrap(), Verdict::Whole(1, _)), "the hash is of what is stored");
}

#[tokio::test]
async fn what_was_put_in_front_shows_and_what_turns_lines_around_is_not_kept() {
    for (log, _place) in logs().await {
        let turned = Event { detail: "a\u{202e}b\u{2028}c\u{200b}".to_owned(), ..event("token.issue", "\u{2066}x") };
        log.append(&[turned]).await.unwrap();
        let record = &log.search(&Search::default()).await.unwrap()[0].event;
        assert_eq!((record.detail.as_str(), record.subject.as_str()), ("abc", "x"));
        assert!(matches!(log.verify().await.unwrap(), Verdict::Whole(6, _)));
        for number in [0_i64, -3] {
            let put = "INSERT INTO tenancy_audit (number, at_ms, who, source, action, subject, outcome, detail, trace, hash) \
                       SELECT $1, at_ms, who, source, action, subject, outcome, detail, trace, hash \
                       FROM tenancy_audit WHERE number = 1";
            log.database.execute(sql(put).bind(number)).await.unwrap();
            assert_eq!(log.verify().await.unwrap(), Verdict::Changed(1), "{number}");
            log.database.execute(sql("DELETE FROM tenancy_audit WHERE number < 1")).await.unwrap();
        }
    }
}
