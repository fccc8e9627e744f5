//! Blobs as streams of bytes.

mod read;
mod write;

use std::sync::Arc;

use gf_blobstore::Encoding;
use gf_digest::{Digest, InstanceName};
use gf_reapi::bytestream::{QueryWriteStatusRequest, QueryWriteStatusResponse};
use gf_reapi::{Compressor, ResourceName};
use gf_tenancy::audit::Amount;
use gf_tenancy::{Authorized, CasWrite};
use tonic::Status;

use super::status::IntoStatus;
use super::uploads::UploadKey;
use super::{Caller, Edge};
use crate::edges::credentials::Visitor;
pub(super) use read::read;
pub(super) use write::write;

/// Where callers may repeat the resource name for the sake of routers in between.
const RESOURCE_NAME_HEADER: &str = "build.bazel.remote.execution.v2.resource-name";

/// Takes a resource name apart, and compares it with the one in the headers if there is one.
fn parse(caller: &Caller, name: &str) -> Result<ResourceName, Status> {
    if caller.headers.get(RESOURCE_NAME_HEADER).is_some_and(|header| header.as_bytes() != name.as_bytes()) {
        let text = format!("the header {RESOURCE_NAME_HEADER} names something else than resource_name");
        return Err(Status::invalid_argument(text));
    }
    ResourceName::parse(name).map_err(IntoStatus::into_status)
}

/// What an upload is to become, and who may make it.
struct Target<'a> {
    visitor: &'a Visitor,
    grant: Authorized<CasWrite>,
    instance: InstanceName,
    uuid: Box<str>,
    compressor: Compressor,
    digest: Digest,
}

impl<'a> Target<'a> {
    fn of(edge: &Edge, caller: &'a Caller, name: &str) -> Result<Self, Status> {
        match parse(caller, name)? {
            ResourceName::Write { instance, uuid, compressor, digest } => {
                let grant = edge.authorize_name(caller, &instance)?;
                Ok(Self { visitor: &caller.visitor, grant, instance, uuid, compressor, digest })
            }
            ResourceName::Read { .. } => Err(Status::invalid_argument("this resource name is for reading")),
        }
    }

    const fn encoding(&self) -> Encoding {
        match self.compressor {
            Compressor::Identity => Encoding::Identity,
            Compressor::Zstd => Encoding::Zstd,
        }
    }

    /// Under what the upload may be gone on with; `None` if it cannot.
    fn key(&self) -> Option<UploadKey> {
        (self.compressor == Compressor::Identity).then(|| UploadKey {
            tenant: self.grant.tenant().id(),
            instance: self.instance.clone(),
            uuid: self.uuid.clone(),
            digest: self.digest,
        })
    }

    /// Counts the blob that is stored now.
    fn stored(&self, edge: &Edge) {
        let amount = Amount::once(self.digest.size_bytes());
        edge.state.gate.count(self.visitor, &self.grant, "cas.write", amount);
    }

    async fn is_present(&self, edge: &Edge) -> Result<bool, Status> {
        edge.content.has(&self.grant, self.digest).await.map_err(IntoStatus::into_status)
    }
}

/// A size as messages carry it.
fn wire_size(bytes: u64) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}

/// How far an upload got. One that nobody knows got nowhere.
pub(super) async fn query_write_status(
    edge: Arc<Edge>,
    caller: Caller,
    request: QueryWriteStatusRequest,
) -> Result<QueryWriteStatusResponse, Status> {
    let target = Target::of(&edge, &caller, &request.resource_name)?;
    if target.is_present(&edge).await? {
        return Ok(QueryWriteStatusResponse { committed_size: wire_size(target.digest.size_bytes()), complete: true });
    }
    let received = target.key().and_then(|key| edge.uploads.received_bytes(&key)).unwrap_or_default();
    Ok(QueryWriteStatusResponse { committed_size: wire_size(received), complete: false })
}
