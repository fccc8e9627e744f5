use std::num::NonZeroU32;
use std::time::Duration;

use gf_blobstore::{Accept, ByteRange, Encoding, NewBlob};
use gf_digest::{DigestFunction, InstanceName};
use gf_reapi::execution::{Action, ActionResult, Command, OutputFile};
use gf_tenancy::{AccessConfig, CasRead, Principal, TenantConfig, TenantName};
use gf_testkit::MemoryBlobStore;
use prost::Message;
use tokio::time::{sleep, timeout};

use super::*;
use crate::content::owner;
use crate::scheduler::{Cap, Resources};

mod closures;
mod leases;

const FUNCTION: DigestFunction = DigestFunction::Sha256;
/// Far longer than anything here takes.
const LONG: Duration = Duration::from_secs(20);

struct Setting {
    store: MemoryBlobStore,
    access: Arc<Access>,
    operations: Operations,
}

impl Setting {
    fn new() -> Self {
        Self::with(OperationsConfig::default())
    }

    fn with(config: OperationsConfig) -> Self {
        Self::with_closures(Arc::new(NoCaches), config)
    }

    fn with_closures(closures: Arc<dyn Closures>, config: OperationsConfig) -> Self {
        let store = MemoryBlobStore::default();
        Self::on(store.clone(), Arc::new(store), closures, config)
    }

    /// With a store as the operations see it, and what it holds.
    fn on(
        store: MemoryBlobStore,
        blobs: Arc<dyn BlobStore>,
        closures: Arc<dyn Closures>,
        config: OperationsConfig,
    ) -> Self {
        let tenant = |name: &str, instance: &str| TenantConfig {
            name: TenantName::new(name).unwrap(),
            instances: vec![InstanceName::new(instance).unwrap()],
        };
        let tenants = vec![tenant("default", ""), tenant("org-acme", "acme")];
        let access = AccessConfig { tenants, token: None, anonymous_read: false };
        let access = Arc::new(Access::new(access).unwrap());
        let cache = ActionCache::new(Arc::clone(&blobs));
        let operations = Operations::start_with_closures(blobs, cache, Arc::clone(&access), closures, config);
        Self { store, access, operations }
    }

    fn grant(&self, instance: &str) -> Authorized<Execute> {
        self.access.authorize(Principal::Anonymous, &InstanceName::new(instance).unwrap()).unwrap()
    }

    async fn put(&self, bytes: Vec<u8>) -> Digest {
        let digest = Digest::of(FUNCTION, &bytes);
        let blob = NewBlob { digest, bytes: bytes.into(), encoding: Encoding::Identity };
        self.store.write_batch(owner(&self.grant("")), vec![blob]).await.remove(0).unwrap();
        digest
    }

    /// An action of its own for each name.
    async fn action(&self, name: &str, do_not_cache: bool) -> Digest {
        let command = Command { arguments: vec![name.to_owned()], ..Command::default() };
        let command = self.put(command.encode_to_vec()).await;
        let action = Action {
            command_digest: Some(command.into()),
            input_root_digest: Some(Digest::empty(FUNCTION).into()),
            do_not_cache,
            ..Action::default()
        };
        self.put(action.encode_to_vec()).await
    }

    fn execute(&self, action: Digest) -> Watch {
        let request = Request {
            action,
            skip_cache_lookup: false,
            priority: 0,
            invocation: "test".into(),
            inlining: Inlining::NONE,
        };
        self.operations.execute(self.grant(""), request).unwrap()
    }

    fn worker(&self) -> Attachment {
        let capacity = Resources { milli_cores: 2000, memory_bytes: 4 << 30 };
        self.operations
            .attach(Offer { name: "worker".into(), properties: Vec::new(), capacity, limitations: Arc::default() })
            .unwrap()
    }
}

async fn assignment(worker: &mut Attachment) -> Box<Assignment> {
    match timeout(LONG, worker.next_order()).await.unwrap() {
        Some(Order::Assign(assignment)) => assignment,
        other => panic!("{other:?}"),
    }
}

/// All stages until the end, and the end.
async fn end(mut watch: Watch) -> (Vec<Stage>, Arc<Ended>) {
    let mut stages = Vec::new();
    let until_end = async {
        while let Some(progress) = watch.next().await {
            stages.extend(progress.stages);
            if let Some(ended) = progress.ended {
                return ended;
            }
        }
        panic!("it never ended");
    };
    let ended = timeout(LONG, until_end).await.unwrap();
    (stages, ended)
}

fn done(exit_code: i32) -> Answer {
    Answer::Completed(ActionResult { exit_code, stdout_raw: "out".into(), ..ActionResult::default() })
}

#[tokio::test]
async fn an_action_runs_once_and_is_found_afterwards() {
    let setting = Setting::new();
    let mut worker = setting.worker();
    let action = setting.action("a", false).await;

    let watch = setting.execute(action);
    let given = assignment(&mut worker).await;
    assert_eq!(given.digest, action);
    let borrower = setting.access.authenticate(Some(given.credential.expose())).unwrap();
    let root = InstanceName::new("").unwrap();
    assert!(setting.access.authorize::<CasRead>(borrower, &root).is_ok());
    worker.reports().answered(given.id, done(0));
    let (stages, ended) = end(watch).await;
    assert_eq!(stages, [Stage::CacheCheck, Stage::Queued, Stage::Executing, Stage::Completed]);
    assert_eq!((&ended.verdict, ended.is_cached), (&Verdict::Completed, false));
    assert!(setting.access.authenticate(Some(given.credential.expose())).is_err(), "the credential outlives its use");

    let (stages, ended) = end(setting.execute(action)).await;
    assert_eq!(stages, [Stage::CacheCheck, Stage::Completed]);
    assert!(ended.is_cached);
    let stdout = ended.result.as_ref().unwrap().stdout_digest.as_ref().unwrap().to_digest(FUNCTION).unwrap();
    let mut read =
        setting.store.read(owner(&setting.grant("")), stdout, ByteRange::ALL, Accept::Identity).await.unwrap();
    assert_eq!(read.next().await.unwrap().unwrap(), "out");
}

#[tokio::test]
async fn what_failed_or_must_not_be_kept_runs_again() {
    let setting = Setting::new();
    let mut worker = setting.worker();
    let failing = setting.action("failing", false).await;
    let private = setting.action("private", true).await;
    for (action, exit_code) in [(failing, 1), (failing, 1), (private, 0), (private, 0)] {
        let watch = setting.execute(action);
        let given = assignment(&mut worker).await;
        worker.reports().answered(given.id, done(exit_code));
        let (_, ended) = end(watch).await;
        assert_eq!(ended.result.as_ref().unwrap().exit_code, exit_code);
        assert!(!ended.is_cached);
    }
}

#[tokio::test]
async fn the_same_action_at_the_same_time_runs_once() {
    let setting = Setting::new();
    let mut worker = setting.worker();
    let action = setting.action("a", false).await;
    let first = setting.execute(action);
    let given = assignment(&mut worker).await;
    let mut second = setting.execute(action);
    let mut seen = Vec::new();
    while seen.last() != Some(&Stage::Executing) {
        seen.extend(timeout(LONG, second.next()).await.unwrap().unwrap().stages);
    }
    assert_eq!(seen, [Stage::CacheCheck, Stage::Queued, Stage::Executing]);
    drop(first);
    worker.reports().answered(given.id, done(0));
    assert_eq!(end(second).await.1.verdict, Verdict::Completed);
}

#[tokio::test]
async fn a_lost_worker_gives_back_what_it_had() {
    let setting = Setting::new();
    let mut first = setting.worker();
    let action = setting.action("a", false).await;
    let watch = setting.execute(action);
    let lost = assignment(&mut first).await;
    let late = first.reports();
    let mut second = setting.worker();
    drop(first);
    let given = assignment(&mut second).await;
    assert_ne!(lost.id, given.id);
    late.answered(lost.id, done(7));
    second.reports().answered(given.id, done(0));
    let (stages, ended) = end(watch).await;
    assert_eq!(ended.result.as_ref().unwrap().exit_code, 0);
    let expected =
        [Stage::CacheCheck, Stage::Queued, Stage::Executing, Stage::Queued, Stage::Executing, Stage::Completed];
    assert_eq!(stages, expected);
}

#[tokio::test]
async fn a_result_that_is_not_all_here_is_not_announced() {
    let setting = Setting::new();
    let mut worker = setting.worker();
    let action = setting.action("a", false).await;
    let watch = setting.execute(action);
    let absent = Digest::of(FUNCTION, b"never uploaded");
    let file = OutputFile { path: "out".to_owned(), digest: Some(absent.into()), ..OutputFile::default() };
    let incomplete = ActionResult { output_files: vec![file], ..ActionResult::default() };
    for _ in 0..3 {
        let given = assignment(&mut worker).await;
        worker.reports().answered(given.id, Answer::Completed(incomplete.clone()));
    }
    assert!(matches!(end(watch).await.1.verdict, Verdict::Unavailable(_)));
}

#[tokio::test]
async fn what_is_missing_is_told_without_a_worker() {
    let setting = Setting::new();
    let absent = Digest::of(FUNCTION, b"absent");
    let (stages, ended) = end(setting.execute(absent)).await;
    assert_eq!(stages, [Stage::CacheCheck, Stage::Completed]);
    assert_eq!(ended.verdict, Verdict::Missing(vec![absent]));
}

#[tokio::test]
async fn operations_are_known_to_their_instance_only() {
    let setting = Setting::new();
    let mut worker = setting.worker();
    let action = setting.action("a", false).await;
    let watch = setting.execute(action);
    let given = assignment(&mut worker).await;
    let name = watch.name().clone();
    assert!(setting.operations.look(&setting.grant("acme"), &name).is_none());
    assert!(setting.operations.wait(&setting.grant("acme"), &name).is_none());
    assert!(!setting.operations.cancel(&setting.grant("acme"), &name));
    assert!(setting.operations.list(&setting.grant("acme"), None, 10).is_empty());

    assert_eq!(setting.operations.list(&setting.grant(""), None, 10), std::slice::from_ref(&name));
    assert!(setting.operations.list(&setting.grant(""), Some(&name), 10).is_empty());
    assert!(setting.operations.explain(&setting.grant(""), &name).is_some());
    assert!(setting.operations.cancel(&setting.grant(""), &name));
    assert_eq!(end(watch).await.1.verdict, Verdict::Cancelled);
    assert!(matches!(timeout(LONG, worker.next_order()).await.unwrap(), Some(Order::Withdraw(id)) if id == given.id));
    // Whoever comes back still learns how it ended.
    let again = setting.operations.wait(&setting.grant(""), &name).unwrap();
    assert_eq!(end(again).await.1.verdict, Verdict::Cancelled);
}

#[tokio::test(start_paused = true)]
async fn a_tenant_leaves_room_for_the_operations_of_others() {
    let setting = Setting::with(OperationsConfig {
        max_operations: 5,
        max_operations_of_tenant: 3,
        ..OperationsConfig::default()
    });
    let begin = |instance: &str| {
        let request = Request {
            action: Digest::of(FUNCTION, b"absent"),
            skip_cache_lookup: false,
            priority: 0,
            invocation: "test".into(),
            inlining: Inlining::NONE,
        };
        setting.operations.execute(setting.grant(instance), request)
    };
    let mut watches: Vec<Watch> = (0..3).map(|_| begin("").unwrap()).collect();
    assert_eq!(begin("").err(), Some(TooManyOperations::OfTenant(3)));
    watches.extend((0..2).map(|_| begin("acme").unwrap()));
    assert_eq!(begin("acme").err(), Some(TooManyOperations::OfAll(5)));
    for watch in watches {
        end(watch).await;
    }
    // Once they are forgotten, there is room again.
    sleep(OperationsConfig::default().retention * 2).await;
    assert!((0..3).all(|_| begin("").is_ok()) && begin("acme").is_ok());
}

#[tokio::test]
async fn operators_see_what_runs_whosever_it_is() {
    let setting = Setting::new();
    let acme = InstanceName::new("acme").unwrap();
    let operator = setting.access.authorize::<Operate>(Principal::Anonymous, &acme).unwrap();
    let mut worker = setting.worker();
    let action = setting.action("a", false).await;
    let watch = setting.execute(action);
    assignment(&mut worker).await;

    let overview = setting.operations.overview(&operator);
    let run = overview.snapshot.workers[0].running[0].execution.unwrap();
    let running = &overview.running[&run];
    assert_eq!((running.action, running.tenant.to_string()), (action, "default".to_owned()));
    assert_eq!(running.operation.as_ref(), Some(watch.name()));
    let found = setting.operations.inspect(&operator, watch.name()).unwrap();
    assert!(found.action == action && found.explanation.is_some() && found.progress.ended.is_none());

    let name = watch.name().clone();
    assert!(setting.operations.cancel(&setting.grant(""), &name));
    let found = setting.operations.inspect(&operator, &name).unwrap();
    assert!(found.explanation.is_none() && found.progress.ended.unwrap().verdict == Verdict::Cancelled);
    assert!(setting.operations.inspect(&operator, &OperationName::new(&acme)).is_none());
}

#[tokio::test]
async fn a_worker_puts_no_words_into_the_mouth_of_another() {
    let setting = Setting::with(OperationsConfig {
        scheduler: SchedulerConfig { max_attempts: 1, ..SchedulerConfig::default() },
        ..OperationsConfig::default()
    });
    let mut worker = setting.worker();
    let action = setting.action("a", false).await;
    let watch = setting.execute(action);
    let given = assignment(&mut worker).await;
    let liar = setting.worker();
    liar.reports().answered(given.id, Answer::WorkerFailed("a lie".to_owned()));
    drop(worker);
    let (_, ended) = end(watch).await;
    assert_eq!(ended.verdict, Verdict::GivenUp { attempts: 1, last: String::new() });
}

#[tokio::test(start_paused = true)]
async fn what_nobody_waits_for_is_cancelled() {
    let setting = Setting::new();
    let mut worker = setting.worker();
    let action = setting.action("a", false).await;
    let watch = setting.execute(action);
    let given = assignment(&mut worker).await;
    drop(watch);
    assert!(matches!(worker.next_order().await, Some(Order::Withdraw(id)) if id == given.id));
}

/// Its tenant may have no further action on a worker: it waits in line, and who joins the one that runs does not.
#[tokio::test(start_paused = true)]
async fn a_tenant_has_no_more_on_workers_than_it_may() {
    let setting = Setting::new();
    let grant = setting.grant("");
    let tenant = grant.tenant();
    let cap = Cap { tenant: tenant.name().as_str().into(), executions: NonZeroU32::MIN };
    setting.operations.cap_executions(tenant.id(), Some(cap));
    let mut worker = setting.worker();
    let action = setting.action("a", false).await;
    let running = setting.execute(action);
    let given = assignment(&mut worker).await;
    let joins = setting.execute(action);
    let left = setting.execute(setting.action("b", false).await);
    let name = left.name().clone();
    // The time is no clock's: it passes when all have come as far as they can.
    sleep(Duration::from_secs(1)).await;
    let said = setting.operations.explain(&grant, &name).expect("it waits").to_string();
    assert!(said.ends_with(&format!("the tenant {} runs 1 of its 1 executions", tenant.name())), "{said}");
    assert_eq!(setting.operations.running_of(tenant.id()), 1);
    drop(left);
    sleep(Duration::from_secs(25)).await;
    let is_over = setting.operations.look(&grant, &name).is_none_or(|(_, now)| now.ended.is_some());
    assert!(is_over, "nobody waits for it");
    let last = setting.execute(setting.action("c", false).await);
    worker.reports().answered(given.id, done(0));
    assert_eq!(end(running).await.1.verdict, Verdict::Completed);
    assert_eq!(end(joins).await.1.verdict, Verdict::Completed);
    worker.reports().answered(assignment(&mut worker).await.id, done(0));
    assert_eq!(end(last).await.1.verdict, Verdict::Completed, "its turn");
    assert_eq!(setting.operations.running_of(tenant.id()), 0);
}

#[tokio::test(start_paused = true)]
async fn what_is_handed_back_is_given_to_a_worker_again_and_loses_no_attempt() {
    let setting = Setting::with(OperationsConfig {
        scheduler: SchedulerConfig { max_attempts: 1, ..SchedulerConfig::default() },
        ..OperationsConfig::default()
    });
    let mut worker = setting.worker();
    let action = setting.action("a", false).await;
    let watch = setting.execute(action);
    for _ in 0..3 {
        let given = assignment(&mut worker).await;
        worker.reports().answered(given.id, Answer::HandedBack("this worker is draining".to_owned()));
    }
    let given = assignment(&mut worker).await;
    worker.reports().answered(given.id, Answer::Completed(ActionResult::default()));
    assert_eq!(end(watch).await.1.verdict, Verdict::Completed);
}
