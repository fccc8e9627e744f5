//! Names of content: [`Digest`], the [`DigestFunction`] that made it, and the [`InstanceName`] it is asked under.
//!
//! Pure: no I/O, no clock. A value of these types is valid by construction; text from outside becomes one of them
//! once, through the fallible constructors. What is deliberately absent: the wire format of a digest (that is
//! `gf-reapi`) and any notion of whether a blob exists (that is `gf-blobstore`).

mod digest;
mod function;
mod hasher;
mod instance_name;

pub use digest::{Digest, DigestError, HashHex};
pub use function::DigestFunction;
pub use hasher::Hasher;
pub use instance_name::{InstanceName, InstanceNameError};
