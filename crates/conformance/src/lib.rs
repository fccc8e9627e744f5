//! A conformance suite that asks a Remote Execution API endpoint, whichever server is behind it, the questions that
//! clients depend on: the cases 1 to 65 of the project's list, over gRPC and nothing else.
//!
//! What always holds: a case needs nothing from the server's past and nothing from another case, makes its own
//! random content from the run's seed, and ends within its deadline. A verdict is `fail` only where the public
//! specification leaves no choice or where clients would break; of several allowed answers each passes, and the
//! detail says which one came. What the server does not offer is `skip`, with the reason.
//!
//! What it deliberately does not do: look into a server's storage, wait for evictions, or measure speed. It writes
//! about 150 MB of blobs into the server it runs against, and never removes one. Workers it has run scripts for their
//! shell, none of which takes more than two seconds of its own accord; what a worker cannot be made to do from outside
//! is `skip` too.

mod blob;
mod cases;
mod execution;
mod finding;
mod job;
mod probe;
mod session;
mod upload;

use std::time::Duration;

use serde::Serialize;
use thiserror::Error;

use crate::cases::Case;
use crate::finding::Finding;
use crate::probe::Probe;
use crate::session::Session;

/// Which endpoint to ask, as whom, and what.
#[derive(Clone, Debug)]
pub struct Config {
    /// `grpc://HOST:PORT`, or `grpcs://HOST:PORT` for TLS; `http` and `https` say the same.
    pub endpoint: String,
    /// Trusted with TLS besides the roots of the machine: certificates as PEM.
    pub ca_pem: Option<Vec<u8>>,
    /// The instance to work in.
    pub instance: String,
    /// A second instance, to tell whether the two are kept apart. `None`: `default` beside the empty instance, and
    /// the empty instance beside any other.
    pub other_instance: Option<String>,
    /// Sent as a bearer token.
    pub token: Option<String>,
    /// A bearer token that may read but not write. Empty: the caller without a token is such a one.
    pub read_only_token: Option<String>,
    /// Runs only these: a number, or a whole name. Empty: all.
    pub cases: Vec<String>,
    /// Where random content starts from. The same seed makes the same content, so it must not be used twice on one
    /// server.
    pub seed: u64,
    /// What the platform of every action requires, by name and value.
    pub platform: Vec<(String, String)>,
    /// The shell of the workers, by its absolute path.
    pub program: String,
    /// How long an execution may take, from the request to the end of the stream. Every action of the suite is done
    /// within two seconds; the rest is for a busy server. What else a server must do soon, it must do within a part of
    /// this, and one case may take twice as long.
    pub patience: Duration,
}

impl Config {
    /// All cases, in the empty instance, without a token.
    #[must_use]
    pub fn new(endpoint: &str, seed: u64) -> Self {
        Self {
            endpoint: endpoint.to_owned(),
            ca_pem: None,
            instance: String::new(),
            other_instance: None,
            token: None,
            read_only_token: None,
            cases: Vec::new(),
            seed,
            platform: Vec::new(),
            program: "/bin/sh".into(),
            patience: Duration::from_secs(15),
        }
    }
}

/// What came of a case.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Outcome {
    /// The stable name of the case, beginning with its number.
    pub case: &'static str,
    /// Whether the server conforms.
    pub verdict: Verdict,
    /// What the server did, or why it was not asked.
    pub detail: String,
}

/// Whether the server conforms.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// It does.
    Pass,
    /// It does not.
    Fail,
    /// It does not offer what the case is about.
    Skip,
}

/// Why a run did not begin.
#[derive(Debug, Error)]
pub enum RunError {
    /// The configuration is wrong.
    #[error("{0}")]
    Usage(String),
    /// Nothing answers at the endpoint.
    #[error("{endpoint} cannot be reached: {reason}")]
    Unreachable {
        /// As configured.
        endpoint: String,
        /// What stood in the way.
        reason: String,
    },
}

/// The names of all cases, in the order in which they run.
#[must_use]
pub fn case_names() -> Vec<&'static str> {
    cases::all().map(|case| case.name).collect()
}

/// Runs the cases one after the other and tells `report` of each as it ends.
///
/// # Errors
/// [`RunError`] when no case could be run at all.
pub async fn run(config: &Config, mut report: impl FnMut(&Outcome)) -> Result<Vec<Outcome>, RunError> {
    let chosen = choose(&config.cases)?;
    let session = Session::connect(config).await?;
    let mut outcomes = Vec::with_capacity(chosen.len());
    for case in chosen {
        let outcome = run_case(case, &session, 2 * config.patience).await;
        report(&outcome);
        outcomes.push(outcome);
    }
    Ok(outcomes)
}

async fn run_case(case: &Case, session: &Session, timeout: Duration) -> Outcome {
    let mut probe = Probe::new(session, case.name);
    let finding = tokio::time::timeout(timeout, (case.check)(&mut probe))
        .await
        .unwrap_or_else(|_| Err(Finding::Fail(format!("not done within {timeout:?}"))));
    let (verdict, detail) = match finding {
        Ok(detail) => (Verdict::Pass, detail),
        Err(Finding::Fail(detail)) => (Verdict::Fail, detail),
        Err(Finding::Skip(detail)) => (Verdict::Skip, detail),
    };
    Outcome { case: case.name, verdict, detail }
}

/// The cases that `wanted` names, each of which must name one at least.
fn choose(wanted: &[String]) -> Result<Vec<&'static Case>, RunError> {
    let names = |wanted: &str, case: &Case| {
        let number = case.name.split('-').next().unwrap_or_default();
        case.name == wanted || number.trim_start_matches('0') == wanted.trim_start_matches('0')
    };
    for wanted in wanted {
        if !cases::all().any(|case| names(wanted, case)) {
            return Err(RunError::Usage(format!("there is no case `{wanted}`; --list shows all of them")));
        }
    }
    Ok(cases::all().filter(|case| wanted.is_empty() || wanted.iter().any(|wanted| names(wanted, case))).collect())
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn names_are_unique_and_cover_the_list() {
        let names = case_names();
        assert_eq!(names.iter().collect::<HashSet<_>>().len(), names.len());
        for number in 1..=65 {
            assert!(names.iter().any(|name| name.starts_with(&format!("{number:02}-"))), "no case {number}");
        }
    }

    #[test]
    fn cases_are_chosen_by_number_or_name() {
        let chosen = |wanted: &str| choose(&[wanted.to_owned()]).map(|cases| cases.len());
        assert!(matches!(chosen("4"), Ok(3..)));
        assert!(matches!(chosen("04"), Ok(3..)));
        assert!(matches!(chosen("04-write-wrong-content-identity"), Ok(1)));
        assert!(matches!(chosen("4711"), Err(RunError::Usage(_))));
    }
}
