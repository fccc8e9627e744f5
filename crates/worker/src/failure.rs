//! Why an assignment does not end with a result, and what the server is told then. The only place where that is decided.

use gf_digest::{Digest, DigestFunction};
use gf_reapi::rpc::{self, PreconditionFailure, precondition_failure::Violation};
use gf_reapi::worker::finished::Verdict;
use prost::Message;
use prost_types::Any;
use tonic::Code;

/// The most missing blobs that one answer names; a message of 4 MB holds them.
const MAX_VIOLATIONS: usize = 10_000;

/// Why an assignment ends early.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The action is at fault: no worker could run it as it is.
    Refused {
        /// What the client is told.
        code: Code,
        /// Why, in a sentence.
        message: String,
    },
    /// Blobs that the action needs are not in the store.
    Missing(Vec<Digest>),
    /// This worker or its connection is at fault.
    Worker(String),
    /// Nobody wants the result any more.
    Cancelled,
}

impl Failure {
    pub(crate) fn invalid(message: impl Into<String>) -> Self {
        Self::Refused { code: Code::InvalidArgument, message: message.into() }
    }

    pub(crate) fn precondition(message: impl Into<String>) -> Self {
        Self::Refused { code: Code::FailedPrecondition, message: message.into() }
    }

    /// The file system refused what the worker must be able to do.
    pub(crate) fn io(doing: impl std::fmt::Display, error: impl std::fmt::Display) -> Self {
        Self::Worker(format!("cannot {doing}: {error}"))
    }

    /// What the server does with it, and what it tells the client.
    pub(crate) fn into_answer(self) -> (Verdict, rpc::Status) {
        match self {
            Self::Refused { code, message } => (Verdict::Refused, status(code, message)),
            Self::Missing(digests) => (Verdict::Refused, missing(&digests)),
            Self::Worker(message) => (Verdict::WorkerFailed, status(Code::Unavailable, message)),
            Self::Cancelled => (Verdict::Cancelled, status(Code::Cancelled, "the action was cancelled".to_owned())),
        }
    }
}

pub(crate) fn status(code: Code, message: String) -> rpc::Status {
    rpc::Status { code: code as i32, message, details: Vec::new() }
}

/// All that is missing at once, so that a client can upload it at once.
fn missing(digests: &[Digest]) -> rpc::Status {
    let violation = |digest: &Digest| Violation {
        r#type: "MISSING".to_owned(),
        subject: subject(digest),
        description: String::new(),
    };
    let violations = digests.iter().take(MAX_VIOLATIONS).map(violation).collect();
    let details = PreconditionFailure { violations };
    let message = format!("{} blobs that the action needs are not in the store", digests.len());
    let detail = Any {
        type_url: "type.googleapis.com/google.rpc.PreconditionFailure".to_owned(),
        value: details.encode_to_vec(),
    };
    rpc::Status { details: vec![detail], ..status(Code::FailedPrecondition, message) }
}

fn subject(digest: &Digest) -> String {
    let function = if digest.function() == DigestFunction::Blake3 { "blake3/" } else { "" };
    format!("blobs/{function}{}/{}", digest.hash_hex(), digest.size_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_missing_blob_is_named() {
        let digests = [Digest::of(DigestFunction::Sha256, b"a"), Digest::of(DigestFunction::Blake3, b"bc")];
        let (verdict, status) = Failure::Missing(digests.to_vec()).into_answer();
        assert_eq!((verdict, status.code), (Verdict::Refused, Code::FailedPrecondition as i32));
        let failure = PreconditionFailure::decode(status.details[0].value.as_slice()).unwrap();
        let subjects: Vec<_> = failure.violations.iter().map(|violation| violation.subject.clone()).collect();
        let [a, bc] = digests.map(|digest| digest.hash_hex().to_string());
        assert_eq!(subjects, [format!("blobs/{a}/1"), format!("blobs/blake3/{bc}/2")]);
    }
}
