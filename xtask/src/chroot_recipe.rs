//! How the chroot with the clients is made.
//!
//! Debian 12 has no Bazel 7, no BuildBox and only an old Nix; Debian sid has them, so the clients live in a small sid
//! beside the system.
//! A make that was interrupted goes on where it can and starts over where it must: the base system counts only with
//! its mark, the whole only with the recipe's stamp, which is written last. All mounts are made in mount namespaces of
//! their own, so that none is left, however this ends.

use std::{
    env, fs,
    os::unix::fs::{PermissionsExt, symlink},
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result, bail};
use gf_tests::{Chroot, Place, RECIPE, RECIPE_STAMP, cache_folder, run_within};

use crate::{
    packages::{self, APT_OPTIONS, retried},
    tools,
};

/// Bazel finds libblake3 by itself, but does not depend on it.
const PACKAGES: &[&str] = &[
    "bazel-bootstrap",
    "bazel-features",
    "bazel-platforms",
    "bazel-rules-cc",
    "bazel-rules-java",
    "bazel-rules-license",
    "bazel-rules-proto",
    "bazel-rules-python",
    "bazel-rules-rust",
    "bazel-rules-shell",
    "bazel-skylib",
    "buildbox",
    "g++",
    "gcc",
    "libblake3-0",
    "libc6-dev",
    "libnetty-tcnative-java",
    "libnetty-tcnative-jni",
    "libzstd-jni-java",
    "libzstd-jni1",
    "nix-bin",
    "openssl",
    "procps",
    "python3",
    "rustc",
];
/// Only clients run here: no manuals, and no waiting for the disk after each file.
const DPKG_OPTIONS: &str = "\
force-unsafe-io
path-exclude=/usr/share/doc/*
path-exclude=/usr/share/info/*
path-exclude=/usr/share/locale/*
path-exclude=/usr/share/man/*
";
const BASE_MARK: &str = "etc/gloriousflywheel-base";
const BASE_LIMIT: Duration = Duration::from_secs(900);
const INSTALL_LIMIT: Duration = Duration::from_secs(1800);

/// Finds the chroot, or makes it. Needs root on Debian for the latter.
pub(crate) fn find_or_make() -> Result<Chroot> {
    if let Ok(chroot) = Chroot::find() {
        return Ok(chroot);
    }
    if !packages::can_install() {
        bail!("the client chroot can only be made by root on Debian");
    }
    let _lock = tools::lock(&cache_folder().join("sid.lock"))?;
    if let Ok(chroot) = Chroot::find() {
        return Ok(chroot);
    }
    let root = cache_folder().join("sid");
    println!("    making the client chroot in {} (two to four minutes, 2 GB)", root.display());
    packages::install(&["debootstrap"])?;
    retried("the base system", || make_base(&root))?;
    retried("the clients", || install_clients(&root))?;
    mend_bazel(&root)?;
    fs::write(root.join(RECIPE_STAMP), format!("{RECIPE}\n"))?;
    Chroot::find()
}

fn make_base(root: &Path) -> Result<()> {
    if root.join(BASE_MARK).exists() {
        return Ok(());
    }
    remove(root)?;
    fs::create_dir_all(root)?;
    // When this process dies, so does all that debootstrap has started: nobody else writes to the folder.
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "unshare", "--mount", "--propagation", "private"]);
    command.args(["--pid", "--fork", "--mount-proc", "--kill-child=SIGKILL", "debootstrap", "--variant=minbase"]);
    command.args(["--include=ca-certificates", "sid"]).arg(root).arg(mirror()?);
    run_within(command, BASE_LIMIT)?.success()?;
    Ok(fs::write(root.join(BASE_MARK), "")?)
}

/// Removes an unfinished chroot, but never through a mount.
fn remove(root: &Path) -> Result<()> {
    if !root.exists() {
        return Ok(());
    }
    let mounts = fs::read_to_string("/proc/self/mounts")?;
    let inside =
        mounts.lines().filter_map(|line| line.split(' ').nth(1)).find(|point| Path::new(point).starts_with(root));
    if let Some(point) = inside {
        bail!("{point} is mounted: unmount it (umount --recursive), then run this again");
    }
    fs::remove_dir_all(root).with_context(|| format!("cannot remove the unfinished {}", root.display()))
}

fn install_clients(root: &Path) -> Result<()> {
    fs::write(root.join("etc/dpkg/dpkg.cfg.d/gloriousflywheel"), DPKG_OPTIONS)?;
    let no_services = root.join("usr/sbin/policy-rc.d");
    fs::write(&no_services, "#!/bin/sh\nexit 101\n")?;
    fs::set_permissions(&no_services, fs::Permissions::from_mode(0o755))?;
    for file in ["etc/resolv.conf", "etc/hosts"] {
        fs::copy(Path::new("/").join(file), root.join(file))?;
    }
    let place = Place::Chroot(Chroot::unfinished(root).enter()?);
    let mut install = vec!["install", "-y", "-qq", "--no-install-recommends"];
    install.extend(PACKAGES);
    for arguments in [["update", "-qq"].as_slice(), &install, &["clean"]] {
        let mut command = place.command(Path::new("/"), &apt_environment(), "apt-get");
        command.args(APT_OPTIONS).args(arguments);
        run_within(command, INSTALL_LIMIT)?.success()?;
    }
    Ok(())
}

fn apt_environment() -> Vec<(&'static str, &'static str)> {
    let mut environment = vec![("DEBIAN_FRONTEND", "noninteractive")];
    for name in ["http_proxy", "https_proxy", "no_proxy"] {
        if let Ok(value) = env::var(name) {
            // A handful of bytes, once.
            environment.push((name, value.leak()));
        }
    }
    environment
}

/// Debian's Bazel looks for native libraries only beside itself, and two of them are packaged elsewhere: without them
/// it can neither speak TLS nor compress.
fn mend_bazel(root: &Path) -> Result<()> {
    // Debian's name for this machine's kind, here and on arm64.
    let libraries = PathBuf::from(format!("/usr/lib/{}-linux-gnu", env::consts::ARCH));
    let bazel = root.join("usr/share/bazel");
    // A copy: the TLS library refuses to load through a link of another name.
    let tls = root.join(libraries.strip_prefix("/")?).join("jni/libnetty-tcnative.so");
    fs::copy(&tls, bazel.join("libnetty_tcnative.so")).with_context(|| format!("cannot copy {}", tls.display()))?;
    let link = bazel.join("libzstd-jni.so");
    let _ = fs::remove_file(&link);
    Ok(symlink(libraries.join("libzstd-jni.so"), link)?)
}

/// The mirror that this machine uses already.
fn mirror() -> Result<String> {
    let sources = [PathBuf::from("/etc/apt/sources.list.d/debian.sources"), PathBuf::from("/etc/apt/sources.list")];
    let texts = sources.iter().filter_map(|path| fs::read_to_string(path).ok());
    let found = texts.flat_map(|text| text.lines().filter_map(mirror_of).collect::<Vec<_>>()).next();
    found.context("no Debian mirror in the apt sources of this machine; add one to /etc/apt/sources.list")
}

fn mirror_of(line: &str) -> Option<String> {
    let mut words = line.split_whitespace();
    let address = match words.next()? {
        "URIs:" => words.next()?,
        "deb" => words.find(|word| word.starts_with("http"))?,
        _ => return None,
    };
    let is_main_archive = address.trim_end_matches('/').ends_with("/debian");
    if is_main_archive { Some(address.to_owned()) } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mirrors_are_found_in_both_forms() {
        assert_eq!(mirror_of("URIs: http://m.example/debian").as_deref(), Some("http://m.example/debian"));
        assert_eq!(
            mirror_of("deb [arch=amd64] http://m.example/debian/ sid main").as_deref(),
            Some("http://m.example/debian/")
        );
        assert_eq!(mirror_of("URIs: http://m.example/debian-security"), None);
        assert_eq!(mirror_of("# deb http://m.example/debian sid main"), None);
    }
}
