//! Archives through the public interface, in a real store on the disk: what comes back, what is refused, what is shared.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod compressions;
mod fixture;
mod generated;
mod limits;
mod opaque;
mod refusals;
mod trees;
mod wanting;
