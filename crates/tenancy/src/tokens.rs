//! Tokens of our own: made here, stored as their hash, scoped, ending, and revocable at once.
//!
//! All tokens that are good are in memory, so that a request costs one hash and one look-up; the database is behind
//! them. What always holds: a token that was issued survives a power cut, and one that was revoked is refused in this
//! process before [`Tokens::revoke`] answers, and in every other that shares the database after its next
//! [`Tokens::reload`]. Nobody hands out more than what they hold, for longer than they hold it; what a token made is
//! revoked with it. Who is refused is in the audit log.
//!
//! While that cannot be read, what was known is believed for [`BELIEVED`], and nobody is let in by a token after it.
//!
//! Deliberately absent: the text of a token, which is shown once and is nowhere after that; cutting off requests that
//! were let in before a revocation.

mod exchanged;
mod follow;
mod lineage;
mod listing;
mod reach;
mod refused;
mod revoking;
mod room;
mod rows;
mod table;
mod uses;

use std::cmp::Reverse;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard};
use std::time::{Duration, Instant};

use gf_database::{Database, DatabaseError, sql, work};
use ring::rand::{SecureRandom, SystemRandom};
use thiserror::Error;

use crate::access::now_s;
use crate::audit::{self, AuditLog, Event, Origin, Outcome};
use crate::principal::only_tenant;
use crate::secret::Fingerprint;
use crate::{Administer, Authorized, Denied, Grant, NoRandomness, PermissionName, Principal, Secret, is_shown};
use reach::{may_hand_out, sees};
use rows::{insertion, show, stored};
use table::{Entry, Table};

pub use exchanged::Exchanged;
pub(crate) use exchanged::{Admitted, CUT_OFF};
pub use follow::BELIEVED;

/// How every token begins, so that one is known as such, also by those who look for secrets in the wrong places.
const PREFIX: &str = "gf-token-";
/// 256 bits: nobody guesses one.
const RANDOM_BYTES: usize = 32;
/// What tells two tokens apart for people.
const ID_BYTES: usize = 5;
/// The longest life of a token: what is used for longer is renewed once a year.
const MAX_LIFETIME: Duration = Duration::from_secs(366 * 24 * 3600);
/// The most tokens that are good at one time.
const MAX_TOKENS: usize = 100_000;
/// The most grants of one token.
const MAX_GRANTS: usize = 64;
/// The longest name, in characters.
const MAX_NAME: usize = 128;
/// What has ended, and was not exchanged for an identity, is shown for this long. The audit log keeps more.
const KEPT_AFTER_END: Duration = Duration::from_secs(7 * 24 * 3600);
/// Rows that are read, changed or removed at one time, so that others have their turn between.
const BATCH: u32 = 1000;

/// Which token: a few characters, which stand in its text too and are no secret.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TokenId(Arc<str>);

impl TokenId {
    /// The id that somebody names, by itself or by the text of a token, which has its id in it. Whether there is such a
    /// token is another question.
    #[must_use]
    pub fn new(text: &str) -> Self {
        let id = text.strip_prefix(PREFIX).and_then(|rest| rest.split('-').next());
        Self(id.unwrap_or(text).into())
    }

    /// As it can be shown: what is no id may be something secret that somebody pasted.
    #[must_use]
    pub fn presentable(&self) -> &str {
        if self.is_formed() { &self.0 } else { "(no id of a token)" }
    }

    /// The characters.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether it has the form of one; what has not stands in no table.
    fn is_formed(&self) -> bool {
        self.0.len() == 2 * ID_BYTES && self.0.bytes().all(|byte| byte.is_ascii_hexdigit())
    }
}

impl fmt::Display for TokenId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What the holder of a token may do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Token {
    id: TokenId,
    name: String,
    grants: Vec<Grant>,
    /// What a newer program granted.
    unknown: Vec<String>,
}

impl Token {
    /// Which one it is.
    #[must_use]
    pub const fn id(&self) -> &TokenId {
        &self.id
    }

    /// What its issuer called it.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What it grants.
    #[must_use]
    pub fn grants(&self) -> &[Grant] {
        &self.grants
    }

    /// What else it was given, by a newer program: it grants nothing here.
    #[must_use]
    pub fn unknown_grants(&self) -> &[String] {
        &self.unknown
    }

    /// One that stands in no table.
    #[cfg(test)]
    pub(crate) fn of(id: &str, grants: Vec<Grant>) -> Self {
        Self { id: TokenId::new(id), name: id.to_owned(), grants, unknown: Vec::new() }
    }

    /// The grant that gives this permission on the thing of this name.
    pub(crate) fn grant(&self, permission: PermissionName, tenant: Option<&str>, name: &str) -> Option<&Grant> {
        self.grants.iter().find(|grant| grant.grants(permission, tenant, name))
    }
}

/// What a new token is to be.
#[derive(Clone, Debug)]
pub struct NewToken {
    /// What people call it: who uses it, and for what.
    pub name: String,
    /// What it grants.
    pub grants: Vec<Grant>,
    /// How long it is good, at most a year.
    pub lifetime: Duration,
}

/// Which tokens are listed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Which {
    /// Those that are good.
    Good,
    /// Also those that ended or were revoked, while they are kept.
    All,
}

/// A token that was just made. Its text is nowhere else.
#[derive(Debug)]
pub struct IssuedToken {
    /// What its holder presents.
    pub secret: Secret,
    /// What is kept of it.
    pub report: TokenReport,
}

/// What is known of a token; times are in seconds since 1970.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenReport {
    /// What its holder may do.
    pub token: Arc<Token>,
    /// Who made it.
    pub issued_by: String,
    /// When.
    pub issued_s: u64,
    /// When it ends by itself.
    pub expires_s: u64,
    /// When it was revoked, if it was.
    pub revoked_s: Option<u64>,
    /// When it was last presented, to the second; written down once in a while.
    pub used_s: Option<u64>,
}

/// Why tokens cannot be made, revoked or listed.
#[derive(Debug, Error)]
pub enum TokenError {
    /// The name is empty, too long, or cannot be shown.
    #[error("a token has a name of 1 to {MAX_NAME} characters, none of them one that controls or formats text")]
    Name,
    /// No grant, or too many.
    #[error("a token has 1 to {MAX_GRANTS} grants")]
    Grants,
    /// Its life is too short or too long.
    #[error("a token is good for at least a second and at most a year")]
    Lifetime,
    /// The issuer does not hold it.
    #[error("{0} is more than what you hold, so that you cannot hand it out")]
    Exceeds(Grant),
    /// The issuer is nobody known, on a server that lets everybody do everything.
    #[error(
        "this server is open: a token counts for nothing here; `gf init` makes a configuration with a token of yours, which \
         makes others"
    )]
    OpenServer,
    /// The issuer has a token that an identity was exchanged for.
    #[error("what an identity was exchanged for makes no tokens: have somebody make it who administers")]
    Exchanged,
    /// More would be revoked than what is the caller's.
    #[error(
        "this would revoke what others administer: name the issuer and the subject of an identity that holds nothing \
         beyond what you administer, or ask who administers all tenants"
    )]
    BeyondReach,
    /// There is no such token, for all that this caller may know.
    #[error("there is no token {id} that is good", id = .0.presentable())]
    Unknown(TokenId),
    /// Too many are good at one time.
    #[error("{0} tokens are good already, and there is no room for more: revoke those that nobody uses")]
    TooMany(usize),
    /// Too many of Attic's format are revoked.
    #[error(
        "{0} tokens of Attic's format are revoked already, and there is no room for more: sign new ones with a new key,          which ends all old ones"
    )]
    TooManyRefused(u64),
    /// Nothing that must not be guessed can be made.
    #[error(transparent)]
    NoRandomness(#[from] NoRandomness),
    /// The database. A token whose revocation failed here is refused by this process all the same.
    #[error(transparent)]
    Database(#[from] DatabaseError),
}

impl TokenError {
    /// Whether the caller may not do it: who asked for that is in the audit log.
    const fn is_denial(&self) -> bool {
        matches!(self, Self::Exceeds(_) | Self::OpenServer | Self::Exchanged | Self::BeyondReach | Self::Unknown(_))
    }
}

/// All tokens. Cheap to ask.
#[derive(Debug)]
pub struct Tokens {
    database: Database,
    table: RwLock<Table>,
    /// Whose turn it is to change the table: taken before that is locked.
    editing: Mutex<()>,
    /// Counts what is issued and read here, so that reading anew does not forget what was issued meanwhile.
    changes: AtomicU64,
    /// The last record of the audit log that was looked at for what others changed.
    seen: AtomicU64,
    /// Up to when it is known what others revoked.
    followed: RwLock<Instant>,
}

impl Tokens {
    /// Reads all tokens of a database that went through [`crate::MIGRATIONS`].
    ///
    /// # Errors
    /// [`TokenError::Database`].
    pub async fn open(database: Database) -> Result<Self, TokenError> {
        let (changes, seen, followed) = (AtomicU64::new(0), AtomicU64::new(0), RwLock::new(Instant::now()));
        let tokens = Self { database, table: RwLock::default(), editing: Mutex::default(), changes, seen, followed };
        tokens.reload().await?;
        Ok(tokens)
    }

    /// Takes what has ended out of memory, and out of the database what ended a week ago.
    ///
    /// # Errors
    /// [`TokenError::Database`]; the next call goes on.
    pub async fn sweep(&self) -> Result<(), TokenError> {
        self.write().sweep(now_s());
        self.remove_refused_before(now_s()).await?;
        self.remove_ended_before(now_s().saturating_sub(KEPT_AFTER_END.as_secs())).await
    }

    async fn remove_ended_before(&self, time_s: u64) -> Result<(), TokenError> {
        loop {
            // Of what was exchanged, a revocation is remembered for as long as it could be exchanged again.
            let delete = sql("DELETE FROM tenancy_token WHERE id IN \
                 (SELECT id FROM tenancy_token WHERE (expires_s < $1 OR revoked_s < $1) \
                 AND id NOT IN (SELECT id FROM tenancy_exchanged WHERE ends_s >= $2) LIMIT $3)");
            let delete = delete.bind(stored(time_s)).bind(stored(now_s())).bind(BATCH);
            let removed = self.database.execute(delete).await?;
            if removed < u64::from(BATCH) {
                return Ok(());
            }
        }
    }

    /// Makes a token. It is good, and durable, when this returns. One that a token makes ends with that one, if not before.
    ///
    /// # Errors
    /// [`TokenError`].
    pub async fn issue(
        &self,
        admin: &Authorized<Administer>,
        new: NewToken,
        origin: &Origin,
    ) -> Result<IssuedToken, TokenError> {
        check(&new)?;
        let name = new.name.clone();
        let more = new.grants.iter().find(|grant| !may_hand_out(admin.principal(), grant)).cloned();
        let made = match more {
            // It would open the server to whoever made it once that is closed.
            _ if *admin.principal() == Principal::Anonymous => Err(TokenError::OpenServer),
            Some(more) => Err(TokenError::Exceeds(more)),
            None => self.make(new, admin.principal(), origin).await,
        };
        self.noted(admin, "token.issue", &name, origin, made).await
    }

    /// Makes what was checked, and records it.
    async fn make(&self, new: NewToken, maker: &Principal, origin: &Origin) -> Result<IssuedToken, TokenError> {
        self.check_room_for(maker)?;
        let (secret, drawn) = draw(new, maker.to_string())?;
        let fingerprint = secret.fingerprint();
        let event = Event::new(maker, "token.issue", drawn.token.id(), Outcome::Done).from(origin);
        let event = event.of_named(only_tenant(drawn.token.grants()));
        let (drawn, event) = (&drawn, &Event { detail: drawn.describe(), ..event });
        let made = self.database.write(|transaction| {
            work(async move {
                let latest_s = lineage::latest_end(transaction, maker, drawn.issued_s).await?;
                let report = TokenReport { expires_s: drawn.expires_s.min(latest_s), ..drawn.clone() };
                transaction.execute(insertion(&report, &fingerprint)).await?;
                audit::append(transaction, std::slice::from_ref(event)).await?;
                Ok::<_, TokenError>(report)
            })
        });
        let report = made.await?;
        self.keep(fingerprint, &report);
        tracing::info!(token = %report.token.id, by = report.issued_by, "a token was issued");
        Ok(IssuedToken { secret, report })
    }

    /// What came of it, once a refusal is in the audit log.
    async fn noted<T>(
        &self,
        admin: &Authorized<Administer>,
        action: &str,
        subject: &str,
        origin: &Origin,
        result: Result<T, TokenError>,
    ) -> Result<T, TokenError> {
        if let Some(error) = result.as_ref().err().filter(|error| error.is_denial()) {
            let event = Event::new(admin.principal(), action, subject, Outcome::Denied).from(origin);
            AuditLog::new(self.database.clone()).append(&[Event { detail: error.to_string(), ..event }]).await?;
        }
        result
    }

    /// Lets a token count here that was written down.
    fn keep(&self, fingerprint: Fingerprint, report: &TokenReport) {
        let entry = Entry::of(report, self.changes.fetch_add(1, Ordering::Relaxed));
        self.write().keep(fingerprint, entry);
    }

    /// How many tokens are good.
    #[must_use]
    pub fn number_good(&self) -> usize {
        self.read().good.len()
    }

    /// The good token of this id, as whom its holder would ask.
    #[must_use]
    pub fn principal(&self, id: &TokenId) -> Option<Principal> {
        self.read().good.of_id(id).map(|(_, entry)| Principal::Token(Arc::clone(&entry.token)))
    }

    /// As [`Self::principal`], for who administers: a token that grants more than what they hold is none to them.
    #[must_use]
    pub fn principal_for(&self, admin: &Authorized<Administer>, id: &TokenId) -> Option<Principal> {
        let seen =
            |principal: &Principal| matches!(principal, Principal::Token(token) if sees(admin.principal(), token));
        self.principal(id).filter(seen)
    }

    /// Whether text is a token by its form, good or not.
    pub(crate) fn is_token(credential: &str) -> bool {
        credential.starts_with(PREFIX)
    }

    /// The token that is presented, if it is good at this time.
    pub(crate) fn find(&self, fingerprint: Fingerprint, now_s: u64) -> Result<Arc<Token>, Denied> {
        let table = self.read();
        let entry = table.good.get(fingerprint).ok_or(Denied::BadCredential)?;
        if now_s >= entry.expires_s {
            return Err(Denied::Expired);
        }
        entry.touch(now_s);
        Ok(Arc::clone(&entry.token))
    }

    fn read(&self) -> RwLockReadGuard<'_, Table> {
        self.table.read().unwrap_or_else(PoisonError::into_inner)
    }
}

impl TokenReport {
    /// What a record of its making says: the widest grant first, so that it is not overlooked.
    fn describe(&self) -> String {
        let mut grants = self.token.grants.clone();
        grants.sort_by_key(|grant| Reverse(grant.width()));
        format!("{}: {}", self.token.name, show(&grants))
    }
}

/// A token that nobody knows yet.
fn draw(new: NewToken, issued_by: String) -> Result<(Secret, TokenReport), NoRandomness> {
    let id = random_text::<ID_BYTES>()?;
    let secret = Secret::new(format!("{PREFIX}{id}-{}", random_text::<RANDOM_BYTES>()?));
    let issued_s = now_s();
    let token = Token { id: TokenId::new(&id), name: new.name, grants: new.grants, unknown: Vec::new() };
    let report = TokenReport {
        token: Arc::new(token),
        issued_by,
        issued_s,
        expires_s: issued_s + new.lifetime.as_secs(),
        revoked_s: None,
        used_s: None,
    };
    Ok((secret, report))
}

fn check(new: &NewToken) -> Result<(), TokenError> {
    let length = new.name.chars().count();
    if length == 0 || length > MAX_NAME || !new.name.chars().all(is_shown) {
        return Err(TokenError::Name);
    }
    if new.grants.is_empty() || new.grants.len() > MAX_GRANTS {
        return Err(TokenError::Grants);
    }
    if new.lifetime < Duration::from_secs(1) || new.lifetime > MAX_LIFETIME {
        return Err(TokenError::Lifetime);
    }
    Ok(())
}

fn random_text<const N: usize>() -> Result<String, NoRandomness> {
    let mut random = [0; N];
    SystemRandom::new().fill(&mut random).map_err(|_| NoRandomness)?;
    Ok(random.iter().fold(String::with_capacity(2 * N), |text, byte| text + &format!("{byte:02x}")))
}

#[cfg(test)]
mod tests;
