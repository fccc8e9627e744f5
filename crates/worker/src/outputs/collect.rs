//! Finding and hashing outputs.

use std::collections::HashMap;
use std::fs::{self, File, Metadata};
use std::io::Read;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use bytes::Bytes;
use gf_digest::{Digest, DigestFunction, Hasher};
use gf_reapi::execution::command::OutputDirectoryFormat;
use gf_reapi::execution::{
    ActionResult, Directory, DirectoryNode, FileNode, NodeProperties, OutputDirectory, OutputFile, OutputSymlink,
    SymlinkNode,
};

use crate::blobs::Source;
use crate::failure::Failure;

use super::tree::Directories;
use super::view::{Node, View};
use super::{Expected, OutputPath, WantedProperties};

/// Entries of all outputs of one action.
const MAX_ENTRIES: u64 = 500_000;
/// How deep folders lie in an output.
const MAX_DEPTH: usize = 256;
const READ_BYTES: usize = 256 << 10;
const ANY_EXECUTE: u32 = 0o111;

/// What a command wants of its outputs.
#[derive(Clone, Debug)]
pub(crate) struct Asked {
    pub(crate) outputs: Vec<OutputPath>,
    pub(crate) properties: WantedProperties,
    pub(crate) format: OutputDirectoryFormat,
}

/// Outputs, and the blobs that they name.
#[derive(Debug, Default)]
pub(crate) struct Collected {
    pub(crate) result: ActionResult,
    pub(crate) blobs: HashMap<Digest, Source>,
}

/// Finds and hashes what was asked for, at most `max_bytes` of it. Reads files; not to be called where others talk.
pub(crate) fn collect(
    asked: &Asked,
    view: &View,
    max_bytes: u64,
    function: DigestFunction,
) -> Result<Collected, Failure> {
    let mut collector = Collector { asked, function, collected: Collected::default(), entries: 0, bytes: 0, max_bytes };
    for output in &asked.outputs {
        let node = view.find(&output.path).map_err(|error| unreadable(&output.text, &error))?;
        if let Some(node) = node {
            collector.output(output, node)?;
        }
    }
    Ok(collector.collected)
}

impl Collected {
    /// Hashes a log and takes it in; nothing for one that is empty.
    pub(crate) fn add_log(&mut self, path: &Path, function: DigestFunction) -> Result<Option<Digest>, Failure> {
        if fs::metadata(path).map_or(true, |found| found.len() == 0) {
            return Ok(None);
        }
        let digest = hash(path, function).map_err(|error| Failure::io("read a log", error))?;
        self.blobs.insert(digest, Source::File(path.to_owned()));
        Ok(Some(digest))
    }
}

struct Collector<'a> {
    asked: &'a Asked,
    function: DigestFunction,
    collected: Collected,
    entries: u64,
    /// The sizes of all files so far: holes cost no disk, but they are read.
    bytes: u64,
    max_bytes: u64,
}

impl Collector<'_> {
    fn output(&mut self, output: &OutputPath, node: Node) -> Result<(), Failure> {
        let path = output.text.clone();
        match node {
            Node::Special => Err(special(&path)),
            Node::File(..) if output.expected == Expected::Folder => {
                Err(Failure::precondition(format!("the output directory {path:?} is a file")))
            }
            Node::File(file, found) => {
                let digest = self.file(&file, &found, &path)?;
                let is_executable = is_executable(&found);
                let node_properties = self.properties(&found);
                let digest = Some(digest.into());
                let file = OutputFile { path, digest, is_executable, contents: Bytes::new(), node_properties };
                self.collected.result.output_files.push(file);
                Ok(())
            }
            Node::Link(link, found) => {
                let target = target(&link, &path)?;
                let symlink = OutputSymlink { path, target, node_properties: self.properties(&found) };
                self.symlink(output.expected, symlink);
                Ok(())
            }
            Node::Folder(..) if output.expected == Expected::File => {
                Err(Failure::precondition(format!("the output file {path:?} is a directory")))
            }
            Node::Folder(view, found) => self.folder_output(path, &view, &found),
        }
    }

    fn symlink(&mut self, expected: Expected, symlink: OutputSymlink) {
        let result = &mut self.collected.result;
        #[expect(deprecated, reason = "clients that ask in the older way look for the answer there")]
        match expected {
            Expected::Anything => result.output_symlinks.push(symlink),
            Expected::File => result.output_file_symlinks.push(symlink),
            Expected::Folder => result.output_directory_symlinks.push(symlink),
        }
    }

    fn folder_output(&mut self, path: String, view: &View, found: &Metadata) -> Result<(), Failure> {
        let mut directories = Directories::new(self.function);
        let root = self.folder(view, found, &path, 0, &mut directories)?;
        let (with_tree, with_directories) = match self.asked.format {
            OutputDirectoryFormat::TreeOnly => (true, false),
            OutputDirectoryFormat::DirectoryOnly => (false, true),
            OutputDirectoryFormat::TreeAndDirectory => (true, true),
        };
        let mut output = OutputDirectory { path, ..OutputDirectory::default() };
        if with_directories {
            let blobs = directories.blobs().into_iter().map(|(digest, bytes)| (digest, Source::Bytes(bytes)));
            self.collected.blobs.extend(blobs);
            output.root_directory_digest = Some(root.into());
        }
        if with_tree {
            let (digest, bytes) = directories.into_tree();
            self.collected.blobs.insert(digest, Source::Bytes(bytes));
            output.tree_digest = Some(digest.into());
            output.is_topologically_sorted = true;
        }
        self.collected.result.output_directories.push(output);
        Ok(())
    }

    fn folder(
        &mut self,
        view: &View,
        found: &Metadata,
        path: &str,
        depth: usize,
        directories: &mut Directories,
    ) -> Result<Digest, Failure> {
        if depth > MAX_DEPTH {
            let message = format!("an output directory is deeper than {MAX_DEPTH} folders");
            return Err(Failure::precondition(message));
        }
        let mut directory = Directory { node_properties: self.properties(found), ..Directory::default() };
        for name in view.names().map_err(|error| unreadable(path, &error))? {
            let below = format!("{path}/{}", name.to_string_lossy());
            let Some(node) = view.child(&name).map_err(|error| unreadable(&below, &error))? else { continue };
            let Ok(name) = name.into_string() else {
                return Err(Failure::precondition(format!("the name of the output {below:?} is not UTF-8")));
            };
            self.count()?;
            match node {
                Node::Special => return Err(special(&below)),
                Node::Link(link, found) => {
                    let target = target(&link, &below)?;
                    directory.symlinks.push(SymlinkNode { name, target, node_properties: self.properties(&found) });
                }
                Node::File(file, found) => directory.files.push(FileNode {
                    name,
                    digest: Some(self.file(&file, &found, &below)?.into()),
                    is_executable: is_executable(&found),
                    node_properties: self.properties(&found),
                }),
                Node::Folder(child, found) => {
                    let digest = self.folder(&child, &found, &below, depth + 1, directories)?;
                    directory.directories.push(DirectoryNode { name, digest: Some(digest.into()) });
                }
            }
        }
        Ok(directories.add(directory))
    }

    fn file(&mut self, file: &Path, found: &Metadata, path: &str) -> Result<Digest, Failure> {
        self.bytes = self.bytes.saturating_add(found.len());
        if self.bytes > self.max_bytes {
            let max_bytes = self.max_bytes;
            return Err(Failure::precondition(format!(
                "the outputs up to {path:?} are larger than the disk limit of {max_bytes} bytes; an operator can raise it \
                 for the worker"
            )));
        }
        let digest = hash(file, self.function).map_err(|error| unreadable(path, &error))?;
        self.collected.blobs.entry(digest).or_insert_with(|| Source::File(file.to_owned()));
        Ok(digest)
    }

    fn count(&mut self) -> Result<(), Failure> {
        self.entries += 1;
        if self.entries > MAX_ENTRIES {
            return Err(Failure::precondition(format!("the outputs have more than {MAX_ENTRIES} entries")));
        }
        Ok(())
    }

    fn properties(&self, found: &Metadata) -> Option<NodeProperties> {
        let WantedProperties { mtime, unix_mode } = self.asked.properties;
        if !mtime && !unix_mode {
            return None;
        }
        let nanos = i32::try_from(found.mtime_nsec()).unwrap_or_default();
        Some(NodeProperties {
            properties: Vec::new(),
            mtime: mtime.then_some(prost_types::Timestamp { seconds: found.mtime(), nanos }),
            unix_mode: unix_mode.then_some(found.mode() & 0o7777),
        })
    }
}

fn is_executable(found: &Metadata) -> bool {
    found.permissions().mode() & ANY_EXECUTE != 0
}

fn target(link: &Path, path: &str) -> Result<String, Failure> {
    let target = fs::read_link(link).map_err(|error| unreadable(path, &error))?;
    let not_text = |_| Failure::precondition(format!("the target of the output {path:?} is not UTF-8"));
    target.into_os_string().into_string().map_err(not_text)
}

fn hash(path: &Path, function: DigestFunction) -> std::io::Result<Digest> {
    let mut file = File::open(path)?;
    let mut hasher = Hasher::new(function);
    let size = usize::try_from(file.metadata()?.len()).unwrap_or(READ_BYTES);
    let mut buffer = vec![0; size.clamp(1, READ_BYTES)];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(hasher.finish()),
            length => hasher.update(buffer.get(..length).unwrap_or_default()),
        }
    }
}

fn special(path: &str) -> Failure {
    Failure::precondition(format!("the output {path:?} is neither file, directory nor symbolic link"))
}

/// Whatever the reason, it is what the action left there.
fn unreadable(path: &str, error: &std::io::Error) -> Failure {
    Failure::precondition(format!("the output {path:?} cannot be read: {error}"))
}
