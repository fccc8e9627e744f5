//! What a launcher must know before it makes its first sandbox.

use std::path::PathBuf;

use super::{cgroup, wire};
use std::os::unix::ffi::OsStrExt;

/// The user that actions run as, outside, when the worker is root: nobody else's.
const ACTION_USER: u32 = 64_318;

/// How sandboxes are made.
#[derive(Clone, Debug)]
pub struct SandboxConfig {
    /// A folder of the worker alone, on the disk where the scratch folders will be: overlays are tried out there, and
    /// the roots of sandboxes are put together on a folder in it. It exists.
    pub folder: PathBuf,
    /// A root file system whose folders are shown instead of those of the machine.
    pub tool_root: Option<PathBuf>,
    /// The folders (and files) that every command sees, read-only. Those that do not exist are left out.
    pub shown: Vec<PathBuf>,
    /// Whom actions run as, outside, when the worker is root; otherwise they run as the worker's user.
    pub action_user: ActionUser,
    /// Whether memory may be bounded by control groups.
    pub use_cgroups: bool,
    /// What all runs together may have of it, where control groups bound it.
    pub memory_bytes: u64,
    /// The program whose `main` calls [`super::run_if_launcher`] first: this one, unless told.
    pub program: PathBuf,
}

/// A user and a group, outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ActionUser {
    /// The user.
    pub uid: u32,
    /// The group.
    pub gid: u32,
}

impl SandboxConfig {
    /// Everything but the folder as most machines want it.
    #[must_use]
    pub fn new(folder: PathBuf) -> Self {
        let shown = ["/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32", "/usr", "/etc", "/opt"];
        Self {
            folder,
            tool_root: None,
            shown: shown.map(PathBuf::from).to_vec(),
            action_user: ActionUser { uid: ACTION_USER, gid: ACTION_USER },
            use_cgroups: true,
            memory_bytes: machine_memory_bytes(),
            program: PathBuf::from("/proc/self/exe"),
        }
    }

    pub(super) fn to_wire(&self) -> wire::Setup {
        let bytes = |path: &PathBuf| path.as_os_str().as_bytes().to_vec();
        wire::Setup {
            folder: bytes(&self.folder),
            tool_root: self.tool_root.as_ref().map(bytes),
            shown: self.shown.iter().map(bytes).collect(),
            action_uid: self.action_user.uid,
            action_gid: self.action_user.gid,
            use_cgroups: self.use_cgroups,
            memory_bytes: self.memory_bytes,
        }
    }
}

/// The memory of this machine, or of the container or unit that this process is confined to.
#[must_use]
pub fn machine_memory_bytes() -> u64 {
    let info = rustix::system::sysinfo();
    let all = info.totalram.saturating_mul(u64::from(info.mem_unit.max(1)));
    let confined = cgroup::Place::find().ok().and_then(|place| place.memory_limit_bytes());
    confined.map_or(all, |limit| limit.min(all))
}
