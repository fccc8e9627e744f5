//! Calls that are tried again.
//!
//! What always holds: only what a server calls UNAVAILABLE is tried again, because it asks for that; a call is tried a few
//! times within a second, then it fails, and the server gives the action to another worker. Every call here may be made
//! twice without harm.

use std::time::Duration;

use tonic::{Code, Status};

use crate::failure::Failure;

/// The most often that a call is made.
const TRIES: u32 = 4;
/// From a failed try to the next; twice as long each time.
const FIRST_PAUSE: Duration = Duration::from_millis(100);

/// Why a try failed.
#[derive(Debug)]
pub(super) enum Trouble {
    /// The server says so.
    Status(Status),
    /// To try again would not help.
    Failure(Failure),
}

impl From<Status> for Trouble {
    fn from(status: Status) -> Self {
        Self::Status(status)
    }
}

impl From<Failure> for Trouble {
    fn from(failure: Failure) -> Self {
        Self::Failure(failure)
    }
}

impl Trouble {
    fn into_failure(self, doing: &str) -> Failure {
        match self {
            Self::Status(status) => {
                Failure::Worker(format!("cannot {doing}: {:?}: {}", status.code(), status.message()))
            }
            Self::Failure(failure) => failure,
        }
    }
}

/// Calls until there is an answer that is not UNAVAILABLE, or too often.
pub(super) async fn patiently<T, F>(doing: &str, mut call: impl FnMut() -> F) -> Result<T, Failure>
where
    F: Future<Output = Result<T, Trouble>>,
{
    let mut pause = FIRST_PAUSE;
    for _ in 1..TRIES {
        // Boxed, because calls are large and lie in every assignment.
        match Box::pin(call()).await {
            Err(Trouble::Status(status)) if status.code() == Code::Unavailable => {
                tracing::debug!(doing, message = status.message(), "the server is not available; trying again");
            }
            answer => return answer.map_err(|trouble| trouble.into_failure(doing)),
        }
        tokio::time::sleep(pause).await;
        pause *= 2;
    }
    Box::pin(call()).await.map_err(|trouble| trouble.into_failure(doing))
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn tries(code: Code, refusals: u32) -> (u32, bool) {
        let mut calls = 0;
        let answer = patiently("ask", || {
            calls += 1;
            let is_refused = calls <= refusals;
            async move { if is_refused { Err(Trouble::from(Status::new(code, "no"))) } else { Ok(()) } }
        });
        let is_answered = answer.await.is_ok();
        (calls, is_answered)
    }

    #[tokio::test]
    async fn only_what_is_unavailable_is_tried_again_and_not_for_ever() {
        assert_eq!(tries(Code::Unavailable, 2).await, (3, true));
        assert_eq!(tries(Code::Unavailable, u32::MAX).await, (TRIES, false));
        assert_eq!(tries(Code::Internal, 1).await, (1, false));
        assert_eq!(tries(Code::ResourceExhausted, 1).await, (1, false));
    }
}
