//! How a check ends, and the two questions that nearly every check asks of an answer.

use tonic::{Code, Status};

/// Why a check did not pass.
#[derive(Debug)]
pub(crate) enum Finding {
    /// The server does not conform; what it did instead.
    Fail(String),
    /// The server does not offer what the check is about.
    Skip(String),
}

/// The outcome of a check, or of a part of it. The text of a passed check says what the server did.
pub(crate) type Checked<T = String> = Result<T, Finding>;

/// Ends the check as failed unless the condition holds.
macro_rules! ensure {
    ($condition:expr, $($text:tt)+) => {
        if !$condition {
            return Err($crate::finding::Finding::Fail(format!($($text)+)));
        }
    };
}
pub(crate) use ensure;

/// Ends the check as skipped unless the condition holds.
macro_rules! require {
    ($condition:expr, $($text:tt)+) => {
        if !$condition {
            return Err($crate::finding::Finding::Skip(format!($($text)+)));
        }
    };
}
pub(crate) use require;

/// Codes that tell the caller that its request is at fault.
pub(crate) const CALLER_AT_FAULT: &[Code] =
    &[Code::InvalidArgument, Code::OutOfRange, Code::FailedPrecondition, Code::Aborted];

/// The answer, where anything but success is a failure of the check.
pub(crate) fn succeeds<T>(what: &str, answer: Result<T, Status>) -> Checked<T> {
    answer.map_err(|status| Finding::Fail(format!("{what}: {}", describe(&status))))
}

/// What the server said, where it must refuse with one of `allowed`.
pub(crate) fn refused<T>(what: &str, answer: Result<T, Status>, allowed: &[Code]) -> Checked {
    match answer {
        Ok(_) => Err(Finding::Fail(format!("{what}: accepted; expected {}", names(allowed)))),
        Err(status) if allowed.contains(&status.code()) => Ok(format!("{what}: {}", describe(&status))),
        Err(status) => Err(Finding::Fail(format!("{what}: {}; expected {}", describe(&status), names(allowed)))),
    }
}

/// The status of an entry in a batch as an answer of its own. No status at all means success.
pub(crate) fn entry_status(status: Option<&gf_reapi::rpc::Status>) -> Result<(), Status> {
    match status {
        Some(status) if status.code != 0 => Err(Status::new(Code::from_i32(status.code), status.message.clone())),
        _ => Ok(()),
    }
}

/// A status on one line, the message cut where it gets long.
pub(crate) fn describe(status: &Status) -> String {
    const LONGEST: usize = 160;
    let message = status.message();
    let cut: String = message.chars().take(LONGEST).map(|c| if c.is_control() { ' ' } else { c }).collect();
    let more = if message.chars().count() > LONGEST { "…" } else { "" };
    format!("{} ({cut}{more})", name(status.code()))
}

fn names(codes: &[Code]) -> String {
    codes.iter().map(|code| name(*code)).collect::<Vec<_>>().join(" or ")
}

/// The name that the specification gives a code.
pub(crate) const fn name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}
