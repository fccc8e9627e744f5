//! The last steps of the process that becomes the command.
//!
//! It runs in the memory of the first process of the sandbox, which stands still meanwhile: a copy of that would cost
//! more than all these steps together. So nothing here changes what the first process uses later: no environment, no
//! descriptor of its own, no working directory, and memory is only ever taken.

use std::borrow::Cow;
use std::ffi::{CString, OsStr};
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::Mode;
use rustix::io::Errno;
use rustix::process::{Pid, Resource, Rlimit};
use rustix::thread::CapabilitySet;

use super::sys::{self, CStrings};
use super::wire::Start;

/// What a shell answers for a program that is not there, and for one that cannot be run.
const NOT_FOUND: i32 = 127;
const NOT_RUNNABLE: i32 = 126;
const OPEN_FILES: u64 = 65_536;
/// What the C library takes where nothing is said.
const USUAL_PATH: &[u8] = b"/bin:/usr/bin";

/// Standard input, output and error.
pub(super) struct Streams {
    pub stdin: OwnedFd,
    pub stdout: OwnedFd,
    pub stderr: OwnedFd,
}

/// Starts the command. One that cannot be started is the fault of who asked for it: like a shell, its process then says
/// why on standard error and ends with 127 or 126.
pub(super) fn spawn(start: &Start, streams: &Streams) -> io::Result<Pid> {
    sys::spawn_in_our_memory(&|| sys::exit(become_command(start, streams)))
}

/// With what to end, if it comes back at all.
fn become_command(start: &Start, streams: &Streams) -> i32 {
    let error = match prepare(start, streams) {
        Ok(()) => exec(start),
        Err(error) => return say(start, &error, NOT_RUNNABLE),
    };
    let code = if error.kind() == io::ErrorKind::NotFound { NOT_FOUND } else { NOT_RUNNABLE };
    say(start, &error, code)
}

fn say(start: &Start, error: &io::Error, code: i32) -> i32 {
    let program = start.arguments.first().map_or(&[][..], Vec::as_slice);
    let line = format!("gf: cannot run {}: {error}\n", String::from_utf8_lossy(program));
    // There is nobody else to tell.
    let _ = io::stderr().write_all(line.as_bytes());
    code
}

fn prepare(start: &Start, streams: &Streams) -> io::Result<()> {
    rustix::stdio::dup2_stdin(&streams.stdin)?;
    rustix::stdio::dup2_stdout(&streams.stdout)?;
    rustix::stdio::dup2_stderr(&streams.stderr)?;
    sys::heed_signals();
    rustix::process::setsid()?;
    rustix::process::umask(Mode::WGRP | Mode::WOTH);
    set_limits(start)?;
    drop_bounding_set();
    rustix::thread::set_no_new_privs(true)?;
    rustix::process::chdir(Path::new("/build").join(OsStr::from_bytes(&start.working_directory)))
        .map_err(|error| io::Error::other(format!("its working directory: {}", io::Error::from(error))))
}

/// Why it could not become the command.
fn exec(start: &Start) -> io::Error {
    let environment = start.environment.iter().map(|variable| [&variable.name[..], b"=", &variable.value].concat());
    let strings = CStrings::new(&start.arguments).and_then(|arguments| Ok((arguments, CStrings::new(environment)?)));
    let (arguments, environment) = match strings {
        Ok(strings) => strings,
        Err(error) => return error,
    };
    let mut answer = Errno::NOENT;
    for program in programs(start) {
        let Ok(program) = CString::new(program.into_owned()) else { return io::ErrorKind::InvalidInput.into() };
        match sys::exec(&program, &arguments, &environment) {
            // Like `execvp`: a script that does not say what runs it is for the shell.
            Errno::NOEXEC => return exec_script(program, start, &environment),
            // Further on in the path there may be one that can be run.
            Errno::NOENT | Errno::NOTDIR | Errno::NODEV | Errno::STALE | Errno::TIMEDOUT => {}
            Errno::ACCESS => answer = Errno::ACCESS,
            refused => return refused.into(),
        }
    }
    answer.into()
}

fn exec_script(script: CString, start: &Start, environment: &CStrings) -> io::Error {
    let arguments = [b"/bin/sh".to_vec(), script.into_bytes()];
    match CStrings::new(arguments.iter().chain(start.arguments.iter().skip(1))) {
        Ok(arguments) => sys::exec(c"/bin/sh", &arguments, environment).into(),
        Err(error) => error,
    }
}

/// Where the program may be: at its path, or under its name in each folder that the environment of the command lists.
fn programs(start: &Start) -> Vec<Cow<'_, [u8]>> {
    let Some(program) = start.arguments.first() else { return Vec::new() };
    if program.is_empty() || program.contains(&b'/') {
        return vec![Cow::Borrowed(program)];
    }
    let path = start.environment.iter().find(|variable| variable.name == b"PATH");
    let path = path.map_or(USUAL_PATH, |variable| variable.value.as_slice());
    let below = |folder: &[u8]| if folder.is_empty() { program.clone() } else { [folder, b"/", program].concat() };
    path.split(|byte| *byte == b':').map(|folder| Cow::Owned(below(folder))).collect()
}

fn set_limits(start: &Start) -> io::Result<()> {
    // The first process of the sandbox counts too. One more than allowed is let in: with it the command is seen to want
    // more than it may, and is ended, while the kernel keeps it from having many more until then.
    limit(Resource::Nproc, u64::from(start.processes) + 2)?;
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
