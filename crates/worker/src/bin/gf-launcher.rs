//! The launcher of sandboxes as a program of its own, for those that cannot be one themselves, such as tests.

use std::process::ExitCode;

fn main() -> ExitCode {
    gf_worker::sandbox::run_if_launcher().unwrap_or(ExitCode::from(2))
}
