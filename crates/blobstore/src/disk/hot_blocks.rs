//! Blocks of large files that were read lately, verified and uncompressed.
//!
//! What many builds read again and again (compilers, base images) is served from here without being copied out of the
//! page cache, checked and decoded each time. Deliberately absent: absence. A block is asked for only after its file
//! was opened, and a file number is never used twice, so nothing here can outlive its blob to a reader.

use std::collections::{HashMap, VecDeque};
use std::sync::Mutex;

use bytes::Bytes;

use super::segments::lock;

/// A file number and the number of a block in it.
pub(crate) type BlockName = (u64, usize);

pub(crate) struct HotBlocks {
    capacity_bytes: usize,
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    blocks: HashMap<BlockName, Block>,
    /// In the order in which their turn to go comes.
    turns: VecDeque<BlockName>,
    bytes: usize,
}

struct Block {
    bytes: Bytes,
    /// Read since its last turn, and so spared at the next.
    read_again: bool,
}

impl HotBlocks {
    pub(crate) fn new(capacity_bytes: usize) -> Self {
        Self { capacity_bytes, inner: Mutex::default() }
    }

    pub(crate) fn get(&self, name: BlockName) -> Option<Bytes> {
        let mut inner = lock(&self.inner);
        let block = inner.blocks.get_mut(&name)?;
        block.read_again = true;
        Some(block.bytes.clone())
    }

    pub(crate) fn put(&self, name: BlockName, bytes: Bytes) {
        let mut inner = lock(&self.inner);
        if bytes.len() > self.capacity_bytes || inner.blocks.contains_key(&name) {
            return;
        }
        inner.bytes += bytes.len();
        inner.blocks.insert(name, Block { bytes, read_again: false });
        inner.turns.push_back(name);
        while inner.bytes > self.capacity_bytes {
            let Some(name) = inner.turns.pop_front() else { return };
            match inner.blocks.get_mut(&name) {
                Some(block) if block.read_again => {
                    block.read_again = false;
                    inner.turns.push_back(name);
                }
                _ => {
                    let gone = inner.blocks.remove(&name).map_or(0, |block| block.bytes.len());
                    inner.bytes -= gone;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_read_again_stays_and_the_rest_goes() {
        let hot = HotBlocks::new(300);
        let block = |byte: u8| Bytes::from(vec![byte; 100]);
        for number in 0..3 {
            hot.put((1, number), block(1));
        }
        assert_eq!(hot.get((1, 0)), Some(block(1)));
        hot.put((2, 0), block(2));
        assert_eq!(hot.get((1, 0)), Some(block(1)));
        assert_eq!(hot.get((1, 1)), None);
        assert_eq!(hot.get((2, 0)), Some(block(2)));
        assert_eq!(lock(&hot.inner).bytes, 300);
        hot.put((3, 0), Bytes::from(vec![0; 301]));
        assert_eq!(hot.get((3, 0)), None);
    }
}
