//! What this machine can do by itself, and what is done to it first so that it can.
//!
//! A virtual machine gets its memory from its host when it is first touched, and that may be ten times slower than using
//! it: whoever comes first then pays for all who come after. So what is free is touched once before anything is measured.

use std::fmt;
use std::fs::File;
use std::io::{self, Write as _};
use std::path::Path;
use std::time::{Duration, Instant};

use crate::data::sha256_bytes_per_second;
use crate::load::as_float;

/// Left to others while the rest is touched; no row writes more than this; and how much is touched at a time.
const LEFT_BYTES: usize = 1 << 30;
const MOST_BYTES: usize = 16 << 30;
const STEP_BYTES: usize = 256 << 20;
/// Touching ends then, however much is left.
const TOUCHING: Duration = Duration::from_secs(120);
/// What a plain program writes into a file that was not there.
const WRITTEN_BYTES: usize = 512 << 20;

/// What a core and the disk do without the product.
pub(crate) struct Machine {
    touched_bytes: usize,
    touching: Duration,
    sha256: f64,
    written: Duration,
    synced: Duration,
}

impl Machine {
    /// Touches what is free of its memory, and measures. Data go into `folder`.
    ///
    /// # Errors
    /// The system's, when the folder cannot be written.
    pub(crate) fn prepare(folder: &Path) -> io::Result<Self> {
        let began = Instant::now();
        let touched_bytes = touch_free_memory(began)?;
        let touching = began.elapsed();
        let (written, synced) = write_plainly(&folder.join("plain"))?;
        Ok(Self { touched_bytes, touching, sha256: sha256_bytes_per_second(), written, synced })
    }
}

impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let speed = |bytes: usize, time: Duration| as_float(bytes as u64) / time.as_secs_f64() / 1e6;
        let (touched, written) = (self.touched_bytes, WRITTEN_BYTES);
        write!(f, "this machine: a core hashes {:.0} MB/s (SHA-256); ", self.sha256 / 1e6)?;
        write!(f, "a new file takes {:.0} MB/s, ", speed(written, self.written))?;
        write!(f, "{:.0} MB/s until it is on disk; ", speed(written, self.written + self.synced))?;
        write!(f, "{} MiB of memory touched first, at {:.0} MB/s", touched >> 20, speed(touched, self.touching))
    }
}

/// How much was.
fn touch_free_memory(began: Instant) -> io::Result<usize> {
    let free = free_memory()?.saturating_sub(LEFT_BYTES).min(MOST_BYTES);
    let mut steps = Vec::new();
    while steps.len() * STEP_BYTES + STEP_BYTES <= free && began.elapsed() < TOUCHING {
        steps.push(vec![1_u8; STEP_BYTES]);
    }
    Ok(std::hint::black_box(&steps).len() * STEP_BYTES)
}

/// Bytes that nobody uses, not even as a cache.
fn free_memory() -> io::Result<usize> {
    let text = std::fs::read_to_string("/proc/meminfo")?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemFree:"));
    let kib = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse::<usize>().ok());
    kib.map(|kib| kib << 10).ok_or_else(|| io::Error::other("/proc/meminfo does not say what is free"))
}

/// How long it took, and how long the disk then.
fn write_plainly(path: &Path) -> io::Result<(Duration, Duration)> {
    let bytes = vec![1_u8; 1 << 20];
    let mut file = File::create_new(path)?;
    let began = Instant::now();
    for _ in 0..WRITTEN_BYTES / bytes.len() {
        file.write_all(&bytes)?;
    }
    let written = began.elapsed();
    file.sync_all()?;
    let synced = began.elapsed() - written;
    std::fs::remove_file(path)?;
    Ok((written, synced))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_free_is_known() {
        assert!(free_memory().unwrap() > 1 << 20);
    }
}
