//! The gate that every request passes: who asks is found out, [`Access`] decides, and what was refused or done leaves a
//! trace in the audit log.
//!
//! Deliberately absent: rules, which tenancy has. What always holds: nobody passes another way; what is recorded names
//! who, with what, from where and the trace, and never a credential or a body.

use std::fmt;
use std::sync::Arc;

use futures::future::BoxFuture;
use gf_database::DatabaseError;
use gf_digest::InstanceName;
use gf_tenancy::audit::{Amount, Deed, Event, Outcome, Trail};
use gf_tenancy::{
    Access, Authorized, Denied, InstancePermission, NixPermission, NixScope, Permission, PermissionName, Principal,
    TenantName,
};
use thiserror::Error;

use super::credentials::Visitor;
use crate::capacity::Background;
use crate::metrics::AccessStats;

/// Who is named when a credential fits nobody.
const NOBODY_KNOWN: &str = "unknown";

/// What must not be done unseen was not done.
#[derive(Debug, Error)]
#[error("nothing was done, since the audit log cannot be written to: {0}; look at the server's log and its disk")]
pub struct NotRecorded(#[from] DatabaseError);

/// Why something that is administered was not done, for all that can be said.
#[derive(Debug, Error)]
pub(crate) enum NotDone {
    /// It must not be done unseen.
    #[error(transparent)]
    NotRecorded(#[from] NotRecorded),
    /// The server stopped meanwhile.
    #[error("this server stops, and may have done it or not: look when it is back")]
    Stopping,
}

/// What is done to something as a whole, as the audit log has it.
pub(crate) struct Administration<'a> {
    /// A word of its kind and a verb.
    pub(crate) action: &'a str,
    /// With what.
    pub(crate) subject: &'a str,
    /// What else a reader should know.
    pub(crate) detail: &'a str,
}

/// The gate. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Gate {
    access: Arc<Access>,
    trail: Option<Trail>,
}

impl Gate {
    /// A gate that records what passes, and what does not.
    #[must_use]
    pub const fn new(access: Arc<Access>, trail: Trail) -> Self {
        Self { access, trail: Some(trail) }
    }

    /// A gate without a log, for a server that keeps no facts.
    #[must_use]
    pub const fn without_log(access: Arc<Access>) -> Self {
        Self { access, trail: None }
    }

    /// Who may do what.
    #[must_use]
    pub fn access(&self) -> &Arc<Access> {
        &self.access
    }

    /// How many tokens are good, and how the audit log keeps up.
    pub(crate) fn stats(&self) -> AccessStats {
        let good_tokens = self.access.good_tokens().map(|number| number as u64);
        let followed_ago = self.access.followed_ago();
        AccessStats { good_tokens, followed_ago, trail: self.trail.as_ref().map(Trail::stats) }
    }

    /// Who calls; a credential that fits nobody is refused, and recorded.
    pub(crate) fn identify(&self, visitor: &Visitor) -> Result<Principal, Denied> {
        self.principal(visitor).inspect_err(|denied| self.trace(visitor, None, "identify", Thing::default(), denied))
    }

    /// Grants `P` to whoever has it somewhere; see [`Access::authorize_somewhere`].
    pub(crate) fn authorize_somewhere<P: InstancePermission>(
        &self,
        visitor: &Visitor,
    ) -> Result<Authorized<P>, Denied> {
        self.decide(visitor, P::NAME, Thing::default(), |access, who| access.authorize_somewhere(who))
    }

    /// Grants `P` to whoever has it everywhere; see [`Access::authorize_everywhere`].
    pub(crate) fn authorize_everywhere<P: InstancePermission>(
        &self,
        visitor: &Visitor,
    ) -> Result<Authorized<P>, Denied> {
        self.decide(visitor, P::NAME, Thing::default(), |access, who| access.authorize_everywhere(who))
    }

    /// Whether whoever calls has `P` everywhere: for what others are shown in part, so that not having it is no denial.
    pub(crate) fn has_everywhere<P: InstancePermission>(&self, visitor: &Visitor) -> bool {
        self.principal(visitor).is_ok_and(|principal| self.access.authorize_everywhere::<P>(principal).is_ok())
    }

    /// Who calls.
    fn principal(&self, visitor: &Visitor) -> Result<Principal, Denied> {
        self.access.authenticate(visitor.credential())
    }

    /// Refuses who may not do this anywhere.
    pub(crate) fn check(&self, visitor: &Visitor, permission: PermissionName) -> Result<(), Denied> {
        self.decide(visitor, permission, Thing::default(), |access, who| access.check(who, permission))
    }

    /// Grants `P` in the tenant of an instance, or says why not.
    pub(crate) fn authorize<P: InstancePermission>(
        &self,
        visitor: &Visitor,
        instance: &InstanceName,
    ) -> Result<Authorized<P>, Denied> {
        let thing = Thing { is_named: true, name: instance.as_str(), tenant: self.access.tenant_of(instance) };
        self.decide(visitor, P::NAME, thing, |access, who| access.authorize(who, instance))
    }

    /// What is decided of whoever calls; a denial is recorded, with what it was about.
    fn decide<T>(
        &self,
        visitor: &Visitor,
        permission: PermissionName,
        thing: Thing<'_>,
        decide: impl FnOnce(&Access, &Principal) -> Result<T, Denied>,
    ) -> Result<T, Denied> {
        let refused =
            |who: Option<&Principal>, denied: &Denied| self.trace(visitor, who, permission.as_str(), thing, denied);
        let principal = self.principal(visitor).inspect_err(|denied| refused(None, denied))?;
        decide(&self.access, &principal).inspect_err(|denied| refused(Some(&principal), denied))
    }

    /// Grants `P` on a Nix cache, or says why not; see [`Access::admit_nix`].
    pub(crate) fn admit_nix<P: NixPermission>(
        &self,
        visitor: &Visitor,
        scope: NixScope<'_>,
    ) -> Result<Authorized<P>, Denied> {
        self.ask_nix(visitor, scope).inspect_err(|denied| {
            let thing = Thing { is_named: true, name: scope.name(), tenant: scope.tenant() };
            self.trace(visitor, self.principal(visitor).ok().as_ref(), P::NAME.as_str(), thing, denied);
        })
    }

    /// As [`Self::admit_nix`], of what was not asked for: that it is not granted is no denial.
    pub(crate) fn ask_nix<P: NixPermission>(
        &self,
        visitor: &Visitor,
        scope: NixScope<'_>,
    ) -> Result<Authorized<P>, Denied> {
        self.access.admit_nix(visitor.credential(), scope)
    }

    /// Counts what was done by right of a grant: records of it appear once a minute.
    pub(crate) fn count<P: Permission>(
        &self,
        visitor: &Visitor,
        grant: &Authorized<P>,
        action: &'static str,
        amount: Amount,
    ) {
        if let Some(trail) = &self.trail {
            let (place, tenant) = (grant.place_name(), grant.tenant_of_place());
            trail.count(grant.principal(), action, place, tenant, amount, visitor.origin());
        }
    }

    /// Counts that somebody who administers asked something.
    pub(crate) fn count_read<P: Permission>(&self, visitor: &Visitor, grant: &Authorized<P>, what: &str) {
        if let Some(trail) = &self.trail {
            trail.count(grant.principal(), "admin.read", what, None, Amount::ONCE, visitor.origin());
        }
    }

    /// Counts that somebody who administers was refused what they asked of something.
    pub(crate) fn count_denied<P: Permission>(
        &self,
        visitor: &Visitor,
        grant: &Authorized<P>,
        action: &'static str,
        subject: &str,
        detail: &str,
    ) {
        let Some(trail) = &self.trail else { return };
        let deed = Deed {
            who: grant.principal().to_string(),
            action: action.into(),
            subject: subject.to_owned(),
            outcome: Outcome::Denied,
            detail: detail.to_owned(),
            tenant: grant.principal().only_tenant().unwrap_or_default().to_owned(),
        };
        trail.count_deed(deed, visitor.origin());
    }

    /// Records what was done, once for each time, within a second.
    pub(crate) fn record<P: Permission>(
        &self,
        visitor: &Visitor,
        grant: &Authorized<P>,
        action: &str,
        subject: impl fmt::Display,
        detail: impl fmt::Display,
    ) {
        if let Some(trail) = &self.trail {
            let event = Event::new(grant.principal(), action, subject, Outcome::Done).of(grant.tenant_of_place());
            trail.record(Event { detail: detail.to_string(), ..event }, visitor.origin());
        }
    }

    /// Records what is about to be done, which must not be done unless that is in the log when this returned.
    pub(crate) fn record_before<P: Permission>(
        &self,
        visitor: &Visitor,
        grant: &Authorized<P>,
        action: &str,
        subject: &str,
        detail: &str,
    ) -> BoxFuture<'static, Result<(), NotRecorded>> {
        let Some(trail) = self.trail.clone() else { return Box::pin(std::future::ready(Ok(()))) };
        let event = Event::new(grant.principal(), action, subject, Outcome::Done).of(grant.tenant_of_place());
        let event = Event { detail: detail.to_owned(), ..event }.from(&visitor.origin());
        Box::pin(async move { Ok(trail.log().append(&[event]).await?) })
    }

    /// Does something by right of a grant, which is in the log before it is begun, and to its end also when the caller goes
    /// away; that it failed is recorded, too.
    ///
    /// # Errors
    /// [`NotDone`]; whatever went wrong with it is within the answer.
    pub(crate) async fn perform<P: Permission, T, E>(
        &self,
        background: &Background,
        visitor: &Visitor,
        grant: &Authorized<P>,
        deed: Administration<'_>,
        act: impl Future<Output = Result<T, E>> + Send + 'static,
    ) -> Result<Result<T, E>, NotDone>
    where
        T: Send + 'static,
        E: fmt::Display + Send + 'static,
    {
        let Administration { action, subject, detail } = deed;
        let recorded = self.record_before(visitor, grant, action, subject, detail);
        let failed = Event::new(grant.principal(), action, subject, Outcome::Failed).of(grant.tenant_of_place());
        let (trail, origin) = (self.trail.clone(), visitor.origin());
        let done = background.run(async move {
            recorded.await?;
            let result = act.await;
            if let (Err(error), Some(trail)) = (&result, trail) {
                trail.record(Event { detail: error.to_string(), ..failed }, origin);
            }
            Ok(result)
        });
        match done.await {
            Ok(Some(done)) => done,
            // It did not end because this server does.
            Ok(None) | Err(_) => Err(NotDone::Stopping),
        }
    }

    /// Leaves a trace of a denial. It is shown to whoever administers the thing; of what is no thing of a tenant, to whoever
    /// administers what the caller has.
    fn trace(
        &self,
        visitor: &Visitor,
        who: Option<&Principal>,
        action: &'static str,
        thing: Thing<'_>,
        denied: &Denied,
    ) {
        let Some(trail) = &self.trail else { return };
        // Of a thing that is not there, a caller's own log must say no more than of one that is another tenant's.
        let tenant = match thing.is_named {
            true => thing.tenant.map(TenantName::as_str),
            false => who.and_then(Principal::only_tenant),
        };
        let deed = Deed {
            who: who.map_or_else(|| NOBODY_KNOWN.to_owned(), ToString::to_string),
            action: action.into(),
            subject: thing.name.to_owned(),
            outcome: Outcome::Denied,
            detail: denied.to_string(),
            tenant: tenant.unwrap_or_default().to_owned(),
        };
        trail.count_deed(deed, visitor.origin());
    }
}

/// What somebody asked for; nothing, of what is everybody's concern.
#[derive(Clone, Copy, Default)]
struct Thing<'a> {
    is_named: bool,
    name: &'a str,
    tenant: Option<&'a TenantName>,
}

#[cfg(test)]
mod tests;
