//! What runs with real clients need: the `gf` binary as a process, a place where the clients live, and a reading of
//! what they did.
//!
//! The tests are in `tests/`; the demo of `cargo xtask` drives the same parts. Nothing here installs anything: that is
//! `cargo xtask clients`. What always holds: whatever a value of this crate started is gone when the value is
//! dropped, or when its process dies.

mod bazel;
mod chroot;
mod execution_log;
mod gf_server;
mod gf_worker;
mod left;
mod metrics;
mod nix;
mod place;
mod run;
mod tool;
mod workspace;

pub use bazel::{Bazel, Built};
pub use chroot::{Chroot, RECIPE, RECIPE_STAMP, Session, cache_folder};
pub use execution_log::{ExecutionLog, Spawn};
pub use gf_server::{GfServer, free_address};
pub use gf_worker::GfWorker;
pub use left::processes_of;
pub use metrics::{Metrics, http_get};
pub use nix::Nix;
pub use place::Place;
pub use run::{Finished, run_within};
pub use tool::{SCCACHE, Tool, on_path};
pub use workspace::{Glue, copy_tree, source_folder};
