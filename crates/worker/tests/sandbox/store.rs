//! What commands see at `/nix/store`, and that they cannot change it.

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};

use gf_worker::sandbox::{Run, StoreObject, StoreView};

use super::support::Bench;

/// Everything in the worker's folder may be written to by whom actions run as: what keeps them out is the sandbox.
fn give_away(bench: &Bench, path: &Path) {
    fs::set_permissions(path, Permissions::from_mode(0o777)).unwrap();
    if let Some(owner) = bench.launcher.action_owner() {
        chown(path, Some(owner.uid), Some(owner.gid)).unwrap();
    }
    if path.is_dir() {
        fs::read_dir(path).unwrap().for_each(|entry| give_away(bench, &entry.unwrap().path()));
    }
}

/// A tool in a folder, a tool that is a file, and a link to the first; beside them something that is not shown.
fn objects(bench: &Bench) -> (PathBuf, StoreView) {
    let folder = bench.folder.path().join("objects");
    fs::create_dir_all(folder.join("0/bin")).unwrap();
    fs::write(folder.join("0/bin/tool"), "#!/bin/sh\necho tool says $1\n").unwrap();
    fs::write(folder.join("1"), "#!/bin/sh\necho file says $1\n").unwrap();
    fs::write(folder.join("2"), "of another action").unwrap();
    give_away(bench, &folder);
    let object = |name: &str, object: StoreObject| (name.to_owned(), object);
    let objects = vec![
        object("hash-tool", StoreObject::Folder("0".to_owned())),
        object("hash-file", StoreObject::File("1".to_owned())),
        object("hash-link", StoreObject::Symlink("/nix/store/hash-tool/bin".to_owned())),
    ];
    (folder.clone(), StoreView { folder, objects })
}

fn script(bench: &Bench, name: &str, script: &str) -> Run {
    Run { store: objects(bench).1, ..bench.script(name, script) }
}

#[tokio::test]
async fn exactly_what_was_asked_for_is_seen() {
    let bench = Bench::new().await;
    let look = "ls -A /nix /nix/store; for tool in hash-tool/bin/tool hash-file hash-link/tool; do /nix/store/$tool hello; done";
    let said = bench.run(script(&bench, "look", look)).await.ok();
    assert_eq!(
        said,
        "/nix:\nstore\n\n/nix/store:\nhash-file\nhash-link\nhash-tool\n\
         tool says hello\nfile says hello\ntool says hello\n"
    );
    assert_eq!(bench.sh("nothing", "ls -A /nix/store").await, "");
}

#[tokio::test]
async fn nothing_of_it_can_be_changed() {
    let bench = Bench::new().await;
    let tries = [
        "echo x >/nix/store/hash-tool/bin/tool",
        "echo x >>/nix/store/hash-file",
        "echo x >/nix/store/hash-tool/new",
        "echo x >/nix/store/new",
        "mkdir /nix/store/hash-tool/new",
        "chmod 700 /nix/store/hash-tool/bin/tool",
        "chmod 700 /nix/store/hash-file",
        "rm -f /nix/store/hash-tool/bin/tool",
        "rm -f /nix/store/hash-link",
        "mv /nix/store/hash-tool /nix/store/hash-other",
        "ln -s x /nix/store/hash-tool/bin/x",
        "touch /nix/store/hash-file",
        "mount -o remount,rw,bind /nix/store/hash-tool",
        "umount /nix/store/hash-tool",
        "unshare --user --map-root-user --mount sh -c 'mount -o remount,rw,bind /nix/store/hash-tool'",
    ];
    let mut run = script(&bench, "hostile", "for try in \"$@\"; do sh -c \"$try\" && echo \"$try\"; done; true");
    run.arguments.push("sh".into());
    run.arguments.extend(tries.map(Into::into));
    assert_eq!(bench.run(run).await.ok(), "", "all of this must fail");
    let folder = bench.folder.path().join("objects");
    let tool = fs::read_to_string(folder.join("0/bin/tool")).unwrap();
    assert_eq!((tool.as_str(), fs::read_dir(folder.join("0")).unwrap().count()), ("#!/bin/sh\necho tool says $1\n", 1));
    assert_eq!(fs::metadata(folder.join("1")).unwrap().permissions().mode() & 0o777, 0o777);
}

#[tokio::test]
async fn the_rights_of_an_owner_are_not_lent() {
    let bench = Bench::new().await;
    let run = script(&bench, "suid", "grep ' /nix/store/hash-tool ' /proc/self/mountinfo");
    let said = bench.run(run).await.ok();
    for option in ["ro", "nosuid", "nodev"] {
        assert!(said.split([' ', ',']).any(|word| word == option), "{option}: {said}");
    }
}

#[tokio::test]
async fn hundreds_are_shown() {
    let bench = Bench::new().await;
    let (folder, mut store) = objects(&bench);
    store.objects = (0..600).map(|n| (format!("path-{n}"), StoreObject::Folder("0".to_owned()))).collect();
    store.folder = folder;
    let run = bench.script("many", "ls /nix/store | wc -l; /nix/store/path-599/bin/tool last");
    assert_eq!(bench.run(Run { store, ..run }).await.ok(), "600\ntool says last\n");
}

#[tokio::test]
async fn an_object_that_is_not_there_is_no_sandbox() {
    let bench = Bench::new().await;
    let mut run = script(&bench, "gone", "true");
    run.store.objects.push(("hash-gone".to_owned(), StoreObject::Folder("gone".to_owned())));
    let refused = bench.launcher.run(run, tokio_util::sync::CancellationToken::new()).await.unwrap_err();
    assert!(refused.to_string().contains("hash-gone"), "{refused}");
}
