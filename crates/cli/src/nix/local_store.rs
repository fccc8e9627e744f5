//! What Nix says about the store of this machine.
//!
//! `nix-store --dump-db` has had the same form in every version of Nix 2; only it leaves out signatures and content
//! addresses, which `nix path-info --sigs` names.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;

use gf_nix_formats::{Hash, HashAlgorithm, NarHash, StoreDir, StorePath};

use crate::failure::{Failure, FailureKind};

/// Paths in one question: an argument list has an end.
const AT_ONCE: usize = 1000;
const STORE: &str = "/nix/store";

/// A path of this machine's store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct LocalPath {
    /// The path.
    pub(super) path: StorePath,
    /// The hash of its archive.
    pub(super) nar_hash: NarHash,
    /// The size of its archive.
    pub(super) nar_size: u64,
    /// What it refers to.
    pub(super) references: BTreeSet<StorePath>,
    /// The derivation that made it.
    pub(super) deriver: Option<StorePath>,
    /// Signatures, as Nix writes them.
    pub(super) signatures: Vec<String>,
    /// How it follows from its content.
    pub(super) content_address: Option<String>,
}

impl LocalPath {
    /// Where it is.
    pub(super) fn location(&self) -> PathBuf {
        Path::new(STORE).join(self.path.as_str())
    }

    /// The names of the keys that signed it.
    pub(super) fn signers(&self) -> impl Iterator<Item = &str> {
        self.signatures.iter().filter_map(|signature| signature.split_once(':')).map(|(name, _)| name)
    }
}

/// The store paths that these are, or point into.
pub(super) fn resolve(paths: &[PathBuf]) -> Result<Vec<StorePath>, Failure> {
    paths.iter().map(|path| resolve_one(path)).collect()
}

fn resolve_one(path: &Path) -> Result<StorePath, Failure> {
    let wrong = |why: &dyn std::fmt::Display| {
        Failure::new(FailureKind::Usage, format!("{} is no store path: {why}", path.display()))
    };
    // A path that is not on this machine may still be asked about.
    let real = match path.starts_with(STORE) {
        true => path.to_path_buf(),
        false => std::fs::canonicalize(path).map_err(|error| wrong(&error))?,
    };
    let below = real.strip_prefix(STORE).map_err(|_| wrong(&format!("it does not lead into {STORE}")))?;
    let name = below.components().next().map(|name| name.as_os_str().to_string_lossy().into_owned());
    StorePath::parse(&name.unwrap_or_default()).map_err(|error| wrong(&error))
}

/// These paths and all that they refer to, references first.
pub(super) fn closure(paths: &[StorePath]) -> Result<Vec<StorePath>, Failure> {
    let text = ask("nix-store", &["--query", "--requisites"], paths)?;
    let mut seen = BTreeSet::new();
    let mut closure = parse_lines(&text)?;
    closure.retain(|path| seen.insert(path.clone()));
    Ok(closure)
}

/// Those of the paths that are in the store, and whole.
pub(super) fn valid(paths: &[StorePath]) -> Result<Vec<StorePath>, Failure> {
    let invalid = parse_lines(&ask("nix-store", &["--check-validity", "--print-invalid"], paths)?)?;
    Ok(paths.iter().filter(|path| !invalid.contains(path)).cloned().collect())
}

/// What Nix knows of these paths, in their order.
pub(super) fn describe(paths: &[StorePath]) -> Result<Vec<LocalPath>, Failure> {
    let mut known = BTreeMap::new();
    for some in paths.chunks(AT_ONCE) {
        for path in parse_registrations(&ask("nix-store", &["--dump-db"], some)?)? {
            known.insert(path.path.clone(), path);
        }
        let options = ["--extra-experimental-features", "nix-command", "path-info", "--sigs"];
        for (path, signed) in parse_signatures(&ask("nix", &options, some)?)? {
            if let Some(known) = known.get_mut(&path) {
                known.signatures = signed.signatures;
                known.content_address = signed.content_address;
            }
        }
    }
    let missing = |path: &StorePath| Failure::failed(format!("{STORE}/{path} is not in the store of this machine"));
    paths.iter().map(|path| known.remove(path).ok_or_else(|| missing(path))).collect()
}

/// Runs a program of Nix on some paths.
fn ask(program: &str, options: &[&str], paths: &[StorePath]) -> Result<String, Failure> {
    let mut text = String::new();
    for some in paths.chunks(AT_ONCE) {
        let paths = some.iter().map(|path| format!("{STORE}/{path}"));
        text += &output(program, options.iter().map(ToString::to_string).chain(paths))?;
    }
    Ok(text)
}

/// What a program prints.
pub(super) fn output(program: &str, arguments: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Result<String, Failure> {
    let output = Command::new(program).args(arguments).output();
    let output = output.map_err(|error| {
        Failure::failed(format!(
            "cannot run {program} ({error}): this command needs Nix on the machine that it runs on"
        ))
    })?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        return Err(Failure::failed(format!("{program} failed: {}", said.trim())));
    }
    String::from_utf8(output.stdout).map_err(|_| Failure::failed(format!("{program} printed what is no text")))
}

fn parse_lines(text: &str) -> Result<Vec<StorePath>, Failure> {
    text.lines().map(parse_path).collect()
}

fn parse_path(text: &str) -> Result<StorePath, Failure> {
    StoreDir::default().parse(text).map_err(|error| Failure::failed(format!("Nix named a path that is none: {error}")))
}

/// Path, hash in hexadecimal, size, deriver or nothing, number of references, references: a line each.
fn parse_registrations(text: &str) -> Result<Vec<LocalPath>, Failure> {
    let short = || Failure::failed("nix-store --dump-db printed something else than expected");
    let mut lines = text.lines();
    let mut paths = Vec::new();
    while let Some(path) = lines.next() {
        let mut next = || lines.next().ok_or_else(short);
        let hash = next()?;
        let hash = hash.strip_prefix("sha256:").unwrap_or(hash);
        let hash = Hash::parse_base16(HashAlgorithm::Sha256, hash).and_then(NarHash::try_from);
        let nar_hash = hash.map_err(Failure::failed)?;
        let nar_size = next()?.parse().map_err(|_| short())?;
        let deriver = Some(next()?).filter(|deriver| !deriver.is_empty()).map(parse_path).transpose()?;
        let count: usize = next()?.parse().map_err(|_| short())?;
        let mut references = BTreeSet::new();
        for _ in 0..count {
            references.insert(parse_path(next()?)?);
        }
        let (signatures, content_address) = (Vec::new(), None);
        let path = parse_path(path)?;
        paths.push(LocalPath { path, nar_hash, nar_size, references, deriver, signatures, content_address });
    }
    Ok(paths)
}

#[derive(Debug, Default, PartialEq, Eq)]
struct Signed {
    signatures: Vec<String>,
    content_address: Option<String>,
}

/// A path a line, and after it words: `ultimate`, `ca:…`, signatures.
fn parse_signatures(text: &str) -> Result<Vec<(StorePath, Signed)>, Failure> {
    let line = |line: &str| {
        let mut words = line.split_whitespace();
        let path = parse_path(words.next().unwrap_or_default())?;
        let mut signed = Signed::default();
        for word in words.filter(|word| *word != "ultimate") {
            match word.strip_prefix("ca:") {
                Some(address) => signed.content_address = Some(address.to_owned()),
                None => signed.signatures.push(word.to_owned()),
            }
        }
        Ok((path, signed))
    };
    text.lines().filter(|text| !text.trim().is_empty()).map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: &str = "00000000000000000000000000000000-a";
    const B: &str = "11111111111111111111111111111111-b";

    #[test]
    fn registrations_are_read() {
        let hash = "ab".repeat(32);
        let text = format!(
            "/nix/store/{A}\n{hash}\n120\n\n0\n/nix/store/{B}\nsha256:{hash}\n7\n/nix/store/{A}.drv\n2\n/nix/store/{A}\n/nix/store/{B}\n"
        );
        let paths = parse_registrations(&text).unwrap();
        assert_eq!(paths.len(), 2);
        assert_eq!((paths[0].path.as_str(), paths[0].nar_size, &paths[0].deriver), (A, 120, &None));
        assert_eq!(paths[1].references.iter().map(StorePath::as_str).collect::<Vec<_>>(), [A, B]);
        assert_eq!(paths[1].deriver.as_ref().map(StorePath::as_str), Some(format!("{A}.drv").as_str()));
        assert!(parse_registrations(&format!("/nix/store/{A}\n{hash}\n")).is_err());
    }

    #[test]
    fn signatures_and_content_addresses_are_read() {
        let text = format!("/nix/store/{A}  ultimate ca:fixed:r:sha256:0 key-1:abc= key-2:def=\n/nix/store/{B}\n");
        let paths = parse_signatures(&text).unwrap();
        assert_eq!(paths[0].1.signatures, ["key-1:abc=", "key-2:def="]);
        assert_eq!(paths[0].1.content_address.as_deref(), Some("fixed:r:sha256:0"));
        assert_eq!(paths[1].1, Signed::default());
    }
}
