//! The project's own tasks, as `cargo xtask NAME`.
//!
//! For people and CI; nothing of it ships. It starts what exists (cargo, nextest, apt, the clients) and says how long
//! each step took.
#![allow(clippy::print_stdout, reason = "a command line tool talks on standard output")]

mod cargo;
mod chroot_recipe;
mod clients;
mod demo;
mod packages;
mod steps;
mod test;
mod test_list;
mod tidy;
mod tools;

use std::{env, process::ExitCode};

use anyhow::{Result, bail};

const USAGE: &str = "\
usage: cargo xtask COMMAND

  demo [--once]                    start gf, build a workspace with Bazel through it, clean, build again from the cache;
                                   --once stops the server at the end, as it does where the variable CI is set
  test [FILTER]                    everything that CI runs; with a filter only the tests whose names contain it
  conformance --endpoint URL ...   ask a server the cases of the conformance suite
  bench [NAME...] [--json FILE]    measure
  tidy                             format, lint, and check the tree's own rules
  clients                          make the chroot with the clients that tests and the demo use
";

fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let Some((command, rest)) = words.split_first() else {
        eprint!("{USAGE}");
        return ExitCode::from(2);
    };
    let result = match *command {
        "help" | "--help" | "-h" => {
            print!("{USAGE}");
            Ok(())
        }
        "demo" => flag(rest, "--once").and_then(demo::run),
        "test" => filter(rest).and_then(test::run),
        "conformance" => cargo::run_package("gf-conformance", rest),
        "bench" => cargo::run_package("gf-bench", rest),
        "tidy" => none(rest).and_then(|()| tidy::run()),
        "clients" => none(rest).and_then(|()| clients::make().map(|_| ())),
        other => {
            eprintln!("xtask: there is no command {other:?}\n\n{USAGE}");
            return ExitCode::from(2);
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn none(words: &[&str]) -> Result<()> {
    match words {
        [] => Ok(()),
        [word, ..] => bail!("unknown argument {word:?}\n\n{USAGE}"),
    }
}

fn flag(words: &[&str], name: &str) -> Result<bool> {
    match words {
        [] => Ok(false),
        [word] if *word == name => Ok(true),
        [word, ..] => bail!("unknown argument {word:?}\n\n{USAGE}"),
    }
}

fn filter<'a>(words: &[&'a str]) -> Result<Option<&'a str>> {
    match words {
        [] => Ok(None),
        [word] if !word.starts_with('-') => Ok(Some(word)),
        _ => bail!("`test` takes one filter\n\n{USAGE}"),
    }
}
