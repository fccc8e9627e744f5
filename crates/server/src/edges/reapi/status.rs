//! From what went wrong to what a gRPC client is told. The only place where that is decided.

use std::time::Duration;

use gf_blobstore::{ErrorKind, StoreError};
use gf_digest::{Digest, DigestError, DigestFunction, InstanceNameError};
use gf_execution::{ActionCacheError, TreeError};
use gf_reapi::{ResourceNameError, UnsupportedDigestFunction, rpc};
use gf_tenancy::Denied;
use prost::{Message, Name};
use tonic::{Code, Status};

use crate::quotas::{OverQuota, worth_waiting};

/// Something that ends a call.
pub(in crate::edges) trait IntoStatus {
    /// What the client is told.
    fn into_status(self) -> Status;
}

impl IntoStatus for StoreError {
    fn into_status(self) -> Status {
        match self {
            Self::OverQuota { reason, retry_after } => over_quota(reason, retry_after),
            error => of_kind(error.kind(), &error),
        }
    }
}

impl IntoStatus for TreeError {
    fn into_status(self) -> Status {
        of_kind(self.kind(), &self)
    }
}

impl IntoStatus for ActionCacheError {
    fn into_status(self) -> Status {
        match self {
            Self::Quarantined { .. } => Status::failed_precondition(self.to_string()),
            Self::Store(error) => error.into_status(),
            error => of_kind(error.kind(), &error),
        }
    }
}

impl IntoStatus for Denied {
    fn into_status(self) -> Status {
        let code = match self {
            Self::Unauthenticated(_) | Self::BadCredential | Self::Expired | Self::NotYetValid => Code::Unauthenticated,
            Self::Forbidden(_) | Self::NotEverywhere(_) => Code::PermissionDenied,
            Self::Unfollowed => Code::Unavailable,
            Self::UnknownInstance(_) | Self::UnknownCache(_) => Code::InvalidArgument,
        };
        Status::new(code, self.to_string())
    }
}

impl IntoStatus for OverQuota {
    fn into_status(self) -> Status {
        over_quota(self.to_string(), self.retry_after)
    }
}

/// What comes back within moments says when: clients that know the protocol try again then, and not otherwise.
fn over_quota(text: String, retry_after: Option<Duration>) -> Status {
    let Some(wait) = worth_waiting(retry_after) else { return Status::resource_exhausted(text) };
    let delay = prost_types::Duration {
        seconds: i64::try_from(wait.as_secs()).unwrap_or(i64::MAX),
        nanos: i32::try_from(wait.subsec_nanos()).unwrap_or_default(),
    };
    let retry = rpc::RetryInfo { retry_delay: Some(delay) };
    let detail = prost_types::Any { type_url: rpc::RetryInfo::type_url(), value: retry.encode_to_vec() };
    let status = rpc::Status { code: Code::ResourceExhausted as i32, message: text.clone(), details: vec![detail] };
    Status::with_details(Code::ResourceExhausted, text, status.encode_to_vec().into())
}

/// The caller sent something that is none of what it should be.
macro_rules! invalid_argument {
    ($($error:ty),+ $(,)?) => {$(
        impl IntoStatus for $error {
            fn into_status(self) -> Status {
                Status::invalid_argument(self.to_string())
            }
        }
    )+};
}

invalid_argument!(DigestError, InstanceNameError, ResourceNameError, UnsupportedDigestFunction);

fn of_kind(kind: ErrorKind, error: &dyn std::error::Error) -> Status {
    let code = match kind {
        ErrorKind::NotFound => Code::NotFound,
        ErrorKind::Invalid => Code::InvalidArgument,
        ErrorKind::OutOfRange => Code::OutOfRange,
        ErrorKind::Exhausted => Code::ResourceExhausted,
        ErrorKind::Unavailable => Code::Unavailable,
    };
    if kind == ErrorKind::Unavailable {
        tracing::error!(%error, "the store failed; callers are told to try again");
    }
    Status::new(code, error.to_string())
}

/// Missing blobs in one answer: more would not fit a message, and a client is told the rest when it asks again.
const MAX_VIOLATIONS: usize = 20_000;

/// These blobs must be uploaded first: the form that clients act upon.
pub(super) fn missing_blobs(digests: &[Digest], function: DigestFunction) -> rpc::Status {
    let violation = |digest: &Digest| rpc::precondition_failure::Violation {
        r#type: "MISSING".to_owned(),
        subject: subject(digest, function),
        description: String::new(),
    };
    let named = digests.iter().take(MAX_VIOLATIONS);
    let failure = rpc::PreconditionFailure { violations: named.map(violation).collect() };
    let detail = prost_types::Any { type_url: rpc::PreconditionFailure::type_url(), value: failure.encode_to_vec() };
    let message = match digests {
        [one] => format!("the blob {one} must be uploaded first"),
        several => format!("{} blobs must be uploaded first", several.len()),
    };
    rpc::Status { code: Code::FailedPrecondition as i32, message, details: vec![detail] }
}

/// As resource names have it, without an instance.
fn subject(digest: &Digest, function: DigestFunction) -> String {
    let (hash, size) = (digest.hash_hex(), digest.size_bytes());
    match function {
        DigestFunction::Sha256 => format!("blobs/{}/{size}", hash.as_str()),
        DigestFunction::Blake3 => format!("blobs/blake3/{}/{size}", hash.as_str()),
    }
}

/// A status within an answer.
pub(super) fn to_message(status: &Status) -> rpc::Status {
    rpc::Status { code: status.code() as i32, message: status.message().to_owned(), details: Vec::new() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_may_have_been_revoked_can_be_asked_again() {
        assert_eq!(Denied::Unfollowed.into_status().code(), Code::Unavailable);
        assert_eq!(Denied::BadCredential.into_status().code(), Code::Unauthenticated);
    }
    use crate::edges::plain_http::Problem;

    /// A client that is told to wait does nothing else meanwhile.
    #[test]
    fn only_moments_are_waited_for() {
        let over = |seconds| StoreError::OverQuota {
            reason: "too much".to_owned(),
            retry_after: Some(Duration::from_secs(seconds)),
        };
        let check = |seconds, is_waited_for: bool, http| {
            let status = over(seconds).into_status();
            assert_eq!((status.code(), status.details().is_empty()), (Code::ResourceExhausted, !is_waited_for));
            let wrapped = ActionCacheError::Store(over(seconds)).into_status();
            assert_eq!(wrapped.details(), status.details());
            let answer = Problem::from(over(seconds)).into_response();
            let says_when = answer.headers().contains_key(axum::http::header::RETRY_AFTER);
            assert_eq!((answer.status().as_u16(), says_when), (http, is_waited_for));
        };
        check(3, true, 429);
        check(6 * 3600, false, 507);
    }
}
