//! Sandboxes without a launcher: what a bare program pays that makes the same namespaces and mounts for every command.
//!
//! It is there to be measured against. Deliberately absent: control groups, kept network namespaces, a socket to take
//! orders from.

use std::collections::VecDeque;

use super::factory::{Factory, Sandbox};
use super::launcher::{refused, start_of};
use super::wire::{Ended, Failure, Outcome};
use super::{LauncherError, Ran, Run, SandboxConfig};

/// Runs all of `runs`, some at once, and tells how they ended in the order in which they were begun. The process must
/// have one thread and is good for nothing else afterwards: it has left its namespaces.
///
/// # Errors
/// [`LauncherError::Refused`] if the system refuses a part of a sandbox.
pub fn run_bare(config: &SandboxConfig, runs: &[Run], at_once: usize) -> Result<Vec<Ran>, LauncherError> {
    let ended = run_all(config, runs, at_once.max(1)).map_err(|failure| refused(&failure))?;
    Ok(ended.into_iter().map(Ended::into_ran).collect())
}

fn run_all(config: &SandboxConfig, runs: &[Run], at_once: usize) -> Result<Vec<Ended>, Failure> {
    let mut factory = Factory::prepare(&config.to_wire())?;
    factory.renew_networks();
    let mut made: VecDeque<Sandbox> = VecDeque::new();
    let mut ended = Vec::new();
    for run in runs {
        if made.len() == at_once {
            ended.extend(conclude_first(&mut factory, &mut made)?);
        }
        made.push_back(factory.make(&start_of(run))?);
    }
    while !made.is_empty() {
        ended.extend(conclude_first(&mut factory, &mut made)?);
    }
    Ok(ended)
}

fn conclude_first(factory: &mut Factory, made: &mut VecDeque<Sandbox>) -> Result<Option<Ended>, Failure> {
    match made.pop_front().map(|sandbox| factory.conclude(sandbox)) {
        Some(Outcome::Ended(ended)) => Ok(Some(ended)),
        Some(Outcome::Failed(failure)) => Err(failure),
        Some(Outcome::Ready(_) | Outcome::Begun(_)) | None => Ok(None),
    }
}
