//! Makes sandboxes: what they share is prepared once, then one copy of this process becomes each. One waits for the next
//! run, so that this need not.

use std::ffi::{OsStr, c_int};
use std::fs;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use prost::Message;
use rustix::fs::{Gid, Mode, OFlags, Uid};
use rustix::io::Errno;
use rustix::mount::MountPropagationFlags;
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions};
use rustix::thread::UnshareFlags;

use super::cgroup;
use super::command::Streams;
use super::init::{INSIDE_USER, Job};
use super::network::{Network, Networks, Place};
use super::order;
use super::sys::{self, Clone};
use super::template::Template;
use super::wire::{Doing, Ended, EndedBy, Failure, Outcome, Reply, Setup, Start, now_us};

/// The network is not among them: see [`Networks`].
const NAMESPACES: c_int = libc::CLONE_NEWUSER
    | libc::CLONE_NEWNS
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWCGROUP;

/// What root without privileges fails in.
pub(super) const LEAVE_ROOT: &str = "run actions as another user than root";

/// What is the same for all sandboxes.
pub(super) struct Factory {
    template: Template,
    uid: u32,
    gid: u32,
    privileged: bool,
    networks: Networks,
    pub cgroups: Option<cgroup::Parent>,
    waiting: Option<Waiting>,
    /// The kind of the last run, once there was one.
    wanted: Option<Kind>,
}

/// One that has no run yet.
struct Waiting {
    kind: Kind,
    sandbox: Sandbox,
    /// Runs in a row that could not use it.
    passed_over: u32,
}

/// After so many it makes room for one of another kind.
const MOST_PASSED_OVER: u32 = 2;

/// What must be known of a run before its first process is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Kind {
    host_network: bool,
    has_group: bool,
}

/// One that was made and not yet over.
pub(super) struct Sandbox {
    pid: Pid,
    pidfd: OwnedFd,
    /// Dropped to end it.
    control: Option<OwnedFd>,
    report: OwnedFd,
    group: Option<cgroup::Group>,
    network: Option<Network>,
}

impl Factory {
    /// Takes this process to where it can make sandboxes: a mount namespace, and unless it is root, a user namespace.
    pub(super) fn prepare(setup: &Setup) -> Result<Self, Failure> {
        // What is made has the mode that is asked for.
        rustix::process::umask(Mode::empty());
        let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
        let privileged = uid == 0 && sys::unshare(UnshareFlags::NEWNS).is_ok();
        if privileged {
            // Inside, groups can be neither seen nor left, and those of root would still count.
            rustix::thread::set_thread_groups(&[]).doing("leave all groups")?;
        } else if uid == 0 {
            return Err(Errno::PERM).doing(LEAVE_ROOT);
        } else {
            sys::unshare(UnshareFlags::NEWUSER | UnshareFlags::NEWNS).doing("make a user namespace")?;
            fs::write("/proc/self/setgroups", "deny").doing("give up groups")?;
            fs::write("/proc/self/uid_map", format!("{uid} {uid} 1")).doing("map the user")?;
            fs::write("/proc/self/gid_map", format!("{gid} {gid} 1")).doing("map the group")?;
        }
        rustix::mount::mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)
            .doing("keep mounts to ourselves")?;
        let (uid, gid) = if privileged { (setup.action_uid, setup.action_gid) } else { (uid, gid) };
        let networks = Networks::new(privileged).doing("find the network namespace of the machine")?;
        Ok(Self {
            template: Template::build(setup)?,
            uid,
            gid,
            privileged,
            networks,
            cgroups: None,
            waiting: None,
            wanted: None,
        })
    }

    /// Whether actions run as another user than the launcher.
    pub(super) const fn privileged(&self) -> bool {
        self.privileged
    }

    /// From now on every run makes a network namespace of its own. Called before any sandbox is made.
    pub(super) fn renew_networks(&mut self) {
        self.networks = Networks::Renewed;
    }

    /// Makes a sandbox for a run, with files for what it says, or takes the one that waits.
    pub(super) fn make(&mut self, start: &Start) -> Result<Sandbox, Failure> {
        let streams = self.open_streams(start)?;
        let scratch = open(Path::new(OsStr::from_bytes(&start.scratch)), OFlags::RDONLY | OFlags::DIRECTORY)?;
        self.own(&scratch).doing("give the scratch folder to the action")?;
        drop(scratch);
        let kind = self.kind(start);
        self.wanted = Some(kind);
        if let Some(mut waiting) = self.take_waiting(kind) {
            if waiting.tell(start, &streams).is_ok() {
                return Ok(waiting);
            }
            // It may have been the first to go when the machine had no memory left.
            self.dismiss(waiting);
        }
        let mut sandbox = self.first_process(kind)?;
        match sandbox.tell(start, &streams) {
            Ok(()) => Ok(sandbox),
            // One that has failed already does not listen, and says why in its report.
            Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(sandbox),
            Err(error) => {
                self.dismiss(sandbox);
                Err(error).doing("tell a sandbox what to run")
            }
        }
    }

    /// Has one wait for the next run, of the kind that was wanted last: to make it, and above all to move it into its
    /// control group, can take longer than many a command. Failing that, the next run makes its own, and is told why.
    pub(super) fn prepare_next(&mut self) {
        let Some(kind) = self.wanted else { return };
        if let Some(unwanted) = self.waiting.take_if(|waiting| waiting.passed_over >= MOST_PASSED_OVER) {
            self.dismiss(unwanted.sandbox);
        }
        if self.waiting.is_none() {
            let sandbox = self.first_process(kind).ok();
            self.waiting = sandbox.map(|sandbox| Waiting { kind, sandbox, passed_over: 0 });
        }
    }

    fn take_waiting(&mut self, kind: Kind) -> Option<Sandbox> {
        let fitting = self.waiting.take_if(|waiting| waiting.kind == kind);
        if let Some(waiting) = &mut self.waiting {
            waiting.passed_over += 1;
        }
        fitting.map(|waiting| waiting.sandbox)
    }

    /// Ends the one that waits.
    pub(super) fn end(&mut self) {
        if let Some(waiting) = self.waiting.take() {
            self.dismiss(waiting.sandbox);
        }
    }

    fn dismiss(&mut self, mut sandbox: Sandbox) {
        sandbox.stop();
        sandbox.kill();
        self.conclude(sandbox);
    }

    fn kind(&self, start: &Start) -> Kind {
        let has_group = !start.arguments.is_empty() && self.cgroups.is_some();
        Kind { host_network: start.host_network, has_group }
    }

    fn first_process(&mut self, kind: Kind) -> Result<Sandbox, Failure> {
        let group = self.group(kind)?;
        let flags = SocketFlags::CLOEXEC;
        let (control, our_control) =
            rustix::net::socketpair(AddressFamily::UNIX, SocketType::STREAM, flags, None).doing("make a socket")?;
        let (our_report, report) = pipe()?;
        let cgroup = group.as_ref().map(cgroup::Group::membership).transpose().doing("open the control group")?;
        let (namespaces, network, renew_network) = match self.enter_network(kind)? {
            Place::Here => (NAMESPACES, None, false),
            Place::Kept(network) => (NAMESPACES, Some(network), false),
            Place::New => (NAMESPACES | libc::CLONE_NEWNET, None, true),
        };
        let job = Job { template: self.template.path().into(), control, report, cgroup, renew_network };
        match sys::clone_into(namespaces).doing("make namespaces")? {
            Clone::Child => job.live(),
            Clone::Parent { pid, pidfd } => {
                drop(job);
                let sandbox = Sandbox { pid, pidfd, control: Some(our_control), report: our_report, group, network };
                if let Err(failure) = self.map_users(pid) {
                    self.dismiss(sandbox);
                    return Err(failure);
                }
                Ok(sandbox)
            }
        }
    }

    /// How a sandbox ended; waits if it has not.
    pub(super) fn conclude(&mut self, mut sandbox: Sandbox) -> Outcome {
        let (network, group) = (sandbox.network.take(), sandbox.group.take());
        let outcome = sandbox.conclude(group.as_ref());
        // Of one that failed it is not known what is left in its group.
        if let (Some(groups), Some(group), Outcome::Ended(_)) = (&mut self.cgroups, group, &outcome) {
            groups.give_back(group);
        }
        if let Some(network) = network {
            self.networks.give_back(network);
        }
        outcome
    }

    fn enter_network(&mut self, kind: Kind) -> Result<Place, Failure> {
        if kind.host_network {
            return self.networks.enter_host().doing("enter the network of the machine");
        }
        self.networks.enter_unused().doing("make a network namespace")
    }

    fn group(&mut self, kind: Kind) -> Result<Option<cgroup::Group>, Failure> {
        let groups = self.cgroups.as_mut().filter(|_| kind.has_group);
        groups.map(cgroup::Parent::group).transpose().doing("make a control group")
    }

    fn map_users(&self, pid: Pid) -> Result<(), Failure> {
        let proc = format!("/proc/{}", pid.as_raw_nonzero());
        fs::write(format!("{proc}/setgroups"), "deny").doing("deny groups to the sandbox")?;
        fs::write(format!("{proc}/uid_map"), format!("{INSIDE_USER} {} 1", self.uid)).doing("map the user")?;
        fs::write(format!("{proc}/gid_map"), format!("{INSIDE_USER} {} 1", self.gid)).doing("map the group")
    }

    fn open_streams(&self, start: &Start) -> Result<Streams, Failure> {
        let nothing = Path::new("/dev/null");
        let stdin = match &start.stdin_pipe {
            Some(path) => open_pipe(path, OFlags::RDONLY)?,
            None => open(nothing, OFlags::RDONLY)?,
        };
        if start.arguments.is_empty() {
            return Ok(Streams {
                stdin,
                stdout: open(nothing, OFlags::WRONLY)?,
                stderr: open(nothing, OFlags::WRONLY)?,
            });
        }
        let stdout =
            if start.stdout_is_pipe { open_pipe(&start.stdout, OFlags::WRONLY)? } else { self.log(&start.stdout)? };
        Ok(Streams { stdin, stdout, stderr: self.log(&start.stderr)? })
    }

    /// A file that the action may also open by its name in `/dev`.
    fn log(&self, path: &[u8]) -> Result<OwnedFd, Failure> {
        let path = Path::new(OsStr::from_bytes(path));
        // Appending, so that several writers do not overwrite one another.
        let file = open(path, OFlags::WRONLY | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::APPEND)?;
        self.own(&file).doing("give a log to the action")?;
        Ok(file)
    }

    /// Gives it to whom actions run as, unless it is theirs: even a change that changes nothing is one to the disk.
    fn own(&self, file: &OwnedFd) -> rustix::io::Result<()> {
        let found = rustix::fs::fstat(file)?;
        if !self.privileged || (found.st_uid, found.st_gid) == (self.uid, self.gid) {
            return Ok(());
        }
        rustix::fs::fchown(file, Some(Uid::from_raw(self.uid)), Some(Gid::from_raw(self.gid)))
    }
}

impl Sandbox {
    /// Its first process.
    pub(super) fn process(&self) -> u32 {
        self.pid.as_raw_nonzero().get().unsigned_abs()
    }

    /// Readable when it is over.
    pub(super) const fn pidfd(&self) -> &OwnedFd {
        &self.pidfd
    }

    fn tell(&mut self, start: &Start, streams: &Streams) -> std::io::Result<()> {
        if let Some(group) = &mut self.group {
            group.limit(start.memory_bytes)?;
        }
        self.control.as_ref().map_or(Ok(()), |control| order::tell(control, start, streams))
    }

    /// Asks its first process to end everything.
    pub(super) fn stop(&mut self) {
        self.control = None;
    }

    /// Ends it without asking.
    pub(super) fn kill(&self) {
        // It may have ended already.
        let _ = rustix::process::pidfd_send_signal(&self.pidfd, Signal::KILL);
    }

    fn conclude(self, group: Option<&cgroup::Group>) -> Outcome {
        let waited = rustix::io::retry_on_intr(|| {
            rustix::process::waitid(WaitId::PidFd(std::os::fd::AsFd::as_fd(&self.pidfd)), WaitIdOptions::EXITED)
        });
        if let Err(error) = waited {
            return Outcome::Failed(Failure { doing: "wait for a sandbox".into(), errno: error.raw_os_error() });
        }
        let mut report = Vec::new();
        // Nothing else holds the other end any more, so this never waits.
        let read = fs::File::from(self.report).take(65_536).read_to_end(&mut report);
        let reply = read.ok().and_then(|_| Reply::decode(report.as_slice()).ok());
        let outcome = reply.and_then(|reply| reply.outcome);
        let mut ended = match outcome {
            Some(Outcome::Ended(ended)) => ended,
            Some(other) => return other,
            // The first process itself was killed.
            None => Ended { exit_code: 137, started_us: now_us(), ..Ended::default() },
        };
        ended.ended_us = now_us();
        let stopped = self.control.is_none();
        if let Some(group) = group {
            if group.killed_any() {
                ended.ended_by = EndedBy::Memory.into();
            }
            if let Some(peak) = group.peak_bytes() {
                (ended.peak_memory_bytes, ended.peak_is_of_all) = (peak, true);
            }
        }
        if ended.ended_by() == EndedBy::Itself && stopped {
            ended.ended_by = EndedBy::Cancelled.into();
        }
        Outcome::Ended(ended)
    }
}

fn pipe() -> Result<(OwnedFd, OwnedFd), Failure> {
    pipe_with(PipeFlags::CLOEXEC).doing("make a pipe")
}

fn open(path: &Path, flags: OFlags) -> Result<OwnedFd, Failure> {
    let mode = Mode::RUSR | Mode::WUSR | Mode::RGRP | Mode::ROTH;
    rustix::fs::open(path, flags | OFlags::CLOEXEC, mode).doing(format!("open {}", path.display()))
}

/// A named pipe whose other end is open already, or this would wait for ever: it does not wait.
fn open_pipe(path: &[u8], flags: OFlags) -> Result<OwnedFd, Failure> {
    let pipe = open(Path::new(OsStr::from_bytes(path)), flags | OFlags::NONBLOCK)?;
    rustix::fs::fcntl_setfl(&pipe, OFlags::empty()).doing("let a pipe wait")?;
    Ok(pipe)
}
