//! The archive format of Nix, as a stream of events.
//!
//! [`NarParser`] makes [`NarEvent`]s of chunks, [`NarWriter`] chunks of events, [`NarLayout`] an index for ranges, and
//! [`NarMeter`] the size, without any contents. None of them copies the contents of large files: they are slices of the
//! chunks that came in.
//!
//! There is one canonical archive for a tree, and only that one is read: entries strictly sorted, padding zero, nothing
//! after the end. So what was parsed and is written again has the bytes that came in. The case hack of macOS is
//! deliberately absent: a name is a name.

mod error;
mod event;
mod grammar;
mod layout;
mod meter;
mod parser;
mod wire;
mod writer;

pub use error::NarError;
pub use event::{NarEvent, NarName, NarTarget};
pub use grammar::NarLimits;
pub use layout::{NarLayout, NarLayoutBuilder, NarPart};
pub use meter::NarMeter;
pub use parser::NarParser;
pub use writer::NarWriter;
