//! Archives, taken apart into blobs and put together again.

mod root;

pub use root::Root;
