//! What hostile actions do to the folder of a run, and that the next one sees nothing of it.

use std::os::fd::AsFd;
use std::os::unix::fs::symlink;

use rustix::fs::XattrFlags;

use super::*;

struct Case {
    _dir: tempfile::TempDir,
    folders: RunFolders,
}

impl Case {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let trash = Arc::new(Trash::open(dir.path().join("trash")).unwrap());
        let folders = RunFolders::open(dir.path().join("runs"), None, trash).unwrap();
        Self { _dir: dir, folders }
    }

    fn take(&self) -> RunFolder {
        self.folders.take_kept().unwrap_or_else(|| self.folders.make().unwrap())
    }

    /// Whether the next run gets the same folder after one that did this to it.
    fn is_kept_after(&self, did: impl FnOnce(&RunFolder)) -> bool {
        let folder = self.take();
        let path = folder.path.clone();
        did(&folder);
        self.folders.give_back(folder).unwrap();
        let next = self.take();
        check_new(&next);
        let is_kept = next.path == path;
        assert_eq!(path.exists(), is_kept, "what is not kept is removed");
        self.folders.give_back(next).unwrap();
        is_kept
    }
}

/// What every run must find.
fn check_new(folder: &RunFolder) {
    let times: Vec<_> =
        folder.pieces.iter().map(|piece| Look::of(&File::open(&piece.path).unwrap()).unwrap().times).collect();
    assert_eq!(times, folder.pieces.iter().map(|piece| piece.new.times).collect::<Vec<_>>());
    let names = |path: &Path| {
        let mut names: Vec<_> = fs::read_dir(path).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        names
    };
    assert_eq!(names(&folder.path), ["root", "scratch", "stderr", "stdout"]);
    assert_eq!(names(&folder.scratch()), ["shm", "tmp"]);
    for (path, mode) in [(folder.root(), 0o755), (tmp(folder), 0o1777), (folder.scratch().join("shm"), 0o1777)] {
        assert!(names(&path).is_empty(), "{}", path.display());
        assert_eq!(fs::metadata(path).unwrap().mode() & 0o7777, mode);
    }
    for log in [folder.stdout(), folder.stderr()] {
        let found = fs::metadata(&log).unwrap();
        assert_eq!((found.len(), found.blocks(), found.nlink(), found.mode() & 0o7777), (0, 0, 1, 0o644));
    }
    for piece in &folder.pieces {
        // This test has looked into them itself by now.
        let look = Look { times: piece.new.times, ..Look::of(&File::open(&piece.path).unwrap()).unwrap() };
        assert_eq!(look, piece.new, "{}", piece.path.display());
    }
}

fn tmp(folder: &RunFolder) -> PathBuf {
    folder.scratch().join("tmp")
}

#[test]
fn one_that_was_only_filled_is_kept() {
    let case = Case::new();
    assert!(case.is_kept_after(|_| ()));
    assert!(case.is_kept_after(|folder| {
        fs::create_dir_all(folder.root().join("a/b")).unwrap();
        fs::write(folder.root().join("a/b/file"), "output").unwrap();
        symlink("/etc/passwd", tmp(folder).join("link")).unwrap();
        fs::write(folder.stdout(), "said").unwrap();
        fs::write(folder.stderr(), vec![b'x'; 100_000]).unwrap();
        fs::create_dir(folder.scratch().join("upper")).unwrap();
        fs::create_dir(folder.path().join("layer")).unwrap();
    }));
}

#[test]
fn nobody_learns_when_one_was_last_looked_into() {
    let case = Case::new();
    let mut seen = false;
    assert!(case.is_kept_after(|folder| {
        let before = Look::of(&File::open(tmp(folder)).unwrap()).unwrap().times;
        fs::write(folder.stdout(), "said").unwrap();
        fs::read(folder.stdout()).unwrap();
        assert_eq!(fs::read_dir(tmp(folder)).unwrap().count(), 0);
        seen = Look::of(&File::open(tmp(folder)).unwrap()).unwrap().times != before;
    }));
    if !seen {
        eprintln!("skipped: this file system does not note when a folder was looked into");
    }
}

#[test]
fn one_that_was_changed_itself_is_not() {
    let case = Case::new();
    let chmod = |path: PathBuf, mode| fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
    assert!(!case.is_kept_after(|folder| chmod(tmp(folder), 0o777)));
    assert!(!case.is_kept_after(|folder| chmod(folder.root(), 0o000)));
    assert!(!case.is_kept_after(|folder| chmod(folder.stdout(), 0o4755)));
    assert!(!case.is_kept_after(|folder| fs::hard_link(folder.stdout(), folder.path().join("../kept")).unwrap()));
    // So many names that the folder itself grew.
    assert!(!case.is_kept_after(|folder| {
        for number in 0..300 {
            fs::write(tmp(folder).join(format!("{number:0>200}")), "").unwrap();
        }
    }));
}

#[test]
fn one_with_other_attributes_is_not() {
    let case = Case::new();
    let attribute = |path: PathBuf, name: &str, value: &[u8]| {
        let set = rustix::fs::setxattr(&path, name, value, XattrFlags::empty());
        set.inspect_err(|error| eprintln!("skipped: {name} cannot be set here: {error}")).is_ok()
    };
    let mut could = false;
    let kept = case.is_kept_after(|folder| could = attribute(folder.root(), "user.note", b"to the next"));
    assert_ne!(kept, could);
    let kept = case.is_kept_after(|folder| could = attribute(folder.stderr(), "user.note", b"to the next"));
    assert_ne!(kept, could);
    // For everybody who is named in it, everything in files to come.
    let list = [&[2, 0, 0, 0][..], &[1, 0, 7, 0, 255, 255, 255, 255], &[2, 0, 7, 0, 1, 0, 0, 0]];
    let rest =
        [&[4, 0, 5, 0, 255, 255, 255, 255][..], &[16, 0, 7, 0, 255, 255, 255, 255], &[32, 0, 5, 0, 255, 255, 255, 255]];
    let list = [list.concat(), rest.concat()].concat();
    let kept = case.is_kept_after(|folder| could = attribute(tmp(folder), "system.posix_acl_default", &list));
    assert_ne!(kept, could);
}

#[test]
fn one_with_other_flags_is_not() {
    let case = Case::new();
    let mut could = false;
    let kept = case.is_kept_after(|folder| {
        let folder = File::open(folder.root()).unwrap();
        let flagged = rustix::fs::ioctl_getflags(folder.as_fd())
            .and_then(|flags| rustix::fs::ioctl_setflags(folder.as_fd(), flags | IFlags::NODUMP));
        could = flagged.inspect_err(|error| eprintln!("skipped: no flags here: {error}")).is_ok();
    });
    assert_ne!(kept, could);
}

#[test]
fn room_that_was_set_aside_is_not_handed_on() {
    let case = Case::new();
    let mut could = false;
    let kept = case.is_kept_after(|folder| {
        let log = OpenOptions::new().write(true).open(folder.stdout()).unwrap();
        let flags = rustix::fs::FallocateFlags::KEEP_SIZE;
        let set_aside = rustix::fs::fallocate(&log, flags, 0, 1 << 20);
        could = set_aside.inspect_err(|error| eprintln!("skipped: no room can be set aside: {error}")).is_ok();
    });
    assert_ne!(kept, could);
}

#[test]
fn two_runs_at_once_have_two_folders() {
    let case = Case::new();
    let (one, two) = (case.take(), case.take());
    assert_ne!(one.path, two.path);
    case.folders.remove(&one).unwrap();
    assert!(!one.path.exists());
    case.folders.give_back(two).unwrap();
}
