//! Results of actions.

use std::sync::Arc;

use bytes::Bytes;
use gf_digest::{Digest, DigestFunction};
use gf_execution::{ActionCacheError, Inlining};
use gf_reapi::execution::{GetActionResultRequest, UpdateActionResultRequest};
use gf_reapi::{WireDigest, digest_function};
use gf_tenancy::audit::Amount;
use gf_tenancy::{ActionCacheRead, ActionCacheWrite};
use tonic::Status;

use super::status::IntoStatus;
use super::{Caller, Edge};
use crate::metrics::Lookup;

/// The encoded `ActionResult`.
pub(super) async fn get(edge: Arc<Edge>, caller: Caller, request: GetActionResultRequest) -> Result<Bytes, Status> {
    let grant = edge.authorize::<ActionCacheRead>(&caller, &request.instance_name)?;
    let action = action(request.digest_function, request.action_digest.as_ref())?;
    let inlining = Inlining {
        stdout: request.inline_stdout,
        stderr: request.inline_stderr,
        output_files: request.inline_output_files,
    };
    let found = edge.action_cache.get(&grant, action.into(), &inlining).await;
    match &found {
        Ok(_) => edge.state.metrics.action_cache_lookup(Lookup::Hit),
        Err(ActionCacheError::NotFound) => edge.state.metrics.action_cache_lookup(Lookup::Miss),
        Err(_) => {}
    }
    found.map_err(IntoStatus::into_status)
}

/// The encoded `ActionResult`, as it will be read.
pub(super) async fn update(
    edge: Arc<Edge>,
    caller: Caller,
    request: UpdateActionResultRequest,
) -> Result<Bytes, Status> {
    let grant = edge.authorize::<ActionCacheWrite>(&caller, &request.instance_name)?;
    let action = action(request.digest_function, request.action_digest.as_ref())?;
    let result = request.action_result.ok_or_else(|| Status::invalid_argument("action_result is not set"))?;
    let stored = edge.action_cache.update(&grant, action.into(), result).await.map_err(IntoStatus::into_status)?;
    edge.count(&caller, &grant, "actioncache.write", Amount::once(stored.len() as u64));
    Ok(stored)
}

fn action(function: i32, digest: Option<&WireDigest>) -> Result<Digest, Status> {
    let function: DigestFunction = digest_function(function).map_err(IntoStatus::into_status)?;
    let digest = digest.ok_or_else(|| Status::invalid_argument("action_digest is not set"))?;
    digest.to_digest(function).map_err(IntoStatus::into_status)
}
