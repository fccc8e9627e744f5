//! What a command that stays has used so far, seen from outside while it runs.
//!
//! Deliberately absent: precision. Time is counted in ticks of the kernel, a hundredth of a second on most machines;
//! memory is that of the largest process; what cannot be read, as another user's transfers, counts as nothing. What a
//! process that ended used is counted once somebody in the sandbox has waited for it.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use super::Usage;

/// Processes beyond these are not looked at.
const MOST_PROCESSES: usize = 4096;
/// Of the fields of `/proc/PID/stat` behind the name: the first of user, system, and both of the children waited for.
const TIMES_AT: usize = 11;

/// Reads what the processes of one sandbox have used.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Meter {
    /// The first process of the sandbox, which is ours and counts only for those that it has waited for.
    first: u32,
}

impl Meter {
    pub(super) const fn of(first: u32) -> Self {
        Self { first }
    }

    /// What they have used since they began. Reads files; not to be called where others talk.
    pub(crate) fn read(self) -> Usage {
        let mut all = Usage { peak_memory_is_of_largest_process: true, ..Usage::default() };
        if let Some([_, _, user, system]) = times(self.first) {
            (all.user_time, all.system_time) = (user, system);
        }
        for process in descendants(self.first) {
            if let Some([user, system, of_children, in_kernel_of_children]) = times(process) {
                all.user_time += user + of_children;
                all.system_time += system + in_kernel_of_children;
            }
            let file = |name: &str| fs::read_to_string(folder(process).join(name)).unwrap_or_default();
            let peak = number_behind(&file("status"), "VmHWM:").saturating_mul(1024);
            all.peak_memory_bytes = all.peak_memory_bytes.max(peak);
            let transfers = file("io");
            all.read_bytes = all.read_bytes.saturating_add(number_behind(&transfers, "read_bytes:"));
            all.written_bytes = all.written_bytes.saturating_add(number_behind(&transfers, "write_bytes:"));
        }
        all
    }
}

impl Usage {
    /// What was used since; memory is not used up, so its peak stays.
    pub(crate) fn since(self, earlier: &Self) -> Self {
        Self {
            user_time: self.user_time.saturating_sub(earlier.user_time),
            system_time: self.system_time.saturating_sub(earlier.system_time),
            read_bytes: self.read_bytes.saturating_sub(earlier.read_bytes),
            written_bytes: self.written_bytes.saturating_sub(earlier.written_bytes),
            ..self
        }
    }
}

fn folder(process: u32) -> PathBuf {
    PathBuf::from(format!("/proc/{process}"))
}

/// All processes below this one.
fn descendants(first: u32) -> BTreeSet<u32> {
    let mut found = BTreeSet::new();
    let mut parents = vec![first];
    while let Some(parent) = parents.pop() {
        let threads = fs::read_dir(folder(parent).join("task")).into_iter().flatten().flatten();
        let children = threads.filter_map(|thread| fs::read_to_string(thread.path().join("children")).ok());
        for child in children.flat_map(|text| text.split_ascii_whitespace().map(str::to_owned).collect::<Vec<_>>()) {
            if let Ok(child) = child.parse()
                && found.len() < MOST_PROCESSES
                && found.insert(child)
            {
                parents.push(child);
            }
        }
    }
    found
}

fn times(process: u32) -> Option<[Duration; 4]> {
    let stat = fs::read_to_string(folder(process).join("stat")).ok()?;
    // The name may hold anything.
    let (_, fields) = stat.rsplit_once(") ")?;
    let mut times = fields.split(' ').skip(TIMES_AT).map_while(|field| field.parse::<u64>().ok()).map(ticks);
    Some([times.next()?, times.next()?, times.next()?, times.next()?])
}

fn ticks(number: u64) -> Duration {
    let a_second = rustix::param::clock_ticks_per_second().max(1);
    Duration::from_micros(number.saturating_mul(1_000_000) / a_second)
}

fn number_behind(text: &str, name: &str) -> u64 {
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    line.and_then(|line| line.split_ascii_whitespace().next()?.parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_children_used_is_read() {
        let busy = "i=0; while [ $i -lt 300000 ]; do i=$((i+1)); done; echo done; read line";
        let mut child = std::process::Command::new("sh")
            .args(["-c", busy])
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut [0; 5]).unwrap();
        // This test is the parent, whose other children, if any, only add to it.
        let used = Meter::of(std::process::id()).read();
        assert!(used.user_time + used.system_time > Duration::ZERO && used.peak_memory_bytes > 100 << 10, "{used:?}");
        let after = Usage { user_time: used.user_time + Duration::from_secs(1), ..used };
        let since = after.since(&used);
        assert_eq!((since.user_time, since.system_time), (Duration::from_secs(1), Duration::ZERO));
        assert_eq!(since.peak_memory_bytes, used.peak_memory_bytes);
        drop(child.stdin.take());
        child.wait().unwrap();
    }

    #[test]
    fn who_is_gone_has_used_nothing() {
        assert_eq!(Meter::of(u32::MAX).read().user_time, Duration::ZERO);
        assert_eq!(number_behind("VmPeak: 7 kB\nVmHWM:\t  12 kB\n", "VmHWM:"), 12);
        assert_eq!(number_behind("VmHWM: x", "VmHWM:"), 0);
    }
}
