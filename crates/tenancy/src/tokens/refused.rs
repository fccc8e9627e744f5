//! Tokens in Attic's format that were revoked singly. Whoever has the key makes them, so that they stand in no list of ours
//! until they are.
//!
//! What always holds: one that was revoked is refused in this process before [`Tokens::revoke_attic`] answers, and in every
//! other when that follows, as tokens of our own are. It is known by what was signed of it, of which another signature
//! makes no other token. It is forgotten when it would have ended; one without an end, never.

use gf_database::{DatabaseError, sql, work};

use super::reach::may_hand_out;
use super::rows::{fingerprint, seconds, stored};
use super::{BATCH, TokenError, Tokens};
use crate::access::now_s;
use crate::audit::{self, Event, Origin, Outcome};
use crate::{Administer, AtticId, Authorized, Denied, Grant, Role};

/// The most that are revoked at one time.
const MAX_REFUSED: u64 = 100_000;

impl Tokens {
    /// Revokes a token in Attic's format, of which it is known when it ends, or not: nothing that begins after this returned
    /// is let in by it.
    ///
    /// # Errors
    /// [`TokenError::BeyondReach`] for who does not administer everything, since such tokens know no tenants;
    /// [`TokenError::TooManyRefused`], or [`TokenError::Database`].
    pub async fn revoke_attic(
        &self,
        admin: &Authorized<Administer>,
        id: AtticId,
        ends_s: Option<u64>,
        origin: &Origin,
    ) -> Result<(), TokenError> {
        let revoked = self.refuse(admin, id, ends_s, origin).await;
        self.noted(admin, "token.revoke", &format!("attic:{id}"), origin, revoked).await
    }

    async fn refuse(
        &self,
        admin: &Authorized<Administer>,
        id: AtticId,
        ends_s: Option<u64>,
        origin: &Origin,
    ) -> Result<(), TokenError> {
        let who = admin.principal();
        if !may_hand_out(who, &Grant::everywhere(Role::Admin)) {
            return Err(TokenError::BeyondReach);
        }
        let (fingerprint, until_s) = (id.fingerprint(), ends_s.unwrap_or(u64::MAX));
        // Here first, so that it is over whatever becomes of the database.
        self.write().refuse(fingerprint, until_s);
        let event = Event::new(who, "token.revoke", format!("attic:{id}"), Outcome::Done).from(origin);
        let (by, event) = (&who.to_string(), &event);
        let written = self.database.write(|transaction| {
            work(async move {
                let count = transaction.first(sql("SELECT COUNT(*) AS number FROM tenancy_refused")).await?;
                let number = count.map_or(Ok(0), |row| row.get("number")).map(seconds)?;
                if number >= MAX_REFUSED {
                    return Err(TokenError::TooManyRefused(number));
                }
                let insert = sql("INSERT INTO tenancy_refused (fingerprint, until_s, revoked_s, revoked_by) \
                         VALUES ($1, $2, $3, $4) ON CONFLICT (fingerprint) DO NOTHING");
                let insert = insert.bind(fingerprint.bytes()).bind(stored(until_s)).bind(stored(now_s()));
                transaction.execute(insert.bind(by.as_str())).await?;
                Ok::<_, TokenError>(audit::append(transaction, std::slice::from_ref(event)).await?)
            })
        });
        written.await?;
        tracing::info!(token = %id, by, "a token in Attic's format was revoked");
        Ok(())
    }

    /// Refuses a token in Attic's format that was revoked, or may have been.
    pub(crate) fn check_refused(&self, id: AtticId) -> Result<(), Denied> {
        if self.read().has_refused(id.fingerprint()) {
            return Err(Denied::BadCredential);
        }
        self.check_followed()
    }

    /// Reads which were revoked, by whatever process.
    pub(super) async fn read_refused(&self) -> Result<(), DatabaseError> {
        let rows = sql("SELECT fingerprint, until_s FROM tenancy_refused WHERE until_s > $1 LIMIT $2");
        let rows = rows.bind(stored(now_s())).bind(stored(MAX_REFUSED));
        let mut read = Vec::new();
        for row in &self.database.all(rows).await? {
            read.push((fingerprint(row)?, seconds(row.get("until_s")?)));
        }
        let mut table = self.write();
        read.into_iter().for_each(|(fingerprint, until_s)| table.refuse(fingerprint, until_s));
        Ok(())
    }

    pub(super) async fn remove_refused_before(&self, time_s: u64) -> Result<(), DatabaseError> {
        let ended = "SELECT fingerprint FROM tenancy_refused WHERE until_s < $1 LIMIT $2";
        let delete = sql(format!("DELETE FROM tenancy_refused WHERE fingerprint IN ({ended})"));
        self.database.execute(delete.bind(stored(time_s)).bind(BATCH)).await.map(drop)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use gf_digest::InstanceName;

    use super::super::BELIEVED;
    use super::*;
    use crate::attic::tests::{SECRET, signed};
    use crate::audit::{AuditLog, Search, Verdict};
    use crate::testing::Place;
    use crate::{
        Access, AccessConfig, AtticConfig, IssuedToken, JwtKey, NewToken, Principal, Secret, TenantConfig, TenantName,
    };

    async fn open(place: &Place) -> (Arc<Tokens>, Access) {
        let tokens = Arc::new(Tokens::open(place.open().await).await.unwrap());
        let tenant = |name: &str| TenantConfig {
            name: TenantName::new(name).unwrap(),
            instances: vec![InstanceName::new(name).unwrap()],
        };
        let tenants = vec![tenant("default"), tenant("org-acme")];
        let access = Access::new(AccessConfig { tenants, token: None, anonymous_read: false }).unwrap();
        let key = JwtKey::hs256(SECRET).unwrap();
        let attic = AtticConfig { key, issuer: None, audiences: Vec::new() };
        (Arc::clone(&tokens), access.with_attic_tokens(attic).with_tokens(tokens))
    }

    fn token(subject: &str, expires: &str) -> String {
        signed(&format!(r#"{{"sub":"{subject}"{expires},"https://jwt.attic.rs/v1":{{"caches":{{"*":{{"r":1}}}}}}}}"#))
    }

    /// A token of our own, good for longer than any test.
    async fn issue(tokens: &Tokens, admin: &Authorized<Administer>, grant: &str) -> IssuedToken {
        let (grants, lifetime) = (vec![grant.parse().unwrap()], std::time::Duration::from_secs(3600));
        let new = NewToken { name: grant.to_owned(), grants, lifetime };
        tokens.issue(admin, new, &Origin::default()).await.unwrap()
    }

    #[tokio::test]
    async fn one_token_is_revoked_everywhere_and_the_others_stay() {
        for place in [Place::sqlite(), Place::postgres()] {
            let (tokens, access) = open(&place).await;
            let (others, elsewhere) = open(&place).await;
            let (stolen, kept) = (token("ci", ""), token("ci", r#","jti":"2""#));
            let admin = access.authorize_somewhere(Principal::Server).unwrap();
            let id = access.attic_token(&stolen).unwrap().id();
            for access in [&access, &elsewhere] {
                assert!(access.authenticate(Some(&stolen)).is_ok());
            }
            tokens.revoke_attic(&admin, id, None, &Origin::default()).await.unwrap();
            assert_eq!(access.authenticate(Some(&stolen)), Err(Denied::BadCredential), "here at once");
            others.follow().await.unwrap();
            // Another replica, one that begins now, and what asks with the fingerprint as people write it.
            let (_, anew) = open(&place).await;
            for access in [&access, &elsewhere, &anew] {
                assert_eq!(access.authenticate(Some(&stolen)), Err(Denied::BadCredential));
                assert!(access.authenticate(Some(&kept)).is_ok());
            }
            assert_eq!(id.to_string().parse(), Ok(id));
            tokens.sweep().await.unwrap();
            others.reload().await.unwrap();
            assert_eq!(elsewhere.authenticate(Some(&stolen)), Err(Denied::BadCredential), "it has no end");

            let log = AuditLog::new(tokens.database.clone());
            let records = log.search(&Search::default()).await.unwrap();
            assert_eq!(records[0].event.subject, format!("attic:{id}"));
            assert!(!format!("{records:?}").contains(&stolen));
            assert!(matches!(log.verify().await.unwrap(), Verdict::Whole(1, _)));
        }
    }

    #[tokio::test]
    async fn what_may_have_been_revoked_is_not_believed_for_ever() {
        let place = Place::sqlite();
        let (tokens, access) = open(&place).await;
        let admin = access.authorize_somewhere(Principal::Server).unwrap();
        let own = issue(&tokens, &admin, "viewer").await;
        let (attic, own) = (token("ci", ""), own.secret.expose());
        let closed =
            AccessConfig { tenants: Vec::new(), token: Some(Secret::new("s3cret".into())), anonymous_read: false };
        let with_static = Access::new(closed).unwrap().with_tokens(Arc::clone(&tokens));
        for (away, expected) in
            [(BELIEVED / 2, Ok(())), (BELIEVED + std::time::Duration::from_secs(1), Err(Denied::Unfollowed))]
        {
            tokens.lose_track_for(away);
            for text in [own, &attic] {
                assert_eq!(access.authenticate(Some(text)).map(drop), expected, "{away:?}");
            }
            assert_eq!(with_static.authenticate(Some("s3cret")), Ok(Principal::TokenHolder), "it is in no database");
            assert_eq!(access.authenticate(Some("gf-token-0123456789-00")), Err(Denied::BadCredential));
        }
        tokens.follow().await.unwrap();
        assert!(access.authenticate(Some(own)).is_ok() && access.authenticate(Some(&attic)).is_ok());
        // A database that cannot be read changes nothing.
        tokens.lose_track_for(2 * BELIEVED);
        tokens.database.execute(sql("DROP TABLE tenancy_audit")).await.unwrap();
        assert!(tokens.follow().await.is_err() && tokens.followed_ago() > BELIEVED);
    }

    #[tokio::test]
    async fn what_would_have_ended_is_forgotten() {
        for place in [Place::sqlite(), Place::postgres()] {
            let (tokens, access) = open(&place).await;
            let admin = access.authorize_somewhere(Principal::Server).unwrap();
            let soon = access.attic_token(&token("ci", &format!(r#","exp":{}"#, now_s() - 1))).unwrap();
            assert!(soon.ends_s().is_some_and(|ends_s| ends_s > now_s()), "clocks differ");
            for (id, ends_s) in [(soon.id(), Some(now_s())), (access.attic_token(&token("x", "")).unwrap().id(), None)]
            {
                tokens.revoke_attic(&admin, id, ends_s, &Origin::default()).await.unwrap();
            }
            tokens.write().sweep(now_s() + 1);
            tokens.remove_refused_before(now_s() + 1).await.unwrap();
            let left = tokens.database.all(sql("SELECT fingerprint FROM tenancy_refused")).await.unwrap();
            assert_eq!((left.len(), tokens.check_refused(soon.id())), (1, Ok(())));
        }
    }

    #[tokio::test]
    async fn only_who_administers_everything_revokes_what_knows_no_tenants() {
        let place = Place::sqlite();
        let (tokens, access) = open(&place).await;
        let root = access.authorize_somewhere(Principal::Server).unwrap();
        let issued = issue(&tokens, &root, "admin@org-acme").await;
        let who = access.authenticate(Some(issued.secret.expose())).unwrap();
        let acme = access.authorize_somewhere(&who).unwrap();
        let text = token("ci", "");
        let id = access.attic_token(&text).unwrap().id();
        let refused = tokens.revoke_attic(&acme, id, None, &Origin::default()).await.unwrap_err();
        assert!(matches!(refused, TokenError::BeyondReach), "{refused:?}");
        assert!(access.authenticate(Some(&text)).is_ok());
        assert!(access.attic_token(&text.replace('.', "_")).is_none());
    }
}
