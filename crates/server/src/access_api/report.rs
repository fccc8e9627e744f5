//! What `/api/v1/access/` says, as JSON. The `gf` commands read these too, so a field is only ever added.
//!
//! Times are in seconds since 1970, except where a name says milliseconds.

use gf_tenancy::audit::Record;
pub use gf_tenancy::is_shown;
use serde::{Deserialize, Serialize};

/// `POST /api/v1/access/tokens`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokenRequest {
    /// What people call it: who uses it, and for what.
    pub name: String,
    /// What it grants: `WHAT@TENANT/NAME`, where WHAT is a role or a permission.
    pub grants: Vec<String>,
    /// How long it is good.
    pub lifetime_seconds: u64,
}

/// A token, without its text.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenReport {
    /// Which one.
    pub id: String,
    /// What its issuer called it.
    pub name: String,
    /// What it grants.
    pub grants: Vec<String>,
    /// What a newer program granted; it counts for nothing here.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unknown_grants: Vec<String>,
    /// Who made it.
    pub issued_by: String,
    /// When.
    pub issued: u64,
    /// When it ends by itself.
    pub expires: u64,
    /// When it was revoked; absent when it was not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revoked: Option<u64>,
    /// When it was presented last; absent when it never was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_used: Option<u64>,
}

/// A token that was just made.
#[derive(Clone, Serialize, Deserialize)]
pub struct IssuedReport {
    /// What its holder presents. It is shown here and nowhere else.
    pub token: String,
    /// What is kept of it.
    #[serde(flatten)]
    pub report: TokenReport,
}

/// `GET /api/v1/access/tokens`, the newest first.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenPage {
    /// Those that the caller could have made.
    pub tokens: Vec<TokenReport>,
    /// Ask again with `after` of this for more; absent at the end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}

/// `DELETE /api/v1/access/exchanged` and `DELETE /api/v1/access/tokens`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RevokedReport {
    /// How many tokens ended.
    pub revoked: u64,
}

/// `POST /api/v1/access/attic/revoke`: a token in Attic's format, by its text or by its fingerprint.
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AtticRevocation {
    /// All of the token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token: Option<String>,
    /// The SHA-256 of what stands before its last dot, as 64 hexadecimal digits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fingerprint: Option<String>,
}

/// A token in Attic's format that was revoked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AtticRevokedReport {
    /// Which one: the audit log has it as `attic:FINGERPRINT`.
    pub fingerprint: String,
    /// To whom it was issued, where its text was given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subject: Option<String>,
}

/// `GET /api/v1/access/whoami`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WhoAmI {
    /// Who the server takes the caller for.
    pub principal: String,
    /// What the token is called, if it is one of the server's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// What it grants.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub grants: Vec<String>,
    /// What the caller may do somewhere.
    pub permissions: Vec<String>,
    /// Whether everybody may do everything here.
    pub is_open: bool,
}

/// `GET /api/v1/access/why`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WhyReport {
    /// Who.
    pub principal: String,
    /// May they do this.
    pub permission: String,
    /// With what.
    pub thing: String,
    /// Whether they may.
    pub allowed: bool,
    /// The rule that says so.
    pub rule: String,
}

/// `GET /api/v1/access/audit`, the newest first.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuditPage {
    /// At most 1000.
    pub records: Vec<AuditRecord>,
    /// Ask again with `before` of this for older ones; absent at the end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<u64>,
}

/// A record of the audit log; also a line of `GET /api/v1/access/audit/export`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuditRecord {
    /// Counts from 1, without gaps.
    pub number: u64,
    /// When it was written, in milliseconds since 1970.
    pub at_ms: u64,
    /// Who.
    pub who: String,
    /// The address that the request came from; empty when there is none.
    pub source: String,
    /// What was done; of a denial, the permission that was asked for.
    pub action: String,
    /// With what.
    pub subject: String,
    /// `done`, `denied` or `failed`.
    pub outcome: String,
    /// What else there is to know.
    pub detail: String,
    /// The trace of the request; empty when there is none.
    pub trace: String,
    /// The tenant whose administrators are shown it, too.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub tenant: String,
    /// Of this record and all before it, in hexadecimal; empty for whom only a part of the log is shown.
    pub hash: String,
}

/// `POST /api/v1/access/audit/verify`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuditVerdict {
    /// Whether every record is there and as it was written.
    pub is_whole: bool,
    /// The last record that is.
    pub records: u64,
    /// Its hash. Noted elsewhere, it proves that nothing before was cut off since.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hash: Option<String>,
    /// What was found, in a sentence.
    pub sentence: String,
}

impl From<&gf_tenancy::TokenReport> for TokenReport {
    fn from(report: &gf_tenancy::TokenReport) -> Self {
        let token = &report.token;
        Self {
            id: token.id().to_string(),
            name: token.name().to_owned(),
            grants: token.grants().iter().map(ToString::to_string).collect(),
            unknown_grants: token.unknown_grants().to_vec(),
            issued_by: report.issued_by.clone(),
            issued: report.issued_s,
            expires: report.expires_s,
            revoked: report.revoked_s,
            last_used: report.used_s,
        }
    }
}

impl From<Record> for AuditRecord {
    fn from(record: Record) -> Self {
        let Record { number, at_ms, event, hash } = record;
        Self {
            number,
            at_ms,
            who: event.who,
            source: event.source,
            action: event.action,
            subject: event.subject,
            outcome: event.outcome.as_str().to_owned(),
            detail: event.detail,
            trace: event.trace,
            tenant: event.tenant,
            hash: hash.to_string(),
        }
    }
}
