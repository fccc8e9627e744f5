//! What worker and launcher, and launcher and sandbox, say to each other: length-prefixed protobuf over a socket.
//!
//! Protobuf because the crate has it; both ends are always the same program, so no compatibility is kept. What always
//! holds: no frame is longer than [`MAX_FRAME_BYTES`], and a longer one is never read into memory.

use std::io;
use std::time::{Duration, SystemTime};

use prost::Message;

use super::{Limit, Ran, Usage};

/// A command with all its arguments is at most 6 MiB to the kernel.
pub(super) const MAX_FRAME_BYTES: usize = 16 << 20;
const LENGTH_BYTES: usize = 4;

/// How the launcher is to work: the first frame to it.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Setup {
    #[prost(bytes = "vec", tag = "1")]
    pub folder: Vec<u8>,
    #[prost(bytes = "vec", optional, tag = "2")]
    pub tool_root: Option<Vec<u8>>,
    #[prost(bytes = "vec", repeated, tag = "3")]
    pub shown: Vec<Vec<u8>>,
    #[prost(uint32, tag = "4")]
    pub action_uid: u32,
    #[prost(uint32, tag = "5")]
    pub action_gid: u32,
    #[prost(bool, tag = "6")]
    pub use_cgroups: bool,
    /// Of all runs together.
    #[prost(uint64, tag = "7")]
    pub memory_bytes: u64,
}

/// The answer to it, if sandboxes can be made.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Ready {
    #[prost(bool, tag = "1")]
    pub overlay: bool,
    #[prost(bool, tag = "2")]
    pub own_network: bool,
    #[prost(uint32, tag = "3")]
    pub cgroup_version: u32,
    #[prost(string, repeated, tag = "4")]
    pub limitations: Vec<String>,
    #[prost(bool, tag = "5")]
    pub privileged: bool,
}

/// Every later frame to the launcher.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Request {
    #[prost(uint64, tag = "1")]
    pub id: u64,
    /// Absent: the run of this number is to be stopped.
    #[prost(message, optional, tag = "2")]
    pub start: Option<Start>,
}

/// A [`super::Run`].
#[derive(Clone, PartialEq, Message)]
pub(super) struct Start {
    /// None at all: a sandbox is made and nothing runs in it.
    #[prost(bytes = "vec", repeated, tag = "1")]
    pub arguments: Vec<Vec<u8>>,
    #[prost(message, repeated, tag = "2")]
    pub environment: Vec<Variable>,
    #[prost(bytes = "vec", tag = "3")]
    pub working_directory: Vec<u8>,
    #[prost(bytes = "vec", repeated, tag = "4")]
    pub layers: Vec<Vec<u8>>,
    /// Present: a folder instead of layers.
    #[prost(bytes = "vec", optional, tag = "5")]
    pub private: Option<Vec<u8>>,
    #[prost(bytes = "vec", tag = "6")]
    pub scratch: Vec<u8>,
    /// Present: a pipe that is the standard input.
    #[prost(bytes = "vec", optional, tag = "7")]
    pub stdin_pipe: Option<Vec<u8>>,
    #[prost(bytes = "vec", tag = "8")]
    pub stdout: Vec<u8>,
    #[prost(bytes = "vec", tag = "9")]
    pub stderr: Vec<u8>,
    #[prost(bool, tag = "10")]
    pub stdout_is_pipe: bool,
    #[prost(bool, tag = "11")]
    pub host_network: bool,
    #[prost(uint64, tag = "12")]
    pub timeout_us: u64,
    #[prost(uint64, tag = "13")]
    pub memory_bytes: u64,
    #[prost(uint32, tag = "14")]
    pub processes: u32,
    #[prost(uint64, tag = "15")]
    pub disk_bytes: u64,
    #[prost(uint64, tag = "16")]
    pub log_bytes: u64,
    /// Absent: `/nix/store` is empty.
    #[prost(message, optional, tag = "17")]
    pub store: Option<Store>,
    #[prost(uint64, tag = "18")]
    pub files: u64,
}

/// A [`super::StoreView`].
#[derive(Clone, PartialEq, Message)]
pub(super) struct Store {
    #[prost(bytes = "vec", tag = "1")]
    pub folder: Vec<u8>,
    #[prost(message, repeated, tag = "2")]
    pub objects: Vec<StoreObject>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct StoreObject {
    #[prost(string, tag = "1")]
    pub name: String,
    #[prost(oneof = "StoreRoot", tags = "2, 3, 4")]
    pub root: Option<StoreRoot>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
pub(super) enum StoreRoot {
    #[prost(string, tag = "2")]
    Folder(String),
    #[prost(string, tag = "3")]
    File(String),
    #[prost(string, tag = "4")]
    Symlink(String),
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Variable {
    #[prost(bytes = "vec", tag = "1")]
    pub name: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    pub value: Vec<u8>,
}

/// Every frame from the launcher.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Reply {
    #[prost(uint64, tag = "1")]
    pub id: u64,
    #[prost(oneof = "Outcome", tags = "2, 3, 4, 5")]
    pub outcome: Option<Outcome>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
pub(super) enum Outcome {
    #[prost(message, tag = "2")]
    Ready(Ready),
    #[prost(message, tag = "3")]
    Ended(Ended),
    #[prost(message, tag = "4")]
    Failed(Failure),
    #[prost(message, tag = "5")]
    Begun(Begun),
}

/// A run with pipes has its ends of them.
#[derive(Clone, Copy, PartialEq, Message)]
pub(super) struct Begun {
    /// The first process of the sandbox, as the launcher and the worker know it.
    #[prost(uint32, tag = "1")]
    pub process: u32,
}

/// Something that was asked of the system and refused.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Failure {
    /// What was being done, as in "mount /proc".
    #[prost(string, tag = "1")]
    pub doing: String,
    #[prost(int32, tag = "2")]
    pub errno: i32,
}

impl Failure {
    pub(super) fn error(&self) -> io::Error {
        io::Error::from_raw_os_error(self.errno)
    }
}

/// Says what was being done when the system refused.
pub(super) trait Doing<T> {
    fn doing(self, what: impl Into<String>) -> Result<T, Failure>;
}

impl<T, E: Into<io::Error>> Doing<T> for Result<T, E> {
    fn doing(self, what: impl Into<String>) -> Result<T, Failure> {
        self.map_err(|error| Failure {
            doing: what.into(),
            errno: error.into().raw_os_error().unwrap_or(rustix::io::Errno::IO.raw_os_error()),
        })
    }
}

/// A [`Ran`].
#[derive(Clone, PartialEq, Message)]
pub(super) struct Ended {
    #[prost(int32, tag = "1")]
    pub exit_code: i32,
    #[prost(enumeration = "EndedBy", tag = "2")]
    pub ended_by: i32,
    #[prost(uint64, tag = "3")]
    pub started_us: u64,
    #[prost(uint64, tag = "4")]
    pub ended_us: u64,
    #[prost(uint64, tag = "5")]
    pub user_us: u64,
    #[prost(uint64, tag = "6")]
    pub system_us: u64,
    #[prost(uint64, tag = "7")]
    pub peak_memory_bytes: u64,
    #[prost(bool, tag = "8")]
    pub peak_is_of_all: bool,
    #[prost(uint64, tag = "9")]
    pub read_bytes: u64,
    #[prost(uint64, tag = "10")]
    pub written_bytes: u64,
}

/// Why it ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, prost::Enumeration)]
#[repr(i32)]
pub(super) enum EndedBy {
    Itself = 0,
    Time = 1,
    Memory = 2,
    Disk = 3,
    Log = 4,
    Cancelled = 5,
    Processes = 6,
    Files = 7,
    FullDisk = 8,
}

impl Ended {
    pub(super) fn into_ran(self) -> Ran {
        let ended_by = match self.ended_by() {
            EndedBy::Itself => None,
            EndedBy::Time => Some(Limit::Time),
            EndedBy::Memory => Some(Limit::Memory),
            EndedBy::Disk => Some(Limit::Disk),
            EndedBy::Log => Some(Limit::Log),
            EndedBy::Processes => Some(Limit::Processes),
            EndedBy::Files => Some(Limit::Files),
            EndedBy::FullDisk => Some(Limit::FullDisk),
            EndedBy::Cancelled => Some(Limit::Cancelled),
        };
        Ran {
            exit_code: self.exit_code,
            ended_by,
            started: SystemTime::UNIX_EPOCH + Duration::from_micros(self.started_us),
            ended: SystemTime::UNIX_EPOCH + Duration::from_micros(self.ended_us),
            usage: Usage {
                user_time: Duration::from_micros(self.user_us),
                system_time: Duration::from_micros(self.system_us),
                peak_memory_bytes: self.peak_memory_bytes,
                peak_memory_is_of_largest_process: !self.peak_is_of_all,
                read_bytes: self.read_bytes,
                written_bytes: self.written_bytes,
            },
        }
    }
}

/// Microseconds since 1970.
pub(super) fn now_us() -> u64 {
    micros(SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default())
}

/// More than half a million years are half a million years.
pub(super) fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

/// The message and its length before it, or nothing if it is too long.
pub(super) fn frame(message: &impl Message) -> Option<Vec<u8>> {
    let length = message.encoded_len();
    if length > MAX_FRAME_BYTES {
        return None;
    }
    let mut frame = Vec::with_capacity(LENGTH_BYTES + length);
    frame.extend_from_slice(&u32::try_from(length).ok()?.to_le_bytes());
    message.encode(&mut frame).ok()?;
    Some(frame)
}

/// Bytes as they come, frames as they are complete.
#[derive(Default)]
pub(super) struct Frames {
    bytes: Vec<u8>,
}

impl Frames {
    pub(super) fn push(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// The next message, if it is complete. An error is for ever: whoever sent it does not speak this language.
    pub(super) fn next<M: Message + Default>(&mut self) -> io::Result<Option<M>> {
        let Some(length) = self.bytes.first_chunk::<LENGTH_BYTES>() else { return Ok(None) };
        let length = usize::try_from(u32::from_le_bytes(*length)).unwrap_or(usize::MAX);
        if length > MAX_FRAME_BYTES {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "a frame is too long"));
        }
        let Some(body) = self.bytes.get(LENGTH_BYTES..LENGTH_BYTES + length) else { return Ok(None) };
        let message = M::decode(body).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
        self.bytes.drain(..LENGTH_BYTES + length);
        Ok(Some(message))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_come_back_however_they_are_cut() {
        let messages: Vec<Failure> = (0..20).map(|n| Failure { doing: "x".repeat(n * 7), errno: 1 }).collect();
        let bytes: Vec<u8> = messages.iter().flat_map(|message| frame(message).unwrap()).collect();
        for piece in [1, 2, 3, 5, 64, bytes.len()] {
            let mut frames = Frames::default();
            let mut back = Vec::new();
            for piece in bytes.chunks(piece) {
                frames.push(piece);
                while let Some(message) = frames.next::<Failure>().unwrap() {
                    back.push(message);
                }
            }
            assert_eq!(back, messages, "in pieces of {piece}");
        }
    }

    #[test]
    fn a_frame_that_is_too_long_is_refused_by_its_length() {
        let mut frames = Frames::default();
        frames.push(&u32::MAX.to_le_bytes());
        assert!(frames.next::<Failure>().is_err());
    }
}
