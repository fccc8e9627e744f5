//! nginx over a folder: what serving the same bytes as files takes, and what taking them in does.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::Context;
use tokio::process::{Child, Command};
use tokio::time::{Instant, sleep};

use super::http::Connection;
use crate::report::Absent;

/// It starts at once.
const START_LIMIT: Duration = Duration::from_secs(20);
const PLACES: [&str; 3] = ["/usr/sbin/nginx", "/usr/local/sbin/nginx", "/usr/bin/nginx"];

/// Enough for every narinfo of a row.
const OPEN_FILES: u64 = 262_144;
/// Of these, for connections and what else a worker holds.
const OTHER_FILES: u64 = 1024;

/// A running nginx; it is told to end when this is dropped.
pub(super) struct Nginx {
    child: Child,
    /// `http://ADDRESS:PORT`.
    pub(super) url: String,
}

/// Where it is installed.
pub(super) fn find() -> Result<PathBuf, Absent> {
    let found = PLACES.iter().map(PathBuf::from).find(|place| place.is_file());
    found.ok_or_else(|| Absent::Skipped("nginx is not here; install it (Debian: apt-get install nginx-light)".into()))
}

impl Nginx {
    /// Serves `root`, and writes there what is put, with as many workers as there are cores, as its manual advises. It
    /// keeps the files open that it served, as many as this machine lets a process have.
    pub(super) async fn start(program: &Path, folder: &Path, root: &Path) -> anyhow::Result<Self> {
        std::fs::create_dir_all(folder)?;
        let port = free_port()?;
        let open_files = rustix::process::getrlimit(rustix::process::Resource::Nofile).maximum;
        let open_files = open_files.unwrap_or(OPEN_FILES).min(OPEN_FILES);
        let configuration = format!(
            "daemon off; pid {folder}/pid; error_log {folder}/errors; worker_processes auto; user root;\n\
             worker_rlimit_nofile {open_files};\n\
             events {{ worker_connections 256; }}\n\
             http {{ access_log off; sendfile on; tcp_nopush on; keepalive_requests 1000000000;\n\
             client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/fastcgi;\n\
             uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi; default_type application/octet-stream;\n\
             open_file_cache max={kept_open} inactive=1h; open_file_cache_valid 1h;\n\
             server {{ listen 127.0.0.1:{port}; root {root};\n\
             dav_methods PUT; create_full_put_path on; client_max_body_size 0; }} }}\n",
            kept_open = open_files.saturating_sub(OTHER_FILES).max(1),
            folder = folder.display(),
            root = root.display(),
        );
        let file = folder.join("nginx.conf");
        std::fs::write(&file, configuration)?;
        let mut command = Command::new(program);
        command.arg("-e").arg(folder.join("errors")).arg("-c").arg(&file).arg("-p").arg(folder);
        command.stdin(Stdio::null()).stdout(Stdio::null());
        let child = command.spawn().context("start nginx")?;
        let url = format!("http://127.0.0.1:{port}");
        let begun = Instant::now();
        while Connection::open(&url).await.is_err() {
            let errors = || std::fs::read_to_string(folder.join("errors")).unwrap_or_default();
            anyhow::ensure!(begun.elapsed() < START_LIMIT, "nginx does not start: {}", errors());
            sleep(Duration::from_millis(20)).await;
        }
        Ok(Self { child, url })
    }

    /// Its first process: the others are its children, so pausing it pauses nobody; they sleep when nobody asks.
    pub(super) async fn stop(mut self) -> anyhow::Result<()> {
        self.terminate()?;
        self.child.wait().await.context("stop nginx").map(drop)
    }

    fn terminate(&self) -> rustix::io::Result<()> {
        let pid = self.child.id().and_then(|pid| rustix::process::Pid::from_raw(pid.try_into().ok()?));
        pid.map_or(Ok(()), |pid| rustix::process::kill_process(pid, rustix::process::Signal::TERM))
    }
}

impl Drop for Nginx {
    /// Not killed: its children would go on.
    fn drop(&mut self) {
        let _ = self.terminate();
    }
}

/// A port that nobody listens on now.
fn free_port() -> anyhow::Result<u16> {
    Ok(std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}
