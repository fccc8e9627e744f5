//! On trees of files that look like groups; and, where version 2 is mounted, on real groups with whatever controller it
//! has, since the one for memory may belong to version 1 there.

use super::*;
use std::process::{Child, Command};

/// A tree of files: groups by path, with their processes.
struct Tree(tempfile::TempDir);

impl Tree {
    fn new(groups: &[(&str, &str)]) -> Self {
        let tree = Self(tempfile::tempdir().unwrap());
        for (group, processes) in groups {
            let path = tree.path(group);
            fs::create_dir_all(&path).unwrap();
            for (file, text) in
                [("cgroup.procs", *processes), ("cgroup.controllers", "cpu memory\n"), ("cgroup.subtree_control", "")]
            {
                fs::write(path.join(file), text).unwrap();
            }
            fs::write(path.join("cgroup.type"), "domain\n").unwrap();
        }
        tree
    }

    fn path(&self, group: &str) -> PathBuf {
        self.0.path().join(group)
    }

    fn read(&self, file: &str) -> String {
        fs::read_to_string(self.path(file)).unwrap()
    }

    fn find(&self, own: &str, marked: &[&str]) -> Result<PathBuf, String> {
        let marked: Vec<_> = marked.iter().map(|group| self.path(group)).collect();
        find(self.0.path(), &self.path(own), |group| marked.contains(&group.to_path_buf()))
    }
}

#[test]
fn only_what_was_given_away_is_divided() {
    let tree =
        Tree::new(&[("", ""), ("system.slice/gf.service/worker", ""), ("system.slice/gf.service/gf-processes", "")]);
    let unit = "system.slice/gf.service";
    assert_eq!(tree.find(unit, &[unit]), Ok(tree.path(unit)), "Delegate=memory");
    let below = |name: &str| format!("{unit}/{name}");
    assert_eq!(tree.find(&below("worker"), &[unit]), Ok(tree.path(unit)), "DelegateSubgroup=worker");
    assert_eq!(tree.find(&below("gf-processes"), &[unit]), Ok(tree.path(unit)), "moved by another worker");
    assert_eq!(tree.find("", &[]), Ok(tree.path("")), "a container sees its own group as the root");
    assert_eq!(tree.find("gf-processes", &[]), Ok(tree.path("")), "a container, the second time");
    for (own, marked) in [(unit, &[][..]), ("system.slice", &[]), (&*below("worker"), &["system.slice"])] {
        assert!(tree.find(own, marked).unwrap_err().contains(own), "{own} is managed by somebody else");
    }
}

#[test]
fn a_group_without_the_controller_says_so() {
    let tree = Tree::new(&[("", "")]);
    assert!(hand_down(&tree.path(""), "memory").is_ok());
    assert_eq!(tree.read("cgroup.subtree_control"), "+memory");
    assert!(hand_down(&tree.path(""), "hugetlb").unwrap_err().contains("no hugetlb controller"));
}

#[test]
fn a_group_that_does_not_become_empty_is_given_up() {
    // In a file, processes stay where they are.
    let tree = Tree::new(&[("unit", "10\n"), ("unit/gf-processes", "")]);
    let error = divide(tree.0.path(), &tree.path("unit"), MEMORY, |_| true).unwrap_err();
    assert!(error.contains("cannot be moved"), "{error}");
    assert!(tree.read("unit/gf-processes/cgroup.procs").starts_with("10"), "they were told to go");
    assert_eq!(tree.read("unit/cgroup.subtree_control"), "", "which the kernel would refuse");
}

/// A group of the kernel with a process in it.
struct Real {
    group: PathBuf,
    child: Child,
    /// What the root of the machine is told in the end, if it was changed for this.
    undo: Option<(PathBuf, String)>,
}

impl Real {
    /// None, where there is no version 2, no controller in it, or no right to use them.
    fn make() -> Option<(Self, String)> {
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
        let mount = mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>()).find(|line| line[2] == "cgroup2")?;
        let mount = PathBuf::from(mount[1]);
        let controllers = fs::read_to_string(mount.join("cgroup.controllers")).ok()?;
        let controller = controllers.split_ascii_whitespace().last()?.to_owned();
        let control = mount.join("cgroup.subtree_control");
        let before = fs::read_to_string(&control).ok()?;
        if !is_root_of_machine(&mount) || hand_down(&mount, &controller).is_err() {
            return None;
        }
        let had_it = before.split_ascii_whitespace().any(|name| name == controller);
        let undo = (!had_it).then(|| (control, format!("-{controller}")));
        let group = mount.join(format!("gf-test-{}", std::process::id()));
        fs::create_dir(&group).ok()?;
        let child = Command::new("sleep").arg("1000").spawn().unwrap();
        let real = Self { group, child, undo };
        write(&real.group.join("cgroup.procs"), &real.child.id().to_string()).unwrap();
        Some((real, controller))
    }
}

impl Drop for Real {
    fn drop(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        for group in [self.group.join("run"), self.group.join(PROCESSES), self.group.clone()] {
            let _ = fs::remove_dir(group);
        }
        if let Some((control, text)) = &self.undo {
            // Another worker may use it by now.
            let _ = write(control, text);
        }
    }
}

#[test]
fn the_kernel_takes_what_is_done_to_a_group_with_processes() {
    let Some((real, controller)) = Real::make() else {
        eprintln!("skipped: no control groups of version 2 with a controller to use here");
        return;
    };
    let group = &real.group;
    assert!(hand_down(group, &controller).is_err(), "there is a process in it");
    assert_eq!(divide(group, group, &controller, |_| false), Ok(group.clone()), "as seen in a container");
    assert_eq!(fs::read_to_string(group.join("cgroup.procs")).unwrap(), "");
    let moved = fs::read_to_string(group.join(PROCESSES).join("cgroup.procs")).unwrap();
    assert_eq!(moved.trim(), real.child.id().to_string());
    fs::create_dir(group.join("run")).unwrap();
    let usable = fs::read_to_string(group.join("run/cgroup.controllers")).unwrap();
    assert!(usable.split_ascii_whitespace().any(|name| name == controller), "{usable}");
    // The next worker finds it divided.
    assert_eq!(divide(group, &group.join(PROCESSES), &controller, |_| false), Ok(group.clone()));
}
