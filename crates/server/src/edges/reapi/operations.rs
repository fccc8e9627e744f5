//! The general interface of operations: looking, listing, cancelling.

use std::sync::Arc;
use std::time::Duration;

use gf_digest::InstanceName;
use gf_execution::operations::{OperationName, Progress, Stage};
use gf_reapi::longrunning::{
    CancelOperationRequest, GetOperationRequest, ListOperationsRequest, ListOperationsResponse, Operation,
    WaitOperationRequest,
};
use gf_tenancy::Execute;
use gf_tenancy::audit::Amount;
use tokio::time::timeout;
use tonic::Status;

use super::execution::{authorize, operation, unknown};
use super::status::IntoStatus;
use super::{Caller, Edge};

/// The most operations in one answer.
const MAX_PAGE: usize = 1000;
/// A call that waits ends after so long, with whatever is the case then.
const MAX_WAIT: Duration = Duration::from_secs(300);

pub(super) async fn get(edge: Arc<Edge>, caller: Caller, request: GetOperationRequest) -> Result<Operation, Status> {
    let (name, grant) = authorize(&edge, &caller, &request.name)?;
    let (action, progress) = edge.state.operations.look(&grant, &name).ok_or_else(|| unknown(&request.name))?;
    Ok(operation(&name, action, stage(&progress), progress.ended.as_deref()))
}

/// `name` is the instance, or begins with it; everything that follows is ignored. Ended operations are listed as long
/// as they are remembered.
pub(super) async fn list(
    edge: Arc<Edge>,
    caller: Caller,
    request: ListOperationsRequest,
) -> Result<ListOperationsResponse, Status> {
    if !request.filter.is_empty() {
        return Err(Status::invalid_argument("filters are not offered: leave `filter` empty"));
    }
    let instance = request.name.strip_suffix("operations").unwrap_or(&request.name).trim_end_matches('/');
    let instance = InstanceName::new(instance).map_err(IntoStatus::into_status)?;
    let grant = edge.authorize_name::<Execute>(&caller, &instance)?;
    let size = match usize::try_from(request.page_size) {
        Ok(0) => MAX_PAGE,
        Ok(size) => size.min(MAX_PAGE),
        Err(_) => return Err(Status::invalid_argument("page_size is negative")),
    };
    let after = match request.page_token.as_str() {
        "" => None,
        // A token is the last name of the page before.
        token => match OperationName::parse(token) {
            Some((name, of)) if of == instance => Some(name),
            _ => return Err(Status::invalid_argument("page_token is none that this server gave")),
        },
    };
    let operations = &edge.state.operations;
    let names = operations.list(&grant, after.as_ref(), size);
    let next_page_token = match names.last() {
        Some(last) if names.len() == size => last.as_str().to_owned(),
        _ => String::new(),
    };
    // A result may be long; whoever lists wants to know what there is.
    let shown = names.iter().filter_map(|name| {
        let (action, progress) = operations.look(&grant, name)?;
        let mut shown = operation(name, action, stage(&progress), None);
        shown.done = progress.ended.is_some();
        Some(shown)
    });
    Ok(ListOperationsResponse { operations: shown.collect(), next_page_token, unreachable: Vec::new() })
}

pub(super) async fn cancel(edge: Arc<Edge>, caller: Caller, request: CancelOperationRequest) -> Result<(), Status> {
    let (name, grant) = authorize(&edge, &caller, &request.name)?;
    if !edge.state.operations.cancel(&grant, &name) {
        return Err(unknown(&request.name));
    }
    edge.count(&caller, &grant, "execution.cancel", Amount::ONCE);
    Ok(())
}

pub(super) async fn wait(edge: Arc<Edge>, caller: Caller, request: WaitOperationRequest) -> Result<Operation, Status> {
    let (name, grant) = authorize(&edge, &caller, &request.name)?;
    let operations = &edge.state.operations;
    let mut watch = operations.wait(&grant, &name).ok_or_else(|| unknown(&request.name))?;
    let longest = request.timeout.and_then(|timeout| Duration::try_from(timeout).ok()).unwrap_or(MAX_WAIT);
    // Whatever is the case at the end of the wait is the answer. A server that stops waits for nobody.
    let over = timeout(longest.min(MAX_WAIT), async { while watch.next().await.is_some() {} });
    let _ = edge.state.stopping.run_until_cancelled(over).await;
    let (action, progress) = operations.look(&grant, &name).ok_or_else(|| unknown(&request.name))?;
    Ok(operation(&name, action, stage(&progress), progress.ended.as_deref()))
}

fn stage(progress: &Progress) -> Stage {
    progress.stages.last().copied().unwrap_or(Stage::CacheCheck)
}
