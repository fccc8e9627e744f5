//! The rows of the Nix cache. Each starts a server of its own, with nothing in it.
//!
//! What is compared: nginx serving the same bytes as files, Nix copying to a plain folder, a core's SHA-256. Where the
//! machine lacks one of them, the row is skipped, which is no pass.

mod archive;
mod closure;
mod http;
mod narinfo;
mod nars;
mod nginx;
mod push;
mod versions;

use crate::compare::line;
use crate::execution::Bench;
use crate::report::Line;
use crate::rows::Row;

/// The cache of a fresh server, without the address.
const CACHE: &str = "/nix/main";

/// What of it a row measures.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Nix {
    /// How many narinfos a second.
    NarInfo,
    /// How fast an archive of many small files is put together.
    ManyFiles,
    /// How fast an archive of one large file is.
    OneFile,
    /// How fast a closure is pushed.
    Push,
    /// What versions of a closure take in the store.
    Versions,
}

impl Nix {
    /// Measures one row.
    pub(crate) async fn measure(self, row: &Row, bench: &Bench<'_>) -> Vec<Line> {
        match self {
            Self::NarInfo => narinfo::measure(row, bench).await,
            Self::ManyFiles => vec![line(row, nars::many_files(bench).await)],
            Self::OneFile => vec![line(row, nars::one_file(bench).await)],
            Self::Push => push::measure(row, bench).await,
            Self::Versions => vec![line(row, versions::measure(bench).await)],
        }
    }
}
