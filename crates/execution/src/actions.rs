//! Actions before they are run: read, checked, and kept with everything that they need.
//!
//! What is wrong is found before anything waits in a queue, and all of it at once: every blob that is missing, at any
//! depth, is named in one answer. Deliberately absent: running, and what becomes of the result.
//!
//! What always holds: a [`CheckedAction`] named nothing that was missing when it was checked, and all of it is leased
//! from then on.

mod command;
mod inputs;
mod platform;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use gf_blobstore::{BlobStore, StoreError};
use gf_digest::Digest;
use gf_reapi::WireDigest;
use gf_reapi::execution::{Action, Command};
use gf_tenancy::{Authorized, Execute};
use prost::Message;
use thiserror::Error;

pub use command::NODE_PROPERTIES;
pub(crate) use inputs::find_missing;

use crate::closures::{Closure, ClosureError, Toolchains};
use crate::content::{owner, read_whole};
use crate::encoded::count_fields;
use crate::scheduler::{Platform, Resources};

/// The encoded bytes of an action, and of a command: an environment and the arguments of one process.
const MAX_MESSAGE_BYTES: u64 = 4 << 20;

/// Arguments, variables, outputs and properties of one command; a variable is a message of its own.
const MAX_COMMAND_FIELDS: usize = 500_000;
const COMMAND_DEPTH: u32 = 2;

/// Why an action is not run.
#[derive(Debug, Error)]
pub(crate) enum ActionError {
    /// These blobs must be uploaded first. Never empty.
    #[error("{} must be uploaded first, such as {}", count(.0.len()), first(.0))]
    Missing(Vec<Digest>),
    /// It can never be run as it is.
    #[error("{0}")]
    Invalid(String),
    /// The store paths that it names cannot be had.
    #[error(transparent)]
    Closure(#[from] ClosureError),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl ActionError {
    fn invalid(what: impl std::fmt::Display) -> Self {
        Self::Invalid(what.to_string())
    }
}

fn count(blobs: usize) -> String {
    if blobs == 1 { "1 blob".to_owned() } else { format!("{blobs} blobs") }
}

fn first(digests: &[Digest]) -> String {
    digests.first().map(ToString::to_string).unwrap_or_default()
}

/// How long actions may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// Of an action that names none.
    pub default: Duration,
    /// Longer ones are refused.
    pub max: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self { default: Duration::from_secs(3600), max: Duration::from_secs(24 * 3600) }
    }
}

/// An action that was read, but not checked.
#[derive(Clone, Debug)]
pub(crate) struct ReadAction {
    pub(crate) digest: Digest,
    message: Action,
}

/// An action that may run: it is well formed, and all that it names is here.
#[derive(Clone, Debug)]
pub(crate) struct CheckedAction {
    /// The action; its function is that of all digests around it.
    pub(crate) digest: Digest,
    /// Its command.
    pub(crate) command: Digest,
    /// What the worker must have.
    pub(crate) platform: Arc<Platform>,
    /// What it takes of a worker.
    pub(crate) demand: Resources,
    /// From the start of the process to its end.
    pub(crate) timeout: Duration,
    /// Whether its result must not be kept, nor shared with others who want the same now.
    pub(crate) do_not_cache: bool,
    /// The store paths that it sees.
    pub(crate) closure: Closure,
    input_root: Digest,
}

impl ReadAction {
    /// Reads an action.
    ///
    /// # Errors
    /// [`ActionError`].
    pub(crate) async fn read(
        store: &dyn BlobStore,
        grant: &Authorized<Execute>,
        digest: Digest,
    ) -> Result<Self, ActionError> {
        let encoded = read_message(store, grant, "action", digest).await?;
        let message = Action::decode(encoded)
            .map_err(|error| ActionError::Invalid(format!("the blob {digest} is no Action: {error}")))?;
        Ok(Self { digest, message })
    }

    pub(crate) const fn do_not_cache(&self) -> bool {
        self.message.do_not_cache
    }

    /// Checks everything, and leases all that the action names.
    ///
    /// # Errors
    /// [`ActionError`], with everything that is missing.
    pub(crate) async fn check(
        self,
        store: &dyn BlobStore,
        grant: &Authorized<Execute>,
        toolchains: &Toolchains,
        timeouts: Timeouts,
    ) -> Result<CheckedAction, ActionError> {
        let function = self.digest.function();
        let named = |field: &str, digest: &Option<WireDigest>| {
            let wire = digest.as_ref().ok_or_else(|| ActionError::Invalid(format!("Action.{field} is not set")))?;
            wire.to_digest(function).map_err(|error| ActionError::Invalid(format!("Action.{field}: {error}")))
        };
        let command_digest = named("command_digest", &self.message.command_digest)?;
        let input_root = named("input_root_digest", &self.message.input_root_digest)?;
        let timeout = timeout(&self.message, timeouts)?;

        let command = match read_message(store, grant, "command", command_digest).await {
            Ok(command) => Some(command),
            // It is among what is missing below.
            Err(ActionError::Missing(_)) => None,
            Err(error) => return Err(error),
        };
        let named = [self.digest, command_digest];
        let missing = inputs::find_missing(store, owner(grant), input_root, &named).await?;
        let command = match command {
            Some(command) if missing.is_empty() => command,
            None if missing.is_empty() => return Err(ActionError::Missing(vec![command_digest])),
            _ => return Err(ActionError::Missing(missing)),
        };
        if count_fields(&command, COMMAND_DEPTH) > MAX_COMMAND_FIELDS {
            return Err(ActionError::invalid("the command has too many arguments, variables and outputs"));
        }
        let message = Command::decode(command)
            .map_err(|error| ActionError::Invalid(format!("the blob {command_digest} is no Command: {error}")))?;
        command::check(&message)?;
        let asked = platform::read(&self.message, &message)?;
        Ok(CheckedAction {
            digest: self.digest,
            command: command_digest,
            platform: Arc::new(asked.platform),
            demand: asked.demand,
            timeout,
            do_not_cache: self.message.do_not_cache,
            closure: toolchains.provide(grant, asked.store_paths).await?,
            input_root,
        })
    }
}

impl CheckedAction {
    /// Extends the lease of all that the action names. What went missing is found out by the worker.
    ///
    /// # Errors
    /// [`ActionError`].
    pub(crate) async fn renew(
        &self,
        store: &dyn BlobStore,
        grant: &Authorized<Execute>,
        toolchains: &Toolchains,
    ) -> Result<(), ActionError> {
        let named = [self.digest, self.command];
        inputs::find_missing(store, owner(grant), self.input_root, &named).await?;
        toolchains.lease(grant, &self.closure).await
    }
}

/// Reads a small message that is a blob.
///
/// # Errors
/// [`ActionError`].
pub(crate) async fn read_message(
    store: &dyn BlobStore,
    grant: &Authorized<Execute>,
    what: &str,
    digest: Digest,
) -> Result<Bytes, ActionError> {
    match read_whole(store, owner(grant), digest, MAX_MESSAGE_BYTES).await {
        Ok(bytes) => Ok(bytes),
        Err(StoreError::NotFound(digest)) => Err(ActionError::Missing(vec![digest])),
        Err(StoreError::TooLarge { limit_bytes, .. }) => {
            Err(ActionError::Invalid(format!("the {what} {digest} is larger than {limit_bytes} bytes")))
        }
        Err(error) => Err(error.into()),
    }
}

fn timeout(action: &Action, timeouts: Timeouts) -> Result<Duration, ActionError> {
    let Some(asked) = action.timeout else { return Ok(timeouts.default) };
    let asked = Duration::try_from(asked)
        .map_err(|_| ActionError::Invalid("Action.timeout is negative or out of range".to_owned()))?;
    if asked > timeouts.max {
        let (asked, max) = (asked.as_secs(), timeouts.max.as_secs());
        return Err(ActionError::Invalid(format!("Action.timeout is {asked} s; this server allows at most {max} s")));
    }
    Ok(if asked.is_zero() { timeouts.default } else { asked })
}

#[cfg(test)]
mod tests;
