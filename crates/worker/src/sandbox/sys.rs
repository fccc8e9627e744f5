//! The system calls for which `rustix` has no safe function: making processes, signals, accounting.
//!
//! All `unsafe` of the sandbox is here, one call to a function. What callers must hold: the process has one thread,
//! so that a copy of it finds every lock free and may go on as if nothing had happened.

#![allow(unsafe_code, reason = "fork, clone, signal dispositions and a few ioctls have no safe wrapper in rustix")]

use std::ffi::{CStr, CString, c_char, c_int, c_long, c_ulong, c_void};
use std::io;
use std::mem::{self, MaybeUninit};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::ptr;
use std::time::Duration;

use rustix::io::Errno;
use rustix::process::Pid;

/// What [`clone_into`] made.
pub(super) enum Clone {
    /// The new process goes on here, first of its namespaces.
    Child,
    /// The old one goes on here.
    Parent {
        /// Of the new one.
        pid: Pid,
        /// Readable when it has ended.
        pidfd: OwnedFd,
    },
}

/// Copies this process into the new namespaces of `flags` (`CLONE_NEW…`).
///
/// It is `clone` and not `clone3`: what container runtimes refuse of the latter they do without looking at the flags.
pub(super) fn clone_into(flags: c_int) -> io::Result<Clone> {
    let mut pidfd: c_int = -1;
    let flags = c_ulong::from((flags | libc::CLONE_PIDFD).cast_unsigned()) | c_ulong::from(SIGCHLD);
    // SAFETY: without CLONE_VM the child has a copy of all memory and, given no stack, goes on with a copy of ours;
    // with one thread no lock is held by a thread that the copy lacks. `pidfd` outlives the call.
    let pid = unsafe { libc::syscall(libc::SYS_clone, flags, ptr::null::<u8>(), &raw mut pidfd, 0, 0) };
    match positive(i32::try_from(pid).unwrap_or(-1))? {
        // SAFETY: the kernel has just made this descriptor, and nobody else knows of it.
        Some(pid) => Ok(Clone::Parent { pid, pidfd: unsafe { own(pidfd) } }),
        None => Ok(Clone::Child),
    }
}

const SIGCHLD: u32 = libc::SIGCHLD.cast_unsigned();

/// # Safety
/// The descriptor is open and nobody else owns it.
unsafe fn own(fd: RawFd) -> OwnedFd {
    // SAFETY: as promised by the caller.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

/// Starts a process that runs `child` in the memory of this one, which stands still until the other has become another
/// program or has ended. Descriptors, dispositions of signals and all else that is not memory are its own.
///
/// `child` must leave memory as it may find it again: what it takes there is never given back, locks must be let go, and
/// it must not return.
pub(super) fn spawn_in_our_memory(child: &dyn Fn()) -> io::Result<Pid> {
    extern "C" fn enter(child: *mut c_void) -> c_int {
        // SAFETY: it is what was passed to `clone` below, and this process has stood still there ever since.
        let child = unsafe { &*child.cast::<&dyn Fn()>() };
        child();
        libc::EXIT_FAILURE
    }
    let mut stack: Vec<u128> = Vec::with_capacity(STACK_BYTES / size_of::<u128>());
    let flags = libc::CLONE_VM | libc::CLONE_VFORK | libc::SIGCHLD;
    // SAFETY: the stack is aligned, grows down from its end and, like what `child` refers to, outlives the new process's
    // use of it, because with CLONE_VFORK this process goes on only after that. With one thread no lock is held.
    let pid = unsafe {
        let top = stack.as_mut_ptr().add(stack.capacity()).cast::<c_void>();
        libc::clone(enter, top, flags, (&raw const child).cast_mut().cast::<c_void>())
    };
    positive(pid)?.ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// For a few calls and the words of an error.
const STACK_BYTES: usize = 256 << 10;

/// Strings as the kernel takes them: a list of pointers that ends with none.
pub(super) struct CStrings {
    /// What the pointers point to.
    _strings: Vec<CString>,
    pointers: Vec<*const c_char>,
}

impl CStrings {
    /// Fails if one of them holds NUL.
    pub(super) fn new(strings: impl IntoIterator<Item: AsRef<[u8]>>) -> io::Result<Self> {
        let strings = strings.into_iter().map(|string| CString::new(string.as_ref())).collect::<Result<Vec<_>, _>>()?;
        let pointers = strings.iter().map(|string| string.as_ptr()).chain([ptr::null()]).collect();
        Ok(Self { _strings: strings, pointers })
    }
}

/// Becomes another program; why not, if that is refused.
pub(super) fn exec(program: &CStr, arguments: &CStrings, environment: &CStrings) -> Errno {
    // SAFETY: all three are strings and lists that end with a null, and outlive the call.
    unsafe { libc::execve(program.as_ptr(), arguments.pointers.as_ptr(), environment.pointers.as_ptr()) };
    Errno::from_io_error(&io::Error::last_os_error()).unwrap_or(Errno::IO)
}

fn positive(pid: i32) -> io::Result<Option<Pid>> {
    if pid < 0 { Err(io::Error::last_os_error()) } else { Ok(Pid::from_raw(pid)) }
}

/// Leaves namespaces for new ones.
pub(super) fn unshare(what: rustix::thread::UnshareFlags) -> io::Result<()> {
    // SAFETY: no table of descriptors is unshared, about which this function would have to be careful.
    Ok(unsafe { rustix::thread::unshare_unsafe(what) }?)
}

/// Ends this process at once: no destructor runs, nothing is flushed.
pub(super) fn exit(code: c_int) -> ! {
    // SAFETY: it takes no pointers and does not return.
    unsafe { libc::_exit(code) }
}

/// Gives every signal its default disposition and blocks none.
pub(super) fn reset_signals() {
    for signal in 1..=libc::SIGRTMAX() {
        // SAFETY: SIG_DFL is a valid disposition for every signal; those that cannot be changed are refused.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
    }
    unblock_signals();
}

fn unblock_signals() {
    let mut none = MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: the set is initialised by sigemptyset before it is read.
    unsafe {
        libc::sigemptyset(none.as_mut_ptr());
        libc::sigprocmask(libc::SIG_SETMASK, none.as_ptr(), ptr::null_mut());
    }
}

/// What a launcher and the first process of a sandbox ignore.
const IGNORED: [c_int; 5] = [libc::SIGPIPE, libc::SIGTERM, libc::SIGINT, libc::SIGHUP, libc::SIGQUIT];

/// Ignores broken pipes, which are then errors of writes, and whoever asks this process group to end: the launcher must
/// outlive the actions that a worker which was asked the same still waits for.
pub(super) fn ignore_requests() {
    for signal in IGNORED {
        // SAFETY: SIG_IGN is a valid disposition for each of these.
        unsafe { libc::signal(signal, libc::SIG_IGN) };
    }
}

/// Gives what [`ignore_requests`] ignores its default disposition again, and blocks no signal: in a copy of a process that
/// began with [`reset_signals`], that is all there is to undo.
pub(super) fn heed_signals() {
    for signal in IGNORED {
        // SAFETY: SIG_DFL is a valid disposition for each of these.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
    }
    unblock_signals();
}

/// Blocks SIGCHLD and makes a descriptor that is readable when one came.
pub(super) fn child_signals() -> io::Result<OwnedFd> {
    let mut set = MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: the set is initialised by sigemptyset before it is used, and outlives the calls.
    let fd = unsafe {
        libc::sigemptyset(set.as_mut_ptr());
        libc::sigaddset(set.as_mut_ptr(), libc::SIGCHLD);
        libc::sigprocmask(libc::SIG_BLOCK, set.as_ptr(), ptr::null_mut());
        libc::signalfd(-1, set.as_ptr(), libc::SFD_CLOEXEC | libc::SFD_NONBLOCK)
    };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made this descriptor.
    Ok(unsafe { own(fd) })
}

/// Closes every descriptor from 3 on but those of `kept`.
///
/// Whoever calls it has given up everything else: an [`OwnedFd`] that was not kept must never be used or dropped.
pub(super) fn close_all_but(kept: &[BorrowedFd<'_>]) {
    let mut kept: Vec<u32> = kept.iter().map(|fd| fd.as_raw_fd().cast_unsigned()).collect();
    kept.sort_unstable();
    let mut first = 3;
    for fd in kept.into_iter().filter(|fd| *fd >= 3) {
        close_from_to(first, fd.saturating_sub(1));
        first = fd + 1;
    }
    close_from_to(first, u32::MAX);
}

fn close_from_to(first: u32, last: u32) {
    if first <= last {
        // SAFETY: it takes no pointers; that nobody uses the descriptors any more is the promise of the caller.
        unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) };
    }
}

/// Adds `attributes` (`MOUNT_ATTR_…`) to the mount at `path` and, if asked, to all mounts below.
pub(super) fn add_mount_attributes(tree: BorrowedFd<'_>, attributes: u64, recursive: bool) -> io::Result<()> {
    let wanted = libc::mount_attr { attr_set: attributes, attr_clr: 0, propagation: 0, userns_fd: 0 };
    let flags = libc::AT_EMPTY_PATH | if recursive { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: path and structure outlive the call, and the size is that of the structure.
    let answer = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            tree.as_raw_fd(),
            c"".as_ptr(),
            flags,
            &raw const wanted,
            mem::size_of::<libc::mount_attr>(),
        )
    };
    answered(answer)
}

/// Switches the loopback device of this network namespace on.
pub(super) fn loopback_up(socket: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: all bits zero is a valid ifreq.
    let mut request: libc::ifreq = unsafe { mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(b"lo") {
        *to = from.cast_signed();
    }
    request.ifr_ifru.ifru_flags = libc::c_short::try_from(libc::IFF_UP | libc::IFF_RUNNING).unwrap_or(0);
    // SAFETY: the request outlives the call, and SIOCSIFFLAGS reads no more than it.
    answered(c_long::from(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request) }))
}

/// Leaves the session keyring that all children of the launcher would share for one of its own.
pub(super) fn own_session_keyring() -> io::Result<()> {
    const JOIN_SESSION_KEYRING: c_int = 1;
    // SAFETY: a null name asks for an anonymous keyring.
    let answer = unsafe { libc::syscall(libc::SYS_keyctl, JOIN_SESSION_KEYRING, ptr::null::<u8>()) };
    if answer < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// What all children that were waited for, and theirs, have used.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Used {
    /// Outside the kernel.
    pub user: Duration,
    /// In the kernel.
    pub system: Duration,
    /// The largest of them.
    pub largest_bytes: u64,
    /// From storage devices.
    pub read_bytes: u64,
    /// To storage devices.
    pub written_bytes: u64,
}

/// See [`Used`].
pub(super) fn used_by_children() -> Used {
    let mut usage = MaybeUninit::<libc::rusage>::zeroed();
    // SAFETY: the structure outlives the call; all bits zero is valid should it fail.
    let usage = unsafe {
        libc::getrusage(libc::RUSAGE_CHILDREN, usage.as_mut_ptr());
        usage.assume_init()
    };
    Used {
        user: duration(usage.ru_utime),
        system: duration(usage.ru_stime),
        largest_bytes: unsigned(usage.ru_maxrss).saturating_mul(1024),
        read_bytes: unsigned(usage.ru_inblock).saturating_mul(512),
        written_bytes: unsigned(usage.ru_oublock).saturating_mul(512),
    }
}

fn duration(time: libc::timeval) -> Duration {
    Duration::from_secs(unsigned(time.tv_sec)) + Duration::from_micros(unsigned(time.tv_usec))
}

fn unsigned(number: c_long) -> u64 {
    u64::try_from(number).unwrap_or(0)
}

fn answered(answer: c_long) -> io::Result<()> {
    if answer == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
