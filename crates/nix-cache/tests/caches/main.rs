//! The caches through their public interface: what is published, what is seen, what goes.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod collecting;
mod concurrency;
mod documents;
mod explaining;
mod fixture;
mod publishing;
mod reading;
mod upstreams;
