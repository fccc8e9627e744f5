//! Tokens of our own: made here, stored as their hash, scoped, ending, and revocable at once.
//!
//! All tokens that are good are in memory, so that a request costs one hash and one look-up; the database is behind
//! them. What always holds: a token that was issued survives a power cut, and one that was revoked is refused in this
//! process before [`Tokens::revoke`] answers, and in every other that shares the database after its next
//! [`Tokens::reload`]. Nobody hands out more than what they hold.
//!
//! Deliberately absent: the text of a token, which is shown once and is nowhere after that; cutting off requests that
//! were let in before a revocation.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::Duration;

use gf_database::{Database, DatabaseError, Row, Statement, sql, work};
use ring::rand::{SecureRandom, SystemRandom};
use thiserror::Error;

use crate::access::now_s;
use crate::audit::{self, AuditLog, Event, Outcome};
use crate::secret::Fingerprint;
use crate::{Administer, Authorized, Denied, Grant, GrantError, NoRandomness, PermissionName, Principal, Secret};

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

/// Which token: a few characters, which stand in its text too and are no secret.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TokenId(Arc<str>);

impl TokenId {
    /// The id that somebody names. Whether there is such a token is another question.
    #[must_use]
    pub fn new(text: &str) -> Self {
        Self(text.into())
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

/// Whom a rule of trust admitted, and with what.
#[derive(Debug)]
pub(crate) struct Exchanged {
    /// Whom the issuer named.
    pub(crate) subject: String,
    /// The issuer.
    pub(crate) issuer: String,
    /// The rules that fit.
    pub(crate) rules: String,
    /// What they grant.
    pub(crate) grants: Vec<Grant>,
    /// For how long.
    pub(crate) lifetime: Duration,
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
    #[error("a token has a name of 1 to {MAX_NAME} characters, none of them a control character")]
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
    /// There is no such token, for all that this caller may know.
    #[error("there is no token {0} that is good")]
    Unknown(TokenId),
    /// Too many are good at one time.
    #[error("there are {MAX_TOKENS} tokens already: revoke those that nobody uses")]
    TooMany,
    /// Nothing that must not be guessed can be made.
    #[error(transparent)]
    NoRandomness(#[from] NoRandomness),
    /// What is stored is not a grant, so that it was written by a newer program.
    #[error("the token {id} has a grant that is not known: {source}")]
    Stored {
        /// Which token.
        id: String,
        /// What is wrong with it.
        source: GrantError,
    },
    /// The database. A token whose revocation failed here is refused by this process all the same.
    #[error(transparent)]
    Database(#[from] DatabaseError),
}

/// All tokens. Cheap to ask.
#[derive(Debug)]
pub struct Tokens {
    database: Database,
    table: RwLock<Table>,
    /// Counts what is issued and read here, so that reading anew does not forget what was issued meanwhile.
    changes: AtomicU64,
}

#[derive(Debug, Default)]
struct Table {
    good: HashMap<Fingerprint, Arc<Entry>>,
    /// Those that were revoked here: what was read from the database just before brings none of them back.
    revoked: HashSet<Fingerprint>,
}

#[derive(Debug)]
struct Entry {
    token: Arc<Token>,
    known_since: u64,
    expires_s: u64,
    /// 0 for never.
    used_s: AtomicU64,
    /// Of that, what the database knows.
    saved_s: AtomicU64,
}

impl Tokens {
    /// Reads all tokens of a database that went through [`crate::MIGRATIONS`].
    ///
    /// # Errors
    /// [`TokenError::Database`].
    pub async fn open(database: Database) -> Result<Self, TokenError> {
        let tokens = Self { database, table: RwLock::default(), changes: AtomicU64::new(0) };
        tokens.reload().await?;
        Ok(tokens)
    }

    /// Reads again what other processes issued and revoked.
    ///
    /// # Errors
    /// As [`Self::open`]; what was known before stays.
    pub async fn reload(&self) -> Result<(), TokenError> {
        let began = self.changes.fetch_add(1, Ordering::Relaxed);
        let statement = "SELECT * FROM tenancy_token WHERE revoked_s IS NULL AND expires_s > $1 LIMIT $2";
        let most = i64::try_from(MAX_TOKENS).unwrap_or(i64::MAX);
        let rows = self.database.all(sql(statement).bind(stored(now_s())).bind(most)).await?;
        let mut read = HashMap::with_capacity(rows.len());
        for row in &rows {
            let fingerprint = Fingerprint::stored(&row.get::<Vec<u8>>("fingerprint")?);
            match report(row) {
                Ok(report) => {
                    read.insert(fingerprint, Arc::new(Entry::of(&report, began)));
                }
                // One grant of a newer program must not shut out the holders of all other tokens.
                Err(error @ TokenError::Stored { .. }) => tracing::warn!(%error, "a token is passed over"),
                Err(error) => return Err(error),
            }
        }
        self.write().replace(read, began);
        Ok(())
    }

    /// Makes a token. It is good, and durable, when this returns.
    ///
    /// # Errors
    /// [`TokenError`].
    pub async fn issue(&self, admin: &Authorized<Administer>, new: NewToken) -> Result<IssuedToken, TokenError> {
        check(&new)?;
        if let Some(more) = new.grants.iter().find(|grant| !may_hand_out(admin.principal(), grant)) {
            let event = Event::new(admin.principal(), "token.issue", &new.name, Outcome::Denied);
            let detail = format!("it would grant {more}");
            AuditLog::new(self.database.clone()).append(&[Event { detail, ..event }]).await?;
            return Err(TokenError::Exceeds(more.clone()));
        }
        self.make(new, Event::new(admin.principal(), "token.issue", "", Outcome::Done)).await
    }

    /// Makes what was checked, and records it.
    async fn make(&self, new: NewToken, event: Event) -> Result<IssuedToken, TokenError> {
        if self.read().good.len() >= MAX_TOKENS {
            return Err(TokenError::TooMany);
        }
        let id = random_text::<ID_BYTES>()?;
        let secret = Secret::new(format!("{PREFIX}{id}-{}", random_text::<RANDOM_BYTES>()?));
        let issued_s = now_s();
        let token = Token { id: TokenId::new(&id), name: new.name, grants: new.grants };
        let report = TokenReport {
            token: Arc::new(token),
            issued_by: event.who.clone(),
            issued_s,
            expires_s: issued_s + new.lifetime.as_secs(),
            revoked_s: None,
            used_s: None,
        };
        let fingerprint = secret.fingerprint();
        let detail = format!("{}: {}", report.token.name, show(&report.token.grants));
        let event = Event { subject: report.token.id.to_string(), detail, ..event };
        self.change(insertion(&report, &fingerprint), event).await?;
        let entry = Entry::of(&report, self.changes.fetch_add(1, Ordering::Relaxed));
        self.write().good.insert(fingerprint, Arc::new(entry));
        tracing::info!(token = %report.token.id, by = report.issued_by, "a token was issued");
        Ok(IssuedToken { secret, report })
    }

    /// Makes a token for whom a rule of trust admitted.
    pub(crate) async fn issue_exchanged(&self, admitted: Exchanged) -> Result<IssuedToken, TokenError> {
        let Exchanged { subject, issuer, rules, grants, lifetime } = admitted;
        let name = |text: String| text.chars().filter(|c| !c.is_control()).take(MAX_NAME).collect::<String>();
        let who = Principal::Server;
        let event = Event { who: name(format!("oidc:{subject}")), ..Event::new(&who, "", "", Outcome::Done) };
        let new = NewToken { name: name(format!("{rules}: {subject} of {issuer}")), grants, lifetime };
        check(&new)?;
        self.make(new, Event { action: "token.exchange".to_owned(), ..event }).await
    }

    /// Revokes a token: nothing that begins after this returned is let in by it.
    ///
    /// # Errors
    /// [`TokenError::Unknown`], also for one that grants more than what the caller holds; [`TokenError::Database`].
    pub async fn revoke(&self, admin: &Authorized<Administer>, id: &TokenId) -> Result<(), TokenError> {
        let known =
            self.read().good.iter().find(|(_, entry)| entry.token.id == *id).map(|(at, entry)| (*at, entry.clone()));
        let seen = known.filter(|(_, entry)| sees(admin.principal(), &entry.token));
        let (fingerprint, _) = seen.ok_or_else(|| TokenError::Unknown(id.clone()))?;
        // Here first, so that it is over whatever becomes of the database.
        self.write().revoke(fingerprint);
        let by = admin.principal().to_string();
        let statement = "UPDATE tenancy_token SET revoked_s = $1, revoked_by = $2 WHERE id = $3 AND revoked_s IS NULL";
        let statement = sql(statement).bind(stored(now_s())).bind(by.as_str()).bind(&*id.0);
        self.change(statement, Event::new(admin.principal(), "token.revoke", id, Outcome::Done)).await?;
        tracing::info!(token = %id, by, "a token was revoked");
        Ok(())
    }

    /// All tokens that the caller may know of, good or not, the newest first, at most `limit`.
    ///
    /// # Errors
    /// [`TokenError::Database`] and [`TokenError::Stored`].
    pub async fn list(&self, admin: &Authorized<Administer>, limit: u32) -> Result<Vec<TokenReport>, TokenError> {
        let statement = sql("SELECT * FROM tenancy_token ORDER BY issued_s DESC, id LIMIT $1").bind(limit);
        let rows = self.database.all(statement).await?;
        let mut reports = rows.iter().map(report).collect::<Result<Vec<_>, _>>()?;
        reports.retain(|report| sees(admin.principal(), &report.token));
        let table = self.read();
        let used: HashMap<&TokenId, u64> =
            table.good.values().map(|entry| (&entry.token.id, entry.used_s.load(Ordering::Relaxed))).collect();
        for report in &mut reports {
            let used = used.get(&report.token.id).copied().filter(|used| *used > 0);
            report.used_s = report.used_s.max(used);
        }
        Ok(reports)
    }

    /// The good token of this id, as whom its holder would ask.
    #[must_use]
    pub fn principal(&self, id: &TokenId) -> Option<Principal> {
        let table = self.read();
        table.good.values().find(|entry| entry.token.id == *id).map(|entry| Principal::Token(Arc::clone(&entry.token)))
    }

    /// Writes down when tokens were last presented.
    ///
    /// # Errors
    /// [`TokenError::Database`]; the next call tries again.
    pub async fn save_uses(&self) -> Result<(), TokenError> {
        let unsaved: Vec<Arc<Entry>> = self.read().good.values().filter(|entry| entry.is_unsaved()).cloned().collect();
        if unsaved.is_empty() {
            return Ok(());
        }
        let uses: Vec<(u64, Arc<Entry>)> =
            unsaved.into_iter().map(|entry| (entry.used_s.load(Ordering::Relaxed), entry)).collect();
        let uses = &uses;
        let written = self.database.write(|transaction| {
            work(async move {
                for (used_s, entry) in uses {
                    let update = sql("UPDATE tenancy_token SET used_s = $1 WHERE id = $2");
                    transaction.execute(update.bind(stored(*used_s)).bind(&*entry.token.id.0)).await?;
                }
                Ok::<_, DatabaseError>(())
            })
        });
        written.await?;
        for (used_s, entry) in uses {
            entry.saved_s.store(*used_s, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Whether text is a token by its form, good or not.
    pub(crate) fn is_token(credential: &str) -> bool {
        credential.starts_with(PREFIX)
    }

    /// The token that is presented, if it is good at this time.
    pub(crate) fn find(&self, fingerprint: Fingerprint, now_s: u64) -> Result<Arc<Token>, Denied> {
        let table = self.read();
        let entry = table.good.get(&fingerprint).ok_or(Denied::BadCredential)?;
        if now_s >= entry.expires_s {
            return Err(Denied::Expired);
        }
        // Written at most once a second: many threads present the same token.
        if entry.used_s.load(Ordering::Relaxed) < now_s {
            entry.used_s.store(now_s, Ordering::Relaxed);
        }
        Ok(Arc::clone(&entry.token))
    }

    /// Changes the table and records it, both or neither.
    async fn change(&self, statement: Statement, event: Event) -> Result<(), DatabaseError> {
        let (statement, event) = (&statement, std::slice::from_ref(&event));
        let changed = self.database.write(|transaction| {
            work(async move {
                transaction.execute(statement.clone()).await?;
                audit::append(transaction, event).await
            })
        });
        changed.await
    }

    // Nothing panics under the lock, and a map is whole between two of its calls.
    fn read(&self) -> RwLockReadGuard<'_, Table> {
        self.table.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Table> {
        self.table.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Table {
    /// Takes what was read from the database instead of what was known when the reading began.
    fn replace(&mut self, mut read: HashMap<Fingerprint, Arc<Entry>>, began: u64) {
        for (fingerprint, before) in self.good.drain() {
            match read.get(&fingerprint) {
                Some(entry) => {
                    entry.used_s.fetch_max(before.used_s.load(Ordering::Relaxed), Ordering::Relaxed);
                }
                None if before.known_since > began => {
                    read.insert(fingerprint, before);
                }
                None => {}
            }
        }
        read.retain(|fingerprint, _| !self.revoked.contains(fingerprint));
        self.good = read;
    }

    fn revoke(&mut self, fingerprint: Fingerprint) {
        self.good.remove(&fingerprint);
        self.revoked.insert(fingerprint);
    }
}

impl Entry {
    fn of(report: &TokenReport, known_since: u64) -> Self {
        let used_s = report.used_s.unwrap_or_default();
        Self {
            token: Arc::clone(&report.token),
            known_since,
            expires_s: report.expires_s,
            used_s: AtomicU64::new(used_s),
            saved_s: AtomicU64::new(used_s),
        }
    }

    fn is_unsaved(&self) -> bool {
        self.used_s.load(Ordering::Relaxed) > self.saved_s.load(Ordering::Relaxed)
    }
}

fn check(new: &NewToken) -> Result<(), TokenError> {
    let length = new.name.chars().count();
    if length == 0 || length > MAX_NAME || new.name.chars().any(char::is_control) {
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

/// Whether the caller may make a token with this grant: whoever holds a token holds what it says; others who were
/// allowed to administer hold everything.
fn may_hand_out(principal: &Principal, grant: &Grant) -> bool {
    match principal {
        Principal::Token(token) => {
            token.grants.iter().any(|own| own.has(PermissionName::Administer) && own.covers(grant))
        }
        _ => true,
    }
}

/// Whether the caller may know of a token: of those that it could have made, and of its own.
fn sees(principal: &Principal, token: &Token) -> bool {
    let is_own = matches!(principal, Principal::Token(own) if own.id == token.id);
    is_own || token.grants.iter().all(|grant| may_hand_out(principal, grant))
}

/// Grants as they are stored; none has a space in it.
fn show(grants: &[Grant]) -> String {
    grants.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
}

fn insertion(report: &TokenReport, fingerprint: &Fingerprint) -> Statement {
    sql("INSERT INTO tenancy_token (id, fingerprint, name, grants, issued_by, issued_s, expires_s) \
         VALUES ($1, $2, $3, $4, $5, $6, $7)")
    .bind(&*report.token.id.0)
    .bind(fingerprint.bytes())
    .bind(report.token.name.as_str())
    .bind(show(&report.token.grants))
    .bind(report.issued_by.as_str())
    .bind(stored(report.issued_s))
    .bind(stored(report.expires_s))
}

fn report(row: &Row) -> Result<TokenReport, TokenError> {
    let id: String = row.get("id")?;
    let grants: String = row.get("grants")?;
    let grants = grants.split(' ').map(str::parse).collect::<Result<Vec<Grant>, _>>();
    let grants = grants.map_err(|source| TokenError::Stored { id: id.clone(), source })?;
    let time = |column: &str| Ok::<_, DatabaseError>(row.get::<Option<i64>>(column)?.map(seconds));
    Ok(TokenReport {
        token: Arc::new(Token { id: TokenId::new(&id), name: row.get("name")?, grants }),
        issued_by: row.get("issued_by")?,
        issued_s: time("issued_s")?.unwrap_or_default(),
        expires_s: time("expires_s")?.unwrap_or_default(),
        revoked_s: time("revoked_s")?,
        used_s: time("used_s")?,
    })
}

fn stored(seconds: u64) -> i64 {
    i64::try_from(seconds).unwrap_or(i64::MAX)
}

fn seconds(stored: i64) -> u64 {
    u64::try_from(stored).unwrap_or_default()
}

fn random_text<const N: usize>() -> Result<String, NoRandomness> {
    let mut random = [0; N];
    SystemRandom::new().fill(&mut random).map_err(|_| NoRandomness)?;
    Ok(random.iter().fold(String::with_capacity(2 * N), |text, byte| text + &format!("{byte:02x}")))
}

#[cfg(test)]
mod tests;
