//! The checkpoint: how far the index on disk is known to agree with the records, and what a restart must know.
//!
//! A small text file of `key value` lines and a check, replaced as a whole.

use std::fmt::Write as _;
use std::io;
use std::path::Path;

use super::file_layer::FileLayer;
use super::record::payload_check;

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
        let file = match layer.open(&directory.join(FILE)) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let mut bytes = vec![0; usize::try_from(file.size()?).unwrap_or(0).min(64 << 10)];
        let filled = file.read_at(&mut bytes, 0)?;
        bytes.truncate(filled);
        Ok(String::from_utf8(bytes).ok().and_then(|text| Self::parse(&text)))
    }

    /// Replaces the checkpoint, durably.
    pub(crate) fn write(&self, layer: &dyn FileLayer, directory: &Path) -> io::Result<()> {
        let temporary = directory.join("checkpoint.new");
        layer.remove(&temporary)?;
        let file = layer.create(&temporary)?;
        file.write_at(self.print().as_bytes(), 0)?;
        file.sync()?;
        layer.rename(&temporary, &directory.join(FILE))?;
        layer.sync_directory(directory)
    }

    fn print(&self) -> String {
        let mut text = String::new();
        // Writing to a string cannot fail.
        let _ = write!(
            text,
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
        );
        let check = payload_check(text.as_bytes());
        let _ = writeln!(text, "check {check:016x}");
        text
    }

    fn parse(text: &str) -> Option<Self> {
        let (body, check) = text.split_at(text.rfind("check ")?);
        if check.trim_end() != format!("check {:016x}", payload_check(body.as_bytes())) {
            return None;
        }
        let value = |key: &str| body.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' '));
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
    fn reads_back_and_notices_damage() {
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
        let text = checkpoint.print();
        assert_eq!(Checkpoint::parse(&text), Some(checkpoint));
        assert_eq!(Checkpoint::parse(&text.replace("epoch 3", "epoch 4")), None);
        assert_eq!(Checkpoint::parse(&text[..text.len() - 4]), None);
    }
}
