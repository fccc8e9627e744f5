//! Notes: small text files of `key value` lines and a check, each replaced as a whole.
//!
//! What is found is the last note that was written whole, or none.

use std::io;
use std::path::Path;

use super::file_layer::FileLayer;
use super::record::payload_check;

/// The largest note that is read, in bytes.
const MAX_BYTES: usize = 64 << 10;

/// Reads the lines of a note; `None` when there is none, or a damaged one.
pub(crate) fn read(layer: &dyn FileLayer, directory: &Path, name: &str) -> io::Result<Option<String>> {
    let file = match layer.open(&directory.join(name)) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let mut bytes = vec![0; usize::try_from(file.size()?).unwrap_or(0).min(MAX_BYTES)];
    let filled = file.read_at(&mut bytes, 0)?;
    bytes.truncate(filled);
    Ok(String::from_utf8(bytes).ok().and_then(|text| checked(&text).map(str::to_owned)))
}

/// Replaces a note, durably.
pub(crate) fn write(layer: &dyn FileLayer, directory: &Path, name: &str, lines: &str) -> io::Result<()> {
    let temporary = directory.join(format!("{name}.new"));
    layer.remove(&temporary)?;
    let file = layer.create(&temporary)?;
    file.write_at(sealed(lines).as_bytes(), 0)?;
    file.sync()?;
    layer.rename(&temporary, &directory.join(name))?;
    layer.sync_directory(directory)
}

/// Whether there is a note of this name, damaged or not.
pub(crate) fn exists(layer: &dyn FileLayer, directory: &Path, name: &str) -> io::Result<bool> {
    match layer.open(&directory.join(name)) {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// Removes a note, which may come back after a power cut.
pub(crate) fn remove(layer: &dyn FileLayer, directory: &Path, name: &str) -> io::Result<()> {
    layer.remove(&directory.join(name))
}

/// The value of a line.
pub(crate) fn value<'a>(lines: &'a str, key: &str) -> Option<&'a str> {
    lines.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' '))
}

fn sealed(lines: &str) -> String {
    format!("{lines}check {:016x}\n", payload_check(lines.as_bytes()))
}

fn checked(text: &str) -> Option<&str> {
    let (lines, check) = text.split_at(text.rfind("check ")?);
    (check.trim_end() == format!("check {:016x}", payload_check(lines.as_bytes()))).then_some(lines)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_back_and_notices_damage() {
        let lines = "epoch 3\nboot abc\n";
        let text = sealed(lines);
        assert_eq!(checked(&text), Some(lines));
        assert_eq!(value(lines, "boot"), Some("abc"));
        assert_eq!(checked(&text.replace("epoch 3", "epoch 4")), None);
        assert_eq!(checked(&text[..text.len() - 4]), None);
    }
}
