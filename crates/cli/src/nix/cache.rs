//! `gf nix cache create|list|show`.

use gf_server::config::{show_duration, show_size};
use gf_server::operator::report::{NixCacheChange, NixCacheReport, NixContentsReport, NixUpstreamSetting};
use hyper::Method;
use serde_json::json;
use std::time::Duration;

use super::remote::RemoteCache;
use crate::args::{CacheArgs, CreateArgs, ListArgs, SetArgs};
use crate::client::{Client, Patience};
use crate::failure::Failure;
use crate::output::{Format, plain, print, say};
use crate::table::table;

pub(super) fn create(args: CreateArgs) -> Result<(), Failure> {
    let cache = RemoteCache::new(args.server, &args.cache)?;
    let config = json!({
        "keypair": "Generate",
        "is_public": args.public,
        "store_dir": "/nix/store",
        "priority": args.priority,
        "upstream_cache_key_names": args.upstream_keys,
    });
    super::block_on(async {
        let whose = args.tenant.map(|tenant| format!("?tenant={tenant}")).unwrap_or_default();
        let path = format!("/nix/_api/v1/cache-config/{}{whose}", cache.name);
        let body = serde_json::to_vec(&config).map_err(Failure::failed)?;
        cache.client.ask::<serde_json::Value>(Method::POST, &path, body.into(), Patience::Short).await?;
        let key = cache.config().await?.public_key.unwrap_or_default();
        say(format!("{} is there; its key is {key}\n`gf nix cache use {}` sets up a client", cache.name, cache.name));
        Ok(())
    })
}

pub(super) fn list(args: ListArgs) -> Result<(), Failure> {
    let caches: Vec<NixCacheReport> = Client::new(args.server)?.get("/api/v1/nix/caches")?;
    print(Format::from(args.json), &caches, |caches| {
        let row = |cache: &NixCacheReport| {
            let visibility = if cache.is_public { "public" } else { "private" };
            [plain(&cache.name), plain(&cache.tenant), visibility.to_owned(), cache.priority.to_string()]
        };
        table(["CACHE", "TENANT", "VISIBILITY", "PRIORITY"], &caches.iter().map(row).collect::<Vec<_>>())
    })
}

pub(super) fn show(args: CacheArgs) -> Result<(), Failure> {
    let cache = RemoteCache::new(args.server, &args.cache)?;
    let report: NixCacheReport = cache.client.get(&format!("/api/v1/nix/caches/{}", cache.name))?;
    let url = cache.client.url();
    print(Format::from(args.json), &report, |report| text(report, &url))
}

pub(super) fn set(args: SetArgs) -> Result<(), Failure> {
    let cache = RemoteCache::new(args.server, &args.cache)?;
    let keys = args.upstream_keys;
    let upstream = |url| NixUpstreamSetting { url, keys: keys.clone() };
    let upstreams: Vec<NixUpstreamSetting> = args.upstreams.into_iter().map(upstream).collect();
    let change = NixCacheChange {
        is_public: args.public,
        priority: args.priority,
        upstreams: (args.no_upstream || !upstreams.is_empty()).then_some(upstreams),
        gives_toolchains: args.toolchains,
        retention_seconds: args.retention.map(|time| time.as_secs()),
        quota_bytes: args.quota,
        grace_seconds: args.grace.map(|time| time.as_secs()),
    };
    let body = serde_json::to_vec(&change).map_err(Failure::failed)?;
    super::block_on(async {
        let path = format!("/api/v1/nix/caches/{}", cache.name);
        let report: NixCacheReport = cache.client.ask(Method::PATCH, &path, body.into(), Patience::Short).await?;
        say(text(&report, &cache.client.url()));
        Ok(())
    })
}

fn text(report: &NixCacheReport, server: &str) -> String {
    let visibility = if report.is_public { "public" } else { "private" };
    let duration = |seconds| show_duration(Duration::from_secs(seconds));
    let mut text = format!(
        "cache     {}, {visibility}, of {}, at {server}/nix/{}\nkey       {}\npriority  {}\nkeeps     {}\n",
        plain(&report.name),
        plain(&report.tenant),
        plain(&report.name),
        plain(&report.public_key),
        report.priority,
        match report.retention_seconds {
            Some(seconds) => format!(
                "what was used in the last {}, and for {} what a client was told of",
                duration(seconds),
                duration(report.grace_seconds)
            ),
            None => "everything, until the quota is reached".to_owned(),
        },
    );
    for upstream in &report.upstreams {
        text += &format!("looks in  {}\n", plain(&upstream.url));
    }
    if report.gives_toolchains {
        text += "gives     toolchains to actions\n";
    }
    if let Some(bytes) = report.quota_bytes {
        text += &format!("quota     {}\n", show_size(bytes));
    }
    if let Some(NixContentsReport { paths, nar_bytes, waiting_paths, pins, upstreams }) = &report.contents {
        text += &format!("holds     {paths} paths, {} uncompressed, {pins} pins\n", show_size(*nar_bytes));
        if *waiting_paths > 0 {
            text += &format!("waiting   {waiting_paths} paths for others that they refer to\n");
        }
        for upstream in upstreams {
            let (url, size) = (plain(&upstream.url), show_size(upstream.nar_bytes));
            text += &format!("from      {url}: {} paths, {size}\n", upstream.paths);
        }
    }
    text.truncate(text.trim_end().len());
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cache_is_shown() {
        let contents = NixContentsReport { paths: 3, nar_bytes: 1 << 20, waiting_paths: 1, ..Default::default() };
        let report = NixCacheReport {
            name: "main".to_owned(),
            tenant: "default".to_owned(),
            public_key: "main-1:abc".to_owned(),
            retention_seconds: Some(86_400),
            grace_seconds: 86_400,
            contents: Some(contents),
            ..Default::default()
        };
        let text = text(&report, "http://host");
        assert!(text.contains("main, private, of default, at http://host/nix/main\n"), "{text}");
        assert!(text.contains("3 paths, 1.0 MiB uncompressed") && text.ends_with("refer to"), "{text}");
    }
}
