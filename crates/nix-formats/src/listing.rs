//! What is in an archive and where: the `.ls` of a cache, and an index for whoever wants one file of an archive.
//!
//! Listings are written only. A cache makes its own from the archive, so the one that a client sends need not be read.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use thiserror::Error;

use crate::nar::{NarError, NarEvent, NarName, NarTarget};

/// The tree of an archive, without contents.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listing {
    /// The node that the archive is.
    pub root: ListingNode,
}

/// A node of the tree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ListingNode {
    /// A directory and its entries, sorted as in the archive.
    Directory(BTreeMap<NarName, ListingNode>),
    /// A file.
    File {
        /// Whether it may be executed.
        executable: bool,
        /// Its size in bytes.
        size_bytes: u64,
        /// Where its contents begin in the archive.
        nar_offset: u64,
    },
    /// A symbolic link.
    Symlink(NarTarget),
}

/// A name or a target is not UTF-8, so JSON cannot say it. Such an archive has no `.ls`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("the archive has a name or a target that is not UTF-8, which a listing cannot hold")]
pub struct NotUtf8;

/// Makes a [`Listing`] of the events of a [`NarParser`](crate::nar::NarParser).
///
/// Memory: what names and targets have in bytes, and about a hundred bytes for an entry.
#[derive(Debug, Default)]
pub struct ListingBuilder {
    /// The directories that are open, each with the name under which it will be entered above.
    open: Vec<(Option<NarName>, BTreeMap<NarName, ListingNode>)>,
    /// The name of the node that comes next.
    name: Option<NarName>,
    root: Option<ListingNode>,
}

impl ListingBuilder {
    /// Begins a listing.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes the next event, with the parser's position after it.
    pub fn add(&mut self, event: &NarEvent, position: u64) {
        match event {
            NarEvent::Directory => self.open.push((self.name.take(), BTreeMap::new())),
            NarEvent::Entry(name) => self.name = Some(name.detached()),
            NarEvent::DirectoryEnd => {
                if let Some((name, entries)) = self.open.pop() {
                    self.name = name;
                    self.enter(ListingNode::Directory(entries));
                }
            }
            NarEvent::File { executable, size_bytes } => {
                let (executable, size_bytes) = (*executable, *size_bytes);
                self.enter(ListingNode::File { executable, size_bytes, nar_offset: position });
            }
            NarEvent::Symlink(target) => self.enter(ListingNode::Symlink(target.detached())),
            NarEvent::Contents(_) | NarEvent::FileEnd => {}
        }
    }

    /// Ends the listing.
    ///
    /// # Errors
    /// [`NarError::Truncated`] when events are missing.
    pub fn finish(self) -> Result<Listing, NarError> {
        self.root.map(|root| Listing { root }).ok_or(NarError::Truncated(0))
    }

    fn enter(&mut self, node: ListingNode) {
        match (self.open.last_mut(), self.name.take()) {
            (Some((_, entries)), Some(name)) => {
                entries.insert(name, node);
            }
            _ => self.root = Some(node),
        }
    }
}

impl Listing {
    /// The version that is written.
    const VERSION: u32 = 1;

    /// The node at a path: names separated by `/`; the empty path is the root. Symbolic links are not followed.
    #[must_use]
    pub fn find(&self, path: &[u8]) -> Option<&ListingNode> {
        let names = path.split(|byte| *byte == b'/').filter(|name| !name.is_empty());
        names.into_iter().try_fold(&self.root, |node, name| match node {
            ListingNode::Directory(entries) => entries.get(&NarName::new(bytes::Bytes::copy_from_slice(name)).ok()?),
            ListingNode::File { .. } | ListingNode::Symlink(_) => None,
        })
    }

    /// Writes the `.ls` as Nix does: keys sorted, no white space.
    ///
    /// # Errors
    /// [`NotUtf8`] when JSON cannot say a name or a target.
    pub fn to_json(&self) -> Result<String, NotUtf8> {
        let mut json = String::from("{\"root\":");
        write_node(&self.root, &mut json)?;
        // Writing into a string cannot fail.
        let _ = write!(json, ",\"version\":{}}}", Self::VERSION);
        Ok(json)
    }
}

/// Calls itself once for a level; the limits of the parser bound the levels.
fn write_node(node: &ListingNode, json: &mut String) -> Result<(), NotUtf8> {
    match node {
        ListingNode::Directory(entries) => {
            json.push_str("{\"entries\":{");
            for (index, (name, node)) in entries.iter().enumerate() {
                if index > 0 {
                    json.push(',');
                }
                write_string(name.as_str().ok_or(NotUtf8)?, json);
                json.push(':');
                write_node(node, json)?;
            }
            json.push_str("},\"type\":\"directory\"}");
        }
        ListingNode::File { executable, size_bytes, nar_offset } => {
            let executable = if *executable { "\"executable\":true," } else { "" };
            let _ =
                write!(json, "{{{executable}\"narOffset\":{nar_offset},\"size\":{size_bytes},\"type\":\"regular\"}}");
        }
        ListingNode::Symlink(target) => {
            json.push_str("{\"target\":");
            write_string(target.as_str().ok_or(NotUtf8)?, json);
            json.push_str(",\"type\":\"symlink\"}");
        }
    }
    Ok(())
}

/// Text always becomes JSON.
fn write_string(text: &str, json: &mut String) {
    json.push_str(&serde_json::to_string(text).unwrap_or_default());
}
