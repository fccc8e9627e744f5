//! Whether nextest finds the tests of every test program.
//!
//! One with a harness of its own that misunderstands the question lists none, and then they never run and never fail.

use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use serde_json::Value;

/// Asks nextest for the tests that it would run, with a command that is `cargo nextest` so far.
pub(crate) fn check(mut nextest: Command) -> Result<()> {
    nextest.args(["list", "--workspace", "--locked", "--message-format", "json"]);
    let listed = nextest.stderr(Stdio::inherit()).output().context("cannot start nextest")?;
    if !listed.status.success() {
        bail!("nextest cannot list the tests ({})", listed.status);
    }
    let list = serde_json::from_slice(&listed.stdout).context("nextest's list is no JSON")?;
    let without = without_tests(&list)?;
    if !without.is_empty() {
        bail!("nextest finds no test in {}", without.join(", "));
    }
    Ok(())
}

/// The test programs in which there is no test. Libraries and programs may have none.
fn without_tests(list: &Value) -> Result<Vec<&str>> {
    let suites = list["rust-suites"].as_object().context("nextest's list has no suites")?;
    let programs = suites.iter().filter(|(_, suite)| suite["kind"] == "test");
    let without = programs.filter(|(_, suite)| suite["testcases"].as_object().is_none_or(serde_json::Map::is_empty));
    Ok(without.map(|(name, _)| name.as_str()).collect())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_test_program_without_tests_is_named() {
        let list = json!({"rust-suites": {
            "gf-digest": {"kind": "lib", "testcases": {}},
            "gf-blobstore::crash": {"kind": "test", "testcases": {}},
            "gf-blobstore::scrub": {"kind": "test", "testcases": {"it_ends": {"kind": "test"}}},
        }});
        assert_eq!(without_tests(&list).unwrap(), ["gf-blobstore::crash"]);
        assert!(without_tests(&json!({})).is_err());
    }
}
