//! The door of a cache: who asks, for which cache, and what they may do.
//!
//! What always holds: a cache that is not there and one that nothing may be done with look the same from outside.

use std::sync::Arc;

use axum::http::HeaderMap;
use gf_nix_cache::{Cache, CacheError, CacheName, NixCaches};
use gf_tenancy::{Authorized, NixPermission, NixScope, PermissionName};

use super::NixEdge;
use crate::edges::credentials::credential;
use crate::edges::plain_http::Problem;
use crate::metrics::EdgeMetrics;

/// Somebody in front of a cache, which may be there or not.
pub(super) struct Door<'a> {
    edge: &'a NixEdge,
    name: &'a CacheName,
    found: Option<Arc<Cache>>,
    credential: Option<String>,
}

impl<'a> Door<'a> {
    /// Finds out which cache it is, whosever that is.
    pub(super) async fn find(edge: &'a NixEdge, name: &'a CacheName, headers: &HeaderMap) -> Result<Self, Problem> {
        let found = edge.state.caches.resolve(name).await?;
        Ok(Self { edge, name, found, credential: credential(headers) })
    }

    /// Grants `P` on this cache, or says why not.
    pub(super) fn authorize<P: NixPermission>(&self) -> Result<Authorized<P>, Problem> {
        let absent = NixScope::Absent { name: self.name.as_str() };
        let scope = self.found.as_ref().map_or(absent, |cache| cache.scope());
        Ok(self.edge.state.access.admit_nix(self.credential.as_deref(), scope)?)
    }

    /// Grants `P` for making this cache, or says why not.
    pub(super) fn authorize_new<P: NixPermission>(&self) -> Result<Authorized<P>, Problem> {
        let scope = NixScope::New { name: self.name.as_str(), tenant: &self.edge.state.tenant };
        Ok(self.edge.state.access.admit_nix(self.credential.as_deref(), scope)?)
    }

    /// The cache. Only who was granted something may be told of it.
    pub(super) fn cache(&self) -> Result<&Cache, Problem> {
        let found = self.found.as_deref();
        found.ok_or_else(|| CacheError::NoSuchCache(self.name.as_str().to_owned()).into())
    }

    pub(super) fn caches(&self) -> &NixCaches {
        &self.edge.state.caches
    }

    pub(super) fn metrics(&self) -> &EdgeMetrics {
        &self.edge.state.metrics
    }

    pub(super) fn scheme(&self) -> &'static str {
        self.edge.state.scheme
    }

    pub(super) fn is_public(&self) -> bool {
        self.found.as_ref().is_some_and(|cache| cache.is_public())
    }
}

/// Refuses who may not do this with any cache, before anything is read that says with which.
pub(super) fn check(edge: &NixEdge, headers: &HeaderMap, permission: PermissionName) -> Result<(), Problem> {
    let access = &edge.state.access;
    let principal = access.authenticate(credential(headers).as_deref())?;
    Ok(access.check(principal, permission)?)
}
