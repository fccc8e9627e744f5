//! The rules of the Bazel cache: what a tenant sees of the store, how a tree of directories is walked, and when an
//! action result may be shown.
//!
//! - [`Content`]: blobs, as the tenant of an [`Authorized`](gf_tenancy::Authorized) sees them;
//! - [`TreeWalk`]: the directories below a root, in pages;
//! - [`ActionCache`]: action results, shown only while everything that they name is there.
//!
//! Deliberately absent: gRPC, HTTP, and how bytes are kept. What always holds: a function that touches a tenant's
//! data asks for the permission in its signature; every walk over data from outside has a bound.

mod action_cache;
mod content;
mod encoded;
pub mod scheduler;
mod trees;

pub use action_cache::{ActionCache, ActionCacheError, ActionId, Inlining};
pub use content::Content;
pub use trees::{Page, TreeError, TreeWalk};
