//! Actions that name Nix store paths.

use async_trait::async_trait;
use gf_nix_formats::StorePath;
use gf_reapi::execution::{Platform, platform};

use super::*;
use crate::closures::{Closure, ClosureError, ClosurePath, ClosureRoot};
use crate::scheduler::Property;

const HASH: &str = "2s4rw9nqymidjbnrk72ccxyn6yxcjdf4";

/// A cache in which every link is, and that does not answer for `down`.
struct Links;

#[async_trait]
impl Closures for Links {
    async fn closure(&self, _: &Authorized<Execute>, paths: &[StorePath]) -> Result<Vec<ClosurePath>, ClosureError> {
        if paths.iter().any(|path| path.name() == "down") {
            return Err(ClosureError::Unavailable("the database is locked".to_owned()));
        }
        let (here, missing): (Vec<_>, Vec<_>) = paths.iter().cloned().partition(|path| path.name() == "link");
        if !missing.is_empty() {
            return Err(ClosureError::Missing(missing));
        }
        Ok(here.into_iter().map(|path| ClosurePath { path, root: link() }).collect())
    }
}

fn link() -> ClosureRoot {
    ClosureRoot::Symlink { target: "elsewhere".to_owned() }
}

impl Setting {
    async fn with_store_paths(&self, names: &str) -> Digest {
        let command = Command { arguments: vec!["true".to_owned()], ..Command::default() };
        let property = platform::Property { name: "nix-closure".to_owned(), value: names.to_owned() };
        let action = Action {
            command_digest: Some(self.put(command.encode_to_vec()).await.into()),
            input_root_digest: Some(Digest::empty(FUNCTION).into()),
            platform: Some(Platform { properties: vec![property] }),
            ..Action::default()
        };
        self.put(action.encode_to_vec()).await
    }

    fn worker_that_shows_store_paths(&self) -> Attachment {
        let capacity = Resources { milli_cores: 2000, memory_bytes: 4 << 30 };
        let property = Property { name: "nix-closure".into(), value: "supported".into() };
        self.operations
            .attach(Offer { name: "shows".into(), properties: vec![property], capacity, limitations: Arc::default() })
            .unwrap()
    }
}

fn with_links() -> Setting {
    Setting::with_closures(Arc::new(Links), OperationsConfig::default())
}

#[tokio::test]
async fn a_worker_that_shows_them_is_told_what_they_are() {
    let setting = with_links();
    let (_old, mut worker) = (setting.worker(), setting.worker_that_shows_store_paths());
    let action = setting.with_store_paths(&format!("/nix/store/{HASH}-link")).await;
    let watch = setting.execute(action);
    let given = assignment(&mut worker).await;
    let path = StorePath::parse(&format!("{HASH}-link")).unwrap();
    assert_eq!(given.closure, Closure::new(vec![ClosurePath { path, root: link() }]).unwrap());
    worker.reports().answered(given.id, done(0));
    assert_eq!(end(watch).await.1.verdict, Verdict::Completed);
}

#[tokio::test]
async fn a_worker_that_cannot_show_them_is_never_told() {
    let setting = with_links();
    let _old = setting.worker();
    let action = setting.with_store_paths(&format!("{HASH}-link")).await;
    let (_, ended) = end(setting.execute(action)).await;
    assert!(matches!(ended.verdict, Verdict::NoWorker(_)), "{ended:?}");
    assert!(ended.verdict.to_string().contains("nix-closure=supported"), "{}", ended.verdict);
}

#[tokio::test]
async fn what_is_missing_is_named_at_once_and_for_good() {
    let setting = with_links();
    let names = format!("{HASH}-link {HASH}-gone /nix/store/{HASH}-lost");
    let (_, ended) = end(setting.execute(setting.with_store_paths(&names).await)).await;
    // Not `Missing`: a client would try to upload them.
    let Verdict::Unfit(reason) = &ended.verdict else { panic!("{ended:?}") };
    assert!(reason.contains(&format!("/nix/store/{HASH}-gone, /nix/store/{HASH}-lost are not in")), "{reason}");
    assert!(!reason.contains("-link"), "{reason}");

    let (_, ended) = end(setting.execute(setting.with_store_paths("zig").await)).await;
    assert!(matches!(&ended.verdict, Verdict::Invalid(reason) if reason.contains("\"zig\"")), "{ended:?}");
}

#[tokio::test]
async fn a_cache_that_cannot_answer_is_asked_again() {
    let setting = with_links();
    let (_, ended) = end(setting.execute(setting.with_store_paths(&format!("{HASH}-down")).await)).await;
    assert!(matches!(&ended.verdict, Verdict::Unavailable(reason) if reason.contains("locked")), "{ended:?}");
}

#[tokio::test]
async fn a_server_without_caches_says_so() {
    let setting = Setting::new();
    let _worker = setting.worker_that_shows_store_paths();
    let (_, ended) = end(setting.execute(setting.with_store_paths(&format!("{HASH}-link")).await)).await;
    assert!(matches!(&ended.verdict, Verdict::Unfit(reason) if reason.contains("no Nix caches")), "{ended:?}");
}
