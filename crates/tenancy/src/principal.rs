//! Who asks.

use std::fmt;
use std::sync::Arc;

use crate::{AtticToken, Certified, Grant, LoanId, Token};

/// Who asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Principal {
    /// Nobody known: no credential was given.
    Anonymous,
    /// The holder of the static token of the configuration.
    TokenHolder,
    /// The holder of one of our own tokens.
    Token(Arc<Token>),
    /// The holder of a token in Attic's format.
    Attic(Arc<AtticToken>),
    /// The holder of a certificate that an authority of clients signed.
    Certificate(Arc<Certified>),
    /// Whoever runs an assignment, for as long as it is lent its credential: the blobs of one instance and nothing else.
    Worker(LoanId),
    /// A machine that offers to run actions. It may attach, and touches no tenant by itself.
    WorkerHost,
    /// This process itself: maintenance.
    Server,
}

impl Principal {
    /// The grants that say what this principal may do; `None` for those whom the policy has fixed rules or patterns for.
    #[must_use]
    pub fn grants(&self) -> Option<&[Grant]> {
        match self {
            Self::Token(token) => Some(token.grants()),
            Self::Certificate(certified) => Some(certified.grants()),
            Self::Anonymous
            | Self::TokenHolder
            | Self::Attic(_)
            | Self::Worker(_)
            | Self::WorkerHost
            | Self::Server => None,
        }
    }
}

impl Principal {
    /// The one tenant that all they hold is of, by grants.
    #[must_use]
    pub fn only_tenant(&self) -> Option<&str> {
        only_tenant(self.grants()?)
    }
}

/// The one tenant that all these grants are for.
pub(crate) fn only_tenant(grants: &[Grant]) -> Option<&str> {
    let first = grants.first()?.only_tenant()?;
    grants.iter().all(|grant| grant.only_tenant() == Some(first)).then_some(first)
}

/// A name that people recognize, for logs and for what is recorded.
impl fmt::Display for Principal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Anonymous => f.write_str("anonymous"),
            Self::TokenHolder => f.write_str("static-token"),
            Self::Token(token) => write!(f, "token:{}", token.id()),
            Self::Attic(token) => write!(f, "attic:{}", token.subject()),
            Self::Certificate(certified) => write!(f, "certificate:{certified}"),
            Self::Worker(loan) => write!(f, "assignment:{loan}"),
            Self::WorkerHost => f.write_str("worker"),
            Self::Server => f.write_str("server"),
        }
    }
}
