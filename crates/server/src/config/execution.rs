//! `[execution]`: what is true for every action, whoever runs it.

use std::time::Duration;

use super::reader::Section;
use super::units::{parse_duration, show_duration};
use super::within;

/// What an operator may say about remote execution.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExecutionSettings {
    /// Whether actions are run at all; otherwise the server is a cache.
    pub enabled: bool,
    /// How long an action that asks for no time may run.
    pub default_timeout: Duration,
    /// The most that an action may ask for.
    pub max_timeout: Duration,
}

impl Default for ExecutionSettings {
    /// Builds seldom say how long an action takes, and none takes hours; tests say it, and some run all night.
    fn default() -> Self {
        let hour = Duration::from_secs(3600);
        Self { enabled: true, default_timeout: hour, max_timeout: 24 * hour }
    }
}

pub(super) fn read(execution: &mut Section<'_, '_>) -> ExecutionSettings {
    let defaults = ExecutionSettings::default();
    let (second, week) = (Duration::from_secs(1), Duration::from_secs(7 * 24 * 3600));
    let timeout = |text: &str| within(parse_duration(text)?, second, week, show_duration);
    let enabled = execution.flag("enabled").unwrap_or(defaults.enabled);
    let max_timeout = execution.text("max_timeout", timeout).map_or(defaults.max_timeout, |at| at.value);
    let default_timeout = execution.text("default_timeout", timeout);
    match default_timeout {
        Some(at) if at.value > max_timeout => {
            let most = show_duration(max_timeout);
            execution.mistake("default_timeout", at.place, &format!("is more than max_timeout, which is {most}"));
            defaults
        }
        given => {
            // A maximum below the default is meant for all actions.
            let default_timeout = given.map_or(defaults.default_timeout.min(max_timeout), |at| at.value);
            ExecutionSettings { enabled, default_timeout, max_timeout }
        }
    }
}
