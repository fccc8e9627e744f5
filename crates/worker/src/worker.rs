//! The worker: makes itself ready once, then attaches until it is told to stop.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use gf_reapi::worker::{Hello, Property, Resources};
use rustix::fs::FlockOperation;
use thiserror::Error;
use tokio_util::sync::CancellationToken;
use tonic::Code;
use tonic::metadata::MetadataValue;

use crate::config::WorkerConfig;
use crate::connection::{ConnectionError, Connector};
use crate::execute::Workshop;
use crate::input_root::{InputRoots, Style};
use crate::local_blobs::LocalBlobs;
use crate::persistent::{IdleBounds, PersistentProcesses};
use crate::removal::Trash;
use crate::run_folders::RunFolders;
use crate::sandbox::{Launcher, LauncherError, Report, SandboxConfig};
use crate::session::{self, End, Offer};
use crate::store_paths::StorePaths;
use crate::tidying::Tidying;

/// From the end of a connection to the next; twice as long each time, ...
const FIRST_PAUSE: Duration = Duration::from_millis(250);
/// ... at most this, ...
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// ... and short again after one that lived this long.
const HEALTHY_LIFE: Duration = Duration::from_secs(60);
/// Parsed directories of input roots.
const FOLDER_CACHE_BYTES: u64 = 64 << 20;

/// Why a worker ends before it was told to.
#[derive(Debug, Error)]
pub enum WorkerError {
    /// The folder cannot be used.
    #[error("the folder {path} cannot be used: {source}")]
    Folder {
        /// The folder.
        path: String,
        /// Why.
        source: io::Error,
    },
    /// Two workers in one folder would take each other's files away.
    #[error("another worker uses the folder {0}; give each its own --data-dir")]
    FolderInUse(String),
    /// There is no way to the server.
    #[error(transparent)]
    Connection(#[from] ConnectionError),
    /// The token is no text that a header takes.
    #[error("the token holds characters that no token has")]
    Token,
    /// Nothing runs without a sandbox.
    #[error(transparent)]
    Launcher(#[from] LauncherError),
    /// The server does not take this worker, and will not later.
    #[error("the server refuses this worker: {0}")]
    Refused(String),
    /// The inherited connection ended.
    #[error("the connection to the server ended: {0}")]
    Lost(String),
    /// Whatever would be assigned to this process could only fail.
    #[error("the launcher of sandboxes is gone; the worker has to be started again")]
    LauncherGone,
}

impl WorkerError {
    /// Whether it is of no use to start the worker again as it is.
    #[must_use]
    pub const fn is_hopeless(&self) -> bool {
        match self {
            Self::Launcher(error) => matches!(error, LauncherError::Refused { .. }),
            Self::Connection(_) | Self::Token | Self::Refused(_) => true,
            Self::Folder { .. } | Self::FolderInUse(_) | Self::Lost(_) | Self::LauncherGone => false,
        }
    }
}

/// Works until `stop` is cancelled and what runs is over.
///
/// # Errors
/// [`WorkerError`] says why it cannot go on.
pub async fn run(config: WorkerConfig, stop: CancellationToken) -> Result<(), WorkerError> {
    let _lock = lock(&config.data_dir)?;
    let in_folder = |source| WorkerError::Folder { path: config.data_dir.display().to_string(), source };
    fs::create_dir_all(&config.sandbox.folder).map_err(in_folder)?;
    let sandbox = SandboxConfig { memory_bytes: config.memory_bytes, ..config.sandbox.clone() };
    let (launcher, report) = Launcher::start(sandbox).await?;
    report.limitations.iter().for_each(|limitation| tracing::warn!(limitation, "the sandbox is limited here"));
    let offer = offer(&config, &report)?;
    let workshop = open(&config, launcher, &report).map_err(in_folder)?;
    let mut connector = Connector::new(config.server)?;
    let workshop = Arc::new(workshop);
    let ended = tokio::select! {
        ended = stay_attached(&workshop, &offer, &mut connector, &stop) => ended,
        () = workshop.launcher.gone() => Err(WorkerError::LauncherGone),
    };
    workshop.tidying.end().await;
    if ended.is_ok() {
        tracing::info!("drained");
    }
    ended
}

async fn stay_attached(
    workshop: &Arc<Workshop>,
    offer: &Offer,
    connector: &mut Connector,
    stop: &CancellationToken,
) -> Result<(), WorkerError> {
    let mut pause = FIRST_PAUSE;
    loop {
        let began = Instant::now();
        let connected = stop.run_until_cancelled(connector.connect()).await;
        let lost = match connected {
            None => return Ok(()),
            Some(Err(error)) => explain(&error),
            Some(Ok(channel)) => match session::attach(workshop, offer, channel, stop).await {
                End::Drained => return Ok(()),
                End::Unwelcome(status) if is_refusal(status.code()) => {
                    return Err(WorkerError::Refused(status.message().to_owned()));
                }
                End::Unwelcome(status) | End::Lost(status) => format!("{:?}: {}", status.code(), status.message()),
            },
        };
        if stop.is_cancelled() {
            return Ok(());
        }
        if !connector.can_reconnect() {
            return Err(WorkerError::Lost(lost));
        }
        pause = if began.elapsed() < HEALTHY_LIFE { pause } else { FIRST_PAUSE };
        tracing::warn!(reason = lost, ?pause, "not attached to the server; trying again");
        if stop.run_until_cancelled(tokio::time::sleep(pause.mul_f64(jitter()))).await.is_none() {
            return Ok(());
        }
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

/// Workers that lost the same server do not all come back in the same moment: between a half and one.
fn jitter() -> f64 {
    f64::from(u8::from_le_bytes([uuid::Uuid::new_v4().as_bytes()[0]])) / 510.0 + 0.5
}

/// Of one who is not welcome. Later the same codes are about a message, which nothing but one action may have caused.
const fn is_refusal(code: Code) -> bool {
    matches!(code, Code::Unauthenticated | Code::PermissionDenied | Code::InvalidArgument | Code::Unimplemented)
}

/// The outermost error of a connection says the least.
fn explain(error: &tonic::transport::Error) -> String {
    let mut deepest: &dyn std::error::Error = error;
    while let Some(source) = deepest.source() {
        deepest = source;
    }
    deepest.to_string()
}

fn offer(config: &WorkerConfig, report: &Report) -> Result<Offer, WorkerError> {
    let authorization = MetadataValue::try_from(format!("Bearer {}", config.token.expose()));
    let properties =
        config.offered_properties(report.own_network).into_iter().map(|(name, value)| Property { name, value });
    let hello = Hello {
        name: config.name.clone(),
        properties: properties.collect(),
        capacity: Some(Resources { milli_cores: config.cores.saturating_mul(1000), memory_bytes: config.memory_bytes }),
        limitations: report.limitations.clone(),
    };
    let authorization = authorization.map_err(|_| WorkerError::Token)?;
    Ok(Offer { hello, authorization, drain_deadline: config.drain_deadline })
}

fn open(config: &WorkerConfig, launcher: Launcher, report: &Report) -> io::Result<Workshop> {
    let data_dir = &config.data_dir;
    let trash = Arc::new(Trash::open(data_dir.join("trash"))?);
    let owner = launcher.action_owner();
    let run_folders = Arc::new(RunFolders::open(data_dir.join("runs"), owner, Arc::clone(&trash))?);
    let blobs = LocalBlobs::open(data_dir.join("cache"), config.cache_bytes, owner, &trash)?;
    let style = if report.overlay { Style::Overlay } else { Style::Private };
    let blobs = Arc::new(blobs);
    // What an operator lets the cache have on the disk, or an action, a root may have as well.
    let max_copied = config.cache_bytes.max(config.bounds.disk_bytes);
    let roots =
        InputRoots::open(data_dir, FOLDER_CACHE_BYTES, Arc::clone(&blobs), Arc::clone(&trash), style, max_copied)?;
    let store_paths = StorePaths::open(data_dir, config.cache_bytes, Arc::clone(&trash))?;
    let idle = IdleBounds::of(config.cores, config.memory_bytes);
    let folder = data_dir.join("persistent");
    let persistent = PersistentProcesses::open(folder, blobs, Arc::clone(&trash), config.bounds, idle)?;
    Ok(Workshop {
        name: config.name.clone(),
        launcher,
        roots,
        store_paths,
        run_folders,
        tidying: Tidying::new(),
        bounds: config.bounds,
        memory_bytes: config.memory_bytes,
        network: config.network,
        own_network: report.own_network,
        persistent,
        persistent_policy: config.persistent,
    })
}

/// Takes the folder for this worker, and for no other user: in it are inputs and outputs of all tenants, and what actions
/// left there with any mode. The lock ends with the file.
fn lock(data_dir: &Path) -> Result<File, WorkerError> {
    let path = || data_dir.display().to_string();
    let unusable = |source| WorkerError::Folder { path: path(), source };
    fs::create_dir_all(data_dir).map_err(unusable)?;
    fs::set_permissions(data_dir, fs::Permissions::from_mode(0o700)).map_err(unusable)?;
    let file = File::create(data_dir.join("lock")).map_err(unusable)?;
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(WorkerError::FolderInUse(path())),
        Err(error) => Err(unusable(error.into())),
    }
}
