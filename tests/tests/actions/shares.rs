//! Tenants that may run only so many actions at one time, on a worker with room for more.

use serde_json::Value;

use crate::client::Job;
use crate::farm::Farm;

const TENANTS: &str = "
[worker]
enabled = false
[[tenant]]
name = \"default\"
instances = [\"\"]
[tenant.quota]
executions = 1
[[tenant]]
name = \"org-acme\"
instances = [\"acme\"]
[tenant.quota]
executions = 1
";

/// Goes on until somebody who waits for it goes away.
const FOR_EVER: Job<'static> =
    Job { script: "sleep 1000", inputs: &[], outputs: &[], seconds: None, platform: &[], priority: 0 };

fn scarce(farm: &Farm, operation: &str) -> Value {
    farm.why(operation)["scarce"].clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn each_tenant_runs_as_many_as_it_may_and_is_told_why_the_rest_waits() {
    let farm = Farm::with(TENANTS);
    let ours = farm.client().await;
    let mut theirs = ours.clone();
    theirs.instance = "acme";
    let worker = farm.worker("one", &["--cores", "8"]);
    let running = ours.begin(FOR_EVER).await;
    farm.wait_until("ours runs", || farm.why(&running.name)["stage"] == "running");
    let waits = ours.begin(Job { script: "echo ours", ..FOR_EVER }).await;
    farm.wait_until("the second of ours waits for its share", || scarce(&farm, &waits.name)["kind"] == "share");

    // There is room, and another tenant takes it.
    let other = theirs.begin(FOR_EVER).await;
    farm.wait_until("theirs runs beside it", || farm.why(&other.name)["stage"] == "running");
    let held_back = theirs.begin(Job { script: "echo theirs", ..FOR_EVER }).await;
    farm.wait_until("the second of theirs waits for its share", || scarce(&farm, &held_back.name)["kind"] == "share");

    let share = scarce(&farm, &waits.name);
    assert_eq!(
        (&share["tenant"], &share["runs"], &share["most"]),
        (&"default".into(), &1.into(), &1.into()),
        "{share}"
    );
    assert_eq!(scarce(&farm, &held_back.name)["tenant"], "org-acme");
    let said = farm.gf(&["why", &held_back.name]);
    assert!(said.contains("the tenant org-acme runs 1 of its 1 executions"), "{said}");
    let shares = farm.ask(&["queue"])["shares"].clone();
    let of = |share: &Value| (share["tenant"].clone(), share["queued"].clone(), share["running"].clone());
    let mut shares: Vec<_> = shares.as_array().unwrap().iter().map(of).collect();
    shares.sort_by_key(|share| share.0.to_string());
    assert_eq!(shares, [("default".into(), 1.into(), 1.into()), ("org-acme".into(), 1.into(), 1.into())]);
    let shown = farm.gf(&["queue"]);
    assert!(shown.contains("the tenant default runs 1 of its 1 executions, and 1 wait"), "{shown}");

    drop(running);
    assert_eq!(waits.end().await.ok(), "ours\n", "in the place of the one that was cancelled");
    drop(other);
    assert_eq!(held_back.end().await.ok(), "theirs\n");
    assert!(worker.stop().unwrap().success());
    farm.stop();
}
