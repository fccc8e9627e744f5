//! `gf nix export` and `import`: a folder that is a binary cache of its own, as `nix copy --to file://DIR` makes one.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fs::{self, File};
use std::io::Write;
use std::path::Path;

use bytes::Bytes;
use futures::TryStreamExt;
use gf_nix_formats::{NarInfo, StoreDir, StorePath, StorePathHash};
use http_body_util::{BodyExt, StreamBody};
use hyper::Method;
use hyper::body::Frame;
use tokio::io::AsyncReadExt;

use super::local_store;
use super::remote::RemoteCache;
use crate::args::{ExportArgs, ImportArgs};
use crate::client::{Body, whole};
use crate::failure::{Failure, FailureKind};
use crate::output::say;

const ARCHIVE: &str = "application/x-nix-nar";
const NARINFO: &str = "text/x-nix-narinfo";
const READ_BYTES: usize = 256 << 10;

pub(super) fn export(args: ExportArgs) -> Result<(), Failure> {
    let paths = local_store::resolve(&args.paths)?;
    let cache = RemoteCache::new(args.server, &args.cache)?;
    let folder = args.folder;
    fs::create_dir_all(folder.join("nar")).map_err(|error| unusable(&folder, &error))?;
    super::block_on(async {
        let (mut waiting, mut seen): (VecDeque<StorePathHash>, BTreeSet<StorePathHash>) = Default::default();
        waiting.extend(paths.iter().map(StorePath::hash).filter(|path| seen.insert(*path)));
        let mut narinfos = BTreeMap::new();
        while let Some(path) = waiting.pop_front() {
            let Some((bytes, narinfo)) = cache.narinfo(path).await? else {
                let message = format!("{path} is not in {}, so this export would not be whole", cache.name);
                return Err(Failure::new(FailureKind::NotSo, message));
            };
            waiting.extend(narinfo.references.iter().map(StorePath::hash).filter(|path| seen.insert(*path)));
            fetch(&cache, narinfo.url.as_str(), &folder).await?;
            narinfos.insert(path, bytes);
        }
        // A folder whose narinfos are all there has all archives, too.
        for (path, bytes) in &narinfos {
            write(&folder.join(format!("{path}.narinfo")), bytes).map_err(|error| unusable(&folder, &error))?;
        }
        write(&folder.join("nix-cache-info"), b"StoreDir: /nix/store\nWantMassQuery: 1\nPriority: 40\n")
            .map_err(|error| unusable(&folder, &error))?;
        let shown = folder.display();
        say(format!("{} paths are in {shown}: Nix reads it as file://{shown}", narinfos.len()));
        Ok(())
    })
}

/// A URL that stays below the folder that it is relative to.
fn inside(url: &str) -> Result<&str, Failure> {
    let is_plain = url.split('/').all(|part| !part.is_empty() && part != "." && part != "..") && !url.contains(':');
    if is_plain {
        Ok(url)
    } else {
        Err(Failure::failed(format!("an archive is named {url:?}, which cannot be a file")))
    }
}

/// Reads an archive into the folder, unless it is there.
async fn fetch(cache: &RemoteCache, url: &str, folder: &Path) -> Result<(), Failure> {
    let file = folder.join(inside(url)?);
    if file.exists() {
        return Ok(());
    }
    let mut answer = cache.client.send(Method::GET, &cache.path(url), &[], whole("")).await?;
    if !answer.status().is_success() {
        return Err(Failure::failed(format!("{url}: the server answers {}", answer.status())));
    }
    let part = file.with_extension("part");
    let failed = |error: std::io::Error| unusable(folder, &error);
    if let Some(parent) = part.parent() {
        fs::create_dir_all(parent).map_err(failed)?;
    }
    let mut writer = File::create(&part).map_err(failed)?;
    while let Some(frame) = answer.body_mut().frame().await {
        let frame = frame.map_err(|error| Failure::failed(format!("{url}: the archive broke off: {error}")))?;
        if let Some(bytes) = frame.data_ref() {
            writer.write_all(bytes).map_err(failed)?;
        }
    }
    fs::rename(&part, &file).map_err(failed)
}

fn write(file: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let part = file.with_extension("part");
    fs::write(&part, bytes)?;
    fs::rename(part, file)
}

pub(super) fn import(args: ImportArgs) -> Result<(), Failure> {
    let cache = RemoteCache::new(args.server, &args.cache)?;
    let folder = args.folder;
    let narinfos = read_all(&folder)?;
    super::block_on(async {
        let mut sent = 0;
        for (bytes, narinfo) in in_order(&narinfos) {
            if cache.narinfo(narinfo.store_path.hash()).await?.is_some() {
                continue;
            }
            let url = inside(narinfo.url.as_str())?;
            if !cache.has(url).await? {
                cache.put(url, ARCHIVE, file_body(&folder.join(url)).await?).await?;
            }
            let name = format!("{}.narinfo", narinfo.store_path.hash());
            cache.put(&name, NARINFO, whole(bytes.clone())).await?;
            sent += 1;
        }
        let there = narinfos.len() - sent;
        say(format!("{}: {sent} paths imported; {there} were there already", cache.name));
        Ok(())
    })
}

/// All narinfos of a folder.
fn read_all(folder: &Path) -> Result<BTreeMap<StorePath, (Bytes, NarInfo)>, Failure> {
    let failed = |error: std::io::Error| unusable(folder, &error);
    let mut narinfos = BTreeMap::new();
    for entry in fs::read_dir(folder).map_err(failed)? {
        let file = entry.map_err(failed)?.path();
        if file.extension().is_some_and(|extension| extension == "narinfo") {
            let bytes = fs::read(&file).map_err(failed)?;
            let narinfo = NarInfo::parse(&StoreDir::default(), &bytes);
            let narinfo = narinfo.map_err(|error| Failure::failed(format!("{}: {error}", file.display())))?;
            narinfos.insert(narinfo.store_path.clone(), (Bytes::from(bytes), narinfo));
        }
    }
    if narinfos.is_empty() {
        return Err(Failure::failed(format!("{} holds no narinfo: it is no binary cache", folder.display())));
    }
    Ok(narinfos)
}

/// What is referred to comes first, as far as it is here.
fn in_order(narinfos: &BTreeMap<StorePath, (Bytes, NarInfo)>) -> Vec<&(Bytes, NarInfo)> {
    let (mut ordered, mut seen) = (Vec::new(), BTreeSet::new());
    for start in narinfos.keys() {
        // A path stands here twice: before what it refers to, and after it.
        let mut stack = vec![(start, false)];
        while let Some((path, is_after)) = stack.pop() {
            let Some(found) = narinfos.get(path) else { continue };
            if is_after {
                ordered.push(found);
            } else if seen.insert(path) {
                stack.push((path, true));
                stack.extend(found.1.references.iter().map(|reference| (reference, false)));
            }
        }
    }
    ordered
}

async fn file_body(file: &Path) -> Result<Body, Failure> {
    let opened = tokio::fs::File::open(file).await;
    let opened = opened.map_err(|error| Failure::failed(format!("{}: {error}", file.display())))?;
    let pieces = futures::stream::try_unfold(opened, |mut file| async move {
        let mut buffer = bytes::BytesMut::with_capacity(READ_BYTES);
        let read = file.read_buf(&mut buffer).await?;
        Ok((read > 0).then(|| (buffer.freeze(), file)))
    });
    Ok(StreamBody::new(pieces.map_ok(Frame::data)).boxed_unsync())
}

fn unusable(folder: &Path, error: &std::io::Error) -> Failure {
    Failure::failed(format!("the folder {} cannot be used: {error}", folder.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn narinfo(number: usize, references: &[usize]) -> (StorePath, (Bytes, NarInfo)) {
        let name = |number: usize| {
            format!("{}-n{number}", char::from(b'0' + u8::try_from(number).unwrap()).to_string().repeat(32))
        };
        let references: Vec<_> = references.iter().map(|number| name(*number)).collect();
        let hash = format!("sha256:{}", "0".repeat(52));
        let text = format!(
            "StorePath: /nix/store/{}\nURL: nar/x.nar\nCompression: none\nNarHash: {hash}\nNarSize: 1\nReferences: {}\n",
            name(number),
            references.join(" ")
        );
        let narinfo = NarInfo::parse(&StoreDir::default(), text.as_bytes()).unwrap();
        (narinfo.store_path.clone(), (Bytes::from(text), narinfo))
    }

    #[test]
    fn references_come_first() {
        // 1 refers to itself, to 3 and to a path that is not here.
        let all = BTreeMap::from([narinfo(1, &[1, 3, 9]), narinfo(2, &[1]), narinfo(3, &[]), narinfo(4, &[2, 3])]);
        let order: Vec<&str> = in_order(&all).iter().map(|(_, narinfo)| narinfo.store_path.name()).collect();
        assert_eq!(order, ["n3", "n1", "n2", "n4"]);
    }
}
