//! The last steps of the process that becomes the command.

use std::ffi::OsStr;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use rustix::fs::Mode;
use rustix::process::{Resource, Rlimit};
use rustix::thread::CapabilitySet;

use super::sys;
use super::wire::Start;

/// What a shell answers for a program that is not there, and for one that cannot be run.
const NOT_FOUND: i32 = 127;
const NOT_RUNNABLE: i32 = 126;
const OPEN_FILES: u64 = 65_536;

/// Standard input, output and error.
pub(super) struct Streams {
    pub stdin: OwnedFd,
    pub stdout: OwnedFd,
    pub stderr: OwnedFd,
}

/// Becomes the command. A command that cannot be started is the fault of who asked for it: like a shell, it then says
/// why on standard error and ends with 127 or 126.
pub(super) fn become_command(start: &Start, streams: Streams) -> ! {
    let said = streams.stderr.try_clone();
    let code = match prepare(start).map(|()| exec(start, streams)) {
        Ok(error) if error.kind() == io::ErrorKind::NotFound => say(said, start, &error, NOT_FOUND),
        Ok(error) => say(said, start, &error, NOT_RUNNABLE),
        Err(error) => say(said, start, &error, NOT_RUNNABLE),
    };
    sys::exit(code)
}

fn say(to: io::Result<OwnedFd>, start: &Start, error: &io::Error, code: i32) -> i32 {
    let program = start.arguments.first().map_or(&[][..], Vec::as_slice);
    if let Ok(to) = to {
        let line = format!("gf: cannot run {}: {error}\n", String::from_utf8_lossy(program));
        // There is nobody else to tell.
        let _ = std::fs::File::from(to).write_all(line.as_bytes());
    }
    code
}

fn prepare(start: &Start) -> io::Result<()> {
    sys::reset_signals();
    rustix::process::setsid()?;
    rustix::process::umask(Mode::WGRP | Mode::WOTH);
    set_limits(start)?;
    drop_bounding_set();
    rustix::thread::set_no_new_privs(true)?;
    rustix::process::chdir(Path::new("/build").join(OsStr::from_bytes(&start.working_directory)))
        .map_err(|error| io::Error::other(format!("its working directory: {}", io::Error::from(error))))
}

fn exec(start: &Start, streams: Streams) -> io::Error {
    let Some((program, arguments)) = start.arguments.split_first() else {
        return io::Error::from(io::ErrorKind::InvalidInput);
    };
    let environment = start.environment.iter();
    Command::new(OsStr::from_bytes(program))
        .args(arguments.iter().map(|argument| OsStr::from_bytes(argument)))
        .env_clear()
        .envs(environment.map(|variable| (OsStr::from_bytes(&variable.name), OsStr::from_bytes(&variable.value))))
        .stdin(streams.stdin)
        .stdout(streams.stdout)
        .stderr(streams.stderr)
        .exec()
}

fn set_limits(start: &Start) -> io::Result<()> {
    // The first process of the sandbox counts too.
    limit(Resource::Nproc, u64::from(start.processes) + 1)?;
    limit(Resource::Fsize, start.disk_bytes.max(start.log_bytes))?;
    limit(Resource::Nofile, OPEN_FILES)?;
    // With 0, the kernel still has the machine's crash handler, as root, read what the command left in its memory. One
    // byte is the value with which it neither starts that nor writes a file.
    limit(Resource::Core, 1)
}

/// Lowers a limit for good; one that is already lower stays.
fn limit(resource: Resource, wanted: u64) -> io::Result<()> {
    let allowed = rustix::process::getrlimit(resource).maximum.map_or(wanted, |maximum| maximum.min(wanted));
    Ok(rustix::process::setrlimit(resource, Rlimit { current: Some(allowed), maximum: Some(allowed) })?)
}

/// So that not even a program with file capabilities gets any. Those that this kernel does not know are refused.
fn drop_bounding_set() {
    for capability in CapabilitySet::all().iter() {
        let _ = rustix::thread::remove_capability_from_bounding_set(capability);
    }
}
