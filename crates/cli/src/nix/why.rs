//! `gf nix why`: whether a client would get a path, and if not, the first link of the chain that is broken.
//!
//! The server explains its part of the chain; the rest is what Nix on this machine is set up to ask and to trust, and what
//! it remembers.

use gf_nix_formats::{NarInfo, PublicKey, StoreDir, StorePath};
use gf_server::operator::report::NixPathReport;
use hyper::Method;
use serde::Serialize;

use super::local_store::{self, output};
use super::memory::{self, Remembered};
use super::remote::{CacheConfig, RemoteCache};
use crate::args::WhyPathArgs;
use crate::client::Patience;
use crate::failure::{Failure, FailureKind};
use crate::output::{Format, plain, print, show_age};

pub(super) fn run(args: WhyPathArgs) -> Result<(), Failure> {
    let path = local_store::resolve(std::slice::from_ref(&args.path))?.remove(0);
    let cache = RemoteCache::new(args.server, &args.cache)?;
    let answer = super::block_on(look(&cache, &path))?;
    print(Format::from(args.json), &answer, show)?;
    if answer.broken.is_none() { Ok(()) } else { Err(Failure::new(FailureKind::NotSo, "")) }
}

/// What came of it.
#[derive(Debug, Serialize)]
struct Answer {
    path: String,
    cache: String,
    /// The chain, from the cache to this machine.
    links: Vec<String>,
    /// The link at which it breaks; absent when Nix on this machine would get the path.
    broken: Option<String>,
    /// Why it stays in the cache.
    kept_by: Vec<String>,
}

fn show(answer: &Answer) -> String {
    let Answer { path, cache, links, broken, kept_by } = answer;
    let verdict = if broken.is_none() { "can be substituted from" } else { "cannot be substituted from" };
    let mut text = format!("{path} {verdict} {cache}");
    links.iter().for_each(|link| text += &format!("\n  ok  {}", plain(link)));
    broken.iter().for_each(|broken| text += &format!("\n  NO  {}", plain(broken)));
    kept_by.iter().for_each(|keeper| text += &format!("\n  it stays: {}", plain(keeper)));
    text
}

async fn look(cache: &RemoteCache, path: &StorePath) -> Result<Answer, Failure> {
    let url = format!("/api/v1/nix/caches/{}/paths/{}", cache.name, path.hash());
    let report: NixPathReport = cache.client.ask(Method::GET, &url, bytes::Bytes::new(), Patience::Short).await?;
    let NixPathReport { is_substitutable, mut links, kept_by } = report;
    let mut broken = if is_substitutable { None } else { links.pop() };
    if broken.is_none() {
        let config = cache.config().await?;
        let narinfo = cache.narinfo(path.hash()).await?.map(|(_, narinfo)| narinfo);
        let client = tokio::task::spawn_blocking(Client::ask).await.map_err(Failure::failed)?;
        match client {
            Some(client) => broken = client.objection(&config, narinfo.as_ref(), &mut links),
            None => links.push("there is no Nix on this machine, so nothing is known of clients".to_owned()),
        }
        if let (None, Some(url)) = (&broken, &config.substituter_endpoint) {
            broken = remembered(memory::remembered(url, path.hash()).await);
        }
    }
    Ok(Answer { path: StoreDir::default().join(path), cache: cache.name.clone(), links, broken, kept_by })
}

/// Whether Nix believes what it remembers instead of asking.
fn remembered(remembered: Option<Remembered>) -> Option<String> {
    let Remembered { is_present: false, age_seconds } = remembered? else { return None };
    let left = memory::NEGATIVE_TTL_SECONDS.checked_sub(age_seconds)?;
    Some(format!(
        "Nix on this machine asked {} ago, when it was missing, and asks again in {}: until then add `--option \
         narinfo-cache-negative-ttl 0`",
        show_age(age_seconds),
        show_age(left)
    ))
}

/// What Nix on this machine believes.
struct Client {
    substituters: Vec<String>,
    keys: Vec<String>,
}

impl Client {
    /// `None` where there is no Nix.
    fn ask() -> Option<Self> {
        const COMMAND: [&str; 2] = ["--extra-experimental-features", "nix-command"];
        let shown = output("nix", COMMAND.into_iter().chain(["show-config"]));
        let shown = shown.or_else(|_| output("nix", COMMAND.into_iter().chain(["config", "show"])));
        Some(Self::read(&shown.ok()?))
    }

    fn read(config: &str) -> Self {
        let values = |name: &str| {
            let lines = config.lines().filter_map(|line| line.split_once(" = "));
            let value = lines.filter(|(setting, _)| *setting == name).map(|(_, value)| value);
            value.flat_map(str::split_whitespace).map(str::to_owned).collect()
        };
        Self { substituters: values("substituters"), keys: values("trusted-public-keys") }
    }

    /// Why it would not take the path from the cache; what is right is added to `links`.
    fn objection(&self, config: &CacheConfig, narinfo: Option<&NarInfo>, links: &mut Vec<String>) -> Option<String> {
        let url = config.substituter_endpoint.as_deref()?;
        let trim = |url: &str| url.split('?').next().unwrap_or_default().trim_end_matches('/').to_owned();
        if !self.substituters.iter().any(|substituter| trim(substituter) == trim(url)) {
            return Some(format!("Nix on this machine does not ask {url}: set it up with `gf nix cache use`"));
        }
        links.push(format!("Nix on this machine asks {url}"));
        let narinfo = narinfo?;
        let keys: Vec<PublicKey> = self.keys.iter().filter_map(|key| PublicKey::parse(key).ok()).collect();
        let store = StoreDir::default();
        let signed = narinfo.signatures.verified_by(narinfo.fingerprint(&store).as_bytes(), &keys);
        match signed {
            Some(key) => links.push(format!("Nix on this machine trusts {}, which signed it", key.name())),
            None if narinfo.is_content_addressed(&store) => {}
            None => {
                let key = config.public_key.as_deref().unwrap_or("of the cache");
                return Some(format!(
                    "Nix on this machine trusts no key that signed it: add {key} with `gf nix cache use`"
                ));
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_that_does_not_ask_is_told_so() {
        let client = Client::read("substituters = https://a.example http://host:1/nix/main/?priority=3\ncores = 2\n");
        let config = |url: &str| CacheConfig { substituter_endpoint: Some(url.to_owned()), ..CacheConfig::default() };
        let mut links = Vec::new();
        assert_eq!(client.objection(&config("http://host:1/nix/main"), None, &mut links), None);
        assert_eq!(links.len(), 1);
        let objection = client.objection(&config("http://host:1/nix/other"), None, &mut links).unwrap();
        assert!(objection.contains("does not ask http://host:1/nix/other"), "{objection}");
    }

    #[test]
    fn what_was_missed_lately_is_not_asked_again() {
        let missed = |age_seconds| Some(Remembered { is_present: false, age_seconds });
        assert!(remembered(missed(600)).unwrap().contains("10 min ago"));
        assert_eq!(remembered(missed(4000)), None);
        assert_eq!(remembered(Some(Remembered { is_present: true, age_seconds: 1 })), None);
        assert_eq!(remembered(None), None);
    }
}
