//! What people ask and do about access: tokens, who somebody is, why something is allowed, and the audit log.
//!
//! The functions here are the service; `routes` is REST over them, and nothing more. Deliberately absent: changing who
//! may do what, beyond tokens, which is configuration.
//!
//! What always holds: what is shown of tokens is what the caller could have made; what is said of a thing is what the
//! caller may know of it; of the audit log, in which all tenants stand, who administers one is
//! shown its records, and all of it who administers all of them.

mod problem;
pub mod report;
mod routes;

use std::sync::Arc;
use std::time::Duration;

use gf_digest::InstanceName;
use gf_nix_cache::{CacheName, NixCaches};
use gf_tenancy::audit::{AuditLog, Record, Search, Verdict};
use gf_tenancy::policy::Decision;
use gf_tenancy::{
    Administer, AtticIdError, Authorized, Exchanged, Grant, NewToken, NixScope, PermissionName, Principal, Tenant,
    TenantName, TokenId, Tokens, Which,
};
use tokio::sync::Semaphore;

use crate::edges::Gate;
use crate::edges::credentials::Visitor;
use crate::refusal::Refusal;
use report::{
    AtticRevocation, AtticRevokedReport, AuditVerdict, IssuedReport, RevokedReport, TokenPage, TokenReport,
    TokenRequest, WhoAmI, WhyReport,
};
pub(crate) use routes::router;

/// Tokens in one answer.
const MAX_TOKENS_LISTED: usize = 500;

/// The service.
pub(crate) struct AccessApi {
    gate: Gate,
    tokens: Arc<Tokens>,
    log: AuditLog,
    caches: NixCaches,
    /// One reads all of the log at a time.
    reading_all: Semaphore,
}

/// What somebody asks about.
enum Thing {
    Instance(InstanceName),
    Cache(CacheName),
}

impl AccessApi {
    pub(crate) fn new(gate: Gate, tokens: Arc<Tokens>, log: AuditLog, caches: NixCaches) -> Self {
        Self { gate, tokens, log, caches, reading_all: Semaphore::new(1) }
    }

    async fn issue(
        &self,
        admin: &Authorized<Administer>,
        visitor: &Visitor,
        request: TokenRequest,
    ) -> Result<IssuedReport, Refusal> {
        let parse = |text: &String| text.parse::<Grant>().map_err(|error| problem::invalid(text, &error));
        let grants = request.grants.iter().map(parse).collect::<Result<Vec<_>, _>>()?;
        let lifetime = Duration::from_secs(request.lifetime_seconds);
        let new = NewToken { name: request.name, grants, lifetime };
        let issued = self.tokens.issue(admin, new, &visitor.origin()).await?;
        Ok(IssuedReport { token: issued.secret.expose().to_owned(), report: TokenReport::from(&issued.report) })
    }

    async fn list(
        &self,
        admin: &Authorized<Administer>,
        which: Which,
        after: Option<&TokenId>,
    ) -> Result<TokenPage, Refusal> {
        let listed = self.tokens.list(admin, which, after, MAX_TOKENS_LISTED).await?;
        let tokens: Vec<TokenReport> = listed.iter().map(TokenReport::from).collect();
        let next = tokens.last().filter(|_| tokens.len() == MAX_TOKENS_LISTED).map(|last| last.id.clone());
        Ok(TokenPage { tokens, next })
    }

    async fn revoke(&self, admin: &Authorized<Administer>, visitor: &Visitor, id: &TokenId) -> Result<(), Refusal> {
        Ok(self.tokens.revoke(admin, id, &visitor.origin()).await?)
    }

    async fn revoke_exchanged(
        &self,
        admin: &Authorized<Administer>,
        visitor: &Visitor,
        which: &Exchanged,
    ) -> Result<RevokedReport, Refusal> {
        let revoked = self.tokens.revoke_exchanged(admin, which, &visitor.origin()).await?;
        Ok(RevokedReport { revoked: revoked as u64 })
    }

    async fn revoke_identity_of(
        &self,
        admin: &Authorized<Administer>,
        visitor: &Visitor,
        id: &TokenId,
    ) -> Result<RevokedReport, Refusal> {
        let revoked = self.tokens.revoke_identity_of(admin, id, &visitor.origin()).await?;
        Ok(RevokedReport { revoked: revoked as u64 })
    }

    async fn revoke_made_by(
        &self,
        admin: &Authorized<Administer>,
        visitor: &Visitor,
        maker: &str,
    ) -> Result<RevokedReport, Refusal> {
        let revoked = self.tokens.revoke_made_by(admin, maker, &visitor.origin()).await?;
        Ok(RevokedReport { revoked: revoked as u64 })
    }

    /// What is no token of the configured key would be revoked in vain, and whoever pasted it must know.
    async fn revoke_attic(
        &self,
        admin: &Authorized<Administer>,
        visitor: &Visitor,
        which: AtticRevocation,
    ) -> Result<AtticRevokedReport, Refusal> {
        let access = self.gate.access();
        if !access.takes_attic_tokens() {
            return Err(problem::no_attic());
        }
        let (id, token) = match (which.token, which.fingerprint) {
            (Some(text), None) => {
                let token = access.attic_token(text.trim()).ok_or_else(problem::not_attic)?;
                (token.id(), Some(token))
            }
            (None, Some(text)) => {
                (text.trim().parse().map_err(|error: AtticIdError| Refusal::invalid(error.to_string()))?, None)
            }
            _ => return Err(problem::which_attic()),
        };
        let ends_s = token.as_ref().and_then(|token| token.ends_s());
        self.tokens.revoke_attic(admin, id, ends_s, &visitor.origin()).await?;
        let subject = token.map(|token| token.subject().to_owned());
        Ok(AtticRevokedReport { fingerprint: id.to_string(), subject })
    }

    /// Who somebody is, by their own credential.
    fn who_am_i(&self, principal: &Principal) -> WhoAmI {
        let access = self.gate.access();
        let (name, grants) = match principal {
            Principal::Token(token) => {
                (Some(token.name().to_owned()), token.grants().iter().map(ToString::to_string).collect())
            }
            Principal::Certificate(certified) => {
                (Some(certified.to_string()), certified.grants().iter().map(ToString::to_string).collect())
            }
            _ => (None, Vec::new()),
        };
        let held = PermissionName::ALL.into_iter().filter(|permission| access.allows(principal, *permission));
        let permissions = held.map(|permission| permission.as_str().to_owned()).collect();
        WhoAmI { principal: principal.to_string(), name, grants, permissions, is_open: access.is_open() }
    }

    /// Why somebody may do something or not; `None` of somebody of whom the caller may not know. Whoever asks about another has to administer, and things of tenants that
    /// they do not administer are to them as if they were not there.
    async fn why(
        &self,
        asker: &Principal,
        admin: Option<&Authorized<Administer>>,
        about: Option<&str>,
        permission: PermissionName,
        thing: &Thing,
    ) -> Result<Option<WhyReport>, Refusal> {
        let principal = match (about, admin) {
            (None, _) => Some(asker.clone()),
            (Some(name), Some(admin)) => self.principal_named(admin, name),
            (Some(_), None) => None,
        };
        let Some(principal) = principal else { return Ok(None) };
        let knows = |tenant: &TenantName| about.is_none() || self.administers(asker, tenant);
        let (decision, thing) = match thing {
            Thing::Instance(name) => {
                (self.why_instance(&principal, permission, name, knows), format!("instance {name:?}"))
            }
            Thing::Cache(name) => (self.why_cache(&principal, permission, name, knows).await?, format!("cache {name}")),
        };
        Ok(Some(WhyReport {
            principal: principal.to_string(),
            permission: permission.as_str().to_owned(),
            thing,
            allowed: decision.allowed,
            rule: decision.rule.to_string(),
        }))
    }

    fn why_instance(
        &self,
        principal: &Principal,
        permission: PermissionName,
        name: &InstanceName,
        knows: impl Fn(&TenantName) -> bool,
    ) -> Decision {
        self.gate.access().explain_to(principal, permission, name, knows)
    }

    async fn why_cache(
        &self,
        principal: &Principal,
        permission: PermissionName,
        name: &CacheName,
        knows: impl Fn(&TenantName) -> bool,
    ) -> Result<Decision, Refusal> {
        let found = self.caches.resolve(name).await?.filter(|cache| knows(cache.tenant()));
        let absent = NixScope::Absent { name: name.as_str() };
        let scope = found.as_ref().map_or(absent, |cache| cache.scope());
        Ok(self.gate.access().explain_nix(principal, permission, scope))
    }

    /// Whether somebody administers all that a tenant has.
    fn administers(&self, asker: &Principal, tenant: &TenantName) -> bool {
        self.gate.access().administers(asker, tenant)
    }

    /// A principal as it shows itself in the audit log.
    fn principal_named(&self, admin: &Authorized<Administer>, name: &str) -> Option<Principal> {
        match name {
            "anonymous" => Some(Principal::Anonymous),
            "static-token" => Some(Principal::TokenHolder),
            "worker" => Some(Principal::WorkerHost),
            "server" => Some(Principal::Server),
            name => {
                let id = TokenId::new(name.strip_prefix("token:").unwrap_or(name));
                self.tokens.principal_for(admin, &id)
            }
        }
    }

    /// The tenants of whose records somebody is shown all; `None` of whom all records are shown to. Whoever administers no
    /// tenant as a whole is refused.
    fn tenants_shown_to(
        &self,
        admin: &Authorized<Administer>,
        visitor: &Visitor,
    ) -> Result<Option<Vec<String>>, Refusal> {
        let own = self.gate.access().tenants().into_iter().map(Tenant::name);
        let own = own.filter(|tenant| self.administers(admin.principal(), tenant)).map(ToString::to_string);
        let own: Vec<String> = own.collect();
        if own.is_empty() || self.gate.has_everywhere::<Administer>(visitor) {
            self.gate.authorize_everywhere::<Administer>(visitor)?;
            return Ok(None);
        }
        Ok(Some(own))
    }

    async fn search(&self, _: &Authorized<Administer>, search: &Search) -> Result<Vec<Record>, Refusal> {
        Ok(self.log.search(search).await?)
    }

    async fn verify(&self, _: &Authorized<Administer>) -> Result<AuditVerdict, Refusal> {
        let _one_at_a_time = self.reading_all.try_acquire().map_err(|_| problem::busy())?;
        Ok(verdict(self.log.verify().await?))
    }

    /// A page of the log, from the oldest on.
    async fn page_after(&self, number: u64) -> Result<Vec<Record>, Refusal> {
        Ok(self.log.after(number).await?)
    }
}

fn verdict(verdict: Verdict) -> AuditVerdict {
    let (is_whole, records, hash, sentence) = match verdict {
        Verdict::Whole(records, hash) => {
            (true, records, Some(hash.to_string()), "every record is as it was written".into())
        }
        Verdict::Missing(number) => {
            (false, number - 1, None, format!("record {number} is missing: somebody took it out of the database"))
        }
        Verdict::Changed(number) => {
            let text = format!("record {number}, or one before it, is not as it was written: somebody changed it");
            (false, number - 1, None, text)
        }
    };
    AuditVerdict { is_whole, records, hash, sentence }
}
