//! `gf nix why`: whether a client would get a path, and if not, the first link of the chain that is broken.

use std::collections::{BTreeSet, VecDeque};

use gf_nix_formats::{NarInfo, PublicKey, StoreDir, StorePath, StorePathHash};
use serde::Serialize;

use super::local_store::{self, output};
use super::remote::{CacheConfig, RemoteCache};
use crate::args::WhyPathArgs;
use crate::failure::{Failure, FailureKind};
use crate::output::{Format, print};

/// Paths of a closure that are looked at.
const MAX_CLOSURE: usize = 20_000;

pub(super) fn run(args: WhyPathArgs) -> Result<(), Failure> {
    let path = local_store::resolve(std::slice::from_ref(&args.path))?.remove(0);
    let cache = RemoteCache::new(args.server, &args.cache)?;
    let answer = super::block_on(look(&cache, &path))?;
    print(Format::from(args.json), &answer, |answer| answer.sentence.clone())?;
    if answer.is_substitutable { Ok(()) } else { Err(Failure::new(FailureKind::NotSo, "")) }
}

/// What came of it.
#[derive(Debug, Serialize)]
struct Answer {
    path: String,
    cache: String,
    is_substitutable: bool,
    /// Paths that it needs, itself included.
    closure: usize,
    sentence: String,
}

async fn look(cache: &RemoteCache, path: &StorePath) -> Result<Answer, Failure> {
    let answer = |is_substitutable, closure, sentence: String| Answer {
        path: StoreDir::default().join(path),
        cache: cache.name.clone(),
        is_substitutable,
        closure,
        sentence,
    };
    let (closure, broken) = walk(cache, path).await?;
    if let Some(broken) = broken {
        return Ok(answer(false, closure.len(), broken));
    }
    let config = cache.config().await?;
    let client = tokio::task::spawn_blocking(Client::ask).await.map_err(Failure::failed)?;
    Ok(match client.and_then(|client| client.objection(&config, &closure)) {
        Some(objection) => answer(false, closure.len(), objection),
        None => {
            let count = closure.len();
            let sentence = format!(
                "{path} and the {count} paths of its closure are in {}, with archives and signatures",
                cache.name
            );
            answer(
                true,
                count,
                format!(
                    "{sentence}. Nix remembers for an hour what it missed: after a push that came too \
                late for it, add --option narinfo-cache-negative-ttl 0"
                ),
            )
        }
    })
}

/// The closure as far as it is there, and what is not.
async fn walk(cache: &RemoteCache, path: &StorePath) -> Result<(Vec<NarInfo>, Option<String>), Failure> {
    let mut waiting: VecDeque<(StorePathHash, String)> = VecDeque::from([(path.hash(), String::new())]);
    let (mut seen, mut closure) = (BTreeSet::from([path.hash()]), Vec::new());
    while let Some((hash, wanted_by)) = waiting.pop_front() {
        let Some((_, narinfo)) = cache.narinfo(hash).await? else {
            return Ok((closure, Some(missing(cache, path, hash, &wanted_by))));
        };
        if !cache.has(narinfo.url.as_str()).await? {
            let broken =
                format!("the narinfo of {} is there and its archive is not: push it again", narinfo.store_path);
            return Ok((closure, Some(broken)));
        }
        for reference in &narinfo.references {
            if seen.len() < MAX_CLOSURE && seen.insert(reference.hash()) {
                waiting.push_back((reference.hash(), format!("{reference}, to which {} refers", narinfo.store_path)));
            }
        }
        closure.push(narinfo);
    }
    Ok((closure, None))
}

fn missing(cache: &RemoteCache, path: &StorePath, hash: StorePathHash, wanted_by: &str) -> String {
    let what = if wanted_by.is_empty() { path.to_string() } else { wanted_by.to_owned() };
    let what = if what.is_empty() { hash.to_string() } else { what };
    format!(
        "{what}, is not in {}: push it with `gf nix push {} {}` on a machine that has it",
        cache.name,
        cache.name,
        StoreDir::default().join(path)
    )
    .replacen(", is not", " is not", usize::from(wanted_by.is_empty()))
}

/// What Nix on this machine believes.
struct Client {
    substituters: Vec<String>,
    keys: Vec<String>,
}

impl Client {
    /// `None` where there is no Nix.
    fn ask() -> Option<Self> {
        let shown = output("nix", ["--extra-experimental-features", "nix-command", "show-config"]);
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

    /// Why it would not take this closure from the cache.
    fn objection(&self, config: &CacheConfig, closure: &[NarInfo]) -> Option<String> {
        let url = config.substituter_endpoint.as_deref()?;
        let trim = |url: &str| url.split('?').next().unwrap_or_default().trim_end_matches('/').to_owned();
        if !self.substituters.iter().any(|substituter| trim(substituter) == trim(url)) {
            return Some(format!(
                "the path is there, but Nix on this machine does not ask {url}: run `gf nix cache use`"
            ));
        }
        let keys: Vec<PublicKey> = self.keys.iter().filter_map(|key| PublicKey::parse(key).ok()).collect();
        let store = StoreDir::default();
        let is_trusted = |narinfo: &NarInfo| {
            let message = narinfo.fingerprint(&store);
            narinfo.is_content_addressed(&store) || narinfo.signatures.verified_by(message.as_bytes(), &keys).is_some()
        };
        let distrusted = closure.iter().find(|narinfo| !is_trusted(narinfo))?;
        let key = config.public_key.as_deref().unwrap_or("of the cache");
        Some(format!(
            "no key that Nix on this machine trusts has signed {}: add the key {key} with `gf nix cache use`",
            distrusted.store_path
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_that_does_not_ask_is_told_so() {
        let client = Client::read("substituters = https://a.example http://host:1/nix/main/?priority=3\ncores = 2\n");
        let config = |url: &str| CacheConfig { substituter_endpoint: Some(url.to_owned()), ..CacheConfig::default() };
        assert_eq!(client.objection(&config("http://host:1/nix/main"), &[]), None);
        let objection = client.objection(&config("http://host:1/nix/other"), &[]).unwrap();
        assert!(objection.contains("does not ask http://host:1/nix/other"), "{objection}");
    }
}
