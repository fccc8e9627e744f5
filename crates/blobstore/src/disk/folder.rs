//! The data folder: whose it is, what wrote it, and that only one process has it.

use std::fs::{File, OpenOptions};
use std::io;
use std::path::Path;

use ring::rand::SecureRandom;

use super::file_layer::FileLayer;
use super::record::RecordKey;
use super::store::OpenError;

/// The format that this program writes.
const FORMAT: u32 = 3;
const FORMAT_FILE: &str = "FORMAT";
const HEADLINE: &str = "gloriousflywheel store";

/// A data folder that is ours while this lives.
pub(crate) struct Folder {
    _lock: File,
    pub key: RecordKey,
    pub is_fresh: bool,
}

/// Claims the folder, making a store of it when it is empty or missing.
pub(crate) fn claim(layer: &dyn FileLayer, path: &Path) -> Result<Folder, OpenError> {
    let name = || path.display().to_string();
    let io_error = |doing| move |source| OpenError::Io { path: path.display().to_string(), doing, source };
    let format = read_format(layer, path).map_err(io_error("reading its FORMAT file"))?;
    if let Some((found, _)) = &format
        && *found != FORMAT
    {
        return Err(match found {
            0 => OpenError::NotAStore { path: name(), reason: "its FORMAT file says something else".to_owned() },
            1..FORMAT => OpenError::OlderFormat { path: name(), found: *found, known: FORMAT },
            _ => OpenError::NewerFormat { path: name(), found: *found, known: FORMAT },
        });
    }
    if format.is_none() && is_occupied(path).map_err(io_error("listing it"))? {
        let reason = "it is not empty and has no FORMAT file".to_owned();
        return Err(OpenError::NotAStore { path: name(), reason });
    }
    layer.create_directory(path).map_err(io_error("creating it"))?;
    let lock = OpenOptions::new().create(true).write(true).truncate(false).open(path.join("LOCK"));
    let lock = lock.map_err(io_error("opening its LOCK file"))?;
    match rustix::fs::flock(&lock, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(rustix::io::Errno::WOULDBLOCK) => return Err(OpenError::InUse(name())),
        Err(error) => return Err(io_error("locking it")(error.into())),
    }
    // Read again now that nobody else can write it: another process may have made a store here a moment ago.
    let format = read_format(layer, path).map_err(io_error("reading its FORMAT file"))?.or(format);
    let (key, is_fresh) = match format {
        Some((_, key)) => (key, false),
        None => (write_format(layer, path).map_err(io_error("writing its FORMAT file"))?, true),
    };
    Ok(Folder { _lock: lock, key: RecordKey(key), is_fresh })
}

/// Version and key; version 0 for a file that is none of ours.
fn read_format(layer: &dyn FileLayer, path: &Path) -> io::Result<Option<(u32, u64)>> {
    let file = match layer.open(&path.join(FORMAT_FILE)) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    // Ours, of any version, begins with lines that fit.
    let mut bytes = vec![0; 4096];
    let filled = file.read_at(&mut bytes, 0)?;
    bytes.truncate(filled);
    let Ok(text) = String::from_utf8(bytes) else { return Ok(Some((0, 0))) };
    let mut lines = text.lines();
    let is_ours = lines.next() == Some(HEADLINE);
    let mut value = |key: &str| lines.next()?.strip_prefix(key)?.strip_prefix(' ').map(str::to_owned);
    let version = value("version").and_then(|text| text.parse().ok()).filter(|_| is_ours);
    let key = value("key").and_then(|text| u64::from_str_radix(&text, 16).ok());
    Ok(Some(match (version, key) {
        (Some(FORMAT), Some(key)) => (FORMAT, key),
        // Another version may have other lines.
        (Some(version), _) if version != FORMAT => (version, 0),
        _ => (0, 0),
    }))
}

fn write_format(layer: &dyn FileLayer, path: &Path) -> io::Result<u64> {
    let mut key = [0; 8];
    let random = ring::rand::SystemRandom::new().fill(&mut key);
    random.map_err(|_| io::Error::other("the system gave no random numbers"))?;
    let key = u64::from_le_bytes(key);
    let temporary = path.join("FORMAT.new");
    layer.remove(&temporary)?;
    let file = layer.create(&temporary)?;
    file.write_at(format!("{HEADLINE}\nversion {FORMAT}\nkey {key:016x}\n").as_bytes(), 0)?;
    file.sync()?;
    let format = path.join(FORMAT_FILE);
    layer.rename(&temporary, &format)?;
    if let Err(error) = layer.sync_directory(path) {
        // Another start must not take it for durable.
        layer.remove(&format)?;
        return Err(error);
    }
    Ok(key)
}

/// Whether the folder holds anything but what a start that was cut short leaves.
fn is_occupied(path: &Path) -> io::Result<bool> {
    let entries = match std::fs::read_dir(path) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(error),
    };
    for entry in entries {
        let name = entry?.file_name();
        if !["LOCK", "FORMAT.new", "lost+found"].iter().any(|ours| name == *ours) {
            return Ok(true);
        }
    }
    Ok(false)
}
