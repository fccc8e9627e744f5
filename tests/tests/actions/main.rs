//! Actions through the real `gf serve` and `gf worker`, asked for by a client of our own, which sees every word of an
//! answer: what hostile actions come to, what becomes of the actions of a worker that goes, and what is told of those
//! that wait.
//!
//! Actions see the tools of this machine: shells, Python and what belongs to every Linux. A test waits where it stands, so
//! that its client needs another thread.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on ends here")]

mod client;
mod farm;
mod hostile;
mod queue;
mod refusals;
mod shares;
mod workers;
