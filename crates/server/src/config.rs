//! The configuration: one TOML file, every value with a default.
//!
//! All mistakes are reported at once, with file and line. A secret is never in the file: `access.token_file` names a
//! file that holds it, or the environment variable `GF_TOKEN` does; `workers.token_file` that of workers, and
//! `[access.attic]` those that check Attic's tokens; `database.url_file` the place of the database. Relative paths are
//! relative to the configuration file.
//!
//! What always holds: a [`Config`] that exists is consistent, and it opens no door: where nothing tells callers apart it
//! listens on loopback only.

mod access;
mod database;
mod execution;
mod nix;
mod quota;
mod reader;
mod tls;
mod trust;
mod units;
mod worker;

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use gf_database::Location;
use gf_digest::InstanceName;
use gf_fetch::Networks;
use gf_tenancy::{Access, AccessConfig, AtticConfig, CertificateRule, Secret, TenantConfig, TenantName};

use crate::listen::TlsConfig;
use crate::quotas::Quota;
use crate::telemetry::{LogConfig, LogFormat, LogLevel};
use access::AccessSection;
use reader::{At, Document, Section};
use tls::TlsSection;

pub use access::AtticEnvironment;
pub use database::default_database;
pub use execution::ExecutionSettings;
pub use reader::{ConfigError, ConfigErrors};
pub use trust::{IssuerSettings, TrustSettings};
pub use units::{parse_duration, parse_size, show_duration, show_size};
pub use worker::{ActionBounds, Network, Persistent, WorkerSettings};

/// Everything that `gf serve` is told.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where to listen. Port 0 takes a free one.
    pub listen: SocketAddr,
    /// Where all data live.
    pub data_dir: PathBuf,
    /// Where the facts of services are.
    pub database: Location,
    /// Logs.
    pub log: LogConfig,
    /// TLS; without it connections are in the clear.
    pub tls: Option<TlsConfig>,
    /// Tenants and the static token.
    pub access: AccessConfig,
    /// The tenants whose instances everybody may read.
    pub public_tenants: Vec<TenantName>,
    /// Whether nobody is let in without a credential although none is configured: all tokens are in the database.
    pub require_token: bool,
    /// How tokens in Attic's format are checked; `None` takes none.
    pub attic: Option<AtticConfig>,
    /// Whose identities are exchanged for tokens.
    pub trust: TrustSettings,
    /// What certificates of clients grant.
    pub certificates: Vec<CertificateRule>,
    /// The token of machines that attach workers. Without one, and without a token in `access`, everybody may.
    pub worker_token: Option<Secret>,
    /// Where upstreams of Nix caches may be.
    pub upstream_networks: Networks,
    /// What tenants may use, of those that have a limit.
    pub quotas: HashMap<TenantName, Quota>,
    /// The store.
    pub store: StoreSettings,
    /// Remote execution.
    pub execution: ExecutionSettings,
    /// The worker inside the server; `None` when it was switched off.
    pub worker: Option<WorkerSettings>,
    /// The `gf` program, which a worker inside the server is another process of. Nothing that is read says it: whoever
    /// starts the server does. `None` starts no worker.
    pub worker_program: Option<PathBuf>,
}

/// What an operator may say about the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StoreSettings {
    /// The most that it may hold; `None` for a share of the file system.
    pub capacity_bytes: Option<u64>,
    /// How long what was reported present stays.
    pub lease: Duration,
    /// The longest time that acknowledged blobs may be lost to a power cut.
    pub sync_window: Duration,
    /// The largest blob accepted.
    pub max_blob_size_bytes: u64,
}

impl Default for StoreSettings {
    fn default() -> Self {
        Self {
            capacity_bytes: None,
            lease: Duration::from_secs(6 * 3600),
            sync_window: Duration::from_secs(1),
            max_blob_size_bytes: 16 << 30,
        }
    }
}

/// What the process was started with besides the file.
#[derive(Clone, Debug, Default)]
pub struct Environment {
    /// `GF_TOKEN`.
    pub token: Option<String>,
    /// Keys of Attic's tokens.
    pub attic: AtticEnvironment,
    /// `GF_DATABASE_URL`.
    pub database_url: Option<String>,
    /// Where data live when nothing says otherwise; `None` when there is no home.
    pub state_dir: Option<PathBuf>,
}

impl Environment {
    /// Reads the environment of this process.
    #[must_use]
    pub fn of_process() -> Self {
        let path = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        let state_dir = if rustix::process::geteuid().is_root() {
            Some(PathBuf::from("/var/lib"))
        } else {
            // The XDG specification says to ignore a relative path.
            let xdg = path("XDG_STATE_HOME").filter(|dir| dir.is_absolute());
            xdg.or_else(|| path("HOME").map(|home| home.join(".local/state")))
        };
        // What is not text must not count as nothing: what cannot be read is then refused.
        let text = |name: &str| std::env::var_os(name).map(|value| value.to_string_lossy().into_owned());
        Self {
            token: text("GF_TOKEN"),
            database_url: text("GF_DATABASE_URL"),
            attic: AtticEnvironment::of_process(),
            state_dir: state_dir.map(|dir| dir.join("gloriousflywheel")),
        }
    }
}

/// What the command line says; it wins over the file.
#[derive(Clone, Debug, Default)]
pub struct Overrides {
    /// `--listen`.
    pub listen: Option<SocketAddr>,
    /// `--data-dir`.
    pub data_dir: Option<PathBuf>,
}

/// What the file says, before defaults.
#[derive(Default)]
struct FileConfig {
    listen: Option<At<SocketAddr>>,
    data_dir: Option<PathBuf>,
    database: Option<Location>,
    log: LogConfig,
    tls: TlsSection,
    access: AccessSection,
    tenants: Vec<TenantConfig>,
    public_tenants: Vec<TenantName>,
    quotas: HashMap<TenantName, Quota>,
    upstream_networks: Option<Networks>,
    worker_token: Option<Secret>,
    store: StoreSettings,
    execution: ExecutionSettings,
    worker: Option<WorkerSettings>,
}

impl Config {
    /// Reads the file, if one is named, and puts flags, environment and defaults around it.
    ///
    /// # Errors
    /// Every mistake.
    pub fn load(file: Option<&Path>, overrides: Overrides, environment: &Environment) -> Result<Self, ConfigErrors> {
        let Some(path) = file else { return Self::parse(None, "", overrides, environment) };
        let text = Self::read(path).map_err(|error| ConfigErrors(vec![error]))?;
        Self::parse(Some(path), &text, overrides, environment)
    }

    /// The text of a configuration file, for [`Self::parse`].
    ///
    /// # Errors
    /// It cannot be read, or is too large for a configuration.
    pub fn read(path: &Path) -> Result<String, ConfigError> {
        read_text(path).map_err(|error| {
            let file = Some(path.display().to_string());
            ConfigError { file, line: None, message: format!("cannot be read: {error}") }
        })
    }

    /// As [`Self::load`], for text at hand. `file` is for messages and relative paths.
    ///
    /// # Errors
    /// Every mistake.
    pub fn parse(
        file: Option<&Path>,
        text: &str,
        overrides: Overrides,
        environment: &Environment,
    ) -> Result<Self, ConfigErrors> {
        let name = file.map_or_else(|| "gf.toml".to_owned(), |path| path.display().to_string());
        let folder = file.and_then(Path::parent).unwrap_or(Path::new("")).to_owned();
        let document = Document::new(name, text);
        let read = read_root(&document, &folder);
        let mut outside = Vec::new();
        let mut mistake = |message: String| outside.push(ConfigError { file: None, line: None, message });

        let AccessSection { token, anonymous_read, require_token, attic, rules, issuers } = read.access;
        let TlsSection { server: tls, rules: certificate_rules } = read.tls;
        let token = match environment.token.as_deref().map(|text| access::check_token("GF_TOKEN", text)) {
            Some(Ok(token)) => Some(token),
            Some(Err(message)) => {
                mistake(message);
                token
            }
            None => token,
        };
        let attic = attic.settle(&environment.attic).unwrap_or_else(|message| {
            mistake(message);
            None
        });
        let data_dir = overrides.data_dir.or(read.data_dir).or_else(|| environment.state_dir.clone());
        if data_dir.is_none() {
            mistake("there is no home folder to keep data in: say --data-dir DIR".to_owned());
        }
        let database = match environment.database_url.as_deref().map(database::parse_variable).transpose() {
            Ok(given) => given.or(read.database),
            Err(message) => {
                mistake(message);
                None
            }
        };
        let default = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), Self::DEFAULT_PORT);
        let listen = overrides.listen.or(read.listen.as_ref().map(|at| at.value)).unwrap_or(default);
        let tells_apart =
            require_token || token.is_some() || attic.is_some() || !rules.is_empty() || !certificate_rules.is_empty();
        if !tells_apart && !listen.ip().to_canonical().is_loopback() {
            match read.listen.filter(|at| at.value == listen) {
                Some(at) => document.mistake(at.place, exposed(listen)),
                None => mistake(exposed(listen)),
            }
        }

        if let (Some(at), true) = (anonymous_read.as_ref().filter(|at| at.value), read.tenants.len() > 1) {
            document.mistake(at.place.clone(), READ_BY_ALL.to_owned());
        }
        let anonymous_read = anonymous_read.is_some_and(|at| at.value);
        let tenants = if read.tenants.is_empty() { default_tenant().into_iter().collect() } else { read.tenants };
        let trust = trust::settle(&document, rules, issuers, &tenants);
        let certificates = trust::settle_certificates(&document, certificate_rules, &tenants);
        let access = AccessConfig { tenants, token, anonymous_read };
        let mut mistakes = document.into_mistakes();
        mistakes.append(&mut outside);
        // What is left that only the policy itself can see.
        if let (true, Err(error)) = (mistakes.is_empty(), Access::new(access.clone())) {
            mistakes.push(ConfigError { file: None, line: None, message: error.to_string() });
        }
        match data_dir {
            Some(data_dir) if mistakes.is_empty() => Ok(Self {
                listen,
                database: database.unwrap_or_else(|| default_database(&data_dir)),
                data_dir,
                log: read.log,
                tls,
                access,
                public_tenants: read.public_tenants,
                require_token,
                attic,
                trust,
                certificates,
                worker_token: read.worker_token,
                upstream_networks: read.upstream_networks.unwrap_or_else(|| nix::default_networks(tells_apart)),
                quotas: read.quotas,
                store: read.store,
                execution: read.execution,
                worker: read.worker,
                worker_program: None,
            }),
            _ => Err(ConfigErrors(mistakes)),
        }
    }

    /// The port of `gf serve`.
    pub const DEFAULT_PORT: u16 = 8980;
}

/// Reads a small file: a path that leads to a device must not be read for ever.
fn read_text(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    let taken = File::open(path)?.take(MAX_FILE_BYTES).read_to_string(&mut text)?;
    if taken as u64 == MAX_FILE_BYTES { Err(io::Error::other("it is too large")) } else { Ok(text) }
}

const MAX_FILE_BYTES: u64 = 1 << 20;

/// A server that anybody can reach and write to would let them plant build results: refused, with the way out.
fn exposed(listen: SocketAddr) -> String {
    format!(
        "listening on {listen} without a token would let everybody on the network write to the cache. Any of these lines \
         is the way out:\n    gf init --listen {listen}    # a configuration, and a token for you that is shown once\n    \
         export GF_TOKEN=$(openssl rand -hex 32)    # or one token for everything; a file: access.token_file\n    \
         gf serve --listen 127.0.0.1:{}    # or for this machine only",
        listen.port()
    )
}

/// What is meant for one tenant would show everybody what the others have.
const READ_BY_ALL: &str = "access.anonymous_read: with several tenants this would let everybody read what all of them have: \
                           write `anonymous_read = true` below the [[tenant]] whose instances everybody may read, instead";

fn default_tenant() -> Option<TenantConfig> {
    let name = TenantName::new("default").ok()?;
    let instances = ["", "default"].into_iter().filter_map(|name| InstanceName::new(name).ok()).collect();
    Some(TenantConfig { name, instances })
}

fn read_root(document: &Document<'_>, folder: &Path) -> FileConfig {
    let mut root = document.root();
    let read = FileConfig {
        listen: root.text("listen", parse_listen),
        data_dir: root.text("data_dir", |text| parse_path(folder, text)).map(|at| at.value),
        database: root.section("database", |database| database::read(database, folder)),
        log: root.section("log", read_log),
        tls: root.section("tls", |tls| tls::read(tls, folder)),
        ..FileConfig::default()
    };
    let access = root.section("access", |access| access::read(access, folder));
    let tenants = root.sections("tenant", read_tenant);
    let worker_token = root.section("workers", |workers| access::read_token_file(workers, folder));
    let upstream_networks = root.section("nix", nix::read);
    let store = root.section("store", read_store);
    let execution = root.section("execution", execution::read);
    let worker = root.section("worker", |worker| worker::read(worker, folder));
    report_shared_instances(document, &tenants);
    root.finish();
    let bounded = tenants.iter().filter(|tenant| tenant.quota != Quota::default());
    let quotas = bounded.map(|tenant| (tenant.config.name.clone(), tenant.quota)).collect();
    let public = tenants.iter().filter(|tenant| tenant.is_public);
    let public_tenants = public.map(|tenant| tenant.config.name.clone()).collect();
    let tenants = tenants.into_iter().map(|tenant| tenant.config).collect();
    let read = FileConfig { access, tenants, public_tenants, quotas, ..read };
    FileConfig { upstream_networks, worker_token, store, execution, worker, ..read }
}

fn parse_listen(text: &str) -> Result<SocketAddr, String> {
    text.parse().map_err(|_| {
        format!("{text:?} is not an address and a port: write them as \"127.0.0.1:8980\" or \"[::1]:8980\"")
    })
}

fn parse_path(folder: &Path, text: &str) -> Result<PathBuf, String> {
    if text.is_empty() { Err("the path is empty".to_owned()) } else { Ok(folder.join(text)) }
}

fn read_log(log: &mut Section<'_, '_>) -> LogConfig {
    let defaults = LogConfig::default();
    LogConfig {
        format: log.text("format", str::parse::<LogFormat>).map_or(defaults.format, |at| at.value),
        level: log.text("level", str::parse::<LogLevel>).map_or(defaults.level, |at| at.value),
    }
}

/// A file that is there and may be read.
fn readable(folder: &Path, text: &str) -> Result<PathBuf, String> {
    let path = parse_path(folder, text)?;
    std::fs::metadata(&path).map_err(|error| format!("{} cannot be read: {error}", path.display()))?;
    Ok(path)
}

/// What is said of a tenant.
struct ReadTenant {
    config: TenantConfig,
    instances: Vec<At<InstanceName>>,
    quota: Quota,
    is_public: bool,
}

fn read_tenant(tenant: &mut Section<'_, '_>, place: std::ops::Range<usize>) -> Option<ReadTenant> {
    let name = tenant.text("name", |text| TenantName::new(text).map_err(|error| error.to_string()));
    let instances = tenant.texts("instances", |text| InstanceName::new(text).map_err(|error| error.to_string()));
    let quota = tenant.section("quota", quota::read);
    let is_public = tenant.flag("anonymous_read").unwrap_or(false);
    if !tenant.was_given("name") {
        tenant.mistake("name", place.clone(), "is missing");
    }
    let name = name?.value;
    let placed = match instances {
        Some(at) if at.value.is_empty() => {
            tenant.mistake("instances", at.place, "is empty, so nobody could reach this tenant: leave it out");
            return None;
        }
        Some(at) => at.value,
        None if tenant.was_given("instances") => return None,
        // A tenant without a list is reached by its own name.
        None => InstanceName::new(name.as_str()).ok().map(|value| At { value, place }).into_iter().collect(),
    };
    let instances = placed.iter().map(|at| at.value.clone()).collect();
    Some(ReadTenant { config: TenantConfig { name, instances }, instances: placed, quota, is_public })
}

fn report_shared_instances(document: &Document<'_>, tenants: &[ReadTenant]) {
    let mut seen: Vec<(&InstanceName, &TenantName)> = Vec::new();
    for ReadTenant { config: tenant, instances, .. } in tenants {
        for At { value, place } in instances {
            match seen.iter().find(|(instance, _)| *instance == value) {
                Some((_, owner)) => {
                    let message = format!("tenant.instances: {value:?} already belongs to tenant {owner}");
                    document.mistake(place.clone(), message);
                }
                None => seen.push((value, &tenant.name)),
            }
        }
    }
}

fn read_store(store: &mut Section<'_, '_>) -> StoreSettings {
    let defaults = StoreSettings::default();
    let minute = Duration::from_secs(60);
    StoreSettings {
        capacity_bytes: store
            .text("capacity", |text| within(parse_size(text)?, StoreSettings::MIN_CAPACITY_BYTES, u64::MAX, show_size))
            .map(|at| at.value),
        lease: store
            .text("lease", |text| within(parse_duration(text)?, minute, minute * 60 * 24 * 30, show_duration))
            .map_or(defaults.lease, |at| at.value),
        sync_window: store
            .text("sync_window", |text| within(parse_duration(text)?, Duration::from_millis(10), minute, show_duration))
            .map_or(defaults.sync_window, |at| at.value),
        max_blob_size_bytes: store
            .text("max_blob_size", |text| within(parse_size(text)?, 1 << 20, 1 << 40, show_size))
            .map_or(defaults.max_blob_size_bytes, |at| at.value),
    }
}

impl StoreSettings {
    /// Less than this cannot hold a few segments.
    pub(crate) const MIN_CAPACITY_BYTES: u64 = 64 << 20;
}

fn within<T: PartialOrd + Copy>(value: T, least: T, most: T, show: impl Fn(T) -> String) -> Result<T, String> {
    if value < least {
        Err(format!("{} is too little: at least {}", show(value), show(least)))
    } else if value > most {
        Err(format!("{} is too much: at most {}", show(value), show(most)))
    } else {
        Ok(value)
    }
}

#[cfg(test)]
mod tests;
