//! The tokens that `gf login` stored: one for each server, in a file of its user alone.
//!
//! What always holds: a token is found by the whole URL of its server, and a file that others can read is not used.

use std::collections::BTreeMap;
use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use crate::failure::{Failure, FailureKind};

/// The longest file that is read.
const MAX_BYTES: u64 = 1 << 20;

/// The token for a server, `http://HOST:PORT` or `https://HOST:PORT`, if there is one.
pub(crate) fn token_for(server: &str) -> Result<Option<String>, Failure> {
    let Some(path) = file() else { return Ok(None) };
    Ok(read(&path)?.remove(server.trim_end_matches('/')))
}

/// All that are stored.
fn read(path: &Path) -> Result<BTreeMap<String, String>, Failure> {
    let wrong = |reason: &dyn std::fmt::Display| {
        let message = format!("{} cannot be used: {reason}; run `gf login` again", path.display());
        Failure::new(FailureKind::Usage, message)
    };
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(BTreeMap::new()),
        Err(error) => return Err(wrong(&error)),
    };
    let mode = file.metadata().map_err(|error| wrong(&error))?.mode();
    if mode & 0o077 != 0 {
        return Err(wrong(&"others can read it"));
    }
    let mut text = Vec::new();
    file.take(MAX_BYTES).read_to_end(&mut text).map_err(|error| wrong(&error))?;
    serde_json::from_slice(&text).map_err(|error| wrong(&error))
}

/// Stores the token for a server instead of the one that was there, or with `None` forgets that. Whoever reads meanwhile
/// sees the one or the other.
pub(crate) fn store(server: &str, token: Option<String>) -> Result<(), Failure> {
    let path = file().ok_or_else(|| Failure::failed("there is no home folder to store the token in: set HOME"))?;
    let failed =
        |error: &dyn std::fmt::Display| Failure::failed(format!("{} cannot be written: {error}", path.display()));
    let folder = path.parent().unwrap_or(&path);
    let made = DirBuilder::new().recursive(true).mode(0o700).create(folder);
    made.map_err(|error| failed(&error))?;
    let mut logins = read(&path)?;
    let server = server.trim_end_matches('/');
    match token {
        Some(token) => logins.insert(server.to_owned(), token),
        None => logins.remove(server),
    };
    let text = serde_json::to_vec_pretty(&logins).map_err(|error| failed(&error))?;
    let new = path.with_extension(format!("new-{}", std::process::id()));
    let written = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new).and_then(|mut file| {
        file.write_all(&text)?;
        file.sync_all()?;
        std::fs::rename(&new, &path)
    });
    written.map_err(|error| {
        // What is half written is of no use.
        let _ = std::fs::remove_file(&new);
        failed(&error)
    })
}

/// Where they are; `None` when the user has no home.
fn file() -> Option<PathBuf> {
    let variable = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let root = variable("XDG_CONFIG_HOME").or_else(|| variable("HOME").map(|home| home.join(".config")))?;
    Some(root.join("gloriousflywheel").join("logins.json"))
}
