//! Commands that want too much: each is ended, and the limit is named.

use std::time::{Duration, Instant};

use gf_testkit::skip;
use gf_worker::sandbox::Limit;
use rustix::mount::{MountFlags, UnmountFlags};

use super::support::{Bench, processes_with};

#[tokio::test]
async fn time_ends_even_who_does_not_listen() {
    let bench = Bench::new().await;
    let mut run = bench.script("deaf", "trap '' TERM INT HUP; echo begun; while :; do sleep 1000; done");
    run.limits.timeout = Duration::from_secs(3);
    let began = Instant::now();
    let said = bench.run(run).await;
    assert_eq!(said.ran.ended_by, Some(Limit::Time));
    assert_eq!(said.stdout, "begun\n");
    assert!(began.elapsed() < Duration::from_secs(300));
}

#[tokio::test]
async fn a_command_out_of_time_may_still_say_so() {
    let bench = Bench::new().await;
    let mut run = bench.script("polite", "trap 'echo late; exit 7' TERM; echo begun; sleep 1000 & wait");
    run.limits.timeout = Duration::from_secs(3);
    let said = bench.run(run).await;
    assert_eq!((said.ran.ended_by, said.ran.exit_code), (Some(Limit::Time), 7));
    assert_eq!(said.stdout, "begun\nlate\n");
}

#[tokio::test]
async fn a_flood_of_words_ends_it() {
    let bench = Bench::new().await;
    for (name, script) in [("stdout", "yes"), ("stderr", "yes >&2")] {
        let said = bench.run(bench.script(name, script)).await;
        assert_eq!(said.ran.ended_by, Some(Limit::Log), "{name}: {:?}", said.ran);
        assert!(said.stdout.len() <= 1 << 20 && said.stderr.len() <= 1 << 20);
    }
}

#[tokio::test]
async fn a_full_disk_ends_it() {
    let bench = Bench::new().await;
    let many = "i=0; while :; do i=$((i+1)); head -c 1000000 /dev/zero >file.$i; done";
    for (name, script) in [
        ("one-file", "cat /dev/zero >big".to_owned()),
        ("temporary", format!("cd /tmp; {many}")),
        ("shared-memory", format!("cd /dev/shm; {many}")),
        ("inputs", many.to_owned()),
        ("shut", format!("mkdir /tmp/a; cd /tmp/a; chmod 300 .; {many}")),
        (
            "unlinked",
            "exec 3>/tmp/3 4>/tmp/4 5>/tmp/5 6>/tmp/6; rm /tmp/*; \
                      for i in 3 4 5 6; do head -c 30000000 /dev/zero >&$i; done; sleep 30"
                .to_owned(),
        ),
    ] {
        let said = bench.run(bench.script(name, &script)).await;
        assert_eq!(said.ran.ended_by, Some(Limit::Disk), "{name}: {:?}", said.ran);
    }
}

#[tokio::test]
async fn too_many_files_end_it() {
    let bench = Bench::new().await;
    let endless = |make: &str| format!("i=0; while :; do i=$((i+1)); {make}; done");
    for (name, script) in
        [("files", endless(": >file.$i")), ("temporary", format!("cd /tmp; {}", endless(": >file.$i")))]
    {
        let mut run = bench.script(name, &script);
        run.limits.files = 500;
        let said = bench.run(run).await;
        assert_eq!(said.ran.ended_by, Some(Limit::Files), "{name}: {said:?}");
    }
    let mut run = bench.script("few", "for i in 1 2 3 4 5 6 7 8 9; do mkdir $i; : >$i/file; done; sleep 0.5");
    run.limits.files = 500;
    bench.run(run).await.ok();
}

#[tokio::test]
async fn who_fills_the_disk_of_the_machine_is_ended_before_it_is_full() {
    let Some(disk) = SmallDisk::mount() else {
        skip("this user may not mount a small file system to fill");
        return;
    };
    let bench = Bench::new_in(disk.folder.path()).await;
    disk.fill();
    let bytes = "for i in $(seq 1000); do head -c 100000 /dev/zero >$i; sleep 0.02; done";
    let inodes = "for i in $(seq 10000); do : >$i; test $((i % 10)) != 0 || sleep 0.01; done";
    for (name, script) in [("bytes", bytes), ("inodes", inodes)] {
        let mut run = bench.script(name, script);
        (run.limits.disk_bytes, run.limits.files) = (1 << 30, 1 << 30);
        let small = bench.script(&format!("beside-{name}"), "echo small >small; sleep 1; cat small");
        let (said, small) = tokio::join!(bench.run(run), bench.run(small));
        assert_eq!(said.ran.ended_by, Some(Limit::FullDisk), "{name}: {said:?}");
        assert_eq!(small.ok(), "small\n", "who wrote little goes on");
        gf_worker::sandbox::remove_scratch(&bench.folder.path().join(name)).unwrap();
    }
}

/// Writes to files that have no name and that nothing has open, in ways that cannot be measured from outside.
const HIDING: &str = r#"
import mmap, os, socket, sys, time
kept = []
for n in range(1000):
    fd = os.open(f"/tmp/{n}", os.O_RDWR | os.O_CREAT)
    os.unlink(f"/tmp/{n}")
    os.write(fd, b"x" * 100000)
    if sys.argv[1] == "mapped":
        kept.append(mmap.mmap(fd, 4096))
        # Python keeps a descriptor of its own.
        os.closerange(3, 1000)
    else:
        pair = socket.socketpair()
        socket.send_fds(pair[0], [b"x"], [fd])
        kept.append(pair)
        os.close(fd)
    time.sleep(0.02)
"#;

#[tokio::test]
async fn who_hides_what_it_writes_is_ended_before_the_disk_is_full() {
    let Some(disk) = SmallDisk::mount() else {
        skip("this user may not mount a small file system to fill");
        return;
    };
    let bench = Bench::new_in(disk.folder.path()).await;
    disk.fill();
    for way in ["mapped", "under-way"] {
        let mut run = bench.command(way, &["python3", "-c", HIDING, way]);
        run.limits.disk_bytes = 1 << 30;
        let small = bench.script(&format!("beside-{way}"), "echo small >small; sleep 1; cat small");
        let (said, small) = tokio::join!(bench.run(run), bench.run(small));
        assert_eq!(said.ran.ended_by, Some(Limit::FullDisk), "{way}: {said:?}");
        assert_eq!(small.ok(), "small\n", "who hides nothing goes on");
        gf_worker::sandbox::remove_scratch(&bench.folder.path().join(way)).unwrap();
    }
}

#[tokio::test]
async fn files_that_only_a_thread_has_open_count() {
    let bench = Bench::new().await;
    let hide = "import ctypes, os, threading, time\n\
                def hide():\n libc = ctypes.CDLL(None)\n assert libc.unshare(0x400) == 0\n\
                \x20for n in range(9):\n  fd = os.open(f'/tmp/{n}', os.O_WRONLY | os.O_CREAT)\n\
                \x20 os.unlink(f'/tmp/{n}')\n  os.write(fd, b'x' * 20000000)\n time.sleep(60)\n\
                threading.Thread(target=hide).start()";
    let said = bench.run(bench.command("thread", &["python3", "-c", hide])).await;
    assert_eq!(said.ran.ended_by, Some(Limit::Disk), "{said:?}");
}

/// A file system with little room.
struct SmallDisk {
    folder: tempfile::TempDir,
}

impl SmallDisk {
    const OPTIONS: &str = "size=64m,nr_inodes=20000";
    /// What is left once it is filled: the last fiftieth of both is what actions must not take.
    const LEFT_BYTES: u64 = 8 << 20;
    const LEFT_FILES: u64 = 1500;

    fn mount() -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        let options = std::ffi::CString::new(Self::OPTIONS).unwrap();
        match rustix::mount::mount("none", folder.path(), "tmpfs", MountFlags::empty(), options.as_c_str()) {
            Ok(()) => Some(Self { folder }),
            Err(rustix::io::Errno::PERM) => None,
            Err(error) => panic!("{error}"),
        }
    }

    fn fill(&self) {
        let free = rustix::fs::statvfs(self.folder.path()).unwrap();
        let full = self.folder.path().join("full");
        std::fs::create_dir(&full).unwrap();
        let bytes = free.f_bavail * free.f_frsize - Self::LEFT_BYTES;
        std::fs::write(full.join("bytes"), vec![0; usize::try_from(bytes).unwrap()]).unwrap();
        (Self::LEFT_FILES..free.f_favail).for_each(|n| std::fs::write(full.join(n.to_string()), "").unwrap());
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // A launcher that has not ended yet sees it still.
        rustix::mount::unmount(self.folder.path(), UnmountFlags::DETACH).unwrap();
    }
}

#[tokio::test]
async fn ten_gigabytes_in_one_file_are_not_written() {
    let bench = Bench::new().await;
    // Sparse, so that nothing is harmed should it work.
    let said = bench.run(bench.script("sparse", "exec truncate -s 10G big")).await;
    assert_ne!(said.ran.exit_code, 0, "{said:?}");
    assert_eq!(said.ran.ended_by, Some(Limit::Disk));
}

#[tokio::test]
async fn too_much_memory_ends_it() {
    let bench = Bench::new().await;
    let hog = "import time\nx = []\nwhile True:\n x.append(b'x' * 10000000)\n time.sleep(0.001)";
    let mut run = bench.command("hog", &["python3", "-c", hog]);
    run.limits.memory_bytes = 128 << 20;
    let said = bench.run(run).await;
    assert_eq!(said.ran.ended_by, Some(Limit::Memory), "{said:?}");
    // A shell that goes on after the kernel ended its child.
    let mut run =
        bench.script("hog-in-shell", "python3 -c \"x = b'x' * 1000000000; import time; time.sleep(9)\"; true");
    run.limits.memory_bytes = 128 << 20;
    assert_eq!(bench.run(run).await.ran.ended_by, Some(Limit::Memory));
}

#[tokio::test]
async fn memory_of_many_processes_is_counted_together() {
    let bench = Bench::new().await;
    if bench.report.cgroup_version.is_none() {
        skip(format_args!("no control groups here: {:?}", bench.report.limitations));
        return;
    }
    let script = "for i in 1 2 3 4; do python3 -c \"x = b'x' * 50000000; import time; time.sleep(9)\" & done; wait";
    let mut run = bench.script("hogs", script);
    run.limits.memory_bytes = 128 << 20;
    assert_eq!(bench.run(run).await.ran.ended_by, Some(Limit::Memory));
}

#[tokio::test]
async fn a_run_is_not_charged_for_those_before_it() {
    let bench = Bench::new().await;
    if bench.report.cgroup_version.is_none() {
        skip(format_args!("no control groups here: {:?}", bench.report.limitations));
        return;
    }
    let hog = "x = b'x' * 200000000; open('/tmp/file', 'wb').write(x[:20000000])";
    for round in 0..3 {
        let large = bench.run(bench.command(&format!("large-{round}"), &["python3", "-c", hog])).await;
        assert!(large.ran.usage.peak_memory_bytes > 200_000_000, "{large:?}");
        for name in ["small", "again"] {
            let small = bench.run(bench.command(&format!("{name}-{round}"), &["/bin/true"])).await;
            assert!(small.ran.usage.peak_memory_bytes < 64 << 20, "{small:?}");
        }
        let mut run = bench.command(&format!("limited-{round}"), &["python3", "-c", hog]);
        run.limits.memory_bytes = 128 << 20;
        assert_eq!(bench.run(run).await.ran.ended_by, Some(Limit::Memory));
    }
}

#[tokio::test]
async fn a_fork_bomb_is_contained() {
    let bench = Bench::new().await;
    // It does not give up, and the shell that lights it counts what it sees, which takes no process and comes first.
    let bomb = "nice -n 19 python3 -c 'import os\nwhile True:\n try: os.fork()\n except OSError: pass' & \
                most=0; while :; do set -- /proc/[0-9]*; test $# -le $most || { most=$#; echo $most; }; done";
    let mut run = bench.script("bomb", bomb);
    run.limits.processes = 30;
    // The others go on meanwhile.
    let (bomb, other) = tokio::join!(bench.run(run), bench.run(bench.script("other", "sleep 0.2; echo fine")));
    assert_eq!(other.ok(), "fine\n");
    assert_eq!(bomb.ran.ended_by, Some(Limit::Processes), "{bomb:?}");
    let most = bomb.stdout.lines().filter_map(|line| line.parse::<u32>().ok()).max().unwrap();
    // The one too many, and the first process of the sandbox. How many it saw is up to its turns.
    assert!((1..=32).contains(&most), "{most} processes at one time");
}

#[tokio::test]
async fn threads_count_as_processes() {
    let bench = Bench::new().await;
    let threads = "import threading, time\n\
                   def many():\n while True: threading.Thread(target=time.sleep, args=(60,), daemon=True).start()\n\
                   try: many()\nexcept RuntimeError: time.sleep(60)";
    let mut run = bench.command("threads", &["python3", "-c", threads]);
    run.limits.processes = 30;
    let said = bench.run(run).await;
    assert_eq!(said.ran.ended_by, Some(Limit::Processes), "{said:?}");
}

#[tokio::test]
async fn as_many_processes_as_allowed_may_run() {
    let bench = Bench::new().await;
    // The shell and nine others.
    let mut run = bench.script("ten", "for i in 1 2 3 4 5 6 7 8 9; do sleep 0.5 & done; wait; echo done");
    run.limits.processes = 10;
    assert_eq!(bench.run(run).await.ok(), "done\n");
}

#[tokio::test]
async fn what_was_left_running_is_gone() {
    let bench = Bench::new().await;
    let mark = format!("31.{:06}", std::process::id());
    let script = format!("(trap '' HUP TERM; setsid sleep {mark} </dev/null >/dev/null 2>&1 &); echo left");
    assert_eq!(bench.sh("daemon", &script).await, "left\n");
    assert_eq!(processes_with(&mark), 0);
}
