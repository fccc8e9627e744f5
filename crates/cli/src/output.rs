//! What commands print on standard output: text for people, or the same facts as JSON for programs.

use std::fmt;
use std::io::{self, Write};
use std::time::Duration;

use gf_server::access_api::report::is_shown;
use gf_server::config::show_duration;
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

/// A name that others chose, as it may stand on a terminal: what controls or formats text is written out.
pub(crate) fn plain(text: &str) -> String {
    text.chars()
        .flat_map(|character| match is_shown(character) {
            true => vec![character],
            false => character.escape_default().collect::<Vec<char>>(),
        })
        .collect()
}

/// A time in its largest unit, which says enough.
pub(crate) fn show_age(seconds: u64) -> String {
    let seconds = match seconds {
        0..60 => seconds,
        60..3600 => seconds - seconds % 60,
        3600..86_400 => seconds - seconds % 3600,
        _ => seconds - seconds % 86_400,
    };
    show_duration(Duration::from_secs(seconds))
}

/// Cores, of thousandths.
pub(crate) fn show_cores(milli_cores: u64) -> String {
    let (whole, rest) = (milli_cores / 1000, milli_cores % 1000);
    if rest == 0 { whole.to_string() } else { format!("{whole}.{rest:03}").trim_end_matches('0').to_owned() }
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
