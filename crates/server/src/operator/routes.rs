//! `/api/v1/`: parse, authorize, call, map.
//!
//! Bodies must say that they are JSON: a web page cannot send that to another origin, so a browser on the
//! operator's machine cannot be made to run maintenance.

use std::sync::Arc;

use axum::extract::rejection::JsonRejection;
use axum::extract::{DefaultBodyLimit, FromRequestParts, Path, State};
use axum::http::request::Parts;
use axum::routing::{get, post};
use axum::{Json, Router};
use gf_tenancy::{Authorized, Operate};

use super::report::{
    ExecutionReport, GcRequest, GcResult, OperationReport, Status, StoreStatus, VerifyRequest, VerifyResult,
};
use super::{OperateError, Operator};
use crate::edges::NotRecorded;
use crate::edges::credentials::Visitor;
use crate::refusal::Refusal;

const UNKNOWN_OPERATION: &str = "no such operation is known here: names look like operations/<uuid> or \
                                 <instance>/operations/<uuid>; operations are forgotten a few minutes after their end, \
                                 and when the server restarts";
const MAX_BODY_BYTES: usize = 64 << 10;

/// `/api/v1/status`, `/api/v1/execution`, `/api/v1/operations/…` and `/api/v1/store/…`.
pub(crate) fn router(operator: Arc<Operator>) -> Router {
    Router::new()
        .route("/api/v1/status", get(status))
        .route("/api/v1/execution", get(execution))
        .route("/api/v1/operations/{*name}", get(operation))
        .route("/api/v1/store/stats", get(store_stats))
        .route("/api/v1/store/verify", post(verify))
        .route("/api/v1/store/gc", post(collect_garbage))
        .layer(DefaultBodyLimit::max(MAX_BODY_BYTES))
        .with_state(operator)
}

type Answer<T> = Result<Json<T>, Refusal>;

async fn status(State(operator): State<Arc<Operator>>, Reader(who): Reader) -> Answer<Status> {
    Ok(Json(operator.status(&who).await?))
}

async fn execution(State(operator): State<Arc<Operator>>, Reader(who): Reader) -> Answer<ExecutionReport> {
    Ok(Json(operator.execution(&who)))
}

async fn operation(
    State(operator): State<Arc<Operator>>,
    Reader(who): Reader,
    Path(name): Path<String>,
) -> Answer<OperationReport> {
    operator.operation(&who, &name).map(Json).ok_or_else(|| Refusal::unknown(UNKNOWN_OPERATION))
}

async fn store_stats(State(operator): State<Arc<Operator>>, Reader(who): Reader) -> Answer<StoreStatus> {
    Ok(Json(operator.store_stats(&who).await?))
}

async fn verify(
    State(operator): State<Arc<Operator>>,
    allowed: Allowed,
    request: Result<Json<VerifyRequest>, JsonRejection>,
) -> Answer<VerifyResult> {
    let request = request?.0;
    let detail = if request.repair { "with repair" } else { "" };
    let recorded = allowed.record(&operator, "store.verify", detail);
    Ok(Json(operator.verify(&allowed.who, request, recorded).await?))
}

async fn collect_garbage(
    State(operator): State<Arc<Operator>>,
    allowed: Allowed,
    request: Result<Json<GcRequest>, JsonRejection>,
) -> Answer<GcResult> {
    let request = request?.0;
    let detail = format!("{} bytes to free{}", request.free_bytes, if request.dry_run { ", as a dry run" } else { "" });
    let recorded = allowed.record(&operator, "store.gc", &detail);
    Ok(Json(operator.collect_garbage(&allowed.who, request, recorded).await?))
}

/// A caller who may operate the server, which is all tenants'.
struct Allowed {
    who: Authorized<Operate>,
    visitor: Visitor,
}

impl Allowed {
    /// Records what is about to be done.
    fn record(
        &self,
        operator: &Operator,
        action: &str,
        detail: &str,
    ) -> impl Future<Output = Result<(), NotRecorded>> + use<> {
        operator.gate.record_before(&self.visitor, &self.who, action, "", detail)
    }
}

/// The same, for a question: that it was asked is counted.
struct Reader(Authorized<Operate>);

impl FromRequestParts<Arc<Operator>> for Allowed {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, operator: &Arc<Operator>) -> Result<Self, Refusal> {
        let visitor = Visitor::of(parts);
        let who = operator.gate.authorize_everywhere(&visitor)?;
        Ok(Self { who, visitor })
    }
}

impl FromRequestParts<Arc<Operator>> for Reader {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, operator: &Arc<Operator>) -> Result<Self, Refusal> {
        let Allowed { who, visitor } = Allowed::from_request_parts(parts, operator).await?;
        operator.gate.count_read(&visitor, &who, parts.uri.path());
        Ok(Self(who))
    }
}

impl From<OperateError> for Refusal {
    fn from(error: OperateError) -> Self {
        match error {
            OperateError::Busy => Self::conflict(error.to_string()),
            OperateError::NotRecorded(error) => error.into(),
            error => Self::failed(&error),
        }
    }
}
