//! What commands can and cannot do in a sandbox, tried with real ones.
//!
//! As root, everything is tried once more as a user without any rights.

#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests fail the test")]

mod deaths;
mod isolation;
mod limits;
mod outcome;
mod process;
mod store;
mod support;
mod unprivileged;
