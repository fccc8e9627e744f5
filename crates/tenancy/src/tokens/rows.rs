//! Tokens as they stand in the database.

use std::sync::Arc;

use gf_database::{DatabaseError, Row, Statement, sql};

use super::{Token, TokenId, TokenReport};
use crate::Grant;
use crate::secret::Fingerprint;

/// Grants as they are stored; none has a space in it.
pub(super) fn show(grants: &[Grant]) -> String {
    grants.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
}

pub(super) fn insertion(report: &TokenReport, fingerprint: &Fingerprint) -> Statement {
    sql("INSERT INTO tenancy_token (id, fingerprint, name, grants, issued_by, issued_s, expires_s) \
         VALUES ($1, $2, $3, $4, $5, $6, $7)")
    .bind(report.token.id().as_str())
    .bind(fingerprint.bytes())
    .bind(report.token.name())
    .bind(show(report.token.grants()))
    .bind(report.issued_by.as_str())
    .bind(stored(report.issued_s))
    .bind(stored(report.expires_s))
}

pub(super) fn fingerprint(row: &Row) -> Result<Fingerprint, DatabaseError> {
    Ok(Fingerprint::stored(&row.get::<Vec<u8>>("fingerprint")?))
}

/// The token of an id, if more holds of it: a row in any case, so that one that is there takes no longer to read than one
/// that is not.
pub(super) fn one_or_nothing(more: &str) -> Statement {
    sql(format!(
        "SELECT token.* FROM (SELECT 1 AS asked) AS question LEFT JOIN tenancy_token token ON token.id = $1 {more}"
    ))
}

/// What such a row says.
pub(super) fn report_if_any(row: &Row) -> Result<Option<TokenReport>, DatabaseError> {
    row.get::<Option<String>>("id")?.map(|_| report(row)).transpose()
}

/// Grants that a newer program wrote are kept apart: they grant nothing here, and shut nobody out.
pub(super) fn report(row: &Row) -> Result<TokenReport, DatabaseError> {
    let mut grants = Vec::new();
    let mut unknown = Vec::new();
    for text in row.get::<String>("grants")?.split(' ') {
        match text.parse() {
            Ok(grant) => grants.push(grant),
            Err(_) => unknown.push(text.to_owned()),
        }
    }
    let time = |column: &str| Ok::<_, DatabaseError>(row.get::<Option<i64>>(column)?.map(seconds));
    let id = TokenId::new(&row.get::<String>("id")?);
    Ok(TokenReport {
        token: Arc::new(Token { id, name: row.get("name")?, grants, unknown }),
        issued_by: row.get("issued_by")?,
        issued_s: time("issued_s")?.unwrap_or_default(),
        expires_s: time("expires_s")?.unwrap_or_default(),
        revoked_s: time("revoked_s")?,
        used_s: time("used_s")?,
    })
}

pub(super) fn stored(seconds: u64) -> i64 {
    i64::try_from(seconds).unwrap_or(i64::MAX)
}

pub(super) fn seconds(stored: i64) -> u64 {
    u64::try_from(stored).unwrap_or_default()
}
