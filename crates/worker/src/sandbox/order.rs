//! What a first process is told that waits for its run: the [`Start`], and the files that the command speaks and listens
//! with.
//!
//! What always holds: a waiting process that is told nothing ends with its launcher.

use std::collections::VecDeque;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
    recvmsg, sendmsg,
};

use super::command::Streams;
use super::wire::{Doing, Failure, Frames, Start, frame};

/// Standard input, output and error.
const STREAMS: usize = 3;
const READ_BYTES: usize = 8 << 10;

/// Tells it. Whoever waits reads at once, so that this does not wait for long.
pub(super) fn tell(control: &OwnedFd, start: &Start, streams: &Streams) -> io::Result<()> {
    let bytes = frame(start).ok_or(io::ErrorKind::InvalidInput)?;
    let files = [streams.stdin.as_fd(), streams.stdout.as_fd(), streams.stderr.as_fd()];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(STREAMS))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    ancillary.push(SendAncillaryMessage::ScmRights(&files));
    let mut rest = bytes.as_slice();
    while !rest.is_empty() {
        let sent =
            rustix::io::retry_on_intr(|| sendmsg(control, &[IoSlice::new(rest)], &mut ancillary, SendFlags::NOSIGNAL))?;
        // They go with the first byte.
        ancillary.clear();
        rest = rest.get(sent..).unwrap_or_default();
    }
    Ok(())
}

/// Waits until it is told.
pub(super) fn hear(control: &OwnedFd) -> Result<(Start, Streams), Failure> {
    const WHAT: &str = "wait for the launcher";
    let (mut frames, mut files) = (Frames::default(), VecDeque::new());
    loop {
        if let Some(start) = frames.next().doing(WHAT)? {
            let (Some(stdin), Some(stdout), Some(stderr)) = (files.pop_front(), files.pop_front(), files.pop_front())
            else {
                return Err(Errno::BADMSG).doing(WHAT);
            };
            return Ok((start, Streams { stdin, stdout, stderr }));
        }
        let mut buffer = vec![0; READ_BYTES];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(STREAMS))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let heard = rustix::io::retry_on_intr(|| {
            recvmsg(control, &mut [IoSliceMut::new(&mut buffer)], &mut ancillary, RecvFlags::CMSG_CLOEXEC)
        });
        let length = heard.doing(WHAT)?.bytes;
        if length == 0 {
            return Err(Errno::CANCELED).doing(WHAT);
        }
        for message in ancillary.drain() {
            if let RecvAncillaryMessage::ScmRights(came) = message {
                files.extend(came);
            }
        }
        frames.push(buffer.get(..length).unwrap_or_default());
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;

    fn streams() -> Streams {
        let open = || OwnedFd::from(std::fs::File::open("/dev/null").unwrap());
        Streams { stdin: open(), stdout: open(), stderr: open() }
    }

    #[test]
    fn what_is_told_is_heard_however_long_it_is() {
        for length in [1, 100, 5_000_000] {
            let (one, other) = UnixStream::pair().unwrap();
            let start = Start { arguments: vec![vec![b'a'; length]], ..Start::default() };
            let told = start.clone();
            let telling = std::thread::spawn(move || tell(&OwnedFd::from(one), &told, &streams()).unwrap());
            assert_eq!(hear(&OwnedFd::from(other)).unwrap().0, start);
            telling.join().unwrap();
        }
    }

    #[test]
    fn who_is_told_nothing_is_cancelled() {
        let (one, other) = UnixStream::pair().unwrap();
        drop(one);
        assert_eq!(
            hear(&OwnedFd::from(other)).err().unwrap().error().raw_os_error(),
            Some(Errno::CANCELED.raw_os_error())
        );
    }
}
