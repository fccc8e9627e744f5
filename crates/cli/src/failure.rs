//! How a command ends when it does not succeed.

use std::fmt;
use std::process::ExitCode;

use crate::output::say;

/// What went wrong, as an exit code tells it to a shell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FailureKind {
    /// It could not be done.
    Failed = 1,
    /// It was asked for wrongly: a flag or the configuration must change first.
    Usage = 2,
    /// It was done, and the answer is no.
    NotSo = 3,
}

/// The end of a command that did not succeed: why, and the next step.
#[derive(Debug)]
pub(crate) struct Failure {
    kind: FailureKind,
    /// Empty when the output has said it all.
    message: String,
}

impl Failure {
    pub(crate) fn new(kind: FailureKind, message: impl fmt::Display) -> Self {
        Self { kind, message: message.to_string() }
    }

    pub(crate) fn failed(message: impl fmt::Display) -> Self {
        Self::new(FailureKind::Failed, message)
    }

    /// The same, said of something.
    #[must_use]
    pub(crate) fn about(self, thing: &dyn fmt::Display) -> Self {
        Self { message: format!("{thing}: {}", self.message), ..self }
    }

    /// The same, and something more.
    #[must_use]
    pub(crate) fn and(self, more: impl fmt::Display) -> Self {
        Self { message: format!("{}; {more}", self.message), ..self }
    }

    /// Writes the message to standard error, and gives the exit code.
    pub(crate) fn report(&self) -> ExitCode {
        if !self.message.is_empty() {
            say(format_args!("gf: {}", self.message));
        }
        ExitCode::from(self.kind as u8)
    }
}
