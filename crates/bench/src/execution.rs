//! The rows of remote execution. Each starts servers and workers of its own, with nothing in them.
//!
//! What always holds: an action counts only when the server says that a worker ran it, now, and that it succeeded.

mod actions;
mod bazel;
mod calls;
mod input_root;
pub(crate) mod sandboxes;
mod tree;
mod workspace;

use std::path::Path;

use crate::compare::line;
use crate::report::Line;
use crate::rows::Row;

/// What of it a row measures.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Execution {
    /// How many small actions a second.
    Trivial,
    /// How long one of them takes.
    Latency,
    /// A large input root that differs a little from one before it.
    InputRootAgain,
    /// A large input root on a new worker.
    InputRootCold,
    /// A build by a real client.
    CppWorkspace,
}

/// What the rows need.
#[derive(Clone, Copy)]
pub(crate) struct Bench<'a> {
    /// The program.
    pub(crate) gf: &'a Path,
    /// Where data go.
    pub(crate) folder: &'a Path,
    /// Rounds of each row.
    pub(crate) rounds: usize,
    /// Share of the usual amount that makes a round.
    pub(crate) amount: f64,
}

impl Execution {
    /// Measures one row.
    pub(crate) async fn measure(self, row: &Row, bench: &Bench<'_>) -> Vec<Line> {
        match self {
            Self::Trivial => calls::throughput(row, bench).await,
            Self::Latency => vec![line(row, calls::latency(bench).await)],
            Self::InputRootAgain => vec![line(row, input_root::again(bench).await)],
            Self::InputRootCold => vec![line(row, input_root::cold(bench).await)],
            Self::CppWorkspace => vec![line(row, bazel::measure(bench).await)],
        }
    }
}
