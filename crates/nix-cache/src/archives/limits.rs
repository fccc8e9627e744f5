use std::time::Duration;

use gf_nix_formats::nar::NarLimits;

/// What one archive, and all that arrive at once, may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ArchiveLimits {
    /// Bytes of an archive, uncompressed, and of the file that it comes in.
    pub size_bytes: u64,
    /// Entries of all its directories together.
    pub entries: u64,
    /// Directories within directories.
    pub depth: usize,
    /// Bytes of an archive that are not contents of files: names, targets, and what stands around them. What is held in
    /// memory of an archive grows with these alone.
    pub framing_bytes: u64,
    /// Archives that are taken in at the same time; further ones wait for their turn before a byte of them is read.
    pub concurrent_ingests: usize,
    /// What the decoders of archives that are taken in may use of memory, all together, in bytes; further archives wait.
    pub decoder_bytes: u64,
    /// What is held in memory of archives that are taken in, contents of files left out, all together, in bytes. One may
    /// have a quarter; who needs more while others have it is told to come again.
    pub names_bytes: usize,
    /// How long who waits for a turn bears with one who sends slowly,
    pub patience: Duration,
    /// which is fewer bytes in a second than these.
    pub slowest_bytes_per_s: u64,
    /// What archives that no directory can hold may take of memory while they arrive, all together, in bytes; the rest waits
    /// on the disk.
    pub spool_bytes: usize,
    /// What of them waits on the disk may take there, all together, in bytes.
    pub scratch_bytes: u64,
    /// What the layouts of archives that were read lately may take of memory, in bytes.
    pub layout_cache_bytes: usize,
}

impl Default for ArchiveLimits {
    /// 64 GiB, a million entries, 1024 deep, 256 MiB of names: beyond every store path seen so far. 64 at once, with 2 GiB for
    /// decoders, 1 GiB for names, 256 MiB of archives that become one blob in memory and 32 GiB on the disk; while others wait, at least
    /// 32 KiB/s. 64 MiB of layouts.
    fn default() -> Self {
        Self {
            size_bytes: 64 << 30,
            entries: 1_000_000,
            depth: 1024,
            framing_bytes: 256 << 20,
            concurrent_ingests: 64,
            decoder_bytes: 2 << 30,
            names_bytes: 1 << 30,
            patience: Duration::from_secs(20),
            slowest_bytes_per_s: 32 << 10,
            spool_bytes: 256 << 20,
            scratch_bytes: 32 << 30,
            layout_cache_bytes: 64 << 20,
        }
    }
}

impl ArchiveLimits {
    /// What the reader of an archive checks.
    pub(super) const fn nar(&self) -> NarLimits {
        NarLimits { size_bytes: self.size_bytes, entries: self.entries, depth: self.depth }
    }
}
