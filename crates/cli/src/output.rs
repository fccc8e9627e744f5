//! What commands print on standard output: text for people, or the same facts as JSON for programs.

use std::fmt;
use std::io::{self, Write};

use serde::Serialize;

use crate::failure::Failure;

/// Which of the two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Format {
    Text,
    Json,
}

impl From<bool> for Format {
    fn from(json: bool) -> Self {
        if json { Self::Json } else { Self::Text }
    }
}

/// Says something on standard error. Nobody reads it any more: then there is nobody to tell.
pub(crate) fn say(text: impl fmt::Display) {
    let _ = writeln!(io::stderr(), "{text}");
}

/// Prints the value: as JSON, or as `text` shows it.
pub(crate) fn print<T: Serialize>(format: Format, value: &T, text: impl FnOnce(&T) -> String) -> Result<(), Failure> {
    let mut shown = match format {
        Format::Json => serde_json::to_string_pretty(value).map_err(Failure::failed)?,
        Format::Text => text(value),
    };
    shown.push('\n');
    match io::stdout().lock().write_all(shown.as_bytes()) {
        // The reader has what it wanted, as in `gf status | head -1`.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        Err(error) => Err(Failure::failed(format!("cannot write the answer: {error}"))),
        Ok(()) => Ok(()),
    }
}
