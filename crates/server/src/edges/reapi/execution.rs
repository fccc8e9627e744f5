//! Execute and WaitExecution, and how an operation is written.

use std::sync::Arc;

use axum::http::HeaderMap;
use base64::Engine;
use base64::prelude::{BASE64_STANDARD, BASE64_STANDARD_NO_PAD};
use bytes::Bytes;

use futures::{TryStreamExt, stream};
use gf_digest::{Digest, DigestFunction};
use gf_execution::Inlining;
use gf_execution::operations::{Ended, OperationName, Progress, Request, Stage, Verdict, Watch};
use gf_reapi::execution::{
    ExecuteOperationMetadata, ExecuteRequest, ExecuteResponse, RequestMetadata, WaitExecutionRequest, execution_stage,
};
use gf_reapi::longrunning::{Operation, operation};
use gf_reapi::{WireDigest, digest_function, rpc};
use gf_tenancy::audit::Amount;
use gf_tenancy::{Authorized, Execute};
use prost::{Message, Name};
use tokio_util::sync::CancellationToken;
use tonic::{Code, Status};

use super::status::{IntoStatus, missing_blobs};
use super::{Caller, Edge, grpc};
use crate::edges::cut;

/// Where clients say what a call belongs to.
const REQUEST_METADATA: &str = "build.bazel.remote.execution.v2.requestmetadata-bin";
/// The name of an invocation is a UUID; what is longer is cut.
const MAX_INVOCATION_BYTES: usize = 128;
/// An unknown name is repeated up to this length.
const MAX_SHOWN_NAME_BYTES: usize = 512;

/// Files that a client may want within a result, which is remembered for as long as the operation is.
const MAX_INLINED_FILES: usize = 1000;

/// What a client is told that asks a cache to run something.
pub(super) const CACHE_ONLY: &str = "this server is a cache and runs no actions: build with --remote_cache instead of \
                          --remote_executor, or have `execution.enabled` set in its configuration";

/// The stages of one operation, from the first one on.
pub(super) async fn execute(edge: Arc<Edge>, caller: Caller, request: ExecuteRequest) -> Result<grpc::Frames, Status> {
    let grant = edge.authorize::<Execute>(&caller, &request.instance_name)?;
    if !edge.state.limits.executes {
        return Err(Status::unimplemented(CACHE_ONLY));
    }
    let function = digest_function(request.digest_function).map_err(IntoStatus::into_status)?;
    let action = request.action_digest.ok_or_else(|| Status::invalid_argument("action_digest is not set"))?;
    let action = action.to_digest(function).map_err(IntoStatus::into_status)?;
    let wanted = Request {
        action,
        skip_cache_lookup: request.skip_cache_lookup,
        priority: request.execution_policy.map(|policy| policy.priority).unwrap_or_default(),
        invocation: invocation(&caller.headers).into(),
        inlining: Inlining {
            stdout: request.inline_stdout,
            stderr: request.inline_stderr,
            output_files: request.inline_output_files.into_iter().take(MAX_INLINED_FILES).collect(),
        },
    };
    edge.count(&caller, &grant, "execution.start", Amount::ONCE);
    let watch = edge.state.operations.execute(grant, wanted);
    let watch = watch.map_err(|error| Status::resource_exhausted(error.to_string()))?;
    Ok(stages(watch, action, edge.state.stopping.clone()))
}

/// The stages of an operation that exists, from the first one on.
pub(super) async fn wait(
    edge: Arc<Edge>,
    caller: Caller,
    request: WaitExecutionRequest,
) -> Result<grpc::Frames, Status> {
    let (name, grant) = authorize(&edge, &caller, &request.name)?;
    let operations = &edge.state.operations;
    let (action, _) = operations.look(&grant, &name).ok_or_else(|| unknown(&request.name))?;
    let watch = operations.wait(&grant, &name).ok_or_else(|| unknown(&request.name))?;
    Ok(stages(watch, action, edge.state.stopping.clone()))
}

/// The name of an operation tells its instance: who may not execute there must not learn whether it exists.
pub(super) fn authorize(
    edge: &Edge,
    caller: &Caller,
    name: &str,
) -> Result<(OperationName, Authorized<Execute>), Status> {
    let (name, instance) = OperationName::parse(name).ok_or_else(|| unknown(name))?;
    let grant = edge.authorize_name::<Execute>(caller, &instance)?;
    Ok((name, grant))
}

pub(super) fn unknown(name: &str) -> Status {
    // It becomes a header, and nobody has a name this long.
    let name = cut(name.to_owned(), MAX_SHOWN_NAME_BYTES);
    Status::not_found(format!(
        "the operation {name:?} is not known here; operations are forgotten a few minutes after their end, and when \
         the server restarts: execute the action again"
    ))
}

/// One command of a client, as it names itself. A header that cannot be read says nothing.
fn invocation(headers: &HeaderMap) -> String {
    let Some(header) = headers.get(REQUEST_METADATA) else { return String::new() };
    // Peers write it with and without padding.
    let bytes = BASE64_STANDARD.decode(header).or_else(|_| BASE64_STANDARD_NO_PAD.decode(header));
    let metadata = bytes.ok().and_then(|bytes| RequestMetadata::decode(bytes.as_slice()).ok()).unwrap_or_default();
    cut(metadata.tool_invocation_id, MAX_INVOCATION_BYTES)
}

/// What a client is told of an operation, until it ends or the server does.
struct Telling {
    watch: Watch,
    last: Option<Stage>,
    stopping: CancellationToken,
}

impl Telling {
    /// What is new; `None` after the end. What runs may end while the server stops; what waits would wait in vain.
    async fn next(&mut self) -> Result<Option<Progress>, Status> {
        let progress = if self.last == Some(Stage::Executing) {
            self.watch.next().await
        } else {
            let stopping = self.stopping.clone();
            match stopping.run_until_cancelled(self.watch.next()).await {
                Some(progress) => progress,
                None => return Err(Status::unavailable("the server stops: execute the action again")),
            }
        };
        self.last = progress.as_ref().and_then(|progress| progress.stages.last().copied());
        Ok(progress)
    }
}

fn stages(watch: Watch, action: Digest, stopping: CancellationToken) -> grpc::Frames {
    let telling = Telling { watch, last: None, stopping };
    let parts = stream::try_unfold(telling, move |mut telling| async move {
        let progress = telling.next().await?;
        Ok::<_, Status>(progress.map(|progress| {
            let frames = frames(telling.watch.name(), action, &progress);
            (stream::iter(frames), telling)
        }))
    });
    Box::pin(parts.try_flatten())
}

/// One message for each stage; the last one carries the end, if it has come.
fn frames(name: &OperationName, action: Digest, progress: &Progress) -> Vec<Result<Bytes, Status>> {
    let count = progress.stages.len();
    let message = |(at, stage): (usize, &Stage)| {
        let ended = progress.ended.as_deref().filter(|_| at + 1 == count);
        Ok(grpc::encode(&operation(name, action, *stage, ended)))
    };
    progress.stages.iter().enumerate().map(message).collect()
}

/// An operation as the protocol has it. `error` is never set: how an execution ended stands in its response.
pub(super) fn operation(name: &OperationName, action: Digest, stage: Stage, ended: Option<&Ended>) -> Operation {
    let stage = match stage {
        Stage::CacheCheck => execution_stage::Value::CacheCheck,
        Stage::Queued => execution_stage::Value::Queued,
        Stage::Executing => execution_stage::Value::Executing,
        Stage::Completed => execution_stage::Value::Completed,
    };
    let metadata = ExecuteOperationMetadata {
        stage: stage as i32,
        action_digest: Some(WireDigest::from(&action)),
        digest_function: action.function().number(),
        ..ExecuteOperationMetadata::default()
    };
    Operation {
        name: name.as_str().to_owned(),
        metadata: Some(pack(&metadata)),
        done: ended.is_some(),
        result: ended.map(|ended| operation::Result::Response(pack(&response(ended, action.function())))),
    }
}

fn pack<M: Message + Name>(message: &M) -> prost_types::Any {
    prost_types::Any { type_url: M::type_url(), value: message.encode_to_vec() }
}

fn response(ended: &Ended, function: DigestFunction) -> ExecuteResponse {
    ExecuteResponse {
        result: ended.result.clone(),
        cached_result: ended.is_cached,
        status: Some(status(&ended.verdict, &ended.message, function)),
        server_logs: std::collections::HashMap::default(),
        message: ended.message.clone(),
    }
}

/// What clients act upon: whether they try again, upload what is missing, or give up.
fn status(verdict: &Verdict, message: &str, function: DigestFunction) -> rpc::Status {
    let code = match verdict {
        // A process that was ended for a limit of its own is one that failed: the result tells its exit code, the
        // message why.
        Verdict::Completed | Verdict::LimitReached => return rpc::Status::default(),
        Verdict::Missing(digests) => return missing_blobs(digests, function),
        Verdict::TimedOut => Code::DeadlineExceeded,
        Verdict::Invalid(_) => Code::InvalidArgument,
        Verdict::Unfit(_) | Verdict::NoWorker(_) => Code::FailedPrecondition,
        Verdict::Cancelled => Code::Cancelled,
        Verdict::GivenUp { .. } | Verdict::Unavailable(_) => Code::Unavailable,
        Verdict::QueueFull => Code::ResourceExhausted,
    };
    let text = if *verdict == Verdict::TimedOut { message.to_owned() } else { verdict.to_string() };
    rpc::Status { code: code as i32, message: text, details: Vec::new() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(value: String) -> HeaderMap {
        HeaderMap::from_iter([(REQUEST_METADATA.parse().unwrap(), value.parse().unwrap())])
    }

    #[test]
    fn invocations() {
        let metadata = |id: &str| RequestMetadata { tool_invocation_id: id.to_owned(), ..RequestMetadata::default() };
        let encoded = |id: &str| BASE64_STANDARD.encode(metadata(id).encode_to_vec());
        assert_eq!(invocation(&header(encoded("abc"))), "abc");
        assert_eq!(invocation(&header(encoded("abc").trim_end_matches('=').to_owned())), "abc");
        assert_eq!(invocation(&header(encoded(&"ä".repeat(100)))), "ä".repeat(64));
        assert_eq!(invocation(&header("garbage!".to_owned())), "");
        assert_eq!(invocation(&HeaderMap::new()), "");
    }
}
