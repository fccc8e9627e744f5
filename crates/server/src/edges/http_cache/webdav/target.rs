//! What a path of WebDAV names: `{instance/}webdav/{name}`, split at the first part that is `webdav`.

use axum::http::StatusCode;
use gf_digest::{InstanceName, InstanceNameError};
use gf_execution::ValueName;

use super::super::target::Target as HashTarget;
use crate::edges::plain_http::Problem;

/// The part of a path that everything after it belongs to.
const ROOT: &str = "webdav";

/// A path below `webdav`, of an instance that may be none.
#[derive(Debug)]
pub(in super::super) struct Target {
    instance: Result<InstanceName, InstanceNameError>,
    rest: String,
    is_by_hash: bool,
}

/// What is there.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Thing {
    /// What values may be in.
    Folder,
    /// A value.
    Value(ValueName),
}

impl Target {
    /// Takes a path apart, without its first slash; `None` for one that is not of WebDAV.
    pub(in super::super) fn find(path: &str) -> Option<Self> {
        let (instance, rest) = split(path)?;
        // Who ends the endpoint with a slash has two of them here.
        let rest = rest.trim_start_matches('/');
        Some(Self {
            instance: InstanceName::new(instance),
            rest: rest.to_owned(),
            is_by_hash: HashTarget::parse(rest).is_ok(),
        })
    }

    pub(super) fn instance(&self) -> Result<&InstanceName, Problem> {
        self.instance.as_ref().map_err(|error| Problem::new(StatusCode::BAD_REQUEST, error.to_string()))
    }

    /// A path that ends with a slash is that of a folder, as sccache writes them.
    pub(super) fn thing(&self) -> Result<Thing, Problem> {
        if self.is_by_hash {
            // An instance may be called so. What is meant for the caches by hash must not be kept as something else.
            let text = "an instance with a part `webdav` in its name is not reached over HTTP, and no value is called \
                        ac/{hash} or cas/{hash}";
            return Err(Problem::new(StatusCode::BAD_REQUEST, text));
        }
        let (name, is_folder) = self.rest.strip_suffix('/').map_or((&*self.rest, false), |name| (name, true));
        if name.is_empty() {
            return Ok(Thing::Folder);
        }
        let name = ValueName::new(name);
        let name = name.map_err(|error| Problem::new(StatusCode::BAD_REQUEST, error.to_string()))?;
        Ok(if is_folder { Thing::Folder } else { Thing::Value(name) })
    }
}

/// What stands before the first part that is `webdav`, and what behind it.
fn split(path: &str) -> Option<(&str, &str)> {
    let parts = path.match_indices(ROOT).map(|(at, _)| (&path[..at], &path[at + ROOT.len()..]));
    let mut parts = parts.filter(|(before, behind)| is_beginning_of_part(before) && is_end_of_part(behind));
    parts.next().map(|(before, behind)| (before.strip_suffix('/').unwrap_or(before), behind))
}

fn is_beginning_of_part(before: &str) -> bool {
    before.is_empty() || before.ends_with('/')
}

fn is_end_of_part(rest: &str) -> bool {
    rest.is_empty() || rest.starts_with('/')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths() {
        let check = |path: &str, instance: &str, name: Option<&str>| {
            let target = Target::find(path).unwrap();
            let thing = name.map_or(Thing::Folder, |name| Thing::Value(ValueName::new(name).unwrap()));
            assert_eq!(target.instance().unwrap().as_str(), instance, "{path}");
            assert_eq!(target.thing().unwrap(), thing, "{path}");
        };
        check("webdav", "", None);
        check("webdav/", "", None);
        check("webdav/a/3/9/", "", None);
        check("webdav/.sccache_check", "", Some(".sccache_check"));
        check("webdav//.sccache_check", "", Some(".sccache_check"));
        check("webdav//", "", None);
        check("acme/ci/webdav/a/3/9/a39b", "acme/ci", Some("a/3/9/a39b"));
        check("acme/webdav", "acme", None);
        check("webdav/webdav/x", "", Some("webdav/x"));
        check("webdav/ac/x", "", Some("ac/x"));
        check("webdavs/webdav/x", "webdavs", Some("x"));
        check("a/webdavs/webdav/x", "a/webdavs", Some("x"));
        check("my/webdav-prod/webdav/k", "my/webdav-prod", Some("k"));
    }

    #[test]
    fn paths_of_something_else() {
        for path in ["", "ac/x", "webdavs/x", "x/webdavs", "x/my-webdav/y"] {
            assert!(Target::find(path).is_none(), "{path}");
        }
        let hash = "a".repeat(64);
        for path in ["webdav/x//y", "webdav/x//", "blobs/webdav/x", &format!("webdav/{}", "x".repeat(513))] {
            let target = Target::find(path).unwrap();
            assert!(target.instance().is_err() || target.thing().is_err(), "{path}");
        }
        for path in [
            format!("webdav/ac/{hash}"),
            format!("webdav//ac/{hash}"),
            format!("x/webdav/cas/blake3/{hash}"),
            format!("webdav/x/cas/{hash}"),
        ] {
            assert!(Target::find(&path).unwrap().thing().is_err(), "{path}");
        }
    }
}
