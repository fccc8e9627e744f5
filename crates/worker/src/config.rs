//! What a worker is told when it starts.

use std::fmt;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::time::Duration;

use crate::assignment::NETWORK_PROPERTIES;
use crate::sandbox::{SandboxConfig, machine_memory_bytes};

/// Everything that a worker needs to know. [`WorkerConfig::new`] fills in what most machines want.
#[derive(Debug)]
pub struct WorkerConfig {
    /// A name that people recognise. It need not be unique.
    pub name: String,
    /// The folder of this worker alone: cache, input roots, runs.
    pub data_dir: PathBuf,
    /// How it reaches its server.
    pub server: ServerConnection,
    /// What it shows to its server.
    pub token: Token,
    /// What actions may ask for, in the order given, beside what was found out about the machine.
    pub properties: Vec<(String, String)>,
    /// What it offers, in whole cores.
    pub cores: u32,
    /// What it offers.
    pub memory_bytes: u64,
    /// The most that its cache of input files may hold, and as much again that of Nix store paths.
    pub cache_bytes: u64,
    /// Whether actions that ask for the network get that of the machine.
    pub network: NetworkPolicy,
    /// Whether processes stay for actions that ask for it.
    pub persistent: PersistentPolicy,
    /// How sandboxes are made; the folder in it lies below `data_dir`.
    pub sandbox: SandboxConfig,
    /// The bounds of every action.
    pub bounds: Bounds,
    /// What running actions get to end by themselves once the worker is told to stop.
    pub drain_deadline: Duration,
}

/// How a worker reaches its server.
#[derive(Debug)]
pub enum ServerConnection {
    /// Over the network; a connection that breaks is made again.
    Url {
        /// `http://HOST:PORT` or `https://HOST:PORT`.
        url: String,
        /// Trusted certificates in PEM, instead of the system's.
        ca_pem: Option<Vec<u8>>,
    },
    /// A connected Unix socket. The worker ends with it.
    Inherited(OwnedFd),
}

/// Whether actions may reach the network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NetworkPolicy {
    /// None does.
    Refused,
    /// Those do that ask for it with the platform property `network=on` or `dockerNetwork=standard`.
    OnRequest,
}

/// Whether a process may stay for the next action.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PersistentPolicy {
    /// Every action runs alone.
    Refused,
    /// Processes stay for actions that name one with the platform property `persistentWorkerKey`, mark the files of their
    /// tool and have flag files: what Bazel sends with `--experimental_remote_mark_tool_inputs`.
    OnRequest,
}

/// The bounds of every action, beside its time and memory.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// What it may write, outputs included.
    pub disk_bytes: u64,
    /// Each of stdout and stderr.
    pub log_bytes: u64,
    /// Files, folders and links that it may make.
    pub files: u64,
    /// Processes and threads at one time.
    pub processes: u32,
}

impl Default for Bounds {
    fn default() -> Self {
        Self { disk_bytes: 10 << 30, log_bytes: 64 << 20, files: 1_000_000, processes: 4096 }
    }
}

/// A secret: it is never shown.
#[derive(Clone)]
pub struct Token(String);

impl Token {
    /// Takes the text as it is.
    #[must_use]
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    pub(crate) fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(...)")
    }
}

/// What the cache of input files may hold unless the operator says otherwise.
const CACHE_BYTES: u64 = 10 << 30;
const DRAIN_DEADLINE: Duration = Duration::from_secs(20);
/// Of the memory of the machine, what is left for its system, this worker and the server beside it.
const MEMORY_KEPT_BACK: u64 = 8;

impl WorkerConfig {
    /// Offers the whole machine.
    #[must_use]
    pub fn new(name: String, data_dir: PathBuf, server: ServerConnection, token: Token) -> Self {
        let cores = std::thread::available_parallelism().map_or(1, |cores| u32::try_from(cores.get()).unwrap_or(1));
        let memory = machine_memory_bytes();
        Self {
            name,
            sandbox: SandboxConfig::new(data_dir.join("sandbox")),
            data_dir,
            server,
            token,
            properties: Vec::new(),
            cores,
            memory_bytes: memory - memory / MEMORY_KEPT_BACK,
            cache_bytes: CACHE_BYTES,
            network: NetworkPolicy::Refused,
            persistent: PersistentPolicy::OnRequest,
            bounds: Bounds::default(),
            drain_deadline: DRAIN_DEADLINE,
        }
    }

    /// What is offered to the server: what was found out first, unless the operator named the same property. Without
    /// `own_network` the kernel takes the network away from no action.
    pub(crate) fn offered_properties(&self, own_network: bool) -> Vec<(String, String)> {
        let found = [("Arch", arch()), ("ISA", instruction_set()), ("OSFamily", "linux"), ("nix-closure", "supported")];
        let network = match self.network {
            NetworkPolicy::Refused => &[][..],
            NetworkPolicy::OnRequest => &NETWORK_PROPERTIES,
        };
        let without = if own_network { &WITHOUT_NETWORK[..] } else { &[] };
        let found = found.into_iter().chain(without.iter().chain(network).copied());
        let is_said = |name: &str| self.properties.iter().any(|(said, _)| said == name);
        let found = found.filter(|(name, _)| !is_said(name));
        found.map(|(name, value)| (name.to_owned(), value.to_owned())).chain(self.properties.iter().cloned()).collect()
    }
}

/// What actions may say that want none, on whatever worker.
const WITHOUT_NETWORK: [(&str, &str); 2] = [("network", "off"), ("dockerNetwork", "off")];

/// As Linux and most build tools call it.
const fn arch() -> &'static str {
    std::env::consts::ARCH
}

/// As the platform lexicon of the Remote Execution API calls it.
fn instruction_set() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "x86-64",
        "aarch64" => "arm-a64",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_operator_wins_over_what_was_found_out() {
        let server = ServerConnection::Url { url: "http://127.0.0.1:1".to_owned(), ca_pem: None };
        let mut config = WorkerConfig::new("w".to_owned(), "/nowhere".into(), server, Token::new("secret"));
        config.properties = vec![("OSFamily".to_owned(), "debian".to_owned()), ("pool".to_owned(), "nix".to_owned())];
        let offered = config.offered_properties(true);
        let of = |name: &str| -> Vec<String> {
            offered.iter().filter(|(is, _)| is == name).map(|(_, value)| value.clone()).collect()
        };
        assert_eq!(of("OSFamily"), ["debian"]);
        assert_eq!(of("pool"), ["nix"]);
        assert_eq!(of("ISA").len(), 1);
        assert_eq!(of("network"), ["off"]);
        config.network = NetworkPolicy::OnRequest;
        let offered = config.offered_properties(true);
        assert!(NETWORK_PROPERTIES.iter().all(|(name, value)| offered.contains(&((*name).into(), (*value).into()))));
        let offered = config.offered_properties(false);
        assert!(
            !offered.iter().any(|property| property.1 == "off")
                && offered.iter().any(|property| property.0 == "network")
        );
        assert!(config.memory_bytes > 0 && config.cores > 0);
        assert!(!format!("{config:?}").contains("secret"));
    }
}
