//! How runs end, and what is said of it.

use super::support::Bench;

#[tokio::test]
async fn commands_end_with_what_they_ended_with() {
    let bench = Bench::new().await;
    eprintln!("{:?}", bench.report);
    for (name, script, code) in [("true", "exit 0", 0), ("three", "exit 3", 3), ("signal", "kill -USR1 $$", 128 + 10)] {
        let said = bench.run(bench.script(name, script)).await;
        assert_eq!((said.ran.exit_code, said.ran.ended_by), (code, None), "{name}: {said:?}");
        assert!(said.ran.started <= said.ran.ended);
    }
}
