//! What a path of the HTTP cache names: `{instance/}{ac|cas}/{blake3/}{hash}`.

use gf_digest::{Digest, DigestError, DigestFunction, InstanceName, InstanceNameError};
use thiserror::Error;

/// Which half of the cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Half {
    /// Action results, by the hash of the action.
    ActionCache,
    /// Blobs, by their hash.
    Cas,
}

/// What a path names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Target {
    pub(super) instance: InstanceName,
    pub(super) half: Half,
    pub(super) function: DigestFunction,
    pub(super) hash: [u8; 32],
}

/// Why a path names nothing here.
#[derive(Debug, PartialEq, Eq, Error)]
pub(super) enum TargetError {
    /// Another path altogether.
    #[error(
        "nothing is served here; the HTTP cache is at {{instance/}}ac/{{hash}} and {{instance/}}cas/{{hash}}, and WebDAV \
         for sccache at {{instance/}}webdav/{{name}}"
    )]
    NotOfTheCache,
    /// The last part is no hash.
    #[error("{0} (BLAKE3 is at ac/blake3/{{hash}} and cas/blake3/{{hash}})")]
    Hash(#[from] DigestError),
    /// What is in front is no instance name.
    #[error(transparent)]
    Instance(#[from] InstanceNameError),
}

impl Target {
    /// Takes a path apart, without its first slash.
    pub(super) fn parse(path: &str) -> Result<Self, TargetError> {
        let (rest, hash) = path.rsplit_once('/').ok_or(TargetError::NotOfTheCache)?;
        let (rest, function) = match rest.strip_suffix("/blake3") {
            Some(rest) => (rest, DigestFunction::Blake3),
            None => (rest, DigestFunction::Sha256),
        };
        let (instance, half) = rest.rsplit_once('/').unwrap_or(("", rest));
        let half = match half {
            "ac" => Half::ActionCache,
            "cas" => Half::Cas,
            _ => return Err(TargetError::NotOfTheCache),
        };
        let hash = *Digest::parse(function, hash, 0)?.hash();
        Ok(Self { instance: InstanceName::new(instance)?, half, function, hash })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HASH: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

    #[test]
    fn paths() {
        let check = |path: String, instance: &str, half, function| {
            let target = Target::parse(&path).unwrap();
            assert_eq!((target.instance.as_str(), target.half, target.function), (instance, half, function), "{path}");
        };
        check(format!("ac/{HASH}"), "", Half::ActionCache, DigestFunction::Sha256);
        check(format!("cas/{HASH}"), "", Half::Cas, DigestFunction::Sha256);
        check(format!("cas/blake3/{HASH}"), "", Half::Cas, DigestFunction::Blake3);
        check(format!("a/b/ac/{HASH}"), "a/b", Half::ActionCache, DigestFunction::Sha256);
        check(format!("a/ac/cas/blake3/{HASH}"), "a/ac", Half::Cas, DigestFunction::Blake3);
        for wrong in ["", "ac", "ac/", "cas/blake3", "favicon.ico", "x/y/z", "cas/BA78"] {
            assert!(Target::parse(wrong).is_err(), "{wrong}");
        }
        assert!(matches!(Target::parse(&format!("blobs/ac/{HASH}")), Err(TargetError::Instance(_))));
    }
}
