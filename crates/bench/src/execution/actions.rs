//! Actions as a client has them: made, uploaded, executed, and their answers read.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use bazel_remote_apis::build::bazel::remote::execution::v2 as rex;
use bazel_remote_apis::google::longrunning::operation;
use bazel_remote_apis::google::protobuf::Timestamp;
use prost::Message;

use crate::connection::Connection;
use crate::data::{Blob, Source, digest_of};
use crate::fixture::{batch_request, upload_batch};

/// A worker must have attached after so long.
const ATTACH_LIMIT: Duration = Duration::from_secs(60);
const PAUSE: Duration = Duration::from_millis(10);
/// Bytes of blobs in one batch; a message of twice the size is taken everywhere.
const BATCH_BYTES: usize = 2 << 20;
/// Blobs in one batch.
const BATCH_BLOBS: usize = 1000;

/// A message as a blob.
pub(super) fn blob_of(message: &impl Message) -> Blob {
    let bytes = message.encode_to_vec();
    Blob { digest: digest_of(&bytes), bytes }
}

/// What an action is made of, beside its inputs.
pub(super) struct Made {
    /// The command and the action.
    pub(super) blobs: [Blob; 2],
    /// Executes it.
    pub(super) request: Arc<rex::ExecuteRequest>,
}

/// An action that no run had before: its salt is random. Its result may be kept, so that the way through the action
/// cache is part of what is measured.
pub(super) fn fresh(source: &mut Source, arguments: &[&str], input_root: &rex::Digest) -> Made {
    let arguments = arguments.iter().map(|argument| (*argument).to_owned()).collect();
    let command = blob_of(&rex::Command { arguments, ..Default::default() });
    let action = blob_of(&rex::Action {
        command_digest: Some(command.digest.clone()),
        input_root_digest: Some(input_root.clone()),
        salt: source.key().to_vec(),
        ..Default::default()
    });
    let request = rex::ExecuteRequest { action_digest: Some(action.digest.clone()), ..Default::default() };
    Made { blobs: [command, action], request: Arc::new(request) }
}

/// Uploads blobs in batches.
pub(super) async fn upload_all(connection: &Connection, blobs: &[Blob]) -> anyhow::Result<()> {
    let mut left = blobs;
    while !left.is_empty() {
        let mut bytes = 0;
        let fits = |blob: &&Blob| {
            bytes += blob.bytes.len();
            bytes <= BATCH_BYTES
        };
        let count = left.iter().take(BATCH_BLOBS).take_while(fits).count().max(1);
        let (batch, rest) = left.split_at(count);
        upload_batch(connection, Arc::new(batch_request(batch))).await.context("upload what actions need")?;
        left = rest;
    }
    Ok(())
}

/// Executes an action to its end. It must have been run by a worker, and with success.
pub(super) async fn execute(
    connection: &Connection,
    request: Arc<rex::ExecuteRequest>,
) -> anyhow::Result<rex::ActionResult> {
    let mut said = connection.execute(request).await?;
    let mut last = None;
    while let Some(operation) = said.message().await? {
        last = Some(operation);
    }
    let operation = last.filter(|operation| operation.done).context("the operation has no end")?;
    let answer = match operation.result {
        Some(operation::Result::Response(answer)) => rex::ExecuteResponse::decode(answer.value.as_slice())?,
        Some(operation::Result::Error(status)) => bail!("the operation failed: {status:?}"),
        None => bail!("the operation ended without an answer"),
    };
    let status = answer.status.unwrap_or_default();
    ensure!(status.code == 0, "an action was not run: {status:?}");
    ensure!(!answer.cached_result, "an action that nobody ran before was answered from the cache");
    let result = answer.result.context("an action has no result")?;
    ensure!(result.exit_code == 0, "an action ended with {}", result.exit_code);
    let worker = result.execution_metadata.as_ref().map_or("", |metadata| &metadata.worker);
    ensure!(!worker.is_empty(), "nobody says that he ran an action");
    Ok(result)
}

/// The time between two moments that metadata name.
pub(super) fn between(begin: Option<&Timestamp>, end: Option<&Timestamp>) -> Option<Duration> {
    let since_epoch = |at: &Timestamp| {
        let nanos = Duration::from_nanos(u64::try_from(at.nanos).ok()?);
        Some(Duration::from_secs(u64::try_from(at.seconds).ok()?) + nanos)
    };
    end.and_then(since_epoch)?.checked_sub(begin.and_then(since_epoch)?)
}

/// Waits until a worker takes actions.
pub(super) async fn wait_for_worker(connection: &Connection) -> anyhow::Result<()> {
    let empty = blob_of(&rex::Directory::default());
    let made = fresh(&mut Source::fresh(), &["/bin/true"], &empty.digest);
    upload_all(connection, &[&[empty], made.blobs.as_slice()].concat()).await?;
    let begun = Instant::now();
    loop {
        match execute(connection, Arc::clone(&made.request)).await {
            Ok(_) => return Ok(()),
            Err(refused) if begun.elapsed() > ATTACH_LIMIT => return Err(refused.context("no worker attaches")),
            Err(_) => tokio::time::sleep(PAUSE).await,
        }
    }
}
