//! Actions that cases make up: a command, a folder of inputs, and the messages that describe them.
//!
//! Every job carries a text that nobody used before, so no result of it is in a cache when the case begins. What it
//! deliberately does not do: keep messages well-formed. A case changes whatever it wants to see refused.

use std::collections::BTreeMap;

use gf_digest::{Digest, DigestFunction};
use gf_reapi::execution::command::EnvironmentVariable;
use gf_reapi::execution::platform::Property;
use gf_reapi::execution::{Action, Command, Directory, DirectoryNode, FileNode, Platform, SymlinkNode};

use crate::blob::Blob;
use crate::probe::Probe;

/// Where the programs of actions are looked up.
const PATH: &str = "/usr/local/bin:/usr/bin:/bin";

/// An action that has not been executed, and how to ask for it.
#[derive(Clone)]
pub(crate) struct Job {
    pub(crate) function: DigestFunction,
    pub(crate) command: Command,
    /// Everything but the digests of command and input root.
    pub(crate) action: Action,
    pub(crate) input_root: Blob,
    /// What the input root names, directly or further down.
    pub(crate) inputs: Vec<Blob>,
    pub(crate) skip_cache_lookup: bool,
    pub(crate) priority: i32,
}

impl Job {
    /// A shell script in an empty input root, on a worker of the platform that the run is for.
    pub(crate) fn script(probe: &mut Probe<'_>, script: &str) -> Self {
        let config = &probe.session.config;
        let arguments = vec![config.program.clone(), "-c".into(), script.into()];
        let platform = platform(&config.platform);
        Self::new(probe.uuid(), arguments, platform)
    }

    fn new(nonce: String, arguments: Vec<String>, platform: Platform) -> Self {
        let mut command = Command { arguments, ..Command::default() };
        command.environment_variables =
            vec![variable("GF_CONFORMANCE", &nonce), variable("LC_ALL", "C"), variable("PATH", PATH)];
        let action = Action { platform: Some(platform.clone()), ..Action::default() };
        Self {
            function: DigestFunction::Sha256,
            command: with_platform(command, platform),
            action,
            input_root: Blob::message(&Directory::default()),
            inputs: Vec::new(),
            skip_cache_lookup: false,
            priority: 0,
        }
    }

    pub(crate) fn outputs(mut self, paths: &[&str]) -> Self {
        self.command.output_paths = paths.iter().map(|path| (*path).to_owned()).collect();
        self
    }

    pub(crate) fn inputs(mut self, folder: &Folder) -> Self {
        self.inputs = Vec::new();
        self.input_root = folder.encode(self.function, &mut self.inputs);
        self
    }

    /// With a `Directory` as the input root, whatever it says.
    pub(crate) fn input_root(mut self, directory: &Directory, inputs: Vec<Blob>) -> Self {
        self.input_root = self.blob(directory);
        self.inputs = inputs;
        self
    }

    pub(crate) fn timeout(mut self, seconds: i64) -> Self {
        self.action.timeout = Some(prost_types::Duration { seconds, nanos: 0 });
        self
    }

    pub(crate) fn do_not_cache(mut self) -> Self {
        self.action.do_not_cache = true;
        self
    }

    pub(crate) fn skip_cache_lookup(mut self) -> Self {
        self.skip_cache_lookup = true;
        self
    }

    /// By another digest function; before inputs are given.
    pub(crate) fn by(mut self, function: DigestFunction) -> Self {
        self.function = function;
        self.input_root = self.blob(&Directory::default());
        self
    }

    /// A message as a blob by the digest function of the job.
    pub(crate) fn blob(&self, message: &impl prost::Message) -> Blob {
        Blob::of(self.function, message.encode_to_vec())
    }

    pub(crate) fn command_blob(&self) -> Blob {
        self.blob(&self.command)
    }

    pub(crate) fn action_blob(&self) -> Blob {
        let mut action = self.action.clone();
        action.command_digest = Some(self.command_blob().wire());
        action.input_root_digest = Some(self.input_root.wire());
        self.blob(&action)
    }

    /// All that has to be in the store before the job can be executed.
    pub(crate) fn blobs(&self) -> Vec<Blob> {
        let mut blobs = self.inputs.clone();
        blobs.extend([self.input_root.clone(), self.command_blob(), self.action_blob()]);
        blobs
    }
}

/// Clients set the platform in the command too, for servers before 2.2.
#[allow(deprecated, reason = "the field is deprecated, and clients must still set it")]
fn with_platform(mut command: Command, platform: Platform) -> Command {
    command.platform = Some(platform);
    command
}

fn variable(name: &str, value: &str) -> EnvironmentVariable {
    EnvironmentVariable { name: name.into(), value: value.into() }
}

/// The platform with these properties, sorted as the specification wants them.
pub(crate) fn platform(properties: &[(String, String)]) -> Platform {
    let property = |(name, value): &(String, String)| Property { name: name.clone(), value: value.clone() };
    let mut properties: Vec<_> = properties.iter().map(property).collect();
    properties.sort_by(|a, b| (&a.name, &a.value).cmp(&(&b.name, &b.value)));
    Platform { properties }
}

/// A folder of inputs, in canonical form once encoded.
#[derive(Clone, Default)]
pub(crate) struct Folder {
    files: BTreeMap<String, (Vec<u8>, bool)>,
    symlinks: BTreeMap<String, String>,
    folders: BTreeMap<String, Folder>,
}

impl Folder {
    /// With a file at a path; the folders on the way are made.
    pub(crate) fn file(mut self, path: &str, content: impl AsRef<[u8]>) -> Self {
        let (folder, name) = self.at(path);
        folder.files.insert(name, (content.as_ref().to_vec(), false));
        self
    }

    pub(crate) fn executable(mut self, path: &str, content: impl AsRef<[u8]>) -> Self {
        let (folder, name) = self.at(path);
        folder.files.insert(name, (content.as_ref().to_vec(), true));
        self
    }

    pub(crate) fn symlink(mut self, path: &str, target: &str) -> Self {
        let (folder, name) = self.at(path);
        folder.symlinks.insert(name, target.into());
        self
    }

    pub(crate) fn folder(mut self, path: &str) -> Self {
        let (folder, name) = self.at(path);
        folder.folders.entry(name).or_default();
        self
    }

    fn at(&mut self, path: &str) -> (&mut Self, String) {
        match path.split_once('/') {
            None => (self, path.to_owned()),
            Some((first, rest)) => self.folders.entry(first.to_owned()).or_default().at(rest),
        }
    }

    /// The directory as a blob; what it names goes into `blobs`.
    pub(crate) fn encode(&self, function: DigestFunction, blobs: &mut Vec<Blob>) -> Blob {
        let mut directory = Directory::default();
        for (name, (content, is_executable)) in &self.files {
            let blob = Blob::of(function, content.clone());
            directory.files.push(file_node(name, blob.digest, *is_executable));
            blobs.push(blob);
        }
        for (name, folder) in &self.folders {
            let blob = folder.encode(function, blobs);
            directory.directories.push(DirectoryNode { name: name.clone(), digest: Some(blob.wire()) });
            blobs.push(blob);
        }
        for (name, target) in &self.symlinks {
            directory.symlinks.push(symlink_node(name, target));
        }
        Blob::of(function, prost::Message::encode_to_vec(&directory))
    }
}

pub(crate) fn file_node(name: &str, digest: Digest, is_executable: bool) -> FileNode {
    FileNode { name: name.into(), digest: Some(digest.into()), is_executable, node_properties: None }
}

pub(crate) fn symlink_node(name: &str, target: &str) -> SymlinkNode {
    SymlinkNode { name: name.into(), target: target.into(), node_properties: None }
}

#[cfg(test)]
mod tests {
    use gf_reapi::check_directory;
    use prost::Message;

    use super::*;

    #[test]
    fn folders_are_canonical() {
        let folder = Folder::default().file("b", "1").executable("a", "2").symlink("c", "b").file("d/e/f", "3");
        let mut blobs = Vec::new();
        let root = folder.folder("d/g").encode(DigestFunction::Sha256, &mut blobs);
        // Three files, and the directories e, g and d.
        assert_eq!(blobs.len(), 6);
        let directory = Directory::decode(root.bytes).unwrap();
        assert!(check_directory(&directory).is_ok());
        assert_eq!(directory.files.len() + directory.directories.len() + directory.symlinks.len(), 4);
    }
}
