//! Logs to standard error, for people or as JSON lines for programs.
//!
//! An error is logged once, where it is handled. Tokens and bodies never are.

mod writer;

use std::io::{self, IsTerminal};
use std::str::FromStr;

use thiserror::Error;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

pub use writer::FlushOnDrop;

/// How logs look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogFormat {
    /// A line of text for each event.
    #[default]
    Human,
    /// A JSON object for each event.
    Json,
}

impl FromStr for LogFormat {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "human" => Ok(Self::Human),
            "json" => Ok(Self::Json),
            other => Err(format!("{other:?} is not a format: use \"human\" or \"json\"")),
        }
    }
}

/// What is logged: this level and all above it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogLevel {
    /// A person must look.
    Error,
    /// Something is not as it should be, and was dealt with.
    Warn,
    /// What the server does on its own: starting, draining, maintenance.
    #[default]
    Info,
    /// What happens to single requests.
    Debug,
    /// Everything.
    Trace,
}

impl FromStr for LogLevel {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "error" => Ok(Self::Error),
            "warn" => Ok(Self::Warn),
            "info" => Ok(Self::Info),
            "debug" => Ok(Self::Debug),
            "trace" => Ok(Self::Trace),
            other => {
                Err(format!("{other:?} is not a level: use \"error\", \"warn\", \"info\", \"debug\" or \"trace\""))
            }
        }
    }
}

impl From<LogLevel> for LevelFilter {
    fn from(level: LogLevel) -> Self {
        match level {
            LogLevel::Error => Self::ERROR,
            LogLevel::Warn => Self::WARN,
            LogLevel::Info => Self::INFO,
            LogLevel::Debug => Self::DEBUG,
            LogLevel::Trace => Self::TRACE,
        }
    }
}

/// What to log, and how.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LogConfig {
    /// How it looks.
    pub format: LogFormat,
    /// How much.
    pub level: LogLevel,
}

/// Why there are no logs.
#[derive(Debug, Error)]
pub enum InitError {
    /// Once is enough.
    #[error("logging is already set up in this process")]
    AlreadyInitialized,
    /// The thread that writes them cannot be started.
    #[error("the thread that writes the log cannot be started: {0}")]
    Thread(#[from] io::Error),
}

/// Sets up logging for the whole process, once. Dropping the guard writes the last lines.
///
/// # Errors
/// [`InitError`].
pub fn init(config: LogConfig) -> Result<FlushOnDrop, InitError> {
    let level = LevelFilter::from(config.level);
    // The libraries below log each frame and each socket at debug: only `trace` asks for that.
    let libraries = if level == LevelFilter::TRACE { level } else { level.min(LevelFilter::WARN) };
    let filter = Targets::new().with_default(libraries).with_targets(OUR_CRATES.map(|name| (name, level)));
    let registry = tracing_subscriber::registry().with(filter);
    let (queue, guard) = writer::start(io::stderr())?;
    let lines = tracing_subscriber::fmt::layer().with_writer(queue).log_internal_errors(false);
    match config.format {
        LogFormat::Human => registry.with(lines.with_ansi(io::stderr().is_terminal()).with_target(false)).try_init(),
        LogFormat::Json => registry.with(lines.json().flatten_event(true)).try_init(),
    }
    .map_err(|_| InitError::AlreadyInitialized)?;
    Ok(guard)
}

const OUR_CRATES: [&str; 5] = ["gf_server", "gf_blobstore", "gf_execution", "gf_tenancy", "gf"];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_and_formats_by_name() {
        assert_eq!("json".parse(), Ok(LogFormat::Json));
        assert_eq!("warn".parse(), Ok(LogLevel::Warn));
        assert!("loud".parse::<LogLevel>().is_err());
        assert!("xml".parse::<LogFormat>().is_err());
    }
}
