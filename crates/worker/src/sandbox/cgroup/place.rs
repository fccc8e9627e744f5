//! Where among the control groups this process is, and how much memory the groups around it leave to it.

use std::fs;
use std::path::{Path, PathBuf};

use super::Version;

const ROOT: &str = "/sys/fs/cgroup";

/// The group of this process, of the interface that can bound memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::sandbox) struct Place {
    /// Where the groups are mounted.
    pub(super) mount: PathBuf,
    /// The folder of the group.
    pub(super) path: PathBuf,
    pub(super) version: Version,
}

impl Place {
    /// Asks the kernel. An error says what is missing.
    pub(in crate::sandbox) fn find() -> Result<Self, String> {
        let groups = fs::read_to_string("/proc/self/cgroup").map_err(|error| format!("/proc/self/cgroup: {error}"))?;
        let mounts = fs::read_to_string("/proc/self/mounts").map_err(|error| format!("/proc/self/mounts: {error}"))?;
        let (mount, group, version) =
            find_group(&groups, &mounts).ok_or_else(|| format!("no memory controller is mounted below {ROOT}"))?;
        // In a container the path is often that of the host while the mount begins at our own group.
        let path = mount.join(group.trim_start_matches('/'));
        let path = if path.is_dir() { path } else { mount.clone() };
        Ok(Self { mount, path, version })
    }

    /// The least that this group and those around it may have, if any has a bound.
    pub(in crate::sandbox) fn memory_limit_bytes(&self) -> Option<u64> {
        let around = self.path.ancestors().take_while(|group| group.starts_with(&self.mount));
        around.filter_map(|group| self.limit_of(group)).min()
    }

    fn limit_of(&self, group: &Path) -> Option<u64> {
        // Version 2 says "max" where there is none, which is no number.
        fs::read_to_string(group.join(self.version.limit_file())).ok()?.trim().parse().ok()
    }
}

fn find_group<'a>(groups: &'a str, mounts: &str) -> Option<(PathBuf, &'a str, Version)> {
    let of = |wanted: &str| {
        groups.lines().find_map(|line| {
            let mut fields = line.splitn(3, ':').skip(1);
            let controllers = fields.next()?;
            controllers.split(',').any(|controller| controller == wanted).then(|| fields.next())?
        })
    };
    let mounted = |kind: &str, option: Option<&str>| {
        mounts.lines().find_map(|line| {
            let mut fields = line.split(' ').skip(1);
            let (path, found, options) = (fields.next()?, fields.next()?, fields.next()?);
            let wanted = found == kind && option.is_none_or(|option| options.split(',').any(|each| each == option));
            wanted.then(|| PathBuf::from(path))
        })
    };
    if let (Some(group), Some(mount)) = (of("memory"), mounted("cgroup", Some("memory"))) {
        return Some((mount, group, Version::V1));
    }
    Some((mounted("cgroup2", None)?, of("")?, Version::V2))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_group_is_found_in_either_version() {
        let v1 = find_group("5:pids:/\n4:memory:/a/b\n0::/", "cgroup /sys/fs/cgroup/memory cgroup rw,memory 0 0\n");
        assert_eq!(v1, Some((PathBuf::from("/sys/fs/cgroup/memory"), "/a/b", Version::V1)));
        let v2 = find_group("0::/user.slice/x", "cgroup2 /sys/fs/cgroup cgroup2 rw,nosuid 0 0\n");
        assert_eq!(v2, Some((PathBuf::from("/sys/fs/cgroup"), "/user.slice/x", Version::V2)));
        assert_eq!(find_group("0::/", "tmpfs /tmp tmpfs rw 0 0\n"), None);
    }

    #[test]
    fn the_narrowest_group_around_bounds_the_memory() {
        let folder = tempfile::tempdir().unwrap();
        let mount = folder.path().to_path_buf();
        let path = mount.join("slice/unit");
        fs::create_dir_all(&path).unwrap();
        for (version, file, none) in
            [(Version::V1, "memory.limit_in_bytes", "9223372036854771712\n"), (Version::V2, "memory.max", "max\n")]
        {
            let place = Place { mount: mount.clone(), path: path.clone(), version };
            assert_eq!(place.memory_limit_bytes(), None, "nothing is said");
            fs::write(path.join(file), none).unwrap();
            assert!(place.memory_limit_bytes().is_none_or(|bytes| bytes > 1 << 60));
            fs::write(mount.join("slice").join(file), "3000\n").unwrap();
            assert_eq!(place.memory_limit_bytes(), Some(3000), "that of the slice");
            fs::write(path.join(file), "2000\n").unwrap();
            assert_eq!(place.memory_limit_bytes(), Some(2000), "its own");
        }
    }
}
