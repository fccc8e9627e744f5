//! What one action leaves behind, and that the next, in the same folders, sees nothing of it.

use gf_reapi::execution::ActionResult;

use crate::fixture::{Case, completed};

/// Prints all that can be seen of the folders and logs of a run, but for the numbers of their inodes.
const LOOK: &str = r#"
import fcntl, os, stat, struct
for place in ['/build', '/tmp', '/dev/shm', '/proc/self/fd/1', '/proc/self/fd/2']:
    found = os.stat(place)
    is_folder = stat.S_ISDIR(found.st_mode)
    fd = os.open(place, os.O_RDONLY)
    try:
        flags = struct.unpack('i', fcntl.ioctl(fd, 0x80086601, bytes(8))[:4])
    except OSError as error:
        flags = error.errno
    print(place, oct(found.st_mode), found.st_uid, found.st_nlink, found.st_size, found.st_blocks, flags,
          os.listxattr(fd), os.listdir(fd) if is_folder else os.read(fd, 100), file=look)
"#;

/// Says nothing before it has looked.
fn look() -> String {
    format!("import io\nlook = io.StringIO()\n{LOOK}\nprint(look.getvalue())\nprint(os.stat('/tmp').st_ino)")
}

/// What one action may do so that another would notice. Each is done by itself, and then all of it at once.
const DEEDS: [&str; 8] = [
    "for place in ['/tmp', '/build', '/dev/shm']: open(place + '/left', 'w').write('secret')",
    "for place in ['/tmp', '/build', '/dev/shm']: os.makedirs(place + '/a/b/c'); os.chmod(place + '/a/b', 0)",
    "print('secret'); print('secret', file=sys.stderr)",
    "for place in places: attempt(lambda: os.setxattr(place, 'user.note', b'secret'))",
    "for place in places: os.chmod(place, 0o711)",
    "for place in places: os.utime(place, (1, 1))",
    "for place in places: attempt(lambda: flag(place, 0x40))",
    "for place in ['/tmp', '/build']: [open(f'{place}/{number:0>200}', 'w') for number in range(300)]",
];

const PREPARE: &str = r#"
import fcntl, os, struct, subprocess, sys
places = ['/tmp', '/build', '/dev/shm', '/proc/self/fd/1', '/proc/self/fd/2']
def attempt(deed):
    try: deed()
    except OSError: pass
def flag(place, more):
    fd = os.open(place, os.O_RDONLY)
    flags, = struct.unpack('l', fcntl.ioctl(fd, 0x80086601, bytes(8)))
    fcntl.ioctl(fd, 0x40086602, struct.pack('l', flags | more))
# It has all of it open and goes on writing as long as it lives.
subprocess.Popen(['/usr/bin/python3', '-c', 'while True: print("secret", flush=True)'], start_new_session=True,
                 stdout=open('/tmp/open', 'w'), cwd='/tmp')
"#;

fn script(python: &str) -> String {
    format!("python3 - <<'END'\n{python}\nEND")
}

fn said(result: &ActionResult) -> String {
    String::from_utf8(result.stdout_raw.to_vec()).unwrap()
}

/// What the next action sees, and in which folder it is.
async fn seen(case: &mut Case) -> (String, String) {
    let finished = case.run(&script(&look()), &[], &[]).await;
    let said = said(completed(&finished));
    let (seen, folder) = said.trim_end().rsplit_once('\n').unwrap();
    (seen.to_owned(), folder.to_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_next_action_sees_nothing_of_the_last() {
    let mut case = Case::start().await;
    let (new, _) = seen(&mut case).await;
    assert!(new.contains("/tmp 0o41777 1000 ") && new.lines().count() == 5, "{new}");
    let all = DEEDS.join("\n");
    for deed in DEEDS.into_iter().chain([all.as_str()]) {
        completed(&case.run(&script(&format!("{PREPARE}\n{deed}")), &[], &[]).await);
        // One after the other, each may get the folder of any before it.
        for _ in 0..3 {
            assert_eq!(seen(&mut case).await.0, new, "after {deed}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn folders_are_used_again() {
    let mut case = Case::start().await;
    let mut folders = std::collections::HashSet::new();
    for _ in 0..30 {
        completed(&case.run("echo output >file; echo said; echo more >/tmp/file", &[], &["file"]).await);
        folders.insert(seen(&mut case).await.1);
    }
    // Of sixty runs. A folder comes back only after its run was answered, on a slow disk a few runs later.
    assert!(folders.len() < 40, "{folders:?}");
}
