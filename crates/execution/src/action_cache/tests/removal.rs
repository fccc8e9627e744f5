use std::time::Duration;

use gf_database::Location;
use gf_tenancy::Operate;
use gf_testkit::ManualTime;

use super::*;

const QUARANTINE: Duration = Duration::from_secs(3600);

/// A cache that keeps tombstones, and can be opened again over the same store.
struct Lasting {
    setting: Setting,
    folder: tempfile::TempDir,
    time: Arc<ManualTime>,
}

impl Lasting {
    async fn new() -> Self {
        let (folder, time) = (tempfile::tempdir().unwrap(), Arc::new(ManualTime::new(1_000_000)));
        let mut lasting = Self { setting: Setting::new(), folder, time };
        lasting.open().await;
        lasting
    }

    async fn open(&mut self) {
        let location = Location::file(&self.folder.path().join("facts.db"));
        let database = Database::open(&location, &[MIGRATIONS]).await.unwrap();
        let store: Arc<dyn BlobStore> = Arc::new(self.setting.store.clone());
        self.setting.cache = ActionCache::open(store, database, Arc::clone(&self.time) as _).await.unwrap();
    }

    async fn remove(&self, action: Digest, reason: &str) -> Result<Removal, RemovalError> {
        let grant = self.setting.grant::<Operate>("");
        self.setting.cache.remove(&grant, action.into(), reason, QUARANTINE).await
    }

    async fn inspect(&self, action: Digest) -> Inspection {
        self.setting.cache.inspect(&self.setting.grant(""), action.into()).await.unwrap()
    }
}

fn result() -> ActionResult {
    ActionResult { exit_code: 3, ..ActionResult::default() }
}

#[tokio::test]
async fn what_was_removed_is_hidden_and_not_taken_until_its_quarantine_is_over() {
    let mut lasting = Lasting::new().await;
    let (poisoned, other) = (action("poisoned"), action("other"));
    for action in [poisoned, other] {
        lasting.setting.update(action, &result()).await.unwrap();
    }
    let removal = lasting.remove(poisoned, " a compiler with a bug ").await.unwrap();
    assert!(removal.was_there);
    assert_eq!(
        (removal.tombstone.removed_by.as_str(), removal.tombstone.reason.as_str()),
        ("anonymous", "a compiler with a bug")
    );
    // Also by another process, which finds the database and the store.
    for restarts in 0..2 {
        assert_eq!(lasting.setting.get(poisoned).await, None, "{restarts}");
        let refused = lasting.setting.update(poisoned, &result()).await.unwrap_err();
        assert!(matches!(&refused, ActionCacheError::Quarantined { left_s: 3600, .. }), "{refused}");
        assert!(refused.to_string().contains("a compiler with a bug"), "{refused}");
        let cache = &lasting.setting.cache;
        let opaque = cache.put_opaque(&lasting.setting.grant(""), poisoned.into(), "x".into()).await;
        assert!(matches!(opaque, Err(ActionCacheError::Quarantined { .. })));
        assert_eq!(lasting.inspect(poisoned).await.standing, Standing::Removed(removal.tombstone.clone()));
        assert_eq!(lasting.setting.get(other).await, Some(result()));
        // The same digest elsewhere is another action's.
        let elsewhere = lasting.setting.grant::<ActionCacheWrite>("other");
        lasting.setting.cache.update(&elsewhere, poisoned.into(), result()).await.unwrap();
        lasting.open().await;
    }
    lasting.time.advance(3600);
    assert_eq!(lasting.inspect(poisoned).await.standing, Standing::Absent, "the old one is gone for good");
    lasting.setting.update(poisoned, &result()).await.unwrap();
    assert_eq!(lasting.setting.get(poisoned).await, Some(result()));
    lasting.open().await;
    assert_eq!(lasting.setting.get(poisoned).await, Some(result()), "a tombstone counts after its end");
}

/// The process was killed between writing the tombstone and removing the entry, and comes back when the quarantine is over.
#[tokio::test]
async fn a_removal_that_was_cut_short_hides_until_it_is_finished() {
    let mut lasting = Lasting::new().await;
    let poisoned = action("poisoned");
    lasting.setting.update(poisoned, &result()).await.unwrap();
    let key = ActionId::from(poisoned).key(EntryTable::ActionResult, &lasting.setting.grant::<Operate>(""));
    let tombstone =
        Tombstone { removed_s: 1, until_s: 1_000_010, removed_by: "root".to_owned(), reason: "why not".to_owned() };
    lasting.setting.cache.tombstones.set(&key, tombstone).await.unwrap();
    lasting.time.advance(10);
    assert_eq!(lasting.setting.get(poisoned).await, None, "the quarantine is over, and the result is still there");
    lasting.open().await;
    assert_eq!(lasting.setting.get(poisoned).await, None, "after a restart, too");
    lasting.setting.cache.tend().await;
    assert_eq!(lasting.setting.store.get_entry(&key).await.unwrap(), None);
    assert!(lasting.setting.cache.tombstones.unfinished().is_empty());
    lasting.setting.update(poisoned, &result()).await.unwrap();
    lasting.setting.cache.tend().await;
    assert_eq!(lasting.setting.get(poisoned).await, Some(result()), "what came later stays");
}

#[tokio::test]
async fn a_removal_needs_a_reason_and_a_bounded_quarantine() {
    let lasting = Lasting::new().await;
    for reason in ["", "  ", "two\nlines", &"x".repeat(501)] {
        assert!(matches!(lasting.remove(action("a"), reason).await, Err(RemovalError::Reason)), "{reason:?}");
    }
    let grant = lasting.setting.grant::<Operate>("");
    for quarantine in [Duration::ZERO, Duration::from_secs(367 * 86_400)] {
        let removed = lasting.setting.cache.remove(&grant, action("a").into(), "why", quarantine).await;
        assert!(matches!(removed, Err(RemovalError::Quarantine)), "{quarantine:?}");
    }
    assert!(!lasting.remove(action("a"), "there is none, and none may come").await.unwrap().was_there);
    let without = Setting::new();
    let removed = without.cache.remove(&without.grant(""), action("a").into(), "why", QUARANTINE).await;
    assert!(matches!(removed, Err(RemovalError::Tombstone(TombstoneError::NotKept))));
}

#[tokio::test]
async fn an_inspection_tells_who_wrote_it_and_what_is_missing() {
    let lasting = Lasting::new().await;
    let setting = &lasting.setting;
    let output = Bytes::from_static_str("output");
    let result = ActionResult { output_files: vec![file("a", digest_of(&output))], ..ActionResult::default() };
    assert_eq!(lasting.inspect(action("a")).await.standing, Standing::Absent);
    setting.update(action("a"), &result).await.unwrap();
    let missing = vec![digest_of(&output)];
    let inspection = lasting.inspect(action("a")).await;
    assert_eq!(inspection.standing, Standing::Incomplete { missing, missing_count: 1 });
    setting.put(output).await;
    let inspection = lasting.inspect(action("a")).await;
    assert_eq!(
        (inspection.standing, inspection.result, inspection.blobs),
        (Standing::Shown, Some(result.clone()), Some(1))
    );
    let written = inspection.provenance.unwrap();
    assert_eq!((written.principal.as_str(), written.worker.as_str()), ("anonymous", ""));
    assert!(written.written_ms.abs_diff(now_ms()) < 60_000);

    let grant = setting.grant::<Execute>("");
    let settled = setting.cache.settle(&grant, action("b").into(), result).await.unwrap();
    let origin = RunOrigin { worker: "host-3".into(), image: "debian:12".into() };
    setting.cache.put_executed(&grant, action("b").into(), &settled, &origin).await.unwrap();
    let written = lasting.inspect(action("b")).await.provenance.unwrap();
    assert_eq!((written.worker.as_str(), written.image.as_str()), ("host-3", "debian:12"));

    let other_size = Digest::new(FUNCTION, *action("b").hash(), 999);
    assert!(matches!(lasting.inspect(other_size).await.standing, Standing::OtherSize { .. }));
    setting.cache.put_opaque(&setting.grant(""), action("c").into(), "12345".into()).await.unwrap();
    let inspection = lasting.inspect(action("c")).await;
    assert_eq!(inspection.standing, Standing::Opaque { size_bytes: 5 });
    assert_eq!(inspection.provenance.unwrap().principal, "anonymous");
}
