//! Tokens that identities of others were exchanged for: how many there may be, and revoking them by where they came from.
//!
//! What always holds: what was revoked is not had again with the identity that it was exchanged for. They leave room in
//! the table for tokens of our own, one subject leaves room for the others, and the database forgets them when neither
//! they nor what they were exchanged for can be good any more; the audit log does not.

use std::time::Duration;

use gf_database::{DatabaseError, Row, Transaction, places, sql, work};
use gf_digest::InstanceName;

use super::lineage::{self, EXCHANGED};
use super::reach::{may_hand_out, sees};
use super::rows::{insertion, report, seconds, stored};
use super::{ID_BYTES, IssuedToken, MAX_NAME, NewToken, TokenError, TokenId, Tokens, check, draw, random_text};
use crate::access::now_s;
use crate::audit::{self, Event, Origin, Outcome};
use crate::secret::Fingerprint;
use crate::trust::{LEEWAY_S, TrustFault};
use crate::{Administer, Authorized, Grant, Principal, Role, TenantName, is_shown};

/// The most that one subject of an issuer holds at one time: more than jobs of one branch run at once.
const MAX_OF_SUBJECT: u64 = 1000;
/// The most that are remembered of one subject: what ended is, for as long as its identity could be exchanged again.
const MAX_REMEMBERED: u64 = 4000;
/// The most that are remembered at one time. A tenant has at most as many as are left, so that none uses up what there is for
/// all, and one that has none yet finds room.
const MAX_EXCHANGED: u64 = 50_000;
/// How many of those that ended are forgotten with each that is made.
const FORGOTTEN_AT_ONCE: u32 = 200;
/// For how long what was signed before a revocation is refused: no identity holds longer.
pub(crate) const CUT_OFF: Duration = Duration::from_secs(366 * 24 * 3600);

/// Whom rules of trust admitted, and with what. Times are in seconds since 1970.
#[derive(Debug)]
pub(crate) struct Admitted {
    /// Whom the issuer named.
    pub(crate) subject: String,
    /// The issuer.
    pub(crate) issuer: String,
    /// Where the subject belongs.
    pub(crate) tenant: TenantName,
    /// What it is to use there.
    pub(crate) instance: InstanceName,
    /// The rules that fit.
    pub(crate) rules: Vec<String>,
    /// What they grant.
    pub(crate) grants: Vec<Grant>,
    /// For how long.
    pub(crate) lifetime: Duration,
    /// When the issuer signed it; 0 when it does not say.
    pub(crate) signed_s: u64,
    /// When it cannot be good any more.
    pub(crate) ends_s: u64,
}

/// Which exchanged tokens are meant; what is left out does not matter.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Exchanged {
    /// Of this issuer.
    pub issuer: Option<String>,
    /// Of this subject (`sub`).
    pub subject: Option<String>,
    /// Of this rule.
    pub rule: Option<String>,
}

impl Exchanged {
    fn fits(&self, issuer: &str, subject: &str, rules: &str) -> bool {
        let is = |wanted: &Option<String>, found: &str| wanted.as_deref().is_none_or(|wanted| wanted == found);
        let has_rule = |wanted: &str| rules.split(' ').any(|rule| rule == wanted);
        is(&self.issuer, issuer) && is(&self.subject, subject) && self.rule.as_deref().is_none_or(has_rule)
    }

    /// As a sentence has it.
    fn show(&self) -> String {
        let parts = [("issuer", &self.issuer), ("subject", &self.subject), ("rule", &self.rule)];
        let given = parts.iter().filter_map(|(what, value)| Some(format!("{what} {}", value.as_ref()?)));
        let shown = given.collect::<Vec<_>>().join(", ");
        if shown.is_empty() { "everything exchanged".to_owned() } else { shown }
    }
}

impl From<DatabaseError> for TrustFault {
    fn from(error: DatabaseError) -> Self {
        Self::Issue(error.into())
    }
}

impl Tokens {
    /// Makes a token for whom a rule of trust admitted, by the identity of this fingerprint.
    pub(crate) async fn issue_exchanged(
        &self,
        admitted: Admitted,
        source: Fingerprint,
        origin: &Origin,
    ) -> Result<IssuedToken, TrustFault> {
        let name = |text: String| text.chars().filter(|c| is_shown(*c)).take(MAX_NAME).collect::<String>();
        let who = name(format!("{EXCHANGED}{}", admitted.subject));
        let rules = admitted.rules.join(" ");
        let new = NewToken {
            name: name(format!("{rules}: {} of {}", admitted.subject, admitted.issuer)),
            grants: admitted.grants.clone(),
            lifetime: admitted.lifetime,
        };
        check(&new)?;
        self.check_room()?;
        let (secret, report) = draw(new, who.clone()).map_err(TokenError::from)?;
        let own = secret.fingerprint();
        let event = Event::new(&Principal::Server, "token.exchange", report.token.id(), Outcome::Done).from(origin);
        let event = Event { who, detail: report.describe(), ..event.of(Some(&admitted.tenant)) };
        let (insert, event) = (&insertion(&report, &own), &event);
        let (admitted, rules, id, now_s) = (&admitted, rules.as_str(), report.token.id().to_string(), report.issued_s);
        let (id, ends_s) = (id.as_str(), report.expires_s.max(admitted.ends_s));
        // Beside the transaction, which others wait for: it may be a few too many.
        self.check_number(admitted, now_s).await?;
        let made = self.database.write(|transaction| {
            work(async move {
                forget_ended(transaction, now_s).await?;
                check_not_revoked(transaction, admitted, rules, source).await?;
                transaction.execute(insert.clone()).await?;
                let origin = sql("INSERT INTO tenancy_exchanged (id, issuer, subject, rules, tenant, source, ends_s) \
                         VALUES ($1, $2, $3, $4, $5, $6, $7)")
                .bind_all([id, &admitted.issuer, &admitted.subject, rules, admitted.tenant.as_str()])
                .bind(source.bytes())
                .bind(stored(ends_s));
                transaction.execute(origin).await?;
                audit::append(transaction, std::slice::from_ref(event)).await?;
                Ok::<_, TrustFault>(())
            })
        });
        made.await?;
        self.keep(own, &report);
        tracing::info!(token = %report.token.id, by = report.issued_by, rules, "an identity was exchanged");
        Ok(IssuedToken { secret, report })
    }

    /// Refuses when too many are good or remembered: of the subject, or of the tenant.
    async fn check_number(&self, admitted: &Admitted, now_s: u64) -> Result<(), TrustFault> {
        let all = sql("SELECT COUNT(*) AS number, COALESCE(SUM(CASE WHEN tenant = $2 THEN 1 ELSE 0 END), 0) AS part \
             FROM tenancy_exchanged WHERE ends_s >= $1");
        let own = sql("SELECT COUNT(*) AS number, \
             COALESCE(SUM(CASE WHEN token.expires_s > $3 AND token.revoked_s IS NULL THEN 1 ELSE 0 END), 0) AS part \
             FROM tenancy_exchanged origin JOIN tenancy_token token ON token.id = origin.id \
             WHERE origin.issuer = $1 AND origin.subject = $2 AND origin.ends_s >= $3");
        let all = counts(self.database.first(all.bind(stored(now_s)).bind(admitted.tenant.as_str())).await?)?;
        let own = own.bind_all([admitted.issuer.as_str(), &admitted.subject]).bind(stored(now_s));
        let own = counts(self.database.first(own).await?)?;
        let subject = || format!("{} of {}", admitted.subject, admitted.issuer);
        let too_many = |holder: String, limit| Err(TrustFault::TooMany { holder, limit });
        match (own, all) {
            ((_, good), _) if good >= MAX_OF_SUBJECT => too_many(subject(), MAX_OF_SUBJECT),
            ((remembered, _), _) if remembered >= MAX_REMEMBERED => too_many(subject(), MAX_REMEMBERED),
            (_, (all, of_tenant)) if of_tenant >= MAX_EXCHANGED.saturating_sub(all) => {
                too_many(format!("the tenant {}", admitted.tenant), of_tenant)
            }
            _ => Ok(()),
        }
    }

    /// Revokes what was exchanged, and has what was signed until now exchanged no more. Says how many tokens ended.
    ///
    /// # Errors
    /// [`TokenError::BeyondReach`] for whoever does not administer all tenants, unless they name an issuer and a subject
    /// that holds only what they could have handed out; [`TokenError::Database`].
    pub async fn revoke_exchanged(
        &self,
        admin: &Authorized<Administer>,
        which: &Exchanged,
        origin: &Origin,
    ) -> Result<usize, TokenError> {
        let revoked = self.revoke_within_reach(admin, which, origin).await;
        self.noted(admin, "token.revoke", &which.show(), origin, revoked).await
    }

    /// As [`Self::revoke_exchanged`], of whoever's identity the token of this id was exchanged for: a job whose token alone is
    /// revoked asks its issuer for another identity, and exchanges that.
    ///
    /// # Errors
    /// [`TokenError::Unknown`] of one that was not exchanged, or that the caller may not know of; the rest as there.
    pub async fn revoke_identity_of(
        &self,
        admin: &Authorized<Administer>,
        id: &TokenId,
        origin: &Origin,
    ) -> Result<usize, TokenError> {
        let found = self.identity_of(admin.principal(), id).await;
        let which = self.noted(admin, "token.revoke", id.presentable(), origin, found).await?;
        self.revoke_exchanged(admin, &which, origin).await
    }

    async fn identity_of(&self, who: &Principal, id: &TokenId) -> Result<Exchanged, TokenError> {
        let row = sql("SELECT token.*, origin.issuer AS issuer, origin.subject AS subject \
                 FROM tenancy_exchanged origin JOIN tenancy_token token ON token.id = origin.id WHERE origin.id = $1");
        let unknown = || TokenError::Unknown(id.clone());
        if !id.is_formed() {
            return Err(unknown());
        }
        let row = self.database.first(row.bind(id.as_str())).await?.ok_or_else(unknown)?;
        if !sees(who, &report(&row)?.token) {
            return Err(unknown());
        }
        Ok(Exchanged { issuer: Some(row.get("issuer")?), subject: Some(row.get("subject")?), rule: None })
    }

    async fn revoke_within_reach(
        &self,
        admin: &Authorized<Administer>,
        which: &Exchanged,
        origin: &Origin,
    ) -> Result<usize, TokenError> {
        let (who, now_s, id) = (admin.principal(), now_s(), random_text::<ID_BYTES>()?);
        let (by, event) = (who.to_string(), Event::new(who, "token.revoke", which.show(), Outcome::Done).from(origin));
        let (by, id, event) = (by.as_str(), id.as_str(), &event);
        let revoked = self.database.write(|transaction| {
            work(async move {
                check_reach(transaction, who, which).await?;
                let meant = find_good(transaction, which, now_s).await?;
                let revoked = lineage::revoke(transaction, meant, by, now_s).await?;
                cut_off(transaction, which, id, now_s).await?;
                let detail = format!("{} tokens ended", revoked.iter().filter(|member| member.was_good).count());
                audit::append(transaction, &[Event { detail, ..event.clone() }]).await?;
                Ok::<_, TokenError>(revoked)
            })
        });
        let revoked = revoked.await?;
        self.forget(&revoked);
        let ended = revoked.iter().filter(|member| member.was_good).count();
        tracing::info!(which = which.show(), by, tokens = ended, "exchanged tokens were revoked");
        Ok(ended)
    }
}

/// Refuses who would revoke more than what they administer. An identity that holds nothing else is theirs.
async fn check_reach(transaction: &mut Transaction, who: &Principal, which: &Exchanged) -> Result<(), TokenError> {
    if may_hand_out(who, &Grant::everywhere(Role::Admin)) {
        return Ok(());
    }
    let (Some(issuer), Some(subject)) = (&which.issuer, &which.subject) else { return Err(TokenError::BeyondReach) };
    let held = sql("SELECT token.* FROM tenancy_exchanged origin JOIN tenancy_token token ON token.id = origin.id \
             WHERE origin.issuer = $1 AND origin.subject = $2");
    let held = transaction.all(held.bind_all([issuer.as_str(), subject.as_str()])).await?;
    for row in &held {
        if !sees(who, &report(row)?.token) {
            return Err(TokenError::BeyondReach);
        }
    }
    if held.is_empty() { Err(TokenError::BeyondReach) } else { Ok(()) }
}

/// Forgets some of those that ended, so that the table grows no further than with what is good.
async fn forget_ended(transaction: &mut Transaction, now_s: u64) -> Result<(), DatabaseError> {
    let ended = sql("SELECT id FROM tenancy_exchanged WHERE ends_s < $1 ORDER BY ends_s LIMIT $2");
    let ended = transaction.all(ended.bind(stored(now_s)).bind(FORGOTTEN_AT_ONCE)).await?;
    if ended.is_empty() {
        return Ok(());
    }
    let ids = ended.iter().map(|row| row.get("id")).collect::<Result<Vec<String>, _>>()?;
    for table in ["tenancy_token", "tenancy_exchanged"] {
        let statement = sql(format!("DELETE FROM {table} WHERE id IN ({})", places(1, ids.len())));
        transaction.execute(statement.bind_all(ids.iter().map(String::as_str))).await?;
    }
    Ok(())
}

/// Refuses an identity that a revoked token was exchanged for, or that was signed before its kind was revoked.
async fn check_not_revoked(
    transaction: &mut Transaction,
    admitted: &Admitted,
    rules: &str,
    source: Fingerprint,
) -> Result<(), TrustFault> {
    let revoked = sql("SELECT token.id AS id FROM tenancy_exchanged origin \
             JOIN tenancy_token token ON token.id = origin.id \
             WHERE origin.source = $1 AND token.revoked_s IS NOT NULL LIMIT 1");
    if let Some(row) = transaction.first(revoked.bind(source.bytes())).await? {
        return Err(TrustFault::Revoked { what: format!("the token {}", row.get::<String>("id")?) });
    }
    let cuts = sql("SELECT issuer, subject, rule FROM tenancy_cut_off WHERE until_s + $1 >= $2");
    for row in transaction.all(cuts.bind(stored(LEEWAY_S)).bind(stored(admitted.signed_s))).await? {
        let cut = Exchanged { issuer: row.get("issuer")?, subject: row.get("subject")?, rule: row.get("rule")? };
        if cut.fits(&admitted.issuer, &admitted.subject, rules) {
            return Err(TrustFault::Revoked { what: cut.show() });
        }
    }
    Ok(())
}

/// How many there are, and how many of those are of some kind.
fn counts(row: Option<Row>) -> Result<(u64, u64), DatabaseError> {
    let Some(row) = row else { return Ok((0, 0)) };
    Ok((seconds(row.get("number")?), seconds(row.get("part")?)))
}

/// Those that were exchanged and are good, by id.
async fn find_good(transaction: &mut Transaction, which: &Exchanged, now_s: u64) -> Result<Vec<String>, DatabaseError> {
    let good = sql("SELECT token.id AS id, \
             origin.issuer AS issuer, origin.subject AS subject, origin.rules AS rules \
             FROM tenancy_exchanged origin JOIN tenancy_token token ON token.id = origin.id \
             WHERE token.expires_s > $1 AND token.revoked_s IS NULL");
    let mut meant = Vec::new();
    for row in transaction.all(good.bind(stored(now_s))).await? {
        let text = |column: &str| row.get::<String>(column);
        if which.fits(&text("issuer")?, &text("subject")?, &text("rules")?) {
            meant.push(text("id")?);
        }
    }
    Ok(meant)
}

/// Notes that what was signed until now counts no more.
async fn cut_off(transaction: &mut Transaction, which: &Exchanged, id: &str, now_s: u64) -> Result<(), DatabaseError> {
    let old = sql("DELETE FROM tenancy_cut_off WHERE until_s < $1");
    transaction.execute(old.bind(stored(now_s.saturating_sub(CUT_OFF.as_secs())))).await?;
    let cut = sql("INSERT INTO tenancy_cut_off (id, issuer, subject, rule, until_s) VALUES ($1, $2, $3, $4, $5)")
        .bind(id)
        .bind_all([which.issuer.as_deref(), which.subject.as_deref(), which.rule.as_deref()])
        .bind(stored(now_s));
    transaction.execute(cut).await.map(drop)
}

#[cfg(test)]
impl Tokens {
    /// For tests that look at rows, or put many there.
    pub(crate) const fn database(&self) -> &gf_database::Database {
        &self.database
    }
}
