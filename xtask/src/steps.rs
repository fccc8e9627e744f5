//! Steps with their times, printed as they end and once more as a table.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};

struct Step {
    name: String,
    took: Duration,
    failed: bool,
}

/// A run of steps.
pub(crate) struct Steps {
    begin: Instant,
    done: Vec<Step>,
}

impl Steps {
    pub(crate) fn new() -> Self {
        Self { begin: Instant::now(), done: Vec::new() }
    }

    /// When the first step began.
    pub(crate) fn began(&self) -> Instant {
        self.begin
    }

    /// Runs a step that later ones need.
    pub(crate) fn run<T>(&mut self, name: &str, step: impl FnOnce() -> Result<T>) -> Result<T> {
        let begin = Instant::now();
        println!("==> {name}");
        let result = step();
        self.record(name, begin.elapsed(), result.is_err());
        result
    }

    /// Runs a step that nothing else depends on: a failure is shown now and counted at the end.
    pub(crate) fn check(&mut self, name: &str, step: impl FnOnce() -> Result<()>) {
        if let Err(error) = self.run(name, step) {
            println!("{error:#}");
        }
    }

    /// Adds a step that ran elsewhere.
    pub(crate) fn record(&mut self, name: &str, took: Duration, failed: bool) {
        println!("    {name}: {} after {:.1} s", if failed { "FAILED" } else { "done" }, took.as_secs_f64());
        self.done.push(Step { name: name.to_owned(), took, failed });
    }

    /// The table, and an error that names what failed.
    pub(crate) fn finish(self) -> Result<()> {
        println!();
        for step in &self.done {
            let verdict = if step.failed { "FAILED" } else { "ok" };
            println!("{:>8.1} s  {verdict:<6}  {}", step.took.as_secs_f64(), step.name);
        }
        println!("{:>8.1} s  in all", self.begin.elapsed().as_secs_f64());
        let failed: Vec<_> = self.done.iter().filter(|step| step.failed).map(|step| step.name.as_str()).collect();
        if !failed.is_empty() {
            bail!("failed: {}", failed.join(", "));
        }
        Ok(())
    }
}
