//! Which token made which: what a token or a certificate made does not outlive it.
//!
//! What always holds: a token that another made, or who holds a certificate, ends no later than that one; of a token it is revoked with it in one transaction,
//! with all that it made itself. What an identity was exchanged for makes no others, and is revoked with all that the
//! same identity was exchanged for. Who made a token stands in its row as principals show themselves.

use std::collections::HashSet;

use gf_database::{DatabaseError, Row, Statement, Transaction, places, sql};

use super::rows::{fingerprint, seconds, stored};
use super::{TokenError, TokenId};
use crate::Principal;
use crate::secret::Fingerprint;

/// How whoever had an identity exchanged is shown, before their subject; no principal shows itself so.
pub(super) const EXCHANGED: &str = "oidc:";
/// Rows that are asked for or changed with one statement.
const PAGE: usize = 500;

/// One that is revoked together with another.
pub(super) struct Member {
    pub(super) id: String,
    pub(super) fingerprint: Fingerprint,
    pub(super) expires_s: u64,
    /// Whether it was good until now.
    pub(super) was_good: bool,
}

/// When the latest ends that a principal may make now.
pub(super) async fn latest_end(
    transaction: &mut Transaction,
    maker: &Principal,
    now_s: u64,
) -> Result<u64, TokenError> {
    let own = match maker {
        Principal::Token(own) => own,
        Principal::Certificate(certified) => return Ok(certified.ends_s()),
        _ => return Ok(u64::MAX),
    };
    let good =
        sql("SELECT issued_by, expires_s FROM tenancy_token WHERE id = $1 AND revoked_s IS NULL AND expires_s > $2");
    let good = transaction.first(good.bind(own.id().as_str()).bind(stored(now_s))).await?;
    let good = good.ok_or_else(|| TokenError::Unknown(own.id().clone()))?;
    if good.get::<String>("issued_by")?.starts_with(EXCHANGED) {
        return Err(TokenError::Exchanged);
    }
    Ok(seconds(good.get("expires_s")?))
}

/// Which tokens the identity was exchanged for that this one was exchanged for, itself among them.
pub(super) async fn siblings(transaction: &mut Transaction, id: &TokenId) -> Result<Vec<String>, DatabaseError> {
    let same = sql("SELECT other.id AS id FROM tenancy_exchanged own \
         JOIN tenancy_exchanged other ON other.source = own.source WHERE own.id = $1");
    let rows = transaction.all(same.bind(id.as_str())).await?;
    let mut ids = rows.iter().map(|row| row.get("id")).collect::<Result<Vec<String>, _>>()?;
    if ids.is_empty() {
        ids.push(id.to_string());
    }
    Ok(ids)
}

/// Revokes these tokens and all that they made, those first that are named first. What was revoked before is left out.
pub(super) async fn revoke(
    transaction: &mut Transaction,
    ids: Vec<String>,
    by: &str,
    now_s: u64,
) -> Result<Vec<Member>, DatabaseError> {
    let family = family(transaction, ids, now_s).await?;
    for page in family.chunks(PAGE) {
        let text = "UPDATE tenancy_token SET revoked_s = $1, revoked_by = $2 WHERE id IN";
        let update = sql(format!("{text} ({})", places(3, page.len()))).bind(stored(now_s)).bind(by);
        transaction.execute(update.bind_all(page.iter().map(|member| member.id.as_str()))).await?;
    }
    Ok(family)
}

async fn family(transaction: &mut Transaction, ids: Vec<String>, now_s: u64) -> Result<Vec<Member>, DatabaseError> {
    let (mut family, mut seen) = (Vec::new(), HashSet::new());
    let mut found = rows(transaction, "id", &ids).await?;
    while !found.is_empty() {
        let mut makers = Vec::new();
        for row in found {
            let id: String = row.get("id")?;
            if !seen.insert(id.clone()) {
                continue;
            }
            makers.push(format!("token:{id}"));
            // One that was revoked earlier may have made others all the same, before there was this rule.
            if row.get::<Option<i64>>("revoked_s")?.is_none() {
                let expires_s = seconds(row.get("expires_s")?);
                let fingerprint = fingerprint(&row)?;
                family.push(Member { id, fingerprint, expires_s, was_good: expires_s > now_s });
            }
        }
        found = rows(transaction, "issued_by", &makers).await?;
    }
    Ok(family)
}

/// The tokens of which a column is one of these.
async fn rows(
    transaction: &mut Transaction,
    column: &'static str,
    values: &[String],
) -> Result<Vec<Row>, DatabaseError> {
    let mut rows = Vec::new();
    for page in values.chunks(PAGE) {
        rows.extend(transaction.all(where_one_of(column, page)).await?);
    }
    Ok(rows)
}

fn where_one_of(column: &'static str, values: &[String]) -> Statement {
    let text = "SELECT id, fingerprint, expires_s, revoked_s FROM tenancy_token WHERE";
    sql(format!("{text} {column} IN ({})", places(1, values.len()))).bind_all(values.iter().map(String::as_str))
}
