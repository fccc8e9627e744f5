//! What this server offers to this caller.

use std::sync::Arc;

use gf_digest::DigestFunction;
use gf_execution::NODE_PROPERTIES;
use gf_execution::scheduler::PRIORITIES;
use gf_reapi::execution::priority_capabilities::PriorityRange;
use gf_reapi::execution::{
    ActionCacheUpdateCapabilities, CacheCapabilities, ExecutionCapabilities, FastCdc2020Params, GetCapabilitiesRequest,
    PriorityCapabilities, ServerCapabilities, compressor, symlink_absolute_path_strategy,
};
use gf_reapi::semver::SemVer;
use gf_tenancy::{CasRead, PermissionName};
use tonic::Status;

use super::{Caller, Edge, MAX_BATCH_TOTAL_BYTES};

/// The chunks that clients should make, so that they are the same as the store's own.
const CHUNKING: FastCdc2020Params = FastCdc2020Params { avg_chunk_size_bytes: 512 * 1024, seed: 0 };

pub(super) async fn get(
    edge: Arc<Edge>,
    caller: Caller,
    request: GetCapabilitiesRequest,
) -> Result<ServerCapabilities, Status> {
    let grant = edge.authorize::<CasRead>(&caller, &request.instance_name)?;
    let update_enabled = edge.state.gate.access().allows(grant.principal(), PermissionName::ActionCacheWrite);
    let zstd = compressor::Value::Zstd as i32;
    let cache = CacheCapabilities {
        digest_functions: DigestFunction::ALL.map(DigestFunction::number).to_vec(),
        action_cache_update_capabilities: Some(ActionCacheUpdateCapabilities { update_enabled }),
        max_batch_total_size_bytes: clamp(MAX_BATCH_TOTAL_BYTES),
        symlink_absolute_path_strategy: symlink_absolute_path_strategy::Value::Allowed as i32,
        supported_compressors: vec![zstd],
        supported_batch_update_compressors: vec![zstd],
        max_cas_blob_size_bytes: clamp(edge.state.limits.max_blob_size_bytes),
        split_blob_support: true,
        splice_blob_support: true,
        fast_cdc_2020_params: Some(CHUNKING),
        cache_priority_capabilities: None,
        rep_max_cdc_params: None,
    };
    let exec_enabled = edge.state.gate.access().allows(grant.principal(), PermissionName::Execute);
    let priorities = PriorityRange { min_priority: *PRIORITIES.start(), max_priority: *PRIORITIES.end() };
    let execution = ExecutionCapabilities {
        digest_function: DigestFunction::Sha256.number(),
        exec_enabled,
        execution_priority_capabilities: Some(PriorityCapabilities { priorities: vec![priorities] }),
        supported_node_properties: NODE_PROPERTIES.map(str::to_owned).to_vec(),
        digest_functions: DigestFunction::ALL.map(DigestFunction::number).to_vec(),
    };
    Ok(ServerCapabilities {
        cache_capabilities: Some(cache),
        execution_capabilities: edge.state.limits.executes.then_some(execution),
        deprecated_api_version: None,
        low_api_version: Some(version(2, 0)),
        high_api_version: Some(version(2, 13)),
    })
}

fn version(major: i32, minor: i32) -> SemVer {
    SemVer { major, minor, ..SemVer::default() }
}

fn clamp(bytes: u64) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}
