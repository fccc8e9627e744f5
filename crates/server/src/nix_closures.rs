//! The store paths of actions, out of the Nix caches: where the two services meet, which do not know each other.

use async_trait::async_trait;
use gf_blobstore::ErrorKind;
use gf_execution::closures::{ClosureError, ClosurePath, ClosureRoot, Closures, StorePath};
use gf_nix_cache::archives::Root;
use gf_nix_cache::{CacheError, NixCaches};
use gf_tenancy::{Authorized, Execute};

/// The caches of each tenant.
pub(crate) struct NixClosures(pub(crate) NixCaches);

#[async_trait]
impl Closures for NixClosures {
    async fn closure(
        &self,
        grant: &Authorized<Execute>,
        paths: &[StorePath],
    ) -> Result<Vec<ClosurePath>, ClosureError> {
        let found = self.0.closure(grant, paths).await.map_err(|error| refusal(&error))?;
        if !found.missing.is_empty() {
            return Err(ClosureError::Missing(found.missing));
        }
        let (mut closure, mut unusable) = (Vec::with_capacity(found.paths.len()), Vec::new());
        for found in found.paths {
            let root = match found.root {
                Root::Directory(digest) => ClosureRoot::Directory(digest),
                Root::File { digest, executable } => ClosureRoot::File { digest, is_executable: executable },
                Root::Symlink { target } => ClosureRoot::Symlink { target },
                Root::Opaque(_) => {
                    unusable.push(found.path);
                    continue;
                }
            };
            closure.push(ClosurePath { path: found.path, root });
        }
        if unusable.is_empty() { Ok(closure) } else { Err(ClosureError::Unusable(unusable)) }
    }
}

/// What is the caller's fault would be so again.
fn refusal(error: &CacheError) -> ClosureError {
    match error.kind() {
        ErrorKind::Invalid => ClosureError::Refused(error.to_string()),
        _ => ClosureError::Unavailable(error.to_string()),
    }
}
