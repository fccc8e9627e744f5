//! The audit log: who did what, from where, and what came of it.
//!
//! Each record carries a hash of itself and of the record before it, and records are counted without gaps: one that was
//! changed, taken out or put in between shows when the log is verified. Whoever can write to the database can of course
//! cut off the end of the log or write all of it anew; against that, note [`AuditLog::head`] elsewhere now and then.
//!
//! What always holds: a record is durable when [`AuditLog::append`] returns, and what is changed in the database of
//! tenancy is changed in the same transaction in which its record is written. No record holds a credential or the body
//! of a request: nothing here takes one.
//!
//! Which tenant a record is of is beside the chain: it says who is shown it, and proves nothing.
//!
//! Deliberately absent: taking records out. Exporting is reading them all, as JSON lines.

mod tally;
mod trail;

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;
use std::time::{SystemTime, UNIX_EPOCH};

use gf_database::{Database, DatabaseError, Row, Transaction, places, sql, work};
use ring::digest::{Context, SHA256};
use serde::{Serialize, Serializer};
use thiserror::Error;

use crate::{Denied, Principal, TenantName, is_shown};

pub use tally::{Amount, Deed};
pub use trail::{Trail, TrailStats};

/// The longest text of a field, in characters; what is longer is cut.
const MAX_TEXT: usize = 512;
/// The longest detail of what was done: all grants of a token. What strangers say is never done.
const MAX_DETAIL: usize = 40_000;
/// Records that are read at one time.
pub const PAGE: u32 = 1000;

/// What is to be recorded.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Event {
    /// Who: a principal as it shows itself.
    pub who: String,
    /// The address that the request came from; empty for what the server does by itself.
    pub source: String,
    /// What was done, as a word of its kind and a verb: `token.issue`, `cache.destroy`.
    pub action: String,
    /// With what: a name or an id.
    pub subject: String,
    /// What came of it.
    pub outcome: Outcome,
    /// What else a reader should know: what was changed, why it was refused.
    pub detail: String,
    /// What finds the request in logs and traces; empty when there is nothing.
    pub trace: String,
    /// The tenant whose administrators are shown it; empty for none.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub tenant: String,
}

/// Where a request came from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Origin {
    /// The address of the caller; `None` within the server, and when it is not known.
    pub source: Option<IpAddr>,
    /// What finds the request in logs and traces.
    pub trace: Option<TraceId>,
}

/// What all that belongs to one request, on whatever machine, has in common: the `trace-id` of W3C's Trace Context.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct TraceId([u8; 16]);

/// What came of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// It was done.
    Done,
    /// It was not allowed.
    Denied,
    /// It was allowed and did not work.
    Failed,
}

/// Text that is no outcome.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{0:?} is no outcome: there are done, denied and failed")]
pub struct UnknownOutcome(String);

/// An event in the log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Record {
    /// Counts from 1, without gaps.
    pub number: u64,
    /// When, in milliseconds since 1970.
    pub at_ms: u64,
    /// What.
    #[serde(flatten)]
    pub event: Event,
    /// Of this record and all before it.
    pub hash: ChainHash,
}

/// The hash of a record and of all before it; of no record, zeros.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub struct ChainHash([u8; 32]);

/// Which records are asked for; what is left out does not matter.
#[derive(Clone, Debug, Default)]
pub struct Search {
    /// By this principal.
    pub who: Option<String>,
    /// Of this action, or of the kind that stands before the dot.
    pub action: Option<String>,
    /// With this subject.
    pub subject: Option<String>,
    /// With this outcome.
    pub outcome: Option<Outcome>,
    /// Under this trace, which refusals tell their callers.
    pub trace: Option<String>,
    /// Not before this time, in milliseconds since 1970.
    pub since_ms: Option<u64>,
    /// Before this record, to go on from the last of an answer.
    pub before: Option<u64>,
    /// Of one of these tenants, and of none that are not of a tenant.
    pub tenants: Option<Vec<String>>,
}

/// What verifying a log proved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Every record is there and as it was written; the last one's number and hash.
    Whole(u64, ChainHash),
    /// The record of this number is not there, though later ones are.
    Missing(u64),
    /// The record of this number, or one before it, is not as it was written.
    Changed(u64),
}

/// The audit log of a database that went through [`crate::MIGRATIONS`].
#[derive(Clone, Debug)]
pub struct AuditLog {
    database: Database,
}

impl AuditLog {
    /// The log in this database.
    #[must_use]
    pub const fn new(database: Database) -> Self {
        Self { database }
    }

    /// Writes events down, all or none, in this order. They are durable when this returns.
    ///
    /// # Errors
    /// [`DatabaseError`]; what cannot be recorded should not be done.
    pub async fn append(&self, events: &[Event]) -> Result<(), DatabaseError> {
        self.database.write(|transaction| work(async move { append(transaction, events).await })).await
    }

    /// The records that are asked for, the newest first, at most 1000.
    ///
    /// # Errors
    /// [`DatabaseError`].
    pub async fn search(&self, search: &Search) -> Result<Vec<Record>, DatabaseError> {
        // No record has a character in it that is not shown, and PostgreSQL takes no text with a zero.
        let mut texts = [&search.who, &search.action, &search.subject, &search.trace].into_iter().flatten();
        if texts.any(|text| !text.chars().all(is_shown)) {
            return Ok(Vec::new());
        }
        let tenants = search.tenants.as_deref();
        let of_tenants = match tenants {
            None => String::new(),
            Some([]) => return Ok(Vec::new()),
            Some(tenants) => format!("AND tenant IN ({})", places(9, tenants.len())),
        };
        let statement = sql(format!(
            "SELECT * FROM tenancy_audit WHERE number < $1 AND at_ms >= $2 \
             AND (CAST($3 AS TEXT) IS NULL OR who = $3) \
             AND (CAST($4 AS TEXT) IS NULL OR action = $4 OR SUBSTR(action, 1, LENGTH($4) + 1) = $4 || '.') \
             AND (CAST($5 AS TEXT) IS NULL OR subject = $5) \
             AND (CAST($6 AS TEXT) IS NULL OR outcome = $6) \
             AND (CAST($7 AS TEXT) IS NULL OR trace = $7) \
             {of_tenants} ORDER BY number DESC LIMIT $8"
        ))
        .bind(search.before.map_or(i64::MAX, stored))
        .bind(search.since_ms.map_or(0, stored))
        .bind(search.who.as_deref())
        .bind(search.action.as_deref())
        .bind(search.subject.as_deref())
        .bind(search.outcome.map(Outcome::as_str))
        .bind(search.trace.as_deref())
        .bind(PAGE)
        .bind_all(tenants.unwrap_or_default().iter().map(String::as_str));
        self.database.all(statement).await?.iter().map(record).collect()
    }

    /// The records after one of this number (0 for all), the oldest first, at most 1000: for exporting.
    ///
    /// # Errors
    /// [`DatabaseError`].
    pub async fn after(&self, number: u64) -> Result<Vec<Record>, DatabaseError> {
        let page = sql("SELECT * FROM tenancy_audit WHERE number > $1 ORDER BY number LIMIT $2");
        self.database.all(page.bind(stored(number)).bind(PAGE)).await?.iter().map(record).collect()
    }

    /// Reads all of the log and says whether it is as it was written.
    ///
    /// # Errors
    /// [`DatabaseError`].
    pub async fn verify(&self) -> Result<Verdict, DatabaseError> {
        let before = sql("SELECT number FROM tenancy_audit WHERE number < 1 LIMIT 1");
        if self.database.first(before).await?.is_some() {
            // None was ever written there.
            return Ok(Verdict::Changed(1));
        }
        let (mut number, mut hash) = (0, ChainHash::default());
        loop {
            let page = self.after(number).await?;
            if page.is_empty() {
                return Ok(Verdict::Whole(number, hash));
            }
            for record in page {
                if record.number != number + 1 {
                    return Ok(Verdict::Missing(number + 1));
                }
                if record.hash != hash.followed_by(record.number, record.at_ms, &record.event) {
                    return Ok(Verdict::Changed(record.number));
                }
                (number, hash) = (record.number, record.hash);
            }
        }
    }

    /// The number and the hash of the last record: noted elsewhere, they prove that nothing before was cut off since.
    ///
    /// # Errors
    /// [`DatabaseError`].
    pub async fn head(&self) -> Result<(u64, ChainHash), DatabaseError> {
        self.database.first(sql(LAST)).await?.as_ref().map_or(Ok((0, ChainHash::default())), head)
    }
}

const LAST: &str = "SELECT number, hash FROM tenancy_audit ORDER BY number DESC LIMIT 1";

/// Records, in a transaction that puts a copy of the log back, that this is what was done: what was revoked after the copy
/// was made is good again, which nothing else shows.
///
/// # Errors
/// [`DatabaseError`].
pub async fn record_restore(transaction: &mut Transaction) -> Result<(), DatabaseError> {
    let last = transaction.first(sql(LAST)).await?;
    let (number, hash) = last.as_ref().map_or(Ok((0, ChainHash::default())), head)?;
    let event = Event::new(&Principal::Server, "facts.restore", "", Outcome::Done);
    append(transaction, &[Event { detail: format!("a copy up to record {number}, {hash}"), ..event }]).await
}

/// Writes events down in a transaction that does more.
pub(crate) async fn append(transaction: &mut Transaction, events: &[Event]) -> Result<(), DatabaseError> {
    let last = transaction.first(sql(LAST)).await?;
    let (mut number, mut hash) = last.as_ref().map_or(Ok((0, ChainHash::default())), head)?;
    let at_ms = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_millis());
    let at_ms = u64::try_from(at_ms).unwrap_or(u64::MAX);
    for event in events {
        let event = event.presentable();
        number += 1;
        hash = hash.followed_by(number, at_ms, &event);
        let insert = sql("INSERT INTO tenancy_audit \
                 (number, at_ms, who, source, action, subject, outcome, detail, trace, tenant, hash) \
                 VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)")
        .bind(stored(number))
        .bind(stored(at_ms))
        .bind_all([event.who, event.source, event.action, event.subject])
        .bind(event.outcome.as_str())
        .bind_all([event.detail, event.trace, event.tenant])
        .bind(&hash.0);
        transaction.execute(insert).await?;
    }
    Ok(())
}

impl Event {
    /// What a principal did.
    #[must_use]
    pub fn new(who: &Principal, action: &str, subject: impl fmt::Display, outcome: Outcome) -> Self {
        Self {
            who: who.to_string(),
            source: String::new(),
            action: action.to_owned(),
            subject: subject.to_string(),
            outcome,
            detail: String::new(),
            trace: String::new(),
            tenant: who.only_tenant().unwrap_or_default().to_owned(),
        }
    }

    /// The same, of what is this tenant's; without one it is of the tenant that its principal is of.
    #[must_use]
    pub fn of(self, tenant: Option<&TenantName>) -> Self {
        self.of_named(tenant.map(TenantName::as_str))
    }

    pub(crate) fn of_named(self, tenant: Option<&str>) -> Self {
        Self { tenant: tenant.map_or(self.tenant, str::to_owned), ..self }
    }

    /// What a principal was not allowed to do.
    #[must_use]
    pub fn denied(who: &Principal, action: &str, subject: impl fmt::Display, denied: &Denied) -> Self {
        Self { detail: denied.to_string(), ..Self::new(who, action, subject, Outcome::Denied) }
    }

    /// The same, of a request that came from there.
    #[must_use]
    pub fn from(self, origin: &Origin) -> Self {
        // An address of IPv4 reads the same however it came.
        let source = origin.source.map(|address| address.to_canonical().to_string()).unwrap_or_default();
        let trace = origin.trace.map(|trace| trace.to_string()).unwrap_or_default();
        Self { source, trace, ..self }
    }

    /// As it is stored: texts of a bounded length that can stand on one line.
    fn presentable(&self) -> Self {
        let cut = |text: &str, most| text.chars().filter(|c| is_shown(*c)).take(most).collect();
        let text = |text: &str| cut(text, MAX_TEXT);
        let most = if self.outcome == Outcome::Done { MAX_DETAIL } else { MAX_TEXT };
        Self {
            who: text(&self.who),
            source: text(&self.source),
            action: text(&self.action),
            subject: text(&self.subject),
            outcome: self.outcome,
            detail: cut(&self.detail, most),
            trace: text(&self.trace),
            tenant: text(&self.tenant),
        }
    }
}

impl ChainHash {
    /// The hash of the record that comes next. Every text is preceded by its length, so that no two records are the
    /// same bytes.
    fn followed_by(self, number: u64, at_ms: u64, event: &Event) -> Self {
        let mut context = Context::new(&SHA256);
        context.update(&self.0);
        context.update(&number.to_le_bytes());
        context.update(&at_ms.to_le_bytes());
        let outcome = event.outcome.as_str();
        let Event { who, source, action, subject, outcome: _, detail, trace, tenant: _ } = event;
        for text in [who, source, action, subject, outcome, detail, trace] {
            context.update(&(text.len() as u64).to_le_bytes());
            context.update(text.as_bytes());
        }
        Self::of(context.finish().as_ref())
    }

    fn of(bytes: &[u8]) -> Self {
        Self(bytes.try_into().unwrap_or_default())
    }
}

impl TraceId {
    /// The number; `None` for zero, which is none.
    #[must_use]
    pub const fn new(bytes: [u8; 16]) -> Option<Self> {
        if u128::from_be_bytes(bytes) == 0 { None } else { Some(Self(bytes)) }
    }
}

/// 32 hexadecimal digits.
impl fmt::Display for TraceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for TraceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for ChainHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for ChainHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for ChainHash {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl Outcome {
    /// As it stands in records.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Denied => "denied",
            Self::Failed => "failed",
        }
    }
}

impl Serialize for Outcome {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

impl FromStr for Outcome {
    type Err = UnknownOutcome;

    fn from_str(text: &str) -> Result<Self, UnknownOutcome> {
        let known = [Self::Done, Self::Denied, Self::Failed].into_iter().find(|outcome| outcome.as_str() == text);
        known.ok_or_else(|| UnknownOutcome(text.chars().take(80).collect()))
    }
}

fn head(row: &Row) -> Result<(u64, ChainHash), DatabaseError> {
    Ok((number(row, "number")?, ChainHash::of(&row.get::<Vec<u8>>("hash")?)))
}

fn record(row: &Row) -> Result<Record, DatabaseError> {
    let (number_of_record, hash) = head(row)?;
    let outcome = row.get::<String>("outcome")?.parse::<Outcome>();
    // Another word was never written here, and no hash fits it.
    let hash = if outcome.is_ok() { hash } else { ChainHash::default() };
    let event = Event {
        who: row.get("who")?,
        source: row.get("source")?,
        action: row.get("action")?,
        subject: row.get("subject")?,
        outcome: outcome.unwrap_or(Outcome::Failed),
        detail: row.get("detail")?,
        trace: row.get("trace")?,
        tenant: row.get("tenant")?,
    };
    Ok(Record { number: number_of_record, at_ms: number(row, "at_ms")?, event, hash })
}

fn number(row: &Row, column: &str) -> Result<u64, DatabaseError> {
    Ok(u64::try_from(row.get::<i64>(column)?).unwrap_or_default())
}

fn stored(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests;
