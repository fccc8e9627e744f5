//! Commands that stay and are talked to.

use gf_worker::sandbox::Limit;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};

use super::support::Bench;

#[tokio::test]
async fn a_command_answers_until_its_input_ends() {
    let bench = Bench::new().await;
    let script = "while read line; do echo \"$line again\"; done; echo bye; exit 4";
    let mut process = bench.launcher.spawn(bench.script("echo", script)).await.unwrap();
    for word in ["one", "two"] {
        process.stdin.write_all(format!("{word}\n").as_bytes()).await.unwrap();
        let mut line = String::new();
        BufReader::with_capacity(1, &mut process.stdout).read_line(&mut line).await.unwrap();
        assert_eq!(line, format!("{word} again\n"));
    }
    let ran = process.wait().await.unwrap();
    assert_eq!((ran.exit_code, ran.ended_by), (4, None));
}

#[tokio::test]
async fn a_command_that_is_killed_ends_its_output() {
    let bench = Bench::new().await;
    let mut process = bench.launcher.spawn(bench.script("stay", "trap '' TERM; sleep 1000 & wait")).await.unwrap();
    process.kill();
    let mut line = String::new();
    assert_eq!(BufReader::new(&mut process.stdout).read_line(&mut line).await.unwrap(), 0);
    assert_eq!(process.wait().await.unwrap().ended_by, Some(Limit::Cancelled));
}

#[tokio::test]
async fn a_command_that_cannot_start_is_told() {
    let bench = Bench::new().await;
    let process = bench.launcher.spawn(bench.command("absent", &["/no/such/program"])).await.unwrap();
    assert_eq!(process.wait().await.unwrap().exit_code, 127);
}
