//! What a server answers: every edge over its parts, on one router.

use std::sync::Arc;

use axum::Router;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::routing::get;
use gf_tenancy::Operate;
use gf_tenancy::trust::{Exchange, TrustRule};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use super::StartError;
use super::parts::Parts;
use crate::access_api::{self, AccessApi};
use crate::builtin_worker::Condition;
use crate::config::{Config, TrustSettings};
use crate::edges::credentials::Visitor;
use crate::edges::{self, EdgeState, ExchangeState, Limits, NixState};
use crate::health;
use crate::issuers::Issuers;
use crate::metrics;
use crate::operator::action_results::ActionResults;
use crate::operator::{self, Operator};

/// What the edges need to know beside the parts.
pub(super) struct Front {
    pub(super) exchanging: Option<Exchanging>,
    pub(super) scheme: &'static str,
    pub(super) stopping: CancellationToken,
    pub(super) own_worker: Condition,
}

/// Whose identities are exchanged for tokens, and where their keys are.
pub(super) struct Exchanging {
    rules: Vec<TrustRule>,
    issuers: Arc<Issuers>,
}

impl Exchanging {
    /// `None` where nobody is trusted.
    ///
    /// # Errors
    /// [`StartError::Issuer`].
    pub(super) fn new(trust: &TrustSettings) -> Result<Option<Self>, StartError> {
        let issuers = Arc::new(Issuers::new(trust.issuers.clone())?);
        Ok((!trust.rules.is_empty()).then(|| Self { rules: trust.rules.clone(), issuers }))
    }
}

pub(super) fn router(config: &Config, parts: &Parts, front: Front) -> Router {
    let max_blob_size_bytes = config.store.max_blob_size_bytes;
    let limits = Limits { executes: config.execution.enabled, max_blob_size_bytes, ..Limits::default() };
    let tokens = Arc::clone(&parts.services.tokens);
    let log = parts.services.trail.log().clone();
    let access_api = AccessApi::new(parts.gate.clone(), tokens, log, parts.caches.clone());
    let results = ActionResults { gate: parts.gate.clone(), cache: parts.action_cache.clone() };
    edges::router(cache_and_execution(parts, limits, front.stopping))
        .merge(edges::nix_router(nix(parts, limits, front.scheme)))
        .merge(edges::exchange_router(exchange(parts, front.exchanging)))
        .merge(health::router(parts.readiness.clone()))
        .merge(access_api::router(Arc::new(access_api)))
        .merge(operator::router(Arc::new(operator(config, parts, front.own_worker))))
        .merge(operator::action_results::router(results))
        .merge(metrics_router(parts))
        .layer(axum::middleware::from_fn(edges::origin::note))
}

fn cache_and_execution(parts: &Parts, limits: Limits, stopping: CancellationToken) -> EdgeState {
    EdgeState {
        gate: parts.gate.clone(),
        store: Arc::clone(&parts.blobs),
        action_cache: parts.action_cache.clone(),
        quotas: Arc::clone(&parts.quotas),
        operations: parts.operations.clone(),
        limits,
        metrics: Arc::clone(&parts.metrics),
        stopping,
    }
}

fn nix(parts: &Parts, limits: Limits, scheme: &'static str) -> NixState {
    NixState {
        gate: parts.gate.clone(),
        caches: parts.caches.clone(),
        quotas: Arc::clone(&parts.quotas),
        background: parts.background.clone(),
        tenant: parts.tenant.clone(),
        metrics: Arc::clone(&parts.metrics),
        upload_idle_timeout: limits.upload_idle_timeout,
        scheme,
    }
}

fn exchange(parts: &Parts, exchanging: Option<Exchanging>) -> ExchangeState {
    let tokens = Arc::clone(&parts.services.tokens);
    ExchangeState {
        exchange: exchanging.map(|Exchanging { rules, issuers }| Exchange::new(rules, issuers, tokens)),
        access: Arc::clone(&parts.access),
        trail: parts.services.trail.clone(),
        background: parts.background.clone(),
    }
}

fn operator(config: &Config, parts: &Parts, own_worker: Condition) -> Operator {
    Operator {
        gate: parts.gate.clone(),
        store: Arc::clone(&parts.store),
        settings: config.store,
        readiness: parts.readiness.clone(),
        began: parts.began,
        maintenance: Arc::new(Semaphore::new(1)),
        background: parts.background.clone(),
        operations: parts.operations.clone(),
        own_worker,
        quotas: Arc::clone(&parts.quotas),
    }
}

/// What tenants use is shown to whoever operates the server; the rest, which names nobody, to everybody.
fn metrics_router(parts: &Parts) -> Router {
    let (gate, metrics, store) = (parts.gate.clone(), Arc::clone(&parts.metrics), Arc::clone(&parts.store));
    let (operations, quotas) = (parts.operations.clone(), Arc::clone(&parts.quotas));
    let show = move |visitor: Visitor| async move {
        let stats = operator::stats(&store).await.map_err(|error| error.to_string());
        let may_know = gate.has_everywhere::<Operate>(&visitor);
        let tenants = if may_know { quotas.report(&operations) } else { Vec::new() };
        let access = gate.stats();
        let encode =
            |stats| metrics::encode(&metrics, stats, operations, tenants, access).map_err(|error| error.to_string());
        let text = stats.and_then(encode);
        match text {
            Ok(text) => (StatusCode::OK, [(CONTENT_TYPE, metrics::CONTENT_TYPE)], text),
            Err(error) => {
                tracing::error!(%error, "metrics could not be read");
                (StatusCode::INTERNAL_SERVER_ERROR, [(CONTENT_TYPE, "text/plain")], error)
            }
        }
    };
    Router::new().route("/metrics", get(show))
}
