//! Nix binary caches over the content-addressed store; `adr/0007-nix-cache.md` says who owns what.
//!
//! [`NixCaches`] is the service: caches by name, what clients upload and publish, and what they read. [`archives`] takes
//! archives apart and puts them together again.
//!
//! Deliberately absent: HTTP, and any notion of a credential. Who may do what arrives as `Authorized`.

mod announced;
pub mod archives;
mod cache;
mod cache_name;
mod caches;
mod condemned;
mod error;
mod flights;
mod graph;
mod promises;
mod retention;
mod rows;
mod schema;
mod settings;
mod together;
mod uses;

pub use cache::Cache;
pub use cache_name::{CacheName, CacheNameError};
pub use caches::*;
pub use error::{CacheError, PublishError};
pub use schema::MIGRATIONS;
pub use settings::{Retention, RetentionChange, Settings, SettingsChange, UpstreamSettings};
