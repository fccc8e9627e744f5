//! What a machine does not let a test do.

use std::fmt::Display;

/// Says that a test, or a part of one, is skipped since this machine does not let it run. Where everything must run, which
/// `GF_REQUIRE_ALL=1` says, that is a failure.
///
/// # Panics
/// Where everything must run.
#[expect(clippy::print_stderr, clippy::panic, reason = "a helper of tests, which fail by panicking")]
pub fn skip(why: impl Display) {
    if std::env::var_os("GF_REQUIRE_ALL").is_some_and(|value| value == "1") {
        panic!("skipped, and GF_REQUIRE_ALL=1 says that nothing may be: {why}");
    }
    eprintln!("skipped: {why}");
}
