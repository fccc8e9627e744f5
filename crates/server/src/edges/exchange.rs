//! `POST /v1/token/exchange`: the token of a trusted issuer, as a bearer, for a short one of our own.
//!
//! What always holds: whoever is refused learns no more than whether to come again; the reason is in the audit log and
//! among the traces, under the trace that the answer names. Exchanges of one issuer at one time are bounded, as are those
//! that wait, so that an issuer that is slow to answer delays its own alone. Once begun, they run to their end when their
//! caller has gone, since others may wait for the keys that they ask for.
//!
//! Deliberately absent: asking for less than the rules grant; refreshing, which is exchanging again.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use axum::{Json, Router};
use gf_digest::InstanceName;
use gf_tenancy::audit::{Deed, Origin, Outcome, Trail};
use gf_tenancy::trust::{Admission, Exchange, TrustFault, claimed_identity, claimed_issuer};
use gf_tenancy::{Access, PermissionName, Principal, Token};
use serde::Serialize;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::sync::Semaphore;
use tokio::time::timeout;

use super::credentials::Visitor;
use crate::capacity::Background;
use crate::refusal::Refusal;

/// Exchanges of one issuer at one time. One takes a millisecond, or as long as an issuer that is asked for its keys.
const MAX_EXCHANGES: usize = 16;
/// Those of one issuer that are under way or wait: the jobs of a build, with room.
const MAX_CALLERS: usize = 512;
/// How long one waits for its turn: the jobs of a build begin all at once.
const PATIENCE: Duration = Duration::from_secs(10);
/// When to come again, in seconds: an issuer is asked that often.
const RETRY_AFTER_S: u32 = 30;

const ACTION: &str = "token.exchange";
const NO_RULES: &str = "this server trusts no issuer: its operator adds an [[access.trust]] to its configuration";
const NO_TOKEN: &str = "send the token of your CI or cluster: `Authorization: Bearer <identity token>`";
const TRY_AGAIN: &str = "the identity cannot be checked now: try again in half a minute";

/// What the edge works with.
pub(crate) struct ExchangeState {
    /// `None` when no issuer is trusted.
    pub(crate) exchange: Option<Exchange>,
    /// Who may do what.
    pub(crate) access: Arc<Access>,
    /// Where refusals are recorded.
    pub(crate) trail: Trail,
    /// What runs exchanges to their end.
    pub(crate) background: Background,
}

struct Edge {
    state: ExchangeState,
    /// By the issuers that rules are about.
    lanes: HashMap<String, Lane>,
}

/// Where exchanges of one issuer go through.
struct Lane {
    callers: Semaphore,
    places: Arc<Semaphore>,
}

/// What an identity was exchanged for.
#[derive(Debug, Serialize)]
struct Exchanged {
    token: String,
    /// The REAPI instance to name.
    instance_name: String,
    tenant: String,
    /// RFC 3339.
    expires_at: String,
    /// What the token may do in the instance: `execute`, `read-write`, `read-only` or `none`.
    mode: &'static str,
}

/// `/v1/token/exchange`.
pub(crate) fn router(state: ExchangeState) -> Router {
    let lane = || Lane { callers: Semaphore::new(MAX_CALLERS), places: Arc::new(Semaphore::new(MAX_EXCHANGES)) };
    let issuers = state.exchange.iter().flat_map(Exchange::issuers);
    let lanes = issuers.map(|issuer| (issuer.to_owned(), lane())).collect();
    let edge = Arc::new(Edge { state, lanes });
    Router::new().route("/v1/token/exchange", post(serve)).with_state(edge)
}

async fn serve(State(edge): State<Arc<Edge>>, visitor: Visitor) -> Response {
    if edge.state.exchange.is_none() {
        return refuse(StatusCode::NOT_FOUND, NO_RULES);
    }
    let origin = visitor.origin();
    // Not the certificate of the connection, which is no identity of an issuer.
    let Some(token) = visitor.presented().map(str::to_owned) else {
        return refuse(StatusCode::UNAUTHORIZED, NO_TOKEN);
    };
    // Of an issuer that no rule is about it is refused at once.
    let lane = claimed_issuer(&token).and_then(|issuer| edge.lanes.get(&issuer));
    let Ok(_caller) = lane.map(|lane| lane.callers.try_acquire()).transpose() else { return busy() };
    let place = match lane {
        Some(lane) => match timeout(PATIENCE, Arc::clone(&lane.places).acquire_owned()).await {
            Ok(Ok(place)) => Some(place),
            Ok(Err(_)) | Err(_) => return busy(),
        },
        None => None,
    };
    let own = Arc::clone(&edge);
    let answer = edge.state.background.run(async move {
        let answer = own.exchange(&token, origin).await;
        drop(place);
        answer
    });
    match answer.await {
        Ok(Some(answer)) => answer,
        // The server stops.
        Ok(None) | Err(_) => busy(),
    }
}

fn busy() -> Response {
    refuse(StatusCode::SERVICE_UNAVAILABLE, TRY_AGAIN)
}

impl Edge {
    async fn exchange(&self, token: &str, origin: Origin) -> Response {
        let Some(exchange) = &self.state.exchange else { return refuse(StatusCode::NOT_FOUND, NO_RULES) };
        match exchange.exchange(token, &origin).await {
            Ok(admission) => self.admit(&admission),
            Err(fault) => {
                self.record(token, &fault, origin);
                answer(&fault, &origin)
            }
        }
    }

    fn admit(&self, admission: &Admission) -> Response {
        let Admission { issued, tenant, instance } = admission;
        let exchanged = Exchanged {
            token: issued.secret.expose().to_owned(),
            instance_name: instance.as_str().to_owned(),
            tenant: tenant.to_string(),
            expires_at: show_time(issued.report.expires_s),
            mode: mode(&self.state.access, &issued.report.token, instance),
        };
        let no_store = [(header::CACHE_CONTROL, HeaderValue::from_static("no-store"))];
        (no_store, Json(exchanged)).into_response()
    }

    fn record(&self, token: &str, fault: &TrustFault, origin: Origin) {
        let claimed = claimed_identity(token).unwrap_or_default();
        tracing::info!(%fault, claimed, ?origin, "an identity was not exchanged");
        let outcome = if fault.is_unavailable() { Outcome::Failed } else { Outcome::Denied };
        // Whoever has no credential can send as many as they like: they count with all that strangers try.
        let (who, detail) = ("unknown".to_owned(), fault.to_string());
        let deed = Deed { who, action: ACTION.into(), subject: claimed, outcome, detail, tenant: String::new() };
        self.state.trail.record_tried(deed, origin);
    }
}

/// What the caller is told.
fn answer(fault: &TrustFault, origin: &Origin) -> Response {
    let found = |text: String| match origin.trace {
        Some(trace) => {
            format!("{text}; the operator finds the reason in the audit log or the server's, under the trace {trace}")
        }
        None => text,
    };
    match fault {
        TrustFault::TooMany { .. } => {
            let text = "too many tokens are good at one time: exchange once for a job, and keep the answer".to_owned();
            refuse(StatusCode::TOO_MANY_REQUESTS, &found(text))
        }
        fault if fault.is_unavailable() => refuse(StatusCode::SERVICE_UNAVAILABLE, &found(TRY_AGAIN.to_owned())),
        fault => refuse(StatusCode::UNAUTHORIZED, &found(fault.denial().to_string())),
    }
}

fn refuse(status: StatusCode, error: &str) -> Response {
    let refusal = Refusal::new(status, error);
    match status {
        StatusCode::SERVICE_UNAVAILABLE | StatusCode::TOO_MANY_REQUESTS => refusal.after(RETRY_AFTER_S),
        _ => refusal,
    }
    .into_response()
}

/// The most that the token may do in the instance.
fn mode(access: &Access, token: &Arc<Token>, instance: &InstanceName) -> &'static str {
    let who = Principal::Token(Arc::clone(token));
    let may = |permission| access.explain(&who, permission, instance).allowed;
    let modes = [
        (PermissionName::Execute, "execute"),
        (PermissionName::ActionCacheWrite, "read-write"),
        (PermissionName::ActionCacheRead, "read-only"),
    ];
    modes.into_iter().find(|(permission, _)| may(*permission)).map_or("none", |(_, mode)| mode)
}

fn show_time(seconds: u64) -> String {
    let time = i64::try_from(seconds).ok().and_then(|seconds| OffsetDateTime::from_unix_timestamp(seconds).ok());
    // Within the year 9999, which lifetimes are, every time can be shown.
    time.and_then(|time| time.format(&Rfc3339).ok()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_as_the_helper_reads_them() {
        assert_eq!(show_time(1_700_000_000), "2023-11-14T22:13:20Z");
        assert_eq!(show_time(u64::MAX), "");
    }
}
