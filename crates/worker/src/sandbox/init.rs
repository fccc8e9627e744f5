//! The first process of a sandbox: makes it, starts the command, watches its limits, ends everything with it. Most wait for
//! their run, with all done that can be done before it is known.
//!
//! It keeps the capabilities of its user namespace, so that it can measure and kill everything in the sandbox, and is
//! out of reach for the command, which has none. What always holds: when it ends, for whatever reason, the kernel ends
//! everything else in the sandbox before anybody is told.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use prost::Message;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{DumpableBehavior, Pid, Signal, WaitOptions, WaitStatus};

use super::command::{self, Streams};
use super::sys;
use super::view;
use super::watch::Watch;
use super::wire::{Doing, Ended, EndedBy, Failure, Outcome, Reply, Start, now_us};
use super::{cgroup, network, order};

/// Whom a command sees itself running as.
pub(super) const INSIDE_USER: u32 = 1000;
const HOST_NAME: &str = "gf-worker";
/// What a command is given to tidy up after its time has passed.
const GRACE: Duration = Duration::from_secs(1);
/// Above every service: when the machine has no memory left, actions go first.
const OOM_SCORE: i32 = 500;
const KILLED: i32 = 128 + 9;

/// What a new process is told by the launcher that it is a copy of.
pub(super) struct Job {
    /// Where the template is mounted.
    pub template: PathBuf,
    /// A socket. The run comes over it, when the user namespace has its users; its end says that the sandbox must end.
    pub control: OwnedFd,
    /// Where it says how it ended.
    pub report: OwnedFd,
    pub cgroup: Option<cgroup::Membership>,
    /// Whether its network namespace is a new one, in which nothing was done yet.
    pub renew_network: bool,
}

impl Job {
    /// Lives the whole life of the first process. It never returns to being a launcher.
    pub(super) fn live(self) -> ! {
        let mut kept = vec![self.control.as_fd(), self.report.as_fd()];
        kept.extend(self.cgroup.iter().flat_map(cgroup::Membership::descriptors));
        // What the launcher holds must end with the launcher: above all, the other ends of pipes.
        sys::close_all_but(&kept);
        let Self { template, control, report, cgroup, renew_network } = self;
        let life = Life { template, control, cgroup, renew_network };
        let outcome = match life.run() {
            Ok(ended) => Outcome::Ended(ended),
            Err(failure) => Outcome::Failed(failure),
        };
        let reply = Reply { id: 0, outcome: Some(outcome) };
        // A launcher that is not there to read it needs no report.
        let _ = File::from(report).write_all(&reply.encode_to_vec());
        sys::exit(0)
    }
}

struct Life {
    template: PathBuf,
    control: OwnedFd,
    cgroup: Option<cgroup::Membership>,
    renew_network: bool,
}

impl Life {
    fn run(self) -> Result<Ended, Failure> {
        if let Some(cgroup) = &self.cgroup {
            cgroup.join().doing("join the control group of the sandbox")?;
        }
        go_first_without_memory();
        let (start, streams) = order::hear(&self.control)?;
        let found = view::find(&self.template, &start)?;
        become_action_user()?;
        let written = view::enter(&found)?;
        drop(found);
        if self.renew_network {
            network::switch_loopback_on().doing("switch the loopback device on")?;
        }
        isolate()?;
        let signals = sys::child_signals().doing("receive signals")?;
        let started_us = now_us();
        if start.arguments.is_empty() {
            return Ok(Ended { started_us, ended_us: started_us, ..Ended::default() });
        }
        self.command(&start, streams, &signals, written, started_us)
    }

    /// Runs it to its end, and ends all that it leaves running.
    fn command(
        &self,
        start: &Start,
        streams: Streams,
        signals: &OwnedFd,
        written: view::Written,
        started_us: u64,
    ) -> Result<Ended, Failure> {
        let mut watch =
            Watch::new(start, written.folders, &streams, self.cgroup.as_ref()).doing("measure what is written")?;
        let command = command::spawn(start, &streams).doing("start a process")?;
        drop(streams);
        let timeout = Duration::from_micros(start.timeout_us);
        let (exit_code, ended_by) = self.attend(command, timeout, signals, &mut watch)?;
        kill_and_reap_all();
        let used = sys::used_by_children();
        watch.shorten_logs();
        Ok(Ended {
            exit_code,
            ended_by: ended_by.into(),
            started_us,
            ended_us: now_us(),
            user_us: super::wire::micros(used.user),
            system_us: super::wire::micros(used.system),
            peak_memory_bytes: used.largest_bytes,
            peak_is_of_all: false,
            read_bytes: used.read_bytes,
            written_bytes: used.written_bytes,
        })
    }

    /// Until the command has ended, or must: its exit code, and what ended it.
    fn attend(
        &self,
        command: Pid,
        timeout: Duration,
        signals: &OwnedFd,
        watch: &mut Watch,
    ) -> Result<(i32, EndedBy), Failure> {
        let deadline = Instant::now().checked_add(timeout);
        let mut dying_since = None;
        loop {
            let now = Instant::now();
            if dying_since.is_some_and(|since| now >= since + GRACE) {
                return Ok((KILLED, EndedBy::Time));
            }
            if dying_since.is_none() && deadline.is_some_and(|deadline| now >= deadline) {
                dying_since = Some(now);
                let _ = rustix::process::kill_process_group(Pid::INIT, Signal::TERM);
            }
            let until = dying_since.map(|since| since + GRACE).or(deadline);
            let timeout = watch.next().min(until.map_or(Duration::MAX, |until| until.saturating_duration_since(now)));
            if !wait_for_news(signals, &self.control, timeout)? {
                return Ok((KILLED, EndedBy::Cancelled));
            }
            let ended = reap(command);
            let exceeded = watch.look(ended);
            match (ended, exceeded) {
                (_, Some(limit)) => return Ok((ended.unwrap_or(KILLED), limit)),
                (Some(code), None) if dying_since.is_some() => return Ok((code, EndedBy::Time)),
                (Some(code), None) => return Ok((code, EndedBy::Itself)),
                (None, None) => {}
            }
        }
    }
}

/// The user and group of the action, with all capabilities in this user namespace until the next program.
fn become_action_user() -> Result<(), Failure> {
    let (user, group) = (rustix::process::Uid::from_raw(INSIDE_USER), rustix::process::Gid::from_raw(INSIDE_USER));
    rustix::thread::set_thread_res_gid(group, group, group).doing("become the group of the action")?;
    rustix::thread::set_thread_res_uid(user, user, user).doing("become the user of the action")?;
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable).doing("hide from debuggers")?;
    // Set only now: changing the user clears it.
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL)).doing("ask to die with the launcher")
}

/// As long as this process may still write to its files in `/proc`. Where it may not, the kernel chooses by size alone.
fn go_first_without_memory() {
    const FILE: &str = "/proc/self/oom_score_adj";
    let given = fs::read_to_string(FILE).ok().and_then(|text| text.trim().parse().ok());
    let _ = fs::write(FILE, given.unwrap_or(0).max(OOM_SCORE).to_string());
}

/// In a user namespace of its own the command would be root over much of the kernel that nobody else gets to use.
fn refuse_user_namespaces() -> Result<(), Failure> {
    match fs::write("/proc/sys/user/max_user_namespaces", "0") {
        // A kernel without this cannot make them.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        written => written.doing("refuse user namespaces to the command"),
    }
}

fn isolate() -> Result<(), Failure> {
    refuse_user_namespaces()?;
    rustix::system::sethostname(HOST_NAME.as_bytes()).doing("set the host name")?;
    match sys::own_session_keyring() {
        // Where keyrings are refused or absent, they are to the command too.
        Err(error) if error.raw_os_error() == Some(Errno::DQUOT.raw_os_error()) => {
            Err(error).doing("make a session keyring")
        }
        _ => Ok(()),
    }
}

/// Whether to go on: no, if the launcher wants this to end or is gone.
fn wait_for_news(signals: &OwnedFd, control: &OwnedFd, timeout: Duration) -> Result<bool, Failure> {
    let mut polled = [PollFd::new(signals, PollFlags::IN), PollFd::new(control, PollFlags::IN)];
    let timeout = Timespec::try_from(timeout).unwrap_or(Timespec { tv_sec: 3600, tv_nsec: 0 });
    match poll(&mut polled, Some(&timeout)) {
        Ok(_) | Err(Errno::INTR) => {}
        Err(error) => return Err(error).doing("wait for the command"),
    }
    let [signals_came, control_came] = polled.map(|polled| !polled.revents().is_empty());
    if signals_came {
        // What it says is asked of the kernel anew; it must only not be readable for ever.
        let _ = rustix::io::read(signals, &mut [0; 1024]);
    }
    Ok(!control_came)
}

/// Reaps whatever has ended; the exit code of the command if that was among it.
fn reap(command: Pid) -> Option<i32> {
    let mut code = None;
    while let Ok(Some((pid, status))) = rustix::process::wait(WaitOptions::NOHANG) {
        if pid == command {
            code = Some(exit_code(status));
        }
    }
    code
}

fn exit_code(status: WaitStatus) -> i32 {
    status.exit_status().or_else(|| status.terminating_signal().map(|signal| 128 + signal)).unwrap_or(KILLED)
}

/// Kills everything in this process namespace but this process, and waits until it is gone.
fn kill_and_reap_all() {
    // Nothing left to kill is an error too.
    let _ = rustix::process::kill_process_group(Pid::INIT, Signal::KILL);
    while matches!(rustix::process::wait(WaitOptions::empty()), Ok(_) | Err(Errno::INTR)) {}
}
