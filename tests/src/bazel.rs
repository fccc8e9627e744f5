//! One Bazel client: a workspace, an output base, and how it speaks to the server.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::Result;

use crate::{ExecutionLog, Finished, Glue, Place, run_within};

/// Links into one client's outputs would be packages to the next client of the same workspace.
const NO_LINKS: &str = "--experimental_convenience_symlinks=ignore";

/// A Bazel in a place, with an output base (and so a server) of its own.
#[derive(Debug)]
pub struct Bazel<'a> {
    place: &'a Place,
    startup: Vec<String>,
    workspace: PathBuf,
    output_base: PathBuf,
}

/// What a build did.
#[derive(Debug)]
pub struct Built {
    /// Every spawn.
    pub log: ExecutionLog,
    /// What Bazel printed.
    pub finished: Finished,
}

impl<'a> Bazel<'a> {
    /// A client called `name` that builds `workspace` (a path of the place).
    pub fn new(place: &'a Place, glue: &Glue, workspace: &Path, name: &str) -> Self {
        let output_base = place.work().join(format!("output-{name}"));
        Self { place, startup: glue.startup_options(), workspace: workspace.to_path_buf(), output_base }
    }

    /// The same with another startup option.
    pub fn with_startup(mut self, option: &str) -> Self {
        self.startup.push(option.to_owned());
        self
    }

    /// Bazel with its startup options; what it is to do is still to be said.
    pub fn command(&self) -> Command {
        let mut command = self.place.command(&self.workspace, &[], "bazel");
        command.args(&self.startup).arg(format!("--output_base={}", self.output_base.display()));
        command
    }

    /// Runs a command of Bazel.
    pub fn run(&self, arguments: &[&str], limit: Duration) -> Result<Finished> {
        let mut command = self.command();
        command.args(arguments);
        run_within(command, limit)?.success()
    }

    /// Builds (`build`) or builds and tests (`test`) these targets, and reads what it did.
    pub fn build(&self, verb: &str, targets: &[&str], options: &[&str], limit: Duration) -> Result<Built> {
        let log = self.place.work().join("execution-log.json");
        let _ = fs::remove_file(self.place.on_host(&log));
        let log_option = format!("--execution_log_json_file={}", log.display());
        let mut arguments = vec![verb, "--color=no", NO_LINKS, log_option.as_str()];
        arguments.extend(options);
        arguments.extend(targets);
        let finished = self.run(&arguments, limit)?;
        Ok(Built { log: ExecutionLog::read(&self.place.on_host(&log))?, finished })
    }

    /// Throws away what was built; the server stays.
    pub fn clean(&self, limit: Duration) -> Result<Finished> {
        self.run(&["clean", "--color=no"], limit)
    }
}

impl Drop for Bazel<'_> {
    fn drop(&mut self) {
        // A session ends its processes itself; on the host Bazel's server would stay for hours.
        if let Place::Host(_) = self.place {
            let _ = self.run(&["shutdown"], Duration::from_secs(60));
        }
    }
}
