//! Reading from async code: at once what is in the page cache, on a thread for waiting what is not.

use std::io;
use std::sync::Arc;

use super::file_layer::StoreFile;

/// Reads `bytes` from `offset`, or as many as there are before the end of the file.
pub(crate) async fn read_exactly(file: &Arc<dyn StoreFile>, bytes: usize, offset: u64) -> io::Result<Vec<u8>> {
    let mut buffer = vec![0; bytes];
    if let Some(count) = file.read_cached_at(&mut buffer, offset)? {
        buffer.truncate(count);
        return Ok(buffer);
    }
    let file = Arc::clone(file);
    let read = tokio::task::spawn_blocking(move || {
        let count = file.read_at(&mut buffer, offset)?;
        buffer.truncate(count);
        Ok(buffer)
    });
    read.await.map_err(io::Error::other)?
}
