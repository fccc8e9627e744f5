//! `gf nix pin set|list|remove`.

use gf_server::operator::report::{NixPinReport, NixPinRequest};
use hyper::Method;

use super::local_store;
use super::remote::RemoteCache;
use crate::args::{CacheArgs, PinRemoveArgs, PinSetArgs};
use crate::client::Patience;
use crate::failure::{Failure, FailureKind};
use crate::output::{Format, plain, print, say};
use crate::table::table;

pub(super) fn set(args: PinSetArgs) -> Result<(), Failure> {
    let path = local_store::resolve(std::slice::from_ref(&args.path))?.remove(0);
    let cache = RemoteCache::new(args.server, &args.cache)?;
    let request = NixPinRequest { path: path.as_str().to_owned(), until: None };
    let body = serde_json::to_vec(&request).map_err(Failure::failed)?;
    let url = url(&cache, &args.name)?;
    super::block_on(async {
        cache.client.ask::<serde_json::Value>(Method::PUT, &url, body.into(), Patience::Short).await?;
        say(format!("{} keeps {path}, and all that it refers to, in {}", args.name, cache.name));
        Ok(())
    })
}

pub(super) fn list(args: CacheArgs) -> Result<(), Failure> {
    let cache = RemoteCache::new(args.server, &args.cache)?;
    let pins: Vec<NixPinReport> = cache.client.get(&format!("/api/v1/nix/caches/{}/pins", cache.name))?;
    print(Format::from(args.json), &pins, |pins| {
        let row = |pin: &NixPinReport| [plain(&pin.name), plain(&pin.path)];
        table(["PIN", "PATH"], &pins.iter().map(row).collect::<Vec<_>>())
    })
}

pub(super) fn remove(args: PinRemoveArgs) -> Result<(), Failure> {
    let cache = RemoteCache::new(args.server, &args.cache)?;
    let url = url(&cache, &args.name)?;
    super::block_on(async {
        let body = bytes::Bytes::new();
        cache.client.ask::<serde_json::Value>(Method::DELETE, &url, body, Patience::Short).await.map(drop)
    })
}

fn url(cache: &RemoteCache, pin: &str) -> Result<String, Failure> {
    let is_good = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    if pin.is_empty() || pin.len() > 128 || !pin.bytes().all(is_good) || pin.bytes().all(|byte| byte == b'.') {
        let message = format!("{pin:?} is no name of a pin: use up to 128 letters, digits, `-`, `_` and `.`");
        return Err(Failure::new(FailureKind::Usage, message));
    }
    Ok(format!("/api/v1/nix/caches/{}/pins/{pin}", cache.name))
}
