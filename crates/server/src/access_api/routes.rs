//! `/api/v1/access/`: parse, authorize, call, map.
//!
//! Bodies must say that they are JSON: a web page cannot send that to another origin, so a browser on an operator's
//! machine cannot be made to issue a token.

use std::sync::Arc;

use axum::body::{Body, Bytes};
use axum::extract::rejection::{JsonRejection, QueryRejection};
use axum::extract::{DefaultBodyLimit, FromRequestParts, Path, Query, State};
use axum::http::request::Parts;
use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, post};
use axum::{Json, Router};
use futures::stream;
use gf_digest::InstanceName;
use gf_nix_cache::CacheName;
use gf_tenancy::audit::{Outcome, Record, Search};
use gf_tenancy::{Administer, Authorized, Exchanged, PermissionName, TokenId, Which};
use serde::Deserialize;

use super::report::{
    AtticRevocation, AtticRevokedReport, AuditPage, AuditRecord, AuditVerdict, RevokedReport, TokenPage, TokenRequest,
    WhoAmI, WhyReport,
};
use super::{AccessApi, Thing, problem};
use crate::edges::credentials::Visitor;
use crate::refusal::Refusal;

const MAX_BODY_BYTES: usize = 64 << 10;
/// Lines of one answer when nobody says how many, and at most.
const EXPORT_LINES: u64 = 10_000;
const MAX_EXPORT_LINES: u64 = 100_000;

/// What is secret must stay in no cache on the way.
const NOT_STORED: [(HeaderName, HeaderValue); 1] = [(header::CACHE_CONTROL, HeaderValue::from_static("no-store"))];

pub(crate) fn router(api: Arc<AccessApi>) -> Router {
    Router::new()
        .route("/api/v1/access/whoami", get(who_am_i))
        .route("/api/v1/access/why", get(why))
        .route("/api/v1/access/tokens", get(list).post(issue).delete(revoke_made))
        .route("/api/v1/access/tokens/{id}", delete(revoke))
        .route("/api/v1/access/exchanged", delete(revoke_exchanged))
        .route("/api/v1/access/attic/revoke", post(revoke_attic))
        .route("/api/v1/access/audit", get(search))
        .route("/api/v1/access/audit/verify", post(verify))
        .route("/api/v1/access/audit/export", get(export))
        .layer(DefaultBodyLimit::max(MAX_BODY_BYTES))
        .with_state(api)
}

type Api = State<Arc<AccessApi>>;
type Answer<T> = Result<Json<T>, Refusal>;
type Asked<T> = Result<Query<T>, QueryRejection>;

async fn who_am_i(State(api): Api, visitor: Visitor) -> Answer<WhoAmI> {
    let principal = api.gate.identify(&visitor)?;
    Ok(Json(api.who_am_i(&principal)))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WhyQuestion {
    /// Left out, or `me`: the caller.
    principal: Option<String>,
    permission: String,
    instance: Option<String>,
    cache: Option<String>,
}

async fn why(State(api): Api, visitor: Visitor, question: Asked<WhyQuestion>) -> Answer<WhyReport> {
    let asker = api.gate.identify(&visitor)?;
    let Query(question) = question?;
    let about = question.principal.as_deref().filter(|name| *name != "me");
    let admin = match about {
        Some(_) => Some(api.gate.authorize_somewhere::<Administer>(&visitor)?),
        None => None,
    };
    let permission: PermissionName =
        question.permission.parse().map_err(|error| problem::invalid("permission", &error))?;
    let thing = match (&question.instance, &question.cache) {
        (Some(name), None) => {
            Thing::Instance(InstanceName::new(name).map_err(|error| problem::invalid("instance", &error))?)
        }
        (None, Some(name)) => Thing::Cache(CacheName::new(name).map_err(|error| problem::invalid("cache", &error))?),
        _ => return Err(Refusal::invalid("name one thing: instance or cache".to_owned())),
    };
    if let Some(admin) = &admin {
        api.gate.count_read(&visitor, admin, "/api/v1/access/why");
    }
    let answer = api.why(&asker, admin.as_ref(), about, permission, &thing).await?;
    if let (None, Some(admin), Some(name)) = (&answer, &admin, about) {
        let id = TokenId::new(name.strip_prefix("token:").unwrap_or(name));
        let said = "it is nobody of whom this caller may know";
        api.gate.count_denied(&visitor, admin, "access.why", id.presentable(), said);
    }
    answer.map(Json).ok_or_else(problem::unknown_principal)
}

async fn issue(
    State(api): Api,
    Admin { who, visitor }: Admin,
    request: Result<Json<TokenRequest>, JsonRejection>,
) -> Result<Response, Refusal> {
    let issued = api.issue(&who, &visitor, request?.0).await?;
    Ok((StatusCode::CREATED, NOT_STORED, Json(issued)).into_response())
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ListQuestion {
    #[serde(default)]
    all: bool,
    after: Option<String>,
}

async fn list(State(api): Api, Admin { who, visitor }: Admin, question: Asked<ListQuestion>) -> Answer<TokenPage> {
    let Query(question) = question?;
    api.gate.count_read(&visitor, &who, "/api/v1/access/tokens");
    let which = if question.all { Which::All } else { Which::Good };
    let after = question.after.as_deref().map(TokenId::new);
    Ok(Json(api.list(&who, which, after.as_ref()).await?))
}

async fn revoke(State(api): Api, Admin { who, visitor }: Admin, Path(id): Path<String>) -> Result<StatusCode, Refusal> {
    api.revoke(&who, &visitor, &TokenId::new(&id)).await?;
    Ok(StatusCode::NO_CONTENT)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Maker {
    issued_by: String,
}

/// Ends what somebody made, as far as the caller may know of it.
async fn revoke_made(State(api): Api, Admin { who, visitor }: Admin, question: Asked<Maker>) -> Answer<RevokedReport> {
    let Query(Maker { issued_by }) = question?;
    Ok(Json(api.revoke_made_by(&who, &visitor, &issued_by).await?))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Origins {
    issuer: Option<String>,
    subject: Option<String>,
    rule: Option<String>,
    of: Option<String>,
}

/// Ends what was exchanged for identities of an issuer, of a subject or by a rule: everything that is named fits.
async fn revoke_exchanged(
    State(api): Api,
    Admin { who, visitor }: Admin,
    question: Asked<Origins>,
) -> Answer<RevokedReport> {
    let Query(Origins { issuer, subject, rule, of }) = question?;
    if let Some(id) = of {
        if issuer.is_some() || subject.is_some() || rule.is_some() {
            return Err(Refusal::invalid("`of` names a token, and nothing else is named beside it".to_owned()));
        }
        return Ok(Json(api.revoke_identity_of(&who, &visitor, &TokenId::new(&id)).await?));
    }
    if issuer.is_none() && subject.is_none() && rule.is_none() {
        return Err(Refusal::invalid("name at least one of issuer, subject and rule".to_owned()));
    }
    Ok(Json(api.revoke_exchanged(&who, &visitor, &Exchanged { issuer, subject, rule }).await?))
}

/// For who administers everything: tokens in Attic's format know no tenants.
async fn revoke_attic(
    State(api): Api,
    Auditor { who, visitor }: Auditor,
    request: Result<Json<AtticRevocation>, JsonRejection>,
) -> Answer<AtticRevokedReport> {
    Ok(Json(api.revoke_attic(&who, &visitor, request?.0).await?))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct AuditQuestion {
    principal: Option<String>,
    action: Option<String>,
    subject: Option<String>,
    outcome: Option<String>,
    trace: Option<String>,
    since_ms: Option<u64>,
    before: Option<u64>,
}

async fn search(State(api): Api, Admin { who, visitor }: Admin, question: Asked<AuditQuestion>) -> Answer<AuditPage> {
    let tenants = api.tenants_shown_to(&who, &visitor)?;
    let Query(question) = question?;
    api.gate.count_read(&visitor, &who, "/api/v1/access/audit");
    let outcome = question.outcome.as_deref().map(str::parse::<Outcome>).transpose();
    let search = Search {
        who: question.principal,
        action: question.action,
        subject: question.subject,
        outcome: outcome.map_err(|error| Refusal::invalid(error.to_string()))?,
        trace: question.trace,
        since_ms: question.since_ms,
        before: question.before,
        tenants,
    };
    let is_part = search.tenants.is_some();
    let records = api.search(&who, &search).await?;
    // A full page may be the last one; then the next is empty.
    let next = records.last().map(|last| last.number).filter(|number| *number > 1);
    let next = next.filter(|_| records.len() >= gf_tenancy::audit::PAGE as usize);
    let mut records: Vec<AuditRecord> = records.into_iter().map(AuditRecord::from).collect();
    if is_part {
        // With it, guesses about the records between could be tried out.
        records.iter_mut().for_each(|record| record.hash.clear());
    }
    Ok(Json(AuditPage { records, next }))
}

/// A web page of another origin cannot send JSON, and so cannot have a browser make the server read all of the log.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NothingMore {}

async fn verify(
    State(api): Api,
    Auditor { who, visitor }: Auditor,
    request: Result<Json<NothingMore>, JsonRejection>,
) -> Answer<AuditVerdict> {
    let NothingMore {} = request?.0;
    api.gate.count_read(&visitor, &who, "/api/v1/access/audit/verify");
    Ok(Json(api.verify(&who).await?))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ExportQuestion {
    #[serde(default)]
    after: u64,
    limit: Option<u64>,
}

/// JSON lines, the oldest first. Whoever wants more asks again after the number of the last line.
async fn export(
    State(api): Api,
    Auditor { who, visitor }: Auditor,
    question: Asked<ExportQuestion>,
) -> Result<Response, Refusal> {
    let Query(ExportQuestion { after, limit }) = question?;
    api.gate.count_read(&visitor, &who, "/api/v1/access/audit/export");
    let left = limit.unwrap_or(EXPORT_LINES).min(MAX_EXPORT_LINES);
    let pages = stream::try_unfold((api, after, left), |(api, after, left)| async move {
        if left == 0 {
            return Ok(None);
        }
        let Ok(mut page) = api.page_after(after).await else {
            return Err(std::io::Error::other("the audit log cannot be read on"));
        };
        page.truncate(usize::try_from(left).unwrap_or(usize::MAX));
        let Some(last) = page.last().map(|record| record.number) else { return Ok(None) };
        let left = left - page.len() as u64;
        Ok(Some((lines(page), (api, last, left))))
    });
    let media_type = [(header::CONTENT_TYPE, "application/x-ndjson")];
    Ok((media_type, Body::from_stream(pages)).into_response())
}

fn lines(records: Vec<Record>) -> Bytes {
    let mut text = Vec::new();
    for record in records {
        // Text and numbers only: writing them into memory does not fail.
        if serde_json::to_writer(&mut text, &AuditRecord::from(record)).is_ok() {
            text.push(b'\n');
        }
    }
    text.into()
}

/// A caller who administers something.
struct Admin {
    who: Authorized<Administer>,
    visitor: Visitor,
}

/// A caller who administers everything.
struct Auditor {
    who: Authorized<Administer>,
    visitor: Visitor,
}

impl FromRequestParts<Arc<AccessApi>> for Admin {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, api: &Arc<AccessApi>) -> Result<Self, Refusal> {
        let visitor = Visitor::of(parts);
        Ok(Self { who: api.gate.authorize_somewhere(&visitor)?, visitor })
    }
}

impl FromRequestParts<Arc<AccessApi>> for Auditor {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, api: &Arc<AccessApi>) -> Result<Self, Refusal> {
        let visitor = Visitor::of(parts);
        Ok(Self { who: api.gate.authorize_everywhere(&visitor)?, visitor })
    }
}
