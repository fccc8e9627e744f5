//! Runs the real binary: what it prints, what it answers, and how it ends.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test stops at the first surprise")]

mod access;
mod attic_tokens;
mod client_certificates;
mod config_check;
mod doors;
mod exchanged;
mod execution;
mod facts;
mod hostile;
mod operator;
mod quotas;
mod running;
mod serve;
mod store;
mod worker;
