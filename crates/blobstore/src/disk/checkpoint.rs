//! The checkpoint: how far the index on disk is known to agree with the records, and what a restart must know.
//!
//! It is a [`note`].

use std::io;
use std::path::Path;

use super::file_layer::FileLayer;
use super::note;

const FILE: &str = "checkpoint";

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Checkpoint {
    /// How often the store was opened.
    pub epoch: u32,
    /// Whether the store was closed in order, with everything durable.
    pub is_clean: bool,
    /// Whether the index lost nothing, or was built again since.
    pub is_index_whole: bool,
    /// The boot in which this was written.
    pub boot_id: String,
    /// All records before this segment, and in it before `offset`, are durable and known to the durable index.
    pub segment: u32,
    pub offset: u64,
    /// All large files with a number below this one are durable and known to the durable index.
    pub next_large: u64,
    /// Bytes in large files.
    pub large_bytes: u64,
    /// The store's clock.
    pub time: u32,
}

impl Checkpoint {
    /// Reads the checkpoint; `None` when there is none, or a damaged one.
    pub(crate) fn read(layer: &dyn FileLayer, directory: &Path) -> io::Result<Option<Self>> {
        Ok(note::read(layer, directory, FILE)?.and_then(|lines| Self::parse(&lines)))
    }

    /// Replaces the checkpoint, durably.
    pub(crate) fn write(&self, layer: &dyn FileLayer, directory: &Path) -> io::Result<()> {
        note::write(layer, directory, FILE, &self.print())
    }

    fn print(&self) -> String {
        format!(
            "epoch {}\nclean {}\nindex_whole {}\nboot {}\nsegment {}\noffset {}\nnext_large {}\nlarge_bytes {}\ntime {}\n",
            self.epoch,
            u8::from(self.is_clean),
            u8::from(self.is_index_whole),
            self.boot_id,
            self.segment,
            self.offset,
            self.next_large,
            self.large_bytes,
            self.time
        )
    }

    fn parse(lines: &str) -> Option<Self> {
        let value = |key| note::value(lines, key);
        Some(Self {
            epoch: value("epoch")?.parse().ok()?,
            is_clean: value("clean")? == "1",
            is_index_whole: value("index_whole")? == "1",
            boot_id: value("boot")?.to_owned(),
            segment: value("segment")?.parse().ok()?,
            offset: value("offset")?.parse().ok()?,
            next_large: value("next_large")?.parse().ok()?,
            large_bytes: value("large_bytes")?.parse().ok()?,
            time: value("time")?.parse().ok()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_back() {
        let checkpoint = Checkpoint {
            epoch: 3,
            is_clean: true,
            is_index_whole: false,
            boot_id: "abc".to_owned(),
            segment: 9,
            offset: 1 << 33,
            next_large: 3 << 32,
            large_bytes: 77,
            time: 5,
        };
        assert_eq!(Checkpoint::parse(&checkpoint.print()), Some(checkpoint));
    }
}
