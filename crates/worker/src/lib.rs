//! Runs actions: takes assignments over one stream, makes input roots, runs commands in a sandbox, stores outputs.
//!
//! Deliberately absent: databases, tenants, policy, the action cache. A worker runs hostile code, so it holds nothing
//! but what it was assigned; what it may read and write is decided by the server that it is attached to.
//!
//! What always holds: an action cannot change a stored blob or another action's files; it runs in a sandbox or not at
//! all; what it started is gone when its assignment ends.

mod assignment;
mod blobs;
mod config;
mod connection;
mod execute;
mod failure;
mod folders;
mod input_root;
mod local_blobs;
mod lru;
mod outputs;
mod paths;
mod persistent;
mod removal;
mod run_folders;
pub mod sandbox;
mod session;
mod store_paths;
mod tidying;
mod times;
mod worker;

pub use config::{Bounds, NetworkPolicy, PersistentPolicy, ServerConnection, Token, WorkerConfig};
pub use connection::ConnectionError;
pub use worker::{WorkerError, run};
