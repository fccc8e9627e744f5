//! The protocols of remote caching and execution: our definitions of the public specifications, the stubs generated
//! from them, and the only place where text and numbers of the wire become domain types.
//!
//! - [`execution`], [`semver`]: the Remote Execution API, 2.0 to 2.13;
//! - [`bytestream`], [`longrunning`], [`rpc`]: what it builds on;
//! - [`asset`]: the Remote Asset API; [`build_events`]: the Build Event Service;
//! - [`worker`]: our own protocol between a server and its workers;
//! - [`ResourceName`]: the names that ByteStream reads and writes go by;
//! - [`check_directory`]: whether a directory is in canonical form;
//! - [`WireDigest`]: a digest as it came, and [`digest_function`] to tell which function made it.
//!
//! Pure: no I/O beyond the generated stubs. What is deliberately absent: any rule about what a server holds or who
//! may ask. Byte fields are [`bytes::Bytes`] and share the buffer that they were received in; whoever keeps one for
//! long must know that it keeps the whole message.

mod digest_function;
mod directory;
mod resource_name;
mod wire_digest;

pub use digest_function::{UnsupportedDigestFunction, digest_function};
pub use directory::{DirectoryError, check_directory};
pub use resource_name::{Compressor, MAX_RESOURCE_NAME_BYTES, ResourceName, ResourceNameError};
pub use wire_digest::WireDigest;

pub use generated::build::bazel::remote::asset::v1 as asset;
pub use generated::build::bazel::remote::execution::v2 as execution;
pub use generated::build::bazel::semver;
pub use generated::gloriousflywheel::worker::v1 as worker;
pub use generated::google::bytestream;
pub use generated::google::devtools::build::v1 as build_events;
pub use generated::google::longrunning;
pub use generated::google::rpc;

/// Generated code: its style is the generator's.
#[allow(clippy::all, clippy::pedantic, clippy::restriction, missing_docs, unreachable_pub, deprecated)]
mod generated {
    include!(concat!(env!("OUT_DIR"), "/protocol.rs"));
}
