//! The launcher process: one thread that takes orders from one socket.
//!
//! What always holds: it waits for nothing but the socket and its sandboxes; when the socket ends, so does it, and the
//! sandboxes with it.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use super::factory::{Factory, Sandbox};
use super::wire::{Begun, EndedBy, Frames, Outcome, Reply, Request, Setup, frame};
use super::{probe, sys};

/// How long the first process of a sandbox has to end it before it is killed itself.
const STOPPING: Duration = Duration::from_secs(5);
/// What a sandbox gets beyond its time before it is killed: its first process, which ends it in time, measures what hostile
/// commands wrote and may be kept busy by that. It includes what the command itself gets to tidy up.
const OVERTIME: Duration = Duration::from_secs(30);
const READ_BYTES: usize = 64 << 10;

/// Serves the socket that is the standard input until it ends.
pub(super) fn serve_stdin() -> ExitCode {
    sys::reset_signals();
    sys::ignore_requests();
    match take_stdin().and_then(serve) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(io::stderr(), "the launcher of sandboxes ends: {error}");
            ExitCode::FAILURE
        }
    }
}

/// No sandbox may inherit the socket under a number that programs use.
fn take_stdin() -> io::Result<UnixStream> {
    let socket: OwnedFd = io::stdin().as_fd().try_clone_to_owned()?;
    rustix::stdio::dup2_stdin(std::fs::File::open("/dev/null")?)?;
    Ok(UnixStream::from(socket))
}

fn serve(mut socket: UnixStream) -> io::Result<()> {
    let mut frames = Frames::default();
    let Some(setup) = read_setup(&mut socket, &mut frames)? else { return Ok(()) };
    let outcome = Factory::prepare(&setup).and_then(|mut factory| Ok((probe::probe(&setup, &mut factory)?, factory)));
    match outcome {
        Ok((ready, factory)) => {
            send(&mut socket, 0, Outcome::Ready(ready))?;
            Service { socket, frames, factory, sandboxes: BTreeMap::new() }.run()
        }
        Err(failure) => send(&mut socket, 0, Outcome::Failed(failure)),
    }
}

fn read_setup(socket: &mut UnixStream, frames: &mut Frames) -> io::Result<Option<Setup>> {
    let mut buffer = vec![0; READ_BYTES];
    loop {
        if let Some(setup) = frames.next()? {
            return Ok(Some(setup));
        }
        match socket.read(&mut buffer)? {
            0 => return Ok(None),
            length => frames.push(buffer.get(..length).unwrap_or_default()),
        }
    }
}

fn send(socket: &mut UnixStream, id: u64, outcome: Outcome) -> io::Result<()> {
    let reply = Reply { id, outcome: Some(outcome) };
    socket.write_all(&frame(&reply).ok_or(io::ErrorKind::InvalidData)?)
}

struct Service {
    socket: UnixStream,
    frames: Frames,
    factory: Factory,
    sandboxes: BTreeMap<u64, Made>,
}

struct Made {
    sandbox: Sandbox,
    kill_at: Option<Instant>,
    /// Whether its time was over long before it was.
    is_overdue: bool,
}

impl Service {
    fn run(mut self) -> io::Result<()> {
        let mut buffer = vec![0; READ_BYTES];
        loop {
            self.factory.prepare_next();
            let (orders, over) = self.wait()?;
            for id in over {
                self.conclude(id)?;
            }
            self.kill_what_does_not_stop();
            if orders {
                match self.socket.read(&mut buffer) {
                    Ok(0) => break,
                    Ok(length) => self.frames.push(buffer.get(..length).unwrap_or_default()),
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                    Err(error) => return Err(error),
                }
                while let Some(request) = self.frames.next::<Request>()? {
                    self.obey(request)?;
                }
            }
        }
        self.end();
        Ok(())
    }

    /// Whether there are orders, and which sandboxes are over.
    fn wait(&self) -> io::Result<(bool, Vec<u64>)> {
        let mut polled = vec![PollFd::new(&self.socket, PollFlags::IN)];
        polled.extend(self.sandboxes.values().map(|made| PollFd::new(made.sandbox.pidfd(), PollFlags::IN)));
        let kill_at = self.sandboxes.values().filter_map(|made| made.kill_at).min();
        let timeout = kill_at.map(|at| at.saturating_duration_since(Instant::now()) + Duration::from_millis(1));
        let timeout = timeout.and_then(|timeout| Timespec::try_from(timeout).ok());
        match poll(&mut polled, timeout.as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let mut ready = polled.iter().map(|polled| !polled.revents().is_empty());
        let orders = ready.next().unwrap_or(false);
        let over = self.sandboxes.keys().zip(ready).filter_map(|(id, ready)| ready.then_some(*id)).collect();
        Ok((orders, over))
    }

    fn obey(&mut self, request: Request) -> io::Result<()> {
        let id = request.id;
        let Some(start) = request.start else {
            if let Some(made) = self.sandboxes.get_mut(&id) {
                made.sandbox.stop();
                let soon = Instant::now() + STOPPING;
                made.kill_at = Some(made.kill_at.map_or(soon, |at| at.min(soon)));
            }
            return Ok(());
        };
        let has_pipes = start.stdin_pipe.is_some();
        let time = Duration::from_micros(start.timeout_us).saturating_add(OVERTIME);
        match self.factory.make(&start) {
            Ok(sandbox) => {
                let begun = has_pipes.then(|| Outcome::Begun(Begun { process: sandbox.process() }));
                let kill_at = Instant::now().checked_add(time);
                self.sandboxes.insert(id, Made { sandbox, kill_at, is_overdue: false });
                begun.map_or(Ok(()), |begun| send(&mut self.socket, id, begun))
            }
            Err(failure) => send(&mut self.socket, id, Outcome::Failed(failure)),
        }
    }

    fn conclude(&mut self, id: u64) -> io::Result<()> {
        match self.sandboxes.remove(&id) {
            Some(made) => {
                let mut outcome = self.factory.conclude(made.sandbox);
                if let Outcome::Ended(ended) = &mut outcome
                    && made.is_overdue
                    && ended.ended_by() == EndedBy::Itself
                {
                    ended.ended_by = EndedBy::Time.into();
                }
                send(&mut self.socket, id, outcome)
            }
            None => Ok(()),
        }
    }

    fn kill_what_does_not_stop(&mut self) {
        let now = Instant::now();
        for made in self.sandboxes.values_mut().filter(|made| made.kill_at.is_some_and(|at| now >= at)) {
            made.sandbox.kill();
            made.kill_at = None;
            made.is_overdue = true;
        }
    }

    /// Nobody is there any more to be told. All are killed before any is waited for: one that dies slowly must not leave
    /// another the time to meddle with what the next worker removes.
    fn end(mut self) {
        self.factory.end();
        self.sandboxes.values().for_each(|made| made.sandbox.kill());
        for made in self.sandboxes.into_values() {
            self.factory.conclude(made.sandbox);
        }
    }
}
