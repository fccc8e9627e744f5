//! Builders, fakes and fault injectors that several crates' tests share. Never part of a shipped program.

pub mod blob_store_suite;
pub mod disk_store;
mod intercepted_files;
mod lossy_files;
mod manual_time;
mod memory_blob_store;
mod oidc_issuer;
mod postgres;
mod skipping;
mod zstd_decoder;

pub use intercepted_files::{FileOperation, InterceptedFiles};
pub use lossy_files::LossyFiles;
pub use manual_time::ManualTime;
pub use memory_blob_store::MemoryBlobStore;
pub use oidc_issuer::{IssuerFault, OidcIssuer, RSA_PUBLIC_PEM};
pub use postgres::PostgresServer;
pub use skipping::skip;
