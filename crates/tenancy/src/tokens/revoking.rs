//! Revoking a token, with all that depends on it.
//!
//! What always holds: it is over here before the database is asked, whatever becomes of that.

use std::sync::Arc;

use gf_database::{DatabaseError, sql, work};

use super::lineage::{self, Member};
use super::reach::sees;
use super::rows::{fingerprint, one_or_nothing, report, report_if_any, stored};
use super::{Token, TokenError, TokenId, Tokens};
use crate::access::now_s;
use crate::audit::{self, Event, Origin, Outcome};
use crate::principal::only_tenant;
use crate::secret::Fingerprint;
use crate::{Administer, Authorized, Principal};

impl Tokens {
    /// Revokes a token and all that it made: nothing that begins after this returned is let in by it, also when another
    /// process issued it. Of one that an identity was exchanged for, also when it ended, all are revoked that this
    /// identity was exchanged for, and it is exchanged no more.
    ///
    /// # Errors
    /// [`TokenError::Unknown`], also for one that grants more than what the caller holds; [`TokenError::Database`].
    pub async fn revoke(
        &self,
        admin: &Authorized<Administer>,
        id: &TokenId,
        origin: &Origin,
    ) -> Result<(), TokenError> {
        let revoked = self.revoke_seen(admin, id, origin).await;
        self.noted(admin, "token.revoke", id.presentable(), origin, revoked).await
    }

    async fn revoke_seen(
        &self,
        admin: &Authorized<Administer>,
        id: &TokenId,
        origin: &Origin,
    ) -> Result<(), TokenError> {
        let (fingerprint, token, expires_s) = self.find_seen(admin.principal(), id).await?;
        // Here first, so that it is over whatever becomes of the database.
        self.write().revoke(fingerprint, expires_s);
        let (by, now_s) = (admin.principal().to_string(), now_s());
        let event = Event::new(admin.principal(), "token.revoke", id, Outcome::Done).from(origin);
        let event = event.of_named(only_tenant(token.grants()));
        let (by, event) = (by.as_str(), &event);
        let revoked = self.database.write(|transaction| {
            work(async move {
                let siblings = lineage::siblings(transaction, id).await?;
                let revoked = lineage::revoke(transaction, siblings, by, now_s).await?;
                let with = revoked.iter().filter(|member| member.id != id.as_str());
                let with = with.map(|member| Event {
                    subject: member.id.clone(),
                    detail: format!("with the token {id}"),
                    ..event.clone()
                });
                let events: Vec<Event> = std::iter::once(event.clone()).chain(with).collect();
                audit::append(transaction, &events).await?;
                Ok::<_, DatabaseError>(revoked)
            })
        });
        let revoked = revoked.await?;
        self.forget(&revoked);
        tracing::info!(token = %id, by, tokens = revoked.len(), "a token was revoked, with those that depend on it");
        Ok(())
    }

    /// Revokes all tokens that somebody made, as the audit log names them, as far as the caller may know of them, with all that
    /// those made: of whoever holds a certificate no more, what they made goes on until it does. Says how many ended.
    ///
    /// # Errors
    /// [`TokenError::Database`].
    pub async fn revoke_made_by(
        &self,
        admin: &Authorized<Administer>,
        maker: &str,
        origin: &Origin,
    ) -> Result<usize, TokenError> {
        // A token that was pasted is not repeated.
        let maker = match Self::is_token(maker) {
            true => format!("token:{}", TokenId::new(maker).presentable()),
            false => maker.to_owned(),
        };
        let (who, now_s) = (admin.principal(), now_s());
        let event = Event::new(who, "token.revoke", format!("made by {maker}"), Outcome::Done).from(origin);
        let (by, maker, event) = (&who.to_string(), maker.as_str(), &event);
        let revoked = self.database.write(|transaction| {
            work(async move {
                let made = sql("SELECT * FROM tenancy_token \
                         WHERE issued_by = $1 AND revoked_s IS NULL AND expires_s > $2");
                let mut seen = Vec::new();
                for row in &transaction.all(made.bind(maker).bind(stored(now_s))).await? {
                    let token = report(row)?.token;
                    if sees(who, &token) {
                        seen.push(token.id.to_string());
                    }
                }
                let revoked = lineage::revoke(transaction, seen, by, now_s).await?;
                let detail = format!("{} tokens ended", number_ended(&revoked));
                audit::append(transaction, &[Event { detail, ..event.clone() }]).await?;
                Ok::<_, DatabaseError>(revoked)
            })
        });
        let revoked = revoked.await?;
        self.forget(&revoked);
        tracing::info!(maker, by, tokens = number_ended(&revoked), "what somebody made was revoked");
        Ok(number_ended(&revoked))
    }

    /// A token that the caller may know of. One that they may not is looked for like one that is not there, so that the
    /// time that it takes tells nobody which it was.
    async fn find_seen(&self, who: &Principal, id: &TokenId) -> Result<(Fingerprint, Arc<Token>, u64), TokenError> {
        let known = self.read().good.of_id(id);
        let known = known.map(|(fingerprint, entry)| (fingerprint, Arc::clone(&entry.token), entry.expires_s));
        let found = match known.filter(|(_, token, _)| sees(who, token)) {
            Some(seen) => Some(seen),
            None => self.find_stored(id).await?.filter(|(_, token, _)| sees(who, token)),
        };
        found.ok_or_else(|| TokenError::Unknown(id.clone()))
    }

    /// Lets in no more what was revoked.
    pub(super) fn forget(&self, revoked: &[Member]) {
        let mut table = self.write();
        for member in revoked {
            table.revoke(member.fingerprint, member.expires_s);
        }
    }

    /// A good token that another process issued, and this one has not read yet; also one that ended, while what it was
    /// exchanged for can be exchanged again.
    async fn find_stored(&self, id: &TokenId) -> Result<Option<(Fingerprint, Arc<Token>, u64)>, TokenError> {
        if !id.is_formed() {
            return Ok(None);
        }
        let good = "AND token.revoked_s IS NULL \
                    AND (token.expires_s > $2 OR token.id IN (SELECT id FROM tenancy_exchanged))";
        let statement = one_or_nothing(good).bind(id.as_str()).bind(stored(now_s()));
        let Some(row) = self.database.first(statement).await? else { return Ok(None) };
        let Some(report) = report_if_any(&row)? else { return Ok(None) };
        Ok(Some((fingerprint(&row)?, report.token, report.expires_s)))
    }
}

/// How many were good until now.
fn number_ended(revoked: &[Member]) -> usize {
    revoked.iter().filter(|member| member.was_good).count()
}
