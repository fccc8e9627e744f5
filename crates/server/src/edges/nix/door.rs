//! The door of a cache: who asks, for which cache, and what they may do.
//!
//! What always holds: a cache that is not there and one that nothing may be done with look the same from outside.

use std::fmt::Display;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use axum::http::StatusCode;
use gf_nix_cache::{Cache, CacheError, CacheName, NixCaches};
use gf_tenancy::audit::Amount;
use gf_tenancy::{Authorized, Denied, NixPermission, NixPush, NixScope, PermissionName, Principal, TenantName};

use super::{NixEdge, NixState};
use crate::edges::credentials::Visitor;
use crate::edges::gate::{Administration, NotDone};
use crate::edges::plain_http::Problem;
use crate::metrics::EdgeMetrics;

/// Somebody in front of a cache, which may be there or not.
pub(super) struct Door<'a> {
    edge: &'a NixEdge,
    name: &'a CacheName,
    found: Option<Arc<Cache>>,
    visitor: Visitor,
    /// Whether the request counts already for whoever the cache is of.
    is_counted: AtomicBool,
}

impl<'a> Door<'a> {
    /// Finds out which cache it is, whosever that is.
    pub(super) async fn find(edge: &'a NixEdge, name: &'a CacheName, visitor: Visitor) -> Result<Self, Problem> {
        let found = edge.state.caches.resolve(name).await?;
        Ok(Self { edge, name, found, visitor, is_counted: AtomicBool::new(false) })
    }

    /// Grants `P` on this cache, or says why not. The first time it counts as a request of the cache's tenant.
    pub(super) fn authorize<P: NixPermission>(&self) -> Result<Authorized<P>, Problem> {
        self.counted(self.edge.state.gate.admit_nix(&self.visitor, self.scope())?)
    }

    fn counted<P: NixPermission>(&self, grant: Authorized<P>) -> Result<Authorized<P>, Problem> {
        if !self.is_counted.swap(true, Ordering::Relaxed) {
            self.edge.state.quotas.request(&grant)?;
        }
        Ok(grant)
    }

    /// `P` on this cache, if it is granted; nobody asked for it, so that nothing is denied.
    pub(super) fn may<P: NixPermission>(&self) -> Option<Authorized<P>> {
        self.edge.state.gate.ask_nix(&self.visitor, self.scope()).ok()
    }

    fn scope(&self) -> NixScope<'_> {
        let absent = NixScope::Absent { name: self.name.as_str() };
        self.found.as_ref().map_or(absent, |cache| cache.scope())
    }

    /// Grants `P` for making this cache, or says why not. It becomes one of the first tenant, or of the only one where the
    /// caller may make it: the request does not say whose it is to be.
    pub(super) fn authorize_new<P: NixPermission>(&self) -> Result<Authorized<P>, Problem> {
        let (gate, first) = (&self.edge.state.gate, &self.edge.state.tenant);
        let ask = |tenant| gate.ask_nix(&self.visitor, NixScope::New { name: self.name.as_str(), tenant });
        let granted = ask(first).or_else(|_| {
            let mut elsewhere = gate.access().tenants().into_iter().filter_map(|tenant| ask(tenant.name()).ok());
            elsewhere.next().filter(|_| elsewhere.next().is_none()).ok_or(())
        });
        if let Ok(granted) = granted {
            return self.counted(granted);
        }
        self.counted(gate.admit_nix(&self.visitor, NixScope::New { name: self.name.as_str(), tenant: first })?)
    }

    /// Grants `P` for making this cache as one of `tenant`, or says why not. That there is no such tenant is told to who may
    /// make caches of every tenant; others are refused as where they may make none. The patterns of a token in Attic's format
    /// know no tenants: with one, caches of the first are made.
    pub(super) fn authorize_new_of<P: NixPermission>(&self, tenant: &TenantName) -> Result<Authorized<P>, Problem> {
        let scope = NixScope::New { name: self.name.as_str(), tenant };
        let grant = self.edge.state.gate.admit_nix(&self.visitor, scope).map_err(|denied| match denied {
            Denied::UnknownCache(_) => Problem::new(StatusCode::NOT_FOUND, format!("there is no tenant {tenant} here")),
            denied => denied.into(),
        })?;
        if matches!(grant.principal(), Principal::Attic(_)) && *tenant != self.edge.state.tenant {
            return Err(Denied::Forbidden(P::NAME).into());
        }
        self.counted(grant)
    }

    /// Counts what was done by right of a grant.
    pub(super) fn count(&self, grant: &Authorized<NixPush>, action: &'static str, bytes: u64) {
        self.edge.state.gate.count(&self.visitor, grant, action, Amount::once(bytes));
    }

    /// Records a path that was published.
    pub(super) fn published(&self, grant: &Authorized<NixPush>, path: impl Display) {
        let subject = format!("{}/{path}", self.name);
        self.edge.state.gate.record(&self.visitor, grant, "nix.publish", subject, "");
    }

    /// Does something with the cache as a whole, which is recorded before. It is done to its end when the caller goes away,
    /// with all that has to know of it.
    pub(super) async fn administer<P, T, E, F>(
        &self,
        grant: &Authorized<P>,
        action: &str,
        detail: &str,
        act: impl FnOnce(NixCaches, Authorized<P>) -> F,
    ) -> Result<Result<T, E>, Problem>
    where
        P: NixPermission,
        T: Send + 'static,
        E: Display + Send + 'static,
        F: Future<Output = Result<T, E>> + Send + 'static,
    {
        let NixState { gate, background, caches, .. } = &self.edge.state;
        let deed = Administration { action, subject: self.name.as_str(), detail };
        let act = act(caches.clone(), grant.clone());
        Ok(gate.perform(background, &self.visitor, grant, deed, act).await?)
    }

    /// Records what was asked for of the cache as a whole: what is not in the log is not answered.
    pub(super) async fn record_before<P: NixPermission>(
        &self,
        grant: &Authorized<P>,
        action: &str,
    ) -> Result<(), Problem> {
        let recorded = self.edge.state.gate.record_before(&self.visitor, grant, action, self.name.as_str(), "");
        Ok(recorded.await.map_err(NotDone::from)?)
    }

    /// Records what became of what was begun.
    pub(super) fn record<P: NixPermission>(&self, grant: &Authorized<P>, action: &str, detail: impl Display) {
        self.edge.state.gate.record(&self.visitor, grant, action, self.name, detail);
    }

    /// Refuses to make a cache where there is one.
    pub(super) fn check_absent(&self) -> Result<(), CacheError> {
        if self.found.is_some() { Err(CacheError::Exists(self.name.clone())) } else { Ok(()) }
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
pub(super) fn check(edge: &NixEdge, visitor: &Visitor, permission: PermissionName) -> Result<(), Problem> {
    Ok(edge.state.gate.check(visitor, permission)?)
}
