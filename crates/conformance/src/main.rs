//! `gf-conformance`: asks a Remote Execution API endpoint whether it conforms, and prints a table of verdicts.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use clap::Parser;
use gf_conformance::{Config, Outcome, RunError, Verdict};
use rand::Rng;

/// Asks a Remote Execution API endpoint whether it conforms.
///
/// Exit status: 0 every case passed or was skipped as it may be, 1 a case failed, or was skipped and may not be, 2 wrong
/// usage, 3 the endpoint cannot be reached.
#[derive(Parser)]
#[command(name = "gf-conformance", version)]
struct Arguments {
    /// The endpoint, grpc://HOST:PORT or, with TLS, grpcs://HOST:PORT.
    #[arg(long, required_unless_present = "list")]
    endpoint: Option<String>,
    /// Certificates to trust besides those of the machine, a PEM file.
    #[arg(long)]
    ca: Option<PathBuf>,
    /// The instance to work in.
    #[arg(long, default_value = "")]
    instance: String,
    /// A second instance, which must be kept apart from the first [default: `default`, or the empty one beside it].
    #[arg(long)]
    other_instance: Option<String>,
    /// A bearer token to send.
    #[arg(long, env = "GF_TOKEN", hide_env_values = true)]
    token: Option<String>,
    /// A bearer token that may read but not write, for the case about such callers; empty to send none.
    #[arg(long)]
    read_only_token: Option<String>,
    /// A property, NAME=VALUE, that the platform of every action requires; may be given several times.
    #[arg(long, value_parser = property)]
    platform: Vec<(String, String)>,
    /// The shell of the workers, which runs the scripts of the cases.
    #[arg(long, default_value = "/bin/sh")]
    program: String,
    /// Run only this case, by number or whole name; may be given several times.
    #[arg(long = "case")]
    cases: Vec<String>,
    /// A case that may be skipped, by whole name; may be given several times. With one, every other skipped case fails
    /// the run.
    #[arg(long, value_name = "CASE")]
    may_skip: Option<Vec<String>>,
    /// How many seconds an execution may take; a case may take twice as long. Less is asked of a server that is busy.
    #[arg(long, value_name = "SECONDS", default_value = "15")]
    patience: u64,
    /// Where random content starts from; use one only once on a server [default: a random one].
    #[arg(long)]
    seed: Option<u64>,
    /// Write one JSON object a line into this file; `-` is standard output instead of the table.
    #[arg(long)]
    json: Option<PathBuf>,
    /// List the names of all cases.
    #[arg(long)]
    list: bool,
}

fn main() -> ExitCode {
    match run(Arguments::parse()) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            let code = match error.downcast_ref::<RunError>() {
                Some(RunError::Unreachable { .. }) => 3,
                Some(RunError::Usage(_)) => 2,
                None => 1,
            };
            eprintln!("gf-conformance: {error:#}");
            ExitCode::from(code)
        }
    }
}

fn property(text: &str) -> Result<(String, String), &'static str> {
    let (name, value) = text.split_once('=').ok_or("expected NAME=VALUE")?;
    Ok((name.to_owned(), value.to_owned()))
}

fn run(arguments: Arguments) -> anyhow::Result<u8> {
    if arguments.list {
        let mut output = io::stdout().lock();
        for name in gf_conformance::case_names() {
            writeln!(output, "{name}")?;
        }
        return Ok(0);
    }
    let read = |path: PathBuf| std::fs::read(&path).with_context(|| format!("reading {}", path.display()));
    let config = Config {
        ca_pem: arguments.ca.map(read).transpose()?,
        instance: arguments.instance,
        other_instance: arguments.other_instance,
        token: arguments.token,
        read_only_token: arguments.read_only_token,
        cases: arguments.cases,
        platform: arguments.platform,
        program: arguments.program,
        patience: Duration::from_secs(arguments.patience),
        ..Config::new(&arguments.endpoint.unwrap_or_default(), arguments.seed.unwrap_or_else(|| rand::rng().random()))
    };
    let may_skip = arguments.may_skip;
    let mut report = Report::new(arguments.json)?;
    eprintln!("asking {} with --seed {}", config.endpoint, config.seed);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    // A report that cannot be written must not pass for a finished one, but the run goes on to its end.
    let mut written = Ok(());
    let outcomes = runtime.block_on(gf_conformance::run(&config, |outcome| {
        written = std::mem::replace(&mut written, Ok(())).and_then(|()| report.add(outcome));
    }))?;
    written.context("writing the report")?;
    report.finish(&outcomes).context("writing the report")?;
    let unexpected = unexpected(&outcomes, may_skip.as_deref());
    if !unexpected.is_empty() {
        eprintln!("skipped, and may not be: {}", unexpected.join(", "));
    }
    let failed = outcomes.iter().any(|outcome| outcome.verdict == Verdict::Fail);
    Ok(u8::from(failed || !unexpected.is_empty()))
}

/// The cases that were skipped though they are not among those that may be.
fn unexpected<'a>(outcomes: &'a [Outcome], may_skip: Option<&[String]>) -> Vec<&'a str> {
    let Some(may_skip) = may_skip else { return Vec::new() };
    let skipped = outcomes.iter().filter(|outcome| outcome.verdict == Verdict::Skip).map(|outcome| outcome.case);
    skipped.filter(|case| !may_skip.iter().any(|may| may == case)).collect()
}

/// Characters of detail that the table shows of a case that did not fail.
const DETAIL_WIDTH: usize = 120;

/// A table on standard output, JSON in a file, or JSON on standard output.
struct Report {
    table: bool,
    json: Option<BufWriter<Box<dyn Write>>>,
}

impl Report {
    fn new(path: Option<PathBuf>) -> anyhow::Result<Self> {
        let Some(path) = path else { return Ok(Self { table: true, json: None }) };
        let table = path.as_os_str() != "-";
        let file: Box<dyn Write> = if table {
            Box::new(File::create(&path).with_context(|| format!("creating {}", path.display()))?)
        } else {
            Box::new(io::stdout())
        };
        Ok(Self { table, json: Some(BufWriter::new(file)) })
    }

    fn add(&mut self, outcome: &Outcome) -> io::Result<()> {
        if self.table {
            let verdict = match outcome.verdict {
                Verdict::Pass => "pass",
                Verdict::Fail => "FAIL",
                Verdict::Skip => "skip",
            };
            // The table is for reading: where a passed case tells at length, JSON has the whole text.
            let whole = outcome.verdict == Verdict::Fail || outcome.detail.chars().count() <= DETAIL_WIDTH;
            let mut detail: String =
                outcome.detail.chars().take(if whole { usize::MAX } else { DETAIL_WIDTH }).collect();
            if !whole {
                detail.push('…');
            }
            writeln!(io::stdout().lock(), "{verdict}  {:<44}  {detail}", outcome.case)?;
        }
        if let Some(json) = &mut self.json {
            serde_json::to_writer(&mut *json, outcome)?;
            writeln!(json)?;
        }
        Ok(())
    }

    fn finish(&mut self, outcomes: &[Outcome]) -> io::Result<()> {
        let count = |verdict| outcomes.iter().filter(|outcome| outcome.verdict == verdict).count();
        if let Some(json) = &mut self.json {
            json.flush()?;
        }
        let (passed, failed, skipped) = (count(Verdict::Pass), count(Verdict::Fail), count(Verdict::Skip));
        writeln!(io::stderr(), "{passed} passed, {failed} failed, {skipped} skipped")
    }
}
