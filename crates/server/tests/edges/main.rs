//! The edges through the port, over a store in memory: who may call what, what bad input does, the HTTP cache,
//! and Nix caches.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a test stops at the first surprise")]

mod access;
mod bad_input;
mod everywhere;
mod exchange;
mod execution;
mod grpc;
mod http_cache;
mod nix;
mod server;
mod webdav;
