//! What tenants use, within `/api/v1/status`.

use serde::{Deserialize, Serialize};

/// What one tenant uses of what it may.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TenantReport {
    /// The tenant.
    pub name: String,
    /// Bytes that the store keeps for it.
    pub stored_bytes: QuotaReport,
    /// Bytes that came for it since midnight, UTC.
    pub uploaded_bytes_today: QuotaReport,
    /// Actions that run for it now.
    pub executions: QuotaReport,
    /// Requests in a second; how many there are is not measured.
    pub requests_a_second: QuotaReport,
}

/// One quota.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct QuotaReport {
    /// What is used.
    pub used: u64,
    /// What may be; absent without a limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<u64>,
    /// How often something was refused for it since the start.
    #[serde(default)]
    pub refused: u64,
}
