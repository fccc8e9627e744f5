//! Attic's interface (version 1), for its unmodified client.
//!
//! Deliberately absent: upload sessions, which its client asks for only where a server offers them.

mod refusal;
mod upload;
mod wire;

use std::collections::BTreeSet;

use axum::http::request::Parts;
use axum::http::uri::Authority;
use axum::http::{HeaderMap, Method as Verb, StatusCode, header};
use bytes::Bytes;
use gf_nix_cache::{CacheName, NewCache, NewKey, NixCaches, Retention, RetentionChange, Settings, SettingsChange};
use gf_nix_formats::{KeyName, PublicKey, SecretKey, StoreDir, StorePathHash};
use gf_tenancy::{
    NixConfigureCache, NixConfigureRetention, NixCreateCache, NixDestroyCache, NixPull, NixPush, PermissionName,
    TenantName, Visibility,
};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::NixEdge;
use super::answer::Answer;
use super::door::{Door, check};
use super::target::Attic;
use crate::edges::credentials::Visitor;
use crate::edges::plain_http::{Incoming, Problem, content_length};
use refusal::Refusal;
use wire::{CacheConfig, Keypair, MissingPathsAnswer, MissingPathsRequest, RetentionPeriod};

const JSON: &str = "application/json";

/// How a cache is set up fits into this, with room to spare.
const MAX_CONFIG_BYTES: usize = 64 << 10;

/// A hundred thousand hashes with their quotes.
const MAX_QUESTION_BYTES: usize = 4 << 20;

pub(super) async fn serve(
    edge: &NixEdge,
    target: &Attic,
    head: &Parts,
    incoming: &mut Incoming,
) -> Result<Answer, Refusal> {
    match (target, &head.method) {
        (Attic::CacheConfig(name), verb) => {
            let door = Door::find(edge, name, Visitor::of(head)).await?;
            match *verb {
                Verb::GET | Verb::HEAD => Ok(cache_info(&door, head)?),
                Verb::POST => create(edge, &door, head, incoming).await,
                Verb::PATCH => configure(edge, &door, &head.headers, incoming).await,
                Verb::DELETE => destroy(&door).await,
                _ => Err(Problem::not_allowed("GET, HEAD, POST, PATCH, DELETE").into()),
            }
        }
        (Attic::MissingPaths, &Verb::POST) => missing_paths(edge, head, incoming).await,
        (Attic::MissingPaths, _) => Err(Problem::not_allowed("POST").into()),
        (Attic::UploadPath, &Verb::PUT) => upload::upload(edge, head, incoming).await,
        (Attic::UploadPath, _) => Err(Problem::not_allowed("PUT").into()),
    }
}

/// How a cache is set up, and where it is.
pub(super) fn cache_info(door: &Door<'_>, head: &Parts) -> Result<Answer, Problem> {
    door.authorize::<NixPull>()?;
    let cache = door.cache()?;
    let base = base_url(head, door.scheme());
    let Settings { priority, store_dir, retention, upstreams, upstream_key_names, .. } = cache.settings();
    // What the cache itself looks up elsewhere need not be pushed either.
    let looked_up = upstreams.iter().flat_map(|upstream| upstream.keys.iter().map(PublicKey::name));
    let elsewhere: BTreeSet<String> = upstream_key_names.iter().chain(looked_up).map(ToString::to_string).collect();
    let config = CacheConfig {
        keypair: None,
        substituter_endpoint: base.as_ref().map(|base| format!("{base}/nix/{}", cache.name())),
        api_endpoint: base.map(|base| format!("{base}/nix/")),
        public_key: Some(cache.public_key().to_string()),
        is_public: Some(cache.is_public()),
        store_dir: Some(store_dir.to_string()),
        priority: Some(i32::try_from(*priority).unwrap_or(i32::MAX)),
        upstream_cache_key_names: Some(elsewhere.into_iter().collect()),
        retention_period: Some(period_of(*retention)),
    };
    Ok(json(&config))
}

/// `?tenant=NAME` says whose the cache is to be; Attic's own client does not.
async fn create(edge: &NixEdge, door: &Door<'_>, head: &Parts, incoming: &mut Incoming) -> Result<Answer, Refusal> {
    let grant = match named_tenant(head.uri.query())? {
        None => door.authorize_new::<NixCreateCache>()?,
        Some(tenant) => door.authorize_new_of::<NixCreateCache>(&tenant)?,
    };
    let config: CacheConfig = read(edge, &head.headers, incoming, MAX_CONFIG_BYTES).await?;
    let defaults = Settings::default();
    let cache = NewCache {
        key: config.key()?.unwrap_or(NewKey::Generate),
        settings: Settings {
            visibility: config.visibility().unwrap_or(defaults.visibility),
            priority: config.priority()?.unwrap_or(defaults.priority),
            store_dir: config.store_dir()?.unwrap_or(defaults.store_dir),
            retention: config.retention_period.map_or(defaults.retention, retention_of),
            upstream_key_names: config.key_names()?.unwrap_or(defaults.upstream_key_names),
            ..defaults
        },
    };
    let visibility = visibility_sentence(cache.settings.visibility);
    door.check_absent()?;
    let create = |caches: NixCaches, grant| async move { caches.create(&grant, cache).await };
    door.administer(&grant, "cache.create", visibility, create).await??;
    Ok(Answer::done())
}

/// The tenant that a query names.
fn named_tenant(query: Option<&str>) -> Result<Option<TenantName>, Problem> {
    let named = query.unwrap_or_default().split('&').find_map(|part| part.strip_prefix("tenant="));
    let tenant = named.map(TenantName::new).transpose();
    tenant.map_err(|error| Problem::new(StatusCode::BAD_REQUEST, error.to_string()))
}

/// Attic's own client always says something of the retention; what changes nothing of it needs no right to. Who changes the
/// retention alone needs no other.
async fn configure(
    edge: &NixEdge,
    door: &Door<'_>,
    headers: &HeaderMap,
    incoming: &mut Incoming,
) -> Result<Answer, Refusal> {
    // Before anything is read.
    if door.may::<NixConfigureRetention>().is_none() {
        door.authorize::<NixConfigureCache>()?;
    }
    let config: CacheConfig = read(edge, headers, incoming, MAX_CONFIG_BYTES).await?;
    let cache = door.cache()?;
    if config.store_dir()?.is_some_and(|store_dir| store_dir != cache.settings().store_dir) {
        return Err(invalid("the store of a cache cannot be changed: make another cache").into());
    }
    let change = SettingsChange {
        visibility: config.visibility(),
        priority: config.priority()?,
        upstreams: None,
        upstream_key_names: config.key_names()?,
        gives_toolchains: None,
    };
    let key = config.key()?;
    let retention = config.retention_period.map(retention_of);
    if change.is_empty() && key.is_none() && retention.is_none() && config.store_dir.is_none() {
        return Err(invalid("nothing is to be changed").into());
    }
    let retention = retention.filter(|retention| *retention != cache.settings().retention);
    let keeps = retention.map(|retention| Ok::<_, Problem>((door.authorize::<NixConfigureRetention>()?, retention)));
    let keeps = keeps.transpose()?;
    if !change.is_empty() || key.is_some() {
        let grant = door.authorize::<NixConfigureCache>()?;
        let visibility = change.visibility.map_or("", visibility_sentence);
        let configure = |caches: NixCaches, grant| async move { caches.configure(&grant, change, key).await };
        door.administer(&grant, "cache.configure", visibility, configure).await??;
    }
    if let Some((grant, retention)) = keeps {
        let change = RetentionChange { retention: Some(retention), ..RetentionChange::default() };
        let keep = |caches: NixCaches, grant| async move { caches.configure_retention(&grant, change).await };
        door.administer(&grant, "cache.retention", "", keep).await??;
    }
    Ok(Answer::done())
}

/// Who may see a cache, which concerns everybody.
const fn visibility_sentence(visibility: Visibility) -> &'static str {
    match visibility {
        Visibility::Public => "it is public",
        Visibility::Private => "it is private",
    }
}

async fn destroy(door: &Door<'_>) -> Result<Answer, Refusal> {
    let grant = door.authorize::<NixDestroyCache>()?;
    door.cache()?;
    let destroy = |caches: NixCaches, grant| async move { caches.destroy(&grant).await };
    door.administer(&grant, "cache.destroy", "", destroy).await??;
    Ok(Answer::done())
}

async fn missing_paths(edge: &NixEdge, head: &Parts, incoming: &mut Incoming) -> Result<Answer, Refusal> {
    let visitor = Visitor::of(head);
    check(edge, &visitor, PermissionName::NixPush)?;
    let question: MissingPathsRequest = read(edge, &head.headers, incoming, MAX_QUESTION_BYTES).await?;
    let name = cache_name(&question.cache)?;
    let door = Door::find(edge, &name, visitor).await?;
    let grant = door.authorize::<NixPush>()?;
    let paths: Result<Vec<_>, _> = question.store_path_hashes.iter().map(|hash| StorePathHash::parse(hash)).collect();
    let missing = door.caches().missing_paths(&grant, &paths.map_err(|error| invalid(&error))?).await?;
    Ok(json(&MissingPathsAnswer { missing_paths: missing.iter().map(ToString::to_string).collect() }))
}

/// A JSON body.
async fn read<T: DeserializeOwned>(
    edge: &NixEdge,
    headers: &HeaderMap,
    incoming: &mut Incoming,
    max_bytes: usize,
) -> Result<T, Problem> {
    let (bytes, _held) = incoming.collect(&edge.buffers, max_bytes, content_length(headers)).await?;
    parse(&bytes)
}

fn parse<T: DeserializeOwned>(bytes: &Bytes) -> Result<T, Problem> {
    serde_json::from_slice(bytes).map_err(|error| invalid(&format!("the JSON is not what it should be: {error}")))
}

fn json(value: &impl Serialize) -> Answer {
    // Text and numbers only: writing them does not fail.
    Answer::document(JSON, serde_json::to_vec(value).unwrap_or_default())
}

fn cache_name(name: &str) -> Result<CacheName, Problem> {
    CacheName::new(name).map_err(|error| invalid(&error))
}

fn invalid(text: &(impl ToString + ?Sized)) -> Problem {
    Problem::new(StatusCode::BAD_REQUEST, text.to_string())
}

/// Where this server is, as the client sees it. A proxy in front says which scheme it is asked with.
fn base_url(head: &Parts, scheme: &'static str) -> Option<String> {
    let host = head.headers.get(header::HOST).and_then(|host| host.to_str().ok());
    let host = host.or_else(|| head.uri.authority().map(Authority::as_str))?;
    let authority: Authority = host.parse().ok()?;
    let proxy = head.headers.get("x-forwarded-proto").and_then(|scheme| scheme.to_str().ok());
    let scheme = proxy.filter(|scheme| matches!(*scheme, "http" | "https")).unwrap_or(scheme);
    // Without the user that an authority may have.
    let host = authority.as_str().rsplit('@').next()?;
    Some(format!("{scheme}://{host}"))
}

impl CacheConfig {
    fn key(&self) -> Result<Option<NewKey>, Problem> {
        match &self.keypair {
            None => Ok(None),
            Some(Keypair::Generate) => Ok(Some(NewKey::Generate)),
            // What is wrong with a secret is not repeated.
            Some(Keypair::Keypair(text)) => match SecretKey::parse(text) {
                Ok(key) => Ok(Some(NewKey::Given(key))),
                Err(_) => Err(invalid("the key pair is not `<name>:<base64 of 64 bytes>`")),
            },
        }
    }

    fn visibility(&self) -> Option<Visibility> {
        self.is_public.map(|is_public| if is_public { Visibility::Public } else { Visibility::Private })
    }

    fn priority(&self) -> Result<Option<u32>, Problem> {
        let priority = self.priority.map(u32::try_from).transpose();
        priority.map_err(|_| invalid("a priority is a number from 0"))
    }

    fn store_dir(&self) -> Result<Option<StoreDir>, Problem> {
        self.store_dir.as_deref().map(StoreDir::new).transpose().map_err(|error| invalid(&error))
    }

    fn key_names(&self) -> Result<Option<Vec<KeyName>>, Problem> {
        let names = self.upstream_cache_key_names.as_ref();
        let names = names.map(|names| names.iter().map(|name| KeyName::new(name)).collect());
        names.transpose().map_err(|error| invalid(&error))
    }
}

fn retention_of(period: RetentionPeriod) -> Retention {
    match period {
        RetentionPeriod::Global => Settings::default().retention,
        RetentionPeriod::Period(0) => Retention::Forever,
        RetentionPeriod::Period(period_s) => Retention::Unused { period_s: period_s.into() },
    }
}

fn period_of(retention: Retention) -> RetentionPeriod {
    match retention {
        retention if retention == Settings::default().retention => RetentionPeriod::Global,
        Retention::Forever => RetentionPeriod::Period(0),
        Retention::Unused { period_s } => RetentionPeriod::Period(u32::try_from(period_s).unwrap_or(u32::MAX)),
    }
}
