//! `/api/v1/nix/`: what the dashboard, `gf nix` and programs ask about caches, in JSON.
//!
//! Deliberately absent: what Attic's interface has already, which is making, changing and destroying caches.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::rejection::JsonRejection;
use axum::extract::{DefaultBodyLimit, FromRequest, Path, Request, State};
use axum::http::{Response, StatusCode};
use axum::response::IntoResponse;
use axum::routing::{get, post, put};
use axum::{Json, Router};
use gf_nix_cache::{
    Cache, CacheName, CacheReport, Collection, NixCaches, Pin, Retention, RetentionChange, SettingsChange,
    UpstreamReport, UpstreamSettings,
};
use gf_nix_formats::{PublicKey, StorePath, StorePathHash};
use gf_tenancy::{NixConfigureCache, NixConfigureRetention, NixPull, NixPush, Visibility};
use serde::de::DeserializeOwned;

use super::NixEdge;
use super::door::Door;
use super::sentences::{keeper_sentence, link_sentence, removal_sentence};
use crate::edges::credentials::Visitor;
use crate::edges::plain_http::Problem;
use crate::operator::report::{
    NixCacheChange, NixCacheReport, NixCollectReport, NixCollectRequest, NixContentsReport, NixPathReport,
    NixPinReport, NixPinRequest, NixRemovalReport, NixUpstreamReport, NixUpstreamSetting, NixVerifyReport,
    NixVerifyRequest, Problem as ProblemReport,
};

const MAX_BODY_BYTES: usize = 64 << 10;

pub(super) fn router(edge: Arc<NixEdge>) -> Router {
    Router::new()
        .route("/api/v1/nix/caches", get(list))
        .route("/api/v1/nix/caches/{cache}", get(show).patch(change))
        .route("/api/v1/nix/caches/{cache}/paths/{hash}", get(why))
        .route("/api/v1/nix/caches/{cache}/verify", post(verify))
        .route("/api/v1/nix/caches/{cache}/collect", post(collect))
        .route("/api/v1/nix/caches/{cache}/pins", get(pins))
        .route("/api/v1/nix/caches/{cache}/pins/{pin}", put(pin).delete(unpin))
        .layer(DefaultBodyLimit::max(MAX_BODY_BYTES))
        .with_state(edge)
}

type Edge = State<Arc<NixEdge>>;
type Answer<T> = Result<Json<T>, ApiProblem>;

/// Those that the caller may pull from; of others nothing is said.
async fn list(State(edge): Edge, visitor: Visitor) -> Answer<Vec<NixCacheReport>> {
    let mut reports = Vec::new();
    for cache in edge.state.caches.all().await.map_err(Problem::from)? {
        let door = Door::find(&edge, cache.name(), visitor.clone()).await?;
        if door.may::<NixPull>().is_some() {
            reports.push(report(&cache));
        }
    }
    Ok(Json(reports))
}

async fn show(State(edge): Edge, Path(name): Path<String>, visitor: Visitor) -> Answer<NixCacheReport> {
    let name = cache_name(&name)?;
    let door = Door::find(&edge, &name, visitor).await?;
    let grant = door.authorize::<NixPull>()?;
    let shown = door.caches().show(&grant).await.map_err(Problem::from)?;
    let CacheReport { paths, nar_bytes, waiting_paths, pins, .. } = shown;
    let upstream = |upstream: UpstreamReport| NixUpstreamReport {
        url: upstream.url,
        paths: upstream.paths,
        nar_bytes: upstream.nar_bytes,
    };
    let upstreams = shown.upstreams.into_iter().map(upstream).collect();
    let contents = NixContentsReport { paths, nar_bytes, waiting_paths, pins, upstreams };
    Ok(Json(NixCacheReport { contents: Some(contents), ..report(&shown.cache) }))
}

async fn change(
    State(edge): Edge,
    Path(name): Path<String>,
    visitor: Visitor,
    InJson(change): InJson<NixCacheChange>,
) -> Answer<NixCacheReport> {
    let name = cache_name(&name)?;
    let door = Door::find(&edge, &name, visitor.clone()).await?;
    let visibility = |is_public| if is_public { Visibility::Public } else { Visibility::Private };
    let settings = SettingsChange {
        visibility: change.is_public.map(visibility),
        priority: change.priority,
        upstreams: change.upstreams.map(|upstreams| upstreams.into_iter().map(upstream).collect()).transpose()?,
        upstream_key_names: None,
        gives_toolchains: change.gives_toolchains,
    };
    let retention = |period_s| if period_s == 0 { Retention::Forever } else { Retention::Unused { period_s } };
    let stays = RetentionChange {
        retention: change.retention_seconds.map(retention),
        quota_bytes: change.quota_bytes.map(|bytes| (bytes > 0).then_some(bytes)),
        grace_s: change.grace_seconds,
    };
    // Every right that it takes, before any of it is done; and no other.
    let keeps = if stays.is_empty() { None } else { Some(door.authorize::<NixConfigureRetention>()?) };
    let configures = match settings.is_empty() && keeps.is_some() {
        true => None,
        false => Some(door.authorize::<NixConfigureCache>()?),
    };
    if settings.gives_toolchains == Some(true) {
        may_give_toolchains(&edge, &door, &visitor).await?;
    }
    let mut cache = None;
    if let Some(grant) = configures {
        let configure = |caches: NixCaches, grant| async move { caches.configure(&grant, settings, None).await };
        let configured = door.administer(&grant, "cache.configure", visibility_sentence(change.is_public), configure);
        cache = Some(configured.await?.map_err(Problem::from)?);
    }
    if let Some(grant) = keeps {
        let keep = |caches: NixCaches, grant| async move { caches.configure_retention(&grant, stays).await };
        cache = Some(door.administer(&grant, "cache.retention", "", keep).await?.map_err(Problem::from)?);
    }
    let cache = cache.as_deref().map_or_else(|| door.cache().map(report), |cache| Ok(report(cache)))?;
    Ok(Json(cache))
}

/// What actions run with comes from caches that give toolchains, so one more of them is for who may configure all of them.
async fn may_give_toolchains(edge: &NixEdge, door: &Door<'_>, visitor: &Visitor) -> Result<(), Problem> {
    for cache in door.caches().giving_toolchains(door.cache()?.tenant()).await? {
        Door::find(edge, cache.name(), visitor.clone()).await?.authorize::<NixConfigureCache>()?;
    }
    Ok(())
}

/// What of a change concerns everybody.
const fn visibility_sentence(is_public: Option<bool>) -> &'static str {
    match is_public {
        Some(true) => "it is public",
        Some(false) => "it is private",
        None => "",
    }
}

fn upstream(setting: NixUpstreamSetting) -> Result<UpstreamSettings, Problem> {
    let keys = setting.keys.iter().map(|key| PublicKey::parse(key)).collect::<Result<Vec<_>, _>>();
    Ok(UpstreamSettings { url: setting.url, keys: keys.map_err(|error| invalid(&error))? })
}

async fn why(State(edge): Edge, Path((name, hash)): Path<(String, String)>, visitor: Visitor) -> Answer<NixPathReport> {
    let name = cache_name(&name)?;
    let door = Door::find(&edge, &name, visitor).await?;
    let grant = door.authorize::<NixPull>()?;
    let hash = StorePathHash::parse(&hash).map_err(|error| invalid(&error))?;
    let explanation = door.caches().why(&grant, hash).await.map_err(Problem::from)?;
    Ok(Json(NixPathReport {
        is_substitutable: explanation.broken().is_none(),
        links: explanation.links.iter().map(link_sentence).collect(),
        kept_by: explanation.kept_by.iter().map(keeper_sentence).collect(),
    }))
}

/// Reads everything that is in the cache, so it takes more than the right to read some of it; and one at a time.
async fn verify(
    State(edge): Edge,
    Path(name): Path<String>,
    visitor: Visitor,
    InJson(NixVerifyRequest {}): InJson<NixVerifyRequest>,
) -> Answer<NixVerifyReport> {
    let name = cache_name(&name)?;
    let door = Door::find(&edge, &name, visitor).await?;
    door.authorize::<NixConfigureCache>()?;
    let grant = door.authorize::<NixPull>()?;
    let busy = |_| Problem::new(StatusCode::CONFLICT, "a cache is being verified now: try again when that is over");
    let _one_at_a_time = edge.verifying.try_acquire().map_err(busy)?;
    door.record_before(&grant, "cache.verify").await?;
    let found = door.caches().verify(&grant).await.map_err(Problem::from)?;
    Ok(Json(NixVerifyReport {
        paths: found.paths,
        not_fetched: found.not_fetched,
        nar_bytes: found.nar_bytes,
        problem_count: found.problem_count,
        problems: found.problems.iter().map(|problem| format!("{}: {}", problem.path, problem.what)).collect(),
    }))
}

async fn collect(
    State(edge): Edge,
    Path(name): Path<String>,
    visitor: Visitor,
    InJson(request): InJson<NixCollectRequest>,
) -> Answer<NixCollectReport> {
    let name = cache_name(&name)?;
    let door = Door::find(&edge, &name, visitor).await?;
    let grant = door.authorize::<NixConfigureRetention>()?;
    let collected = match request.dry_run {
        true => door.caches().plan_collection(&door.authorize::<NixPull>()?).await,
        false => {
            door.cache()?;
            let collect = |caches: NixCaches, grant| async move { caches.collect(&grant).await };
            door.administer(&grant, "cache.collect", "", collect).await?
        }
    };
    let Collection { removals, spared } = collected.map_err(Problem::from)?;
    if !request.dry_run {
        door.record(&grant, "cache.collected", format_args!("{} paths removed", removals.len()));
    }
    let removals = removals.iter().map(|removal| NixRemovalReport {
        path: removal.path.as_str().to_owned(),
        reason: removal_sentence(&removal.why),
        nar_bytes: removal.nar_bytes,
    });
    Ok(Json(NixCollectReport { removals: removals.collect(), spared }))
}

async fn pins(State(edge): Edge, Path(name): Path<String>, visitor: Visitor) -> Answer<Vec<NixPinReport>> {
    let name = cache_name(&name)?;
    let door = Door::find(&edge, &name, visitor).await?;
    let grant = door.authorize::<NixPull>()?;
    let pins = door.caches().pins(&grant).await.map_err(Problem::from)?;
    let report = |pin: Pin| NixPinReport {
        path: pin.path.as_str().to_owned(),
        name: pin.name,
        created: pin.created_s,
        until: pin.until_s,
    };
    Ok(Json(pins.into_iter().map(report).collect()))
}

async fn pin(
    State(edge): Edge,
    Path((name, pin)): Path<(String, String)>,
    visitor: Visitor,
    InJson(request): InJson<NixPinRequest>,
) -> Answer<()> {
    let name = cache_name(&name)?;
    let door = Door::find(&edge, &name, visitor).await?;
    let grant = door.authorize::<NixPush>()?;
    let path = StorePath::parse(&request.path).map_err(|error| invalid(&error))?;
    door.cache()?;
    let detail = format!("{pin}: {path}");
    let set = |caches: NixCaches, grant| async move { caches.pin(&grant, &pin, &path, request.until).await };
    Ok(Json(door.administer(&grant, "cache.pin", &detail, set).await?.map_err(Problem::from)?))
}

async fn unpin(State(edge): Edge, Path((name, pin)): Path<(String, String)>, visitor: Visitor) -> Answer<()> {
    let name = cache_name(&name)?;
    let door = Door::find(&edge, &name, visitor).await?;
    let grant = door.authorize::<NixPush>()?;
    door.cache()?;
    let unknown = format!("{name} has no pin of this name");
    let detail = pin.clone();
    let take = |caches: NixCaches, grant| async move {
        match caches.unpin(&grant, &pin).await? {
            true => Ok(()),
            false => Err(Problem::new(StatusCode::NOT_FOUND, unknown)),
        }
    };
    Ok(Json(door.administer(&grant, "cache.unpin", &detail, take).await??))
}

fn cache_name(name: &str) -> Result<CacheName, Problem> {
    CacheName::new(name).map_err(|error| invalid(&error))
}

fn invalid(error: &dyn std::fmt::Display) -> Problem {
    Problem::new(StatusCode::BAD_REQUEST, error.to_string())
}

fn report(cache: &Cache) -> NixCacheReport {
    let settings = cache.settings();
    NixCacheReport {
        name: cache.name().to_string(),
        tenant: cache.tenant().to_string(),
        is_public: cache.is_public(),
        priority: settings.priority,
        public_key: cache.public_key().to_string(),
        upstream_key_names: settings.upstream_key_names.iter().map(ToString::to_string).collect(),
        retention_seconds: match settings.retention {
            Retention::Forever => None,
            Retention::Unused { period_s } => Some(period_s),
        },
        grace_seconds: settings.grace_s,
        quota_bytes: settings.quota_bytes,
        upstreams: settings.upstreams.iter().map(upstream_setting).collect(),
        gives_toolchains: settings.gives_toolchains,
        contents: None,
    }
}

fn upstream_setting(upstream: &UpstreamSettings) -> NixUpstreamSetting {
    let keys = upstream.keys.iter().map(ToString::to_string).collect();
    NixUpstreamSetting { url: upstream.url.clone(), keys }
}

/// A body in JSON, refused in JSON.
struct InJson<T>(T);

impl<T: DeserializeOwned> FromRequest<Arc<NixEdge>> for InJson<T> {
    type Rejection = ApiProblem;

    async fn from_request(request: Request, edge: &Arc<NixEdge>) -> Result<Self, ApiProblem> {
        let refused = |rejection: JsonRejection| Problem::new(rejection.status(), rejection.body_text());
        let Json(value) = Json::from_request(request, edge).await.map_err(refused)?;
        Ok(Self(value))
    }
}

/// A problem in JSON.
struct ApiProblem(Problem);

impl From<Problem> for ApiProblem {
    fn from(problem: Problem) -> Self {
        Self(problem)
    }
}

impl IntoResponse for ApiProblem {
    fn into_response(self) -> Response<Body> {
        let response = Json(ProblemReport { error: self.0.text.clone() }).into_response();
        self.0.mark(response)
    }
}
