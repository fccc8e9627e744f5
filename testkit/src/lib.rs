//! Builders, fakes and fault injectors that several crates' tests share. Never part of a shipped program.

mod memory_blob_store;
mod zstd_decoder;

pub use memory_blob_store::MemoryBlobStore;
