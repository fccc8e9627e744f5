//! Builders, fakes and fault injectors that several crates' tests share. Never part of a shipped program.

pub mod blob_store_suite;
mod memory_blob_store;
mod zstd_decoder;

pub use memory_blob_store::MemoryBlobStore;
