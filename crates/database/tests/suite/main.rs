//! What the database promises, on SQLite and on a PostgreSQL of this machine.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a test stops at the first surprise")]

mod backup;
mod crash;
mod migrations;
mod setting;
mod statements;
mod writers;
