//! Workers that go while they are busy: what they had is run elsewhere, and nothing of it is left with them.

use std::io::Write;
use std::net::{TcpListener, TcpStream};
use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

use gf_tests::GfWorker;

use crate::client::{Job, Watch};
use crate::farm::Farm;

const PATIENCE: Duration = Duration::from_secs(60);
/// Within this, two signals are one wish.
const SAME_WISH: Duration = Duration::from_millis(300);

/// Where actions report that they have begun, each attempt anew, and wait until they may end.
struct Gate(TcpListener);

impl Gate {
    fn new() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        Self(listener)
    }

    /// What an action does that comes here. It needs the network.
    fn script(&self) -> String {
        let port = self.0.local_addr().unwrap().port();
        format!("exec bash -c 'exec 3<>/dev/tcp/127.0.0.1/{port}; read word <&3; echo $word'")
    }

    /// The next attempt.
    fn wait_for_one(&self) -> TcpStream {
        let deadline = Instant::now() + PATIENCE;
        loop {
            match self.0.accept() {
                Ok((stream, _)) => return stream,
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                    assert!(Instant::now() < deadline, "no action has begun");
                    sleep(Duration::from_millis(10));
                }
                Err(error) => panic!("{error}"),
            }
        }
    }

    fn is_quiet(&self) -> bool {
        self.0.accept().is_err()
    }
}

fn let_go(mut attempt: &TcpStream) {
    attempt.write_all(b"done\n").unwrap();
}

/// An action that takes all of a worker.
async fn begin(farm: &Farm, gate: &Gate) -> Watch {
    farm.client().await.begin(Job { script: &gate.script(), platform: &[("network", "on")], ..Job::default() }).await
}

fn worker(farm: &Farm, name: &str) -> GfWorker {
    farm.worker(name, &["--cores", "1", "--network"])
}

fn ask_to_stop(farm: &Farm, worker: &GfWorker) {
    assert!(Command::new("kill").args(["-TERM", &worker.id().to_string()]).status().unwrap().success());
    farm.wait_until("it drains", || farm.ask(&["workers"])["workers"][0]["draining"] == true);
}

/// A worker whose action has begun, and who waits for that.
async fn busy(farm: &Farm, gate: &Gate) -> (GfWorker, Watch, TcpStream) {
    let one = worker(farm, "one");
    let watch = begin(farm, gate).await;
    let attempt = gate.wait_for_one();
    assert_eq!(farm.why(&watch.name)["attempts"], 1);
    (one, watch, attempt)
}

/// The action that a first worker had runs on a second one, and ends well.
async fn goes_on_elsewhere(farm: Farm, gate: Gate, watch: Watch) {
    farm.wait_until("nothing is left of the first attempt", || farm.processes().is_empty());
    assert!(gate.is_quiet(), "there is no worker for a second one yet");
    let two = worker(&farm, "two");
    let attempt = gate.wait_for_one();
    let explanation = farm.why(&watch.name);
    assert_eq!((&explanation["attempts"], &explanation["worker"]), (&2.into(), &"two".into()), "{explanation}");
    let_go(&attempt);
    let ended = watch.end().await;
    assert_eq!((ended.ok().as_str(), ended.worker()), ("done\n", "two"));
    assert!(gate.is_quiet(), "it ran twice, and no more");
    assert!(two.stop().unwrap().success());
    farm.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_killed_worker_had_runs_elsewhere() {
    let (farm, gate) = (Farm::without_worker(), Gate::new());
    let (one, watch, _attempt) = busy(&farm, &gate).await;
    one.kill().unwrap();
    goes_on_elsewhere(farm, gate, watch).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_worker_in_a_hurry_had_is_handed_back() {
    let (farm, gate) = (Farm::without_worker(), Gate::new());
    let (one, watch, _attempt) = busy(&farm, &gate).await;
    ask_to_stop(&farm, &one);
    sleep(SAME_WISH);
    assert!(!one.stop().unwrap().success(), "a second signal ends it at once");
    goes_on_elsewhere(farm, gate, watch).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_is_asked_to_stop_brings_to_its_end_what_it_has_and_takes_no_more() {
    let (farm, gate) = (Farm::without_worker(), Gate::new());
    let (one, first, attempt) = busy(&farm, &gate).await;
    ask_to_stop(&farm, &one);
    let second = begin(&farm, &gate).await;
    let_go(&attempt);
    let ended = first.end().await;
    assert_eq!((ended.ok().as_str(), ended.worker()), ("done\n", "one"));
    assert!(one.wait().unwrap().success(), "it drained");

    assert!(gate.is_quiet() && farm.why(&second.name)["attempts"] == 0);
    let two = worker(&farm, "two");
    let_go(&gate.wait_for_one());
    let ended = second.end().await;
    assert_eq!((ended.ok().as_str(), ended.worker()), ("done\n", "two"));
    assert!(two.stop().unwrap().success());
    farm.stop();
}
