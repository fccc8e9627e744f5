//! `gf config check`: a dry run of the configuration.

use gf_server::config::{Config, ConfigError, ConfigErrors, Environment, Overrides};
use serde::Serialize;

use crate::args::ConfigCheckArgs;
use crate::failure::{Failure, FailureKind};
use crate::output::{Format, print, say};

#[derive(Serialize)]
struct Report {
    ok: bool,
    file: String,
    mistakes: Vec<Mistake>,
}

#[derive(Serialize)]
struct Mistake {
    line: Option<usize>,
    message: String,
}

impl From<ConfigError> for Mistake {
    fn from(error: ConfigError) -> Self {
        Self { line: error.line, message: error.message }
    }
}

pub(crate) fn check(args: &ConfigCheckArgs) -> Result<(), Failure> {
    let file = args.file.display().to_string();
    // A file that cannot be read was not checked: that is no verdict on what it says.
    let text = Config::read(&args.file).map_err(|error| Failure::new(FailureKind::Usage, error))?;
    let loaded = Config::parse(Some(&args.file), &text, Overrides::default(), &Environment::of_process());
    let ConfigErrors(errors) = loaded.err().unwrap_or(ConfigErrors(Vec::new()));
    let format = Format::from(args.json);
    if errors.is_empty() {
        let report = Report { ok: true, file, mistakes: Vec::new() };
        return print(format, &report, |report| format!("{} is right", report.file));
    }
    let count = match errors.len() {
        1 => "1 mistake".to_owned(),
        count => format!("{count} mistakes"),
    };
    let not_so = Failure::new(FailureKind::NotSo, format!("{file}: {count}"));
    match format {
        Format::Text => say(ConfigErrors(errors)),
        Format::Json => {
            let report = Report { ok: false, file, mistakes: errors.into_iter().map(Mistake::from).collect() };
            print(format, &report, |_| String::new())?;
        }
    }
    Err(not_so)
}
