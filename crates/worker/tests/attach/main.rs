//! A whole worker, attached to a server in memory, running real commands in real sandboxes.

#![allow(clippy::unwrap_used, clippy::panic, clippy::expect_used, reason = "helpers of tests fail the test")]

mod fixture;
mod inputs;
mod leftovers;
mod outputs;
mod persistent;
mod server;
mod stages;
mod store_paths;
