//! What is told of actions that really wait.

use serde_json::Value;

use crate::client::Job;
use crate::farm::Farm;

const FOR_EVER: Job<'static> =
    Job { script: "sleep 1000", inputs: &[], outputs: &[], seconds: None, platform: &[("pool", "a")] };

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
