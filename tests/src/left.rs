//! What is left of a server, its workers and their actions.

use std::{fs, path::Path};

/// The processes that have to do with `folder`: its name is in their command line, or they see a mount of it or of what is
/// below it. The latter finds what runs in a sandbox, which has another command line and a mount namespace of its own.
pub fn processes_of(folder: &Path) -> Vec<String> {
    let folder = folder.display().to_string();
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten().filter_map(|entry| {
        let read = |name: &str| fs::read_to_string(entry.path().join(name)).unwrap_or_default();
        let command = read("cmdline").replace('\0', " ");
        let is_of_it = command.contains(&folder) || read("mountinfo").contains(&folder);
        is_of_it.then(|| format!("{} {command}", entry.file_name().display()))
    });
    processes.collect()
}
