//! What is administered, through the gate.

use std::time::Duration;

use axum::http::{Extensions, HeaderMap, StatusCode, header};
use gf_database::{Database, Location, sql};
use gf_tenancy::audit::Search;
use gf_tenancy::{AccessConfig, Administer, AuditLog, TenantConfig, TenantName};
use tokio::sync::oneshot;
use tokio::time::timeout;

use super::*;
use crate::edges::plain_http::Problem;

const DEED: Administration<'_> = Administration { action: "cache.destroy", subject: "prod", detail: "" };

struct Setting {
    gate: Gate,
    background: Background,
    log: AuditLog,
    database: Database,
    visitor: Visitor,
    grant: Authorized<Administer>,
    _folder: tempfile::TempDir,
}

impl Setting {
    async fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let location = Location::file(&folder.path().join("facts"));
        let database = Database::open(&location, &[gf_tenancy::MIGRATIONS]).await.unwrap();
        let log = AuditLog::new(database.clone());
        let instances = vec![InstanceName::new("").unwrap()];
        let tenants = vec![TenantConfig { name: TenantName::new("default").unwrap(), instances }];
        let access = Arc::new(Access::new(AccessConfig { tenants, token: None, anonymous_read: false }).unwrap());
        let grant = access.authorize_somewhere(Principal::Anonymous).unwrap();
        let visitor = Visitor::new(&HeaderMap::new(), &Extensions::new());
        let gate = Gate::new(access, Trail::new(log.clone()));
        Self { gate, background: Background::default(), log, database, visitor, grant, _folder: folder }
    }

    async fn outcomes(&self) -> Vec<Outcome> {
        self.log
            .search(&Search::default())
            .await
            .unwrap()
            .into_iter()
            .rev()
            .map(|record| record.event.outcome)
            .collect()
    }
}

#[tokio::test]
async fn what_is_administered_is_recorded_first_and_done_though_nobody_waits_for_it() {
    let setting = Setting::new().await;
    let (begun, has_begun) = oneshot::channel();
    let (go_on, may_go_on) = oneshot::channel::<()>();
    let (ended, has_ended) = oneshot::channel();
    let log = setting.log.clone();
    let act = async move {
        let before = log.search(&Search::default()).await.unwrap().len();
        begun.send(before).unwrap();
        may_go_on.await.unwrap();
        ended.send(()).unwrap();
        Ok::<_, String>(())
    };
    let Setting { gate, background, visitor, grant, .. } = &setting;
    let caller = gate.perform(background, visitor, grant, DEED, act);
    // The caller leaves when it has begun.
    let recorded = tokio::select! {
        _ = caller => panic!("it ended before it was let"),
        recorded = has_begun => recorded.unwrap(),
    };
    assert_eq!(recorded, 1, "it is in the log before it is begun");
    go_on.send(()).unwrap();
    timeout(Duration::from_secs(60), has_ended).await.expect("it goes on").unwrap();
    assert_eq!(setting.outcomes().await, [Outcome::Done]);
}

#[tokio::test]
async fn what_failed_is_recorded_as_failed_and_what_cannot_be_recorded_is_not_done() {
    let setting = Setting::new().await;
    let Setting { gate, background, visitor, grant, .. } = &setting;
    let failed = gate.perform(background, visitor, grant, DEED, async { Err::<(), _>("no disk") }).await.unwrap();
    assert_eq!(failed, Err("no disk"));
    gate.trail.as_ref().unwrap().write_until(std::future::ready(())).await;
    assert_eq!(setting.outcomes().await, [Outcome::Done, Outcome::Failed]);
    setting.database.execute(sql("DROP TABLE tenancy_audit")).await.unwrap();
    let act = async { panic!("it was done unseen") };
    let not_done = gate.perform::<_, (), String>(background, visitor, grant, DEED, act).await.unwrap_err();
    assert!(matches!(not_done, NotDone::NotRecorded(_)), "{not_done:?}");
    background.stop().await;
    let late = gate.perform(background, visitor, grant, DEED, std::future::pending::<Result<(), String>>()).await;
    assert!(late.is_err());
}

#[test]
fn what_may_have_been_revoked_can_be_asked_again() {
    let response = Problem::from(Denied::Unfollowed).into_response();
    assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert!(response.headers().contains_key(header::RETRY_AFTER), "Nix tries again");
}
