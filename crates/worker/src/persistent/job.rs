//! Whether an action can be done by a process that stays, which one, and what it is asked.
//!
//! Command lines are divided as Bazel divides them: flag files are the request, the rest starts the process.

use std::collections::{BTreeMap, HashSet};
use std::ffi::OsString;
use std::fs::File;
use std::io::Read;
use std::path::PathBuf;
use std::time::Duration;

use gf_digest::{Digest, Hasher, InstanceName};
use gf_reapi::execution::Platform;

use crate::assignment::{Memory, Order};
use crate::folders::Content;
use crate::local_blobs::{LocalBlobs, Pins};
use crate::paths::InsidePath;
use crate::sandbox::Network;

use super::inputs::Node;
use super::protocol::{Input, Protocol, WorkRequest};

const KEY_PROPERTY: &str = "persistentWorkerKey";
const PROTOCOL_PROPERTY: &str = "persistentWorkerProtocol";
/// What tells a tool to stay.
const STAY: &str = "--persistent_worker";
/// How deep flag files lie in flag files, and how much all of them hold.
const MAX_FLAG_FILE_DEPTH: usize = 8;
const MAX_FLAG_FILE_BYTES: u64 = 16 << 20;

/// What an action says of the process that it wants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Wish {
    key: String,
    protocol: Protocol,
}

impl Wish {
    /// Reads a platform. A protocol that is not known is no wish: the tool runs as any other.
    pub(crate) fn of(platform: Option<&Platform>) -> Option<Self> {
        let properties = &platform?.properties;
        let value = |name: &str| properties.iter().find(|property| property.name == name).map(|it| it.value.as_str());
        let protocol = match value(PROTOCOL_PROPERTY).unwrap_or_default() {
            "" | "proto" | "protobuf" => Protocol::Proto,
            "json" => Protocol::Json,
            _ => return None,
        };
        Some(Self { key: value(KEY_PROPERTY).filter(|key| !key.is_empty())?.to_owned(), protocol })
    }
}

/// Which requests a process may be given. Whatever could make a difference is in it, and the instance above all: no
/// process works for two tenants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Key {
    instance: InstanceName,
    name: String,
    pub(super) protocol: Protocol,
    tools: Digest,
    pub(super) arguments: Vec<OsString>,
    pub(super) environment: BTreeMap<OsString, OsString>,
    pub(super) working_directory: PathBuf,
    pub(super) network: Network,
    pub(super) memory: Memory,
}

/// A request, ready to be asked.
#[derive(Debug)]
pub(crate) struct Job {
    pub(super) key: Key,
    pub(super) inputs: Node,
    pub(super) parents: Vec<InsidePath>,
    pub(super) outputs: Vec<InsidePath>,
    pub(super) request: Vec<u8>,
    pub(super) timeout: Duration,
    /// What is copied from the cache stays there.
    pub(super) _pins: Pins,
}

/// The contents that a root needs, each once.
pub(super) fn contents(inputs: &Node) -> HashSet<Content> {
    let mut contents = HashSet::new();
    inputs.each_file(&mut |_, file| {
        contents.insert(file.content);
    });
    contents
}

/// What a root takes when each of its files is a copy.
pub(super) fn bytes(inputs: &Node) -> u64 {
    let mut bytes = 0_u64;
    inputs.each_file(&mut |_, file| bytes = bytes.saturating_add(file.content.digest.size_bytes()));
    bytes
}

/// Who can do an order; nothing if it has no tool or no flag file, and so is not for a process that stays.
pub(super) fn key_of(order: &Order, wish: &Wish, inputs: &mut Node) -> Option<Key> {
    let tools = inputs.tool_digest(Hasher::new(order.function))?;
    let directory = &order.inputs.working_directory;
    if !inputs.keep(directory.names()) || !order.arguments.iter().skip(1).any(is_flag_file) {
        return None;
    }
    let start = order.arguments.iter().enumerate();
    let start = start.filter(|(place, argument)| *place == 0 || !is_flag_file(argument));
    let mut arguments: Vec<OsString> = start.map(|(_, argument)| argument.clone()).collect();
    arguments.push(STAY.into());
    Some(Key {
        instance: order.instance.clone(),
        name: wish.key.clone(),
        protocol: wish.protocol,
        tools,
        arguments,
        environment: order.environment.clone(),
        working_directory: directory.to_path(),
        network: order.network,
        memory: order.memory,
    })
}

/// What the process is asked. The contents are in the cache.
pub(super) fn request_of(order: &Order, inputs: &Node, blobs: &LocalBlobs) -> Option<WorkRequest> {
    let directory = &order.inputs.working_directory;
    let mut expanded = Expanded { inputs, directory, blobs, arguments: Vec::new(), left: MAX_FLAG_FILE_BYTES };
    for argument in order.arguments.iter().skip(1).filter(|argument| is_flag_file(argument)) {
        expanded.add(argument.to_str()?, 0)?;
    }
    let arguments = expanded.arguments;
    let mut files = Vec::new();
    inputs.each_file(&mut |path, file| {
        let digest = file.content.digest.hash_hex().as_str().as_bytes().to_vec();
        files.push(Input { path: seen_from(directory, path), digest });
    });
    Some(WorkRequest { arguments, inputs: files })
}

/// `@file`, `-flagfile=file` and `--flagfile=file`; not `@@escaped`, and not `@repository//:label`.
fn is_flag_file(argument: &OsString) -> bool {
    argument.to_str().is_some_and(|text| {
        let named = text.strip_prefix("--flagfile=").or_else(|| text.strip_prefix("-flagfile="));
        is_expanded(text) || named.is_some_and(|file| !file.is_empty())
    })
}

/// Whether the lines of the file stand in the request instead of its name.
fn is_expanded(argument: &str) -> bool {
    argument.len() > 1 && argument.starts_with('@') && !argument.starts_with("@@") && !argument.contains("//")
}

/// A path of the root as whoever stands in a folder of it writes it.
fn seen_from(directory: &InsidePath, path: &str) -> String {
    let names: Vec<&str> = path.split('/').collect();
    let common = directory.names().iter().zip(&names).take_while(|(one, other)| one == *other).count();
    let up = std::iter::repeat_n("..", directory.names().len() - common);
    up.chain(names.into_iter().skip(common)).collect::<Vec<_>>().join("/")
}

/// Arguments, with the lines of flag files in their place.
struct Expanded<'a> {
    inputs: &'a Node,
    directory: &'a InsidePath,
    blobs: &'a LocalBlobs,
    arguments: Vec<String>,
    left: u64,
}

impl Expanded<'_> {
    fn add(&mut self, argument: &str, depth: usize) -> Option<()> {
        // What names no input stands as it is: the tool knows what to say to it.
        let lines = if is_expanded(argument) { self.lines(argument.get(1..)?, depth)? } else { None };
        match lines {
            Some(lines) => lines.lines().filter(|line| !line.is_empty()).try_for_each(|line| self.add(line, depth + 1)),
            None => {
                self.arguments.push(argument.to_owned());
                Some(())
            }
        }
    }

    /// The outer nothing is a file that is not to be read: too deep, too long, or no text.
    fn lines(&mut self, path: &str, depth: usize) -> Option<Option<String>> {
        let path = InsidePath::parse("flag file", path).ok().map(|path| self.directory.join(&path));
        let Some(file) = path.and_then(|path| self.inputs.find(&path)) else { return Some(None) };
        if depth >= MAX_FLAG_FILE_DEPTH {
            return None;
        }
        self.left = self.left.checked_sub(file.content.digest.size_bytes())?;
        let mut text = String::new();
        File::open(self.blobs.path(&file.content)).ok()?.read_to_string(&mut text).ok()?;
        Some(Some(text))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use gf_reapi::execution::platform::Property;

    #[test]
    fn a_platform_names_a_process() {
        let wish = |properties: &[(&str, &str)]| {
            let property = |&(name, value): &(&str, &str)| Property { name: name.to_owned(), value: value.to_owned() };
            Wish::of(Some(&Platform { properties: properties.iter().map(property).collect() }))
        };
        let named = |protocol| Some(Wish { key: "k".to_owned(), protocol });
        assert_eq!(wish(&[("persistentWorkerKey", "k"), ("OSFamily", "linux")]), named(Protocol::Proto));
        assert_eq!(wish(&[("persistentWorkerProtocol", "json"), ("persistentWorkerKey", "k")]), named(Protocol::Json));
        assert_eq!(wish(&[("persistentWorkerProtocol", "xml"), ("persistentWorkerKey", "k")]), None);
        assert_eq!(wish(&[("persistentWorkerKey", "")]), None);
        assert_eq!(wish(&[("persistentWorkerProtocol", "json")]), None);
    }

    #[test]
    fn flag_files_are_told_from_arguments() {
        for yes in ["@flags", "@a/b", "--flagfile=x", "-flagfile=x"] {
            assert!(is_flag_file(&yes.into()), "{yes}");
        }
        for no in ["@", "@@flags", "@repository//:target", "flags@", "--flagfile=", "--flagfiles=x", "flagfile=x"] {
            assert!(!is_flag_file(&no.into()), "{no}");
        }
    }

    #[test]
    fn paths_are_written_as_the_process_sees_them() {
        let from = |directory: &str, path: &str| seen_from(&InsidePath::parse("d", directory).unwrap(), path);
        assert_eq!(from("", "a/b"), "a/b");
        assert_eq!(from("a", "a/b"), "b");
        assert_eq!(from("a/c", "a/b/x"), "../b/x");
        assert_eq!(from("w", "a"), "../a");
    }
}
