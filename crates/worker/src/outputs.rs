//! What an action leaves behind: found, hashed, stored.
//!
//! The action was perhaps hostile, but it is over: nothing that is looked at here changes any more. What always holds: no
//! link is followed; what is read is read in pieces; how many entries, how deep and how many bytes is bounded.

mod collect;
mod store;
mod tree;
mod view;

pub(crate) use collect::{Asked, Collected, collect};
pub(crate) use store::store;
#[cfg(test)]
pub(crate) use view::Node;
pub(crate) use view::View;

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;

use gf_reapi::execution::{Command, command::OutputDirectoryFormat};

use crate::failure::Failure;
use crate::paths::InsidePath;

/// An output that was asked for.
#[derive(Clone, Debug)]
pub(crate) struct OutputPath {
    /// As the command names it.
    pub(crate) text: String,
    /// From the input root.
    pub(crate) path: InsidePath,
    pub(crate) expected: Expected,
}

/// What may be found at the path of an output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Expected {
    Anything,
    /// A deprecated `output_files`.
    File,
    /// A deprecated `output_directories`.
    Folder,
}

/// Properties that a command wants to know of its outputs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct WantedProperties {
    pub(crate) mtime: bool,
    pub(crate) unix_mode: bool,
}

impl Asked {
    /// Reads what a command says about its outputs.
    pub(crate) fn of(command: &Command, working_directory: &InsidePath) -> Result<Self, Failure> {
        let mut outputs = Vec::new();
        let mut add = |what: &str, texts: &[String], expected| -> Result<(), Failure> {
            for text in texts {
                let path = working_directory.join(&InsidePath::parse(what, text)?);
                outputs.push(OutputPath { text: text.clone(), path, expected });
            }
            Ok(())
        };
        if command.output_paths.is_empty() {
            #[expect(deprecated, reason = "older clients ask for their outputs in these two lists")]
            let (files, folders) = (&command.output_files, &command.output_directories);
            add("output file", files, Expected::File)?;
            add("output directory", folders, Expected::Folder)?;
        } else {
            add("output path", &command.output_paths, Expected::Anything)?;
        }
        let mut properties = WantedProperties::default();
        for name in &command.output_node_properties {
            match name.as_str() {
                "mtime" => properties.mtime = true,
                "unix_mode" => properties.unix_mode = true,
                other => return Err(Failure::invalid(format!("the output node property {other:?} is not known"))),
            }
        }
        let format =
            OutputDirectoryFormat::try_from(command.output_directory_format).unwrap_or(OutputDirectoryFormat::TreeOnly);
        Ok(Self { outputs, properties, format })
    }

    /// The folders that must be there before the action begins.
    pub(crate) fn parents(&self) -> Vec<InsidePath> {
        self.outputs.iter().filter_map(|output| output.path.parent()).collect()
    }
}

/// Says at the end of a log why the action was ended, because many clients show nothing but logs.
pub(crate) fn add_last_words(log: &Path, words: &str) -> io::Result<()> {
    let mut log = OpenOptions::new().read(true).append(true).create(true).open(log)?;
    let mut last = [b'\n'];
    if let Some(at) = log.metadata()?.len().checked_sub(1) {
        log.read_exact_at(&mut last, at)?;
    }
    let new_line = if last == *b"\n" { "" } else { "\n" };
    log.write_all(format!("{new_line}{words}\n").as_bytes())
}

#[cfg(test)]
mod tests;
