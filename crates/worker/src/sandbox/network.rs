//! Network namespaces with nothing but a loopback, kept for the next run when they are as good as new.
//!
//! Making and destroying one costs more than all the rest of a sandbox, and few commands use it. What always holds: a
//! namespace is given to one run at a time; it is given to another only if no packet ever went through it, so there is
//! no connection, no port that lingers and no memory of anybody in it. Nothing else can change in there: it belongs to
//! the launcher's user namespace, in which no command has a capability.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;

use rustix::net::{AddressFamily, SocketFlags, SocketType};
use rustix::thread::{LinkNameSpaceType, UnshareFlags};

use super::sys;

/// More are not kept.
const MOST_KEPT: usize = 64;

/// The namespaces of a launcher that is root. It moves among them, because whom it makes begins where it is.
///
/// A launcher that is not root could not come back to the network of the machine: it keeps none.
pub(super) enum Networks {
    /// Every run makes its own.
    Renewed,
    /// The launcher makes them.
    Kept {
        /// The network of the machine.
        host: OwnedFd,
        /// What nobody uses.
        unused: Vec<Network>,
    },
}

/// Where the next run begins.
pub(super) enum Place {
    /// Where the launcher is, which is where it was to be.
    Here,
    /// In a namespace that must be given back.
    Kept(Network),
    /// In a new one, which it makes itself.
    New,
}

/// A namespace, and the counters of its only device.
pub(super) struct Network {
    namespace: OwnedFd,
    counters: File,
}

impl Networks {
    /// Begins where the launcher is, which is the network of the machine.
    pub(super) fn new(privileged: bool) -> io::Result<Self> {
        if !privileged {
            return Ok(Self::Renewed);
        }
        Ok(Self::Kept { host: this_namespace()?, unused: Vec::new() })
    }

    /// Takes the launcher to the network of the machine.
    pub(super) fn enter_host(&self) -> io::Result<Place> {
        if let Self::Kept { host, .. } = self {
            enter(host)?;
        }
        Ok(Place::Here)
    }

    /// Takes the launcher to a namespace that is the next run's alone, if it keeps any.
    pub(super) fn enter_unused(&mut self) -> io::Result<Place> {
        let Self::Kept { unused, .. } = self else { return Ok(Place::New) };
        while let Some(network) = unused.pop() {
            if enter(&network.namespace).is_ok() {
                return Ok(Place::Kept(network));
            }
        }
        sys::unshare(UnshareFlags::NEWNET)?;
        switch_loopback_on()?;
        let counters = File::open("/proc/self/net/dev")?;
        Ok(Place::Kept(Network { namespace: this_namespace()?, counters }))
    }

    /// Takes back what a run that is over had.
    pub(super) fn give_back(&mut self, network: Network) {
        if let Self::Kept { unused, .. } = self
            && unused.len() < MOST_KEPT
            && network.is_as_new()
        {
            unused.push(network);
        }
    }
}

/// In the namespace where this process is.
pub(super) fn switch_loopback_on() -> io::Result<()> {
    let socket = rustix::net::socket_with(AddressFamily::INET, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
    sys::loopback_up(socket.as_fd())
}

impl Network {
    fn is_as_new(&self) -> bool {
        let mut text = [0; 2048];
        let text = self.counters.read_at(&mut text, 0).ok().and_then(|length| text.get(..length));
        text.and_then(|text| std::str::from_utf8(text).ok()).is_some_and(is_unused)
    }
}

/// Whether a table of devices has a loopback, and nothing in it ever carried anything.
fn is_unused(table: &str) -> bool {
    let devices = || table.lines().skip(2).filter_map(|line| line.split_once(':'));
    let carried_nothing = |counters: &str| counters.split_ascii_whitespace().all(|counter| counter == "0");
    devices().any(|(name, _)| name.trim() == "lo") && devices().all(|(_, counters)| carried_nothing(counters))
}

fn this_namespace() -> io::Result<OwnedFd> {
    Ok(File::open("/proc/self/ns/net")?.into())
}

fn enter(namespace: &OwnedFd) -> io::Result<()> {
    Ok(rustix::thread::move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))?)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: &str =
        "Inter-|   Receive                            |  Transmit\n face |bytes    packets errs |bytes packets errs\n";

    #[test]
    fn one_packet_is_enough() {
        assert!(is_unused(&format!("{HEAD}    lo:       0       0    0       0       0    0\n")));
        assert!(!is_unused(&format!("{HEAD}    lo:      84       1    0      84       1    0\n")));
        assert!(!is_unused(HEAD));
        assert!(!is_unused(""));
    }
}
