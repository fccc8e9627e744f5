//! What a tenant sees of the store, when an action result may be shown, and who runs which action where.
//!
//! - [`Content`]: blobs, as the tenant of an [`Authorized`](gf_tenancy::Authorized) sees them;
//! - [`TreeWalk`]: the directories below a root, in pages;
//! - [`ActionCache`]: action results, shown only while everything that they name is there;
//! - [`NamedValues`]: bytes under names of a client's own choice, which are no action results;
//! - [`closures`]: the Nix store paths that actions run with;
//! - [`Operations`]: what clients wait for while their actions are run;
//! - [`scheduler`]: who runs what where and when, a pure state machine.
//!
//! Deliberately absent: gRPC, HTTP, how bytes are kept, and running anything. What always holds: a function that touches a tenant's
//! data asks for the permission in its signature; every walk over data from outside has a bound.

mod action_cache;
mod actions;
pub mod closures;
mod content;
mod encoded;
mod named_values;
pub mod operations;
pub mod scheduler;
mod trees;

pub use action_cache::{
    ActionCache, ActionCacheError, ActionId, Inlining, Inspection, MIGRATIONS, Provenance, Removal, RemovalError,
    Standing, Tombstone, TombstoneError,
};
pub use actions::{NODE_PROPERTIES, Timeouts};
pub use content::Content;
pub use named_values::{NamedValue, NamedValues, ValueName, ValueNameError};
pub use operations::{Operations, OperationsConfig};
pub use trees::{Page, TreeError, TreeWalk};
