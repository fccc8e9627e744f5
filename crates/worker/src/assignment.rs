//! An assignment, read and checked before anything is fetched for it.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::time::Duration;

use gf_digest::{Digest, DigestFunction, InstanceName};
use gf_reapi::digest_function;
use gf_reapi::execution::{Action, Command, Platform};
use gf_reapi::worker;
use prost::Message;

use crate::config::{NetworkPolicy, Token};
use crate::failure::Failure;
use crate::input_root::Wanted;
use crate::outputs::Asked;
use crate::paths::InsidePath;
use crate::persistent::Wish;
use crate::sandbox::Network;
use crate::store_paths::StorePath;
use crate::times::read_duration;

/// What an action may ask for to get the network: our word, and that of other services.
pub(crate) const NETWORK_PROPERTIES: [(&str, &str); 3] =
    [("network", "on"), ("network", "host"), ("dockerNetwork", "standard")];

/// What a server that says nothing grants.
const USUAL_TIMEOUT: Duration = Duration::from_secs(3600);

/// What is to be done.
#[derive(Clone, Debug)]
pub(crate) struct Order {
    pub(crate) instance: InstanceName,
    pub(crate) function: DigestFunction,
    pub(crate) credential: Token,
    pub(crate) arguments: Vec<OsString>,
    pub(crate) environment: BTreeMap<OsString, OsString>,
    pub(crate) inputs: Wanted,
    pub(crate) outputs: Asked,
    pub(crate) timeout: Duration,
    pub(crate) memory: Memory,
    pub(crate) network: Network,
    /// What it sees at `/nix/store`.
    pub(crate) store_paths: Vec<StorePath>,
    /// The process that it would rather be a request to.
    pub(crate) persistent: Option<Wish>,
}

/// How much memory an action may use, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Memory {
    /// What it asked for, and what the server keeps free for it.
    Reserved(u64),
    /// It did not say how much it takes, and may take what the worker has for all its actions.
    Shared(u64),
}

impl Memory {
    /// An action never gets more than the worker has.
    fn of(assignment: &worker::Assignment, worker_bytes: u64) -> Self {
        match assignment.reserved.as_ref().map_or(0, |reserved| reserved.memory_bytes) {
            0 => Self::Shared(worker_bytes),
            reserved => Self::Reserved(reserved.min(worker_bytes)),
        }
    }

    /// The most that it may use.
    pub(crate) const fn bytes(self) -> u64 {
        match self {
            Self::Reserved(bytes) | Self::Shared(bytes) => bytes,
        }
    }
}

impl Order {
    /// Reads what the server sent to a worker that has so much memory, and refuses what cannot be run.
    pub(crate) fn read(
        assignment: &worker::Assignment,
        policy: NetworkPolicy,
        worker_bytes: u64,
    ) -> Result<Self, Failure> {
        let broken = |what: String| Failure::Worker(format!("the assignment cannot be read: {what}"));
        let instance = InstanceName::new(&assignment.instance_name).map_err(|error| broken(error.to_string()))?;
        let function = digest_function(assignment.digest_function).map_err(|error| broken(error.to_string()))?;
        let action = Action::decode(assignment.action.clone()).map_err(|error| broken(error.to_string()))?;
        let command = Command::decode(assignment.command.clone()).map_err(|error| broken(error.to_string()))?;
        let working_directory = InsidePath::parse("working directory", &command.working_directory)?;
        let outputs = Asked::of(&command, &working_directory)?;
        let timeout = assignment.timeout.as_ref().and_then(read_duration).unwrap_or(USUAL_TIMEOUT);
        let platform = platform(&action, &command);
        let network = network(platform, policy)?;
        let inputs = Wanted { root: root(&action, function)?, working_directory, output_parents: outputs.parents() };
        Ok(Self {
            instance,
            function,
            credential: Token::new(assignment.credential.clone()),
            arguments: arguments(&command)?,
            environment: environment(&command)?,
            inputs,
            outputs,
            timeout,
            memory: Memory::of(assignment, worker_bytes),
            network,
            store_paths: assignment.store_paths.iter().map(StorePath::read).collect::<Result<_, _>>()?,
            persistent: Wish::of(platform),
        })
    }
}

fn root(action: &Action, function: DigestFunction) -> Result<Digest, Failure> {
    let root = action.input_root_digest.as_ref();
    let root = root.ok_or_else(|| Failure::invalid("the action names no input root"))?;
    root.to_digest(function).map_err(|error| Failure::invalid(format!("the input root is no digest: {error}")))
}

fn arguments(command: &Command) -> Result<Vec<OsString>, Failure> {
    if command.arguments.first().is_none_or(String::is_empty) {
        return Err(Failure::invalid("the command names no program"));
    }
    if command.arguments.iter().any(|argument| argument.contains('\0')) {
        return Err(Failure::invalid("an argument of the command holds NUL"));
    }
    Ok(command.arguments.iter().map(OsString::from).collect())
}

fn environment(command: &Command) -> Result<BTreeMap<OsString, OsString>, Failure> {
    let mut environment = BTreeMap::new();
    for variable in &command.environment_variables {
        let (name, value) = (&variable.name, &variable.value);
        if name.is_empty() || name.contains(['=', '\0']) || value.contains('\0') {
            return Err(Failure::invalid(format!("{name:?} is no environment variable")));
        }
        environment.insert(name.into(), value.into());
    }
    Ok(environment)
}

/// The platform of the action counts; that of the command is for actions of older clients.
#[expect(deprecated, reason = "older clients say it there")]
fn platform<'a>(action: &'a Action, command: &'a Command) -> Option<&'a Platform> {
    action.platform.as_ref().or(command.platform.as_ref())
}

fn network(platform: Option<&Platform>, policy: NetworkPolicy) -> Result<Network, Failure> {
    if !platform.is_some_and(asks_for_network) {
        return Ok(Network::Loopback);
    }
    match policy {
        NetworkPolicy::OnRequest => Ok(Network::Host),
        NetworkPolicy::Refused => Err(Failure::precondition(
            "the action asks for the network, which this worker gives to none; start workers with --network to allow it",
        )),
    }
}

fn asks_for_network(platform: &Platform) -> bool {
    let asks = |(name, value): (&str, &str)| NETWORK_PROPERTIES.contains(&(name, value));
    platform.properties.iter().any(|property| asks((&property.name, &property.value)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use gf_reapi::execution::command::EnvironmentVariable;
    use gf_reapi::execution::platform::Property;

    fn assignment(action: &Action, command: &Command) -> worker::Assignment {
        worker::Assignment {
            action: action.encode_to_vec().into(),
            command: command.encode_to_vec().into(),
            ..worker::Assignment::default()
        }
    }

    fn action() -> Action {
        let root = Digest::empty(DigestFunction::Sha256);
        Action { input_root_digest: Some(root.into()), ..Action::default() }
    }

    fn command() -> Command {
        Command { arguments: vec!["true".to_owned()], ..Command::default() }
    }

    #[test]
    fn what_cannot_be_run_is_refused() {
        let refused = |action: &Action, command: &Command| {
            let read = Order::read(&assignment(action, command), NetworkPolicy::Refused, 1 << 30);
            matches!(read, Err(Failure::Refused { .. }))
        };
        assert!(!refused(&action(), &command()));
        assert!(refused(&Action::default(), &command()));
        assert!(refused(&action(), &Command::default()));
        assert!(refused(&action(), &Command { working_directory: "../x".to_owned(), ..command() }));
        assert!(refused(&action(), &Command { output_paths: vec!["/etc/passwd".to_owned()], ..command() }));
        assert!(refused(&action(), &Command { output_node_properties: vec!["colour".to_owned()], ..command() }));
        let variable = EnvironmentVariable { name: "A=B".to_owned(), value: String::new() };
        assert!(refused(&action(), &Command { environment_variables: vec![variable], ..command() }));
    }

    #[test]
    fn the_network_is_for_those_that_ask_where_the_operator_allows_it() {
        let property = Property { name: "network".to_owned(), value: "on".to_owned() };
        let asking = Action { platform: Some(Platform { properties: vec![property] }), ..action() };
        let read = |action: &Action, policy| Order::read(&assignment(action, &command()), policy, 1 << 30);
        assert_eq!(read(&asking, NetworkPolicy::OnRequest).unwrap().network, Network::Host);
        assert_eq!(read(&action(), NetworkPolicy::OnRequest).unwrap().network, Network::Loopback);
        assert!(read(&asking, NetworkPolicy::Refused).is_err());
    }

    #[test]
    fn no_action_gets_more_memory_than_the_worker_has() {
        let memory = |reserved: u64| {
            let reserved = worker::Resources { milli_cores: 1000, memory_bytes: reserved };
            let assignment = worker::Assignment { reserved: Some(reserved), ..assignment(&action(), &command()) };
            Order::read(&assignment, NetworkPolicy::Refused, 1000).unwrap().memory
        };
        assert_eq!(memory(999), Memory::Reserved(999));
        assert_eq!(memory(1001), Memory::Reserved(1000));
        assert_eq!(memory(0), Memory::Shared(1000));
    }
}
