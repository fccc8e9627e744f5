//! What becomes of actions that really wait, and what is told of them.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;

use gf_testkit::blob_store_suite::noise;
use serde_json::Value;

use crate::client::{Job, wire};
use crate::farm::Farm;

const FOR_EVER: Job<'static> =
    Job { script: "sleep 1000", inputs: &[], outputs: &[], seconds: None, platform: &[("pool", "a")], priority: 0 };

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_is_told_what_waits_and_for_what() {
    let farm = Farm::without_worker();
    let client = farm.client().await;
    let one = farm.worker("one", &["--cores", "1", "--property", "pool=a"]);
    let running = client.begin(FOR_EVER).await;
    farm.wait_until_it_runs(&running.name);
    // Another script: two that are the same would be one.
    let waiting = |script| Job { script, ..FOR_EVER };
    let second = client.begin(waiting("echo second")).await;
    farm.wait_until("the second waits", || farm.why(&second.name)["situation"] == "queued");
    let third = client.begin(waiting("echo third")).await;
    farm.wait_until("the third waits", || farm.why(&third.name)["situation"] == "queued");

    let why = farm.why(&third.name);
    assert_eq!((&why["position"], &why["ahead"]["own"], &why["attempts"]), (&2.into(), &1.into(), &0.into()), "{why}");
    assert_eq!((&why["matching"]["workers"], &why["matching"]["busy"]), (&1.into(), &1.into()), "{why}");
    assert_eq!(
        (&why["scarce"]["kind"], &why["scarce"]["most_free_milli_cores"]),
        (&"cores".into(), &0.into()),
        "{why}"
    );
    assert_eq!(farm.why(&second.name)["position"], 1);
    let shown = farm.gf(&["why", &third.name]);
    assert!(shown.contains("it is number 2 in its line") && shown.contains("next      "), "{shown}");

    let queue = &farm.ask(&["queue"])["queues"];
    let of_pool = |queue: &Value| queue["platform"][0]["value"] == "a";
    let queue = queue.as_array().unwrap().iter().find(|queue| of_pool(queue)).unwrap();
    assert_eq!((&queue["queued"], &queue["running"], &queue["matching_workers"]), (&2.into(), &1.into(), &1.into()));
    let shown = farm.gf(&["queue"]);
    assert!(shown.contains("pool=a") && shown.starts_with("WAITING"), "{shown}");

    // There is room, but not where the property is.
    let other = farm.worker("other", &["--cores", "1", "--property", "pool=b"]);
    let scarce = farm.why(&third.name)["scarce"].clone();
    assert_eq!((&scarce["kind"], &scarce["property"]["value"]), (&"property".into(), &"a".into()), "{scarce}");
    let shown = farm.gf(&["why", &third.name]);
    assert!(shown.contains("pool=a"), "{shown}");

    drop(running);
    assert_eq!(second.end().await.ok(), "second\n");
    assert_eq!(third.end().await.ok(), "third\n");
    assert!(one.stop().unwrap().success() && other.stop().unwrap().success());
    farm.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_nobody_can_run_is_told_with_what_is_nearest() {
    let farm = Farm::without_worker();
    let client = farm.client().await;
    let one = farm.worker("one", &["--property", "pool=a"]);
    let ended = client.run(Job { platform: &[("pool", "c")], ..FOR_EVER }).await;
    assert_eq!(ended.code, tonic::Code::FailedPrecondition, "{ended:?}");
    assert!(ended.words.contains("pool") && ended.words.contains('c') && ended.words.contains('a'), "{ended:?}");
    assert!(one.stop().unwrap().success());
    farm.stop();
}

/// The lower number goes first, though it came last.
#[tokio::test(flavor = "multi_thread")]
async fn what_waits_runs_in_the_order_of_its_priority() {
    let farm = Farm::without_worker();
    let client = farm.client().await;
    let one = farm.worker("one", &["--cores", "1", "--property", "pool=a"]);
    let running = client.begin(FOR_EVER).await;
    farm.wait_until_it_runs(&running.name);
    let later = client.begin(Job { script: "echo later", priority: 5, ..FOR_EVER }).await;
    farm.wait_until("the first waits", || farm.why(&later.name)["position"] == 1);
    let sooner = client.begin(Job { script: "echo sooner", priority: -5, ..FOR_EVER }).await;
    farm.wait_until("the second waits before it", || {
        farm.why(&sooner.name)["position"] == 1 && farm.why(&later.name)["position"] == 2
    });
    drop(running);
    let (sooner, later) = (sooner.end().await, later.end().await);
    assert_eq!((sooner.ok().as_str(), later.ok().as_str()), ("sooner\n", "later\n"));
    assert!(sooner.started() < later.started(), "{sooner:?} {later:?}");
    assert!(one.stop().unwrap().success());
    farm.stop();
}

/// The client is told exactly what to upload again, and is helped by doing so.
#[tokio::test(flavor = "multi_thread")]
async fn an_input_that_is_lost_while_its_action_waits_is_named() {
    let farm = Farm::without_worker();
    let client = farm.client().await;
    let one = farm.worker("one", &["--cores", "1", "--property", "pool=a"]);
    let running = client.begin(FOR_EVER).await;
    farm.wait_until_it_runs(&running.name);
    // The only blob that has a file of its own: compressed, too, it has more than 1 MiB.
    let text: String = noise(7, 1_900_000).iter().map(|byte| char::from(b'0' + byte % 64)).collect();
    let job = Job { script: "wc -c <input; cat other", inputs: &[("input", &text), ("other", "whole")], ..FOR_EVER };
    upload(&farm, text.as_bytes());
    let waiting = client.begin(job).await;
    farm.wait_until("it waits", || farm.why(&waiting.name)["situation"] == "queued");
    assert_eq!(remove_files(&farm.data().join("blobs/large")), 1);
    drop(running);

    let lost = waiting.end().await;
    assert_eq!(lost.code, tonic::Code::FailedPrecondition, "{lost:?}");
    let digest = wire(text.as_bytes());
    let subject = format!("blobs/{}/{}", digest.hash(), digest.size_bytes);
    assert_eq!(lost.violations, [("MISSING".to_owned(), subject)], "{lost:?}");
    assert_eq!(client.run(job).await.ok(), "1900000\nwhole");
    assert!(one.stop().unwrap().success());
    farm.stop();
}

/// Stores a blob as large ones are stored. What comes in a batch has a place among others.
fn upload(farm: &Farm, bytes: &[u8]) {
    let (digest, mut stream) = (wire(bytes), TcpStream::connect(farm.server.address()).unwrap());
    let head =
        format!("PUT /cas/{} HTTP/1.0\r\nHost: localhost\r\nContent-Length: {}\r\n\r\n", digest.hash(), bytes.len());
    stream.write_all(&[head.as_bytes(), bytes].concat()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.split(' ').nth(1).is_some_and(|status| status.starts_with('2')), "{answer}");
}

/// How many there were.
fn remove_files(folder: &Path) -> usize {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let removed = entries.map(|path| {
        if path.is_dir() {
            return remove_files(&path);
        }
        fs::remove_file(&path).unwrap();
        1
    });
    removed.sum()
}
