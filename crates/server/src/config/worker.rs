//! `[worker]`: the worker inside the server.

use std::path::{Path, PathBuf};

use gf_execution::scheduler::{Platform, Property};

use super::reader::Section;
use super::units::{parse_size, show_size};
use super::{parse_path, within};

/// What an operator may say about the worker inside the server. What is not said, the worker finds out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkerSettings {
    /// The cores that it offers; `None` for all of the machine.
    pub cores: Option<u32>,
    /// The memory that it offers; `None` for what the machine has to spare.
    pub memory_bytes: Option<u64>,
    /// The root file system that actions see tools of; `None` for the tool folders of the machine.
    pub root: Option<PathBuf>,
    /// What actions may ask for, besides what the worker finds out.
    pub properties: Vec<Property>,
    /// The most that its cache of inputs may hold.
    pub cache_bytes: Option<u64>,
    /// Whether actions that ask for the network get it.
    pub network: Network,
    /// Whether processes stay for the actions that ask for one.
    pub persistent: Persistent,
    /// The bounds of every action.
    pub bounds: ActionBounds,
}

/// The bounds of every action, where they are not those that the worker takes by itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ActionBounds {
    /// What it may write.
    pub disk_bytes: Option<u64>,
    /// Each of stdout and stderr.
    pub log_bytes: Option<u64>,
    /// Files, folders and links that it may make.
    pub files: Option<u64>,
    /// Processes and threads at one time.
    pub processes: Option<u32>,
}

/// Whether actions may reach the network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Network {
    /// None does.
    Refused,
    /// Those do that ask for it.
    OnRequest,
}

/// Whether a process may stay for the next action.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Persistent {
    /// Every action runs alone.
    Refused,
    /// Those share one that ask for it.
    OnRequest,
}

impl Default for WorkerSettings {
    fn default() -> Self {
        Self {
            cores: None,
            memory_bytes: None,
            root: None,
            properties: Vec::new(),
            cache_bytes: None,
            network: Network::Refused,
            persistent: Persistent::OnRequest,
            bounds: ActionBounds::default(),
        }
    }
}

/// The largest machine there is has fewer.
const MAX_CORES: u64 = 4096;
/// Linux counts no further.
const MAX_PROCESSES: u64 = 1 << 22;

/// `None` when the worker is switched off. What else is said must be right all the same.
pub(super) fn read(worker: &mut Section<'_, '_>, folder: &Path) -> Option<WorkerSettings> {
    let enabled = worker.flag("enabled").unwrap_or(true);
    let cores = |number| match u32::try_from(within(number, 1, MAX_CORES, |cores| format!("{cores} cores"))?) {
        Ok(cores) => Ok(cores),
        Err(error) => Err(error.to_string()),
    };
    let size = |text: &str| within(parse_size(text)?, 64 << 20, 1 << 50, show_size);
    let settings = WorkerSettings {
        cores: worker.number("cores", cores).map(|at| at.value),
        memory_bytes: worker.text("memory", size).map(|at| at.value),
        root: worker.text("root", |text| parse_root(folder, text)).map(|at| at.value),
        properties: read_properties(worker),
        cache_bytes: worker.text("cache", size).map(|at| at.value),
        network: match worker.flag("network") {
            Some(true) => Network::OnRequest,
            Some(false) | None => Network::Refused,
        },
        persistent: match worker.flag("persistent") {
            Some(false) => Persistent::Refused,
            Some(true) | None => Persistent::OnRequest,
        },
        bounds: read_bounds(worker),
    };
    enabled.then_some(settings)
}

fn read_bounds(worker: &mut Section<'_, '_>) -> ActionBounds {
    let size = |text: &str| within(parse_size(text)?, 1 << 20, 1 << 50, show_size);
    let files = |number| within(number, 100, 1 << 40, |files| format!("{files} files"));
    let processes = |number| {
        let processes = within(number, 16, MAX_PROCESSES, |processes| format!("{processes} processes"))?;
        u32::try_from(processes).map_err(|error| error.to_string())
    };
    ActionBounds {
        disk_bytes: worker.text("action_disk", size).map(|at| at.value),
        log_bytes: worker.text("action_log", size).map(|at| at.value),
        files: worker.number("action_files", files).map(|at| at.value),
        processes: worker.number("action_processes", processes).map(|at| at.value),
    }
}

fn parse_root(folder: &Path, text: &str) -> Result<PathBuf, String> {
    let path = parse_path(folder, text)?;
    match std::fs::metadata(&path) {
        Ok(found) if found.is_dir() => Ok(path),
        Ok(_) => Err(format!("{} is no folder", path.display())),
        Err(error) => Err(format!("{} cannot be read: {error}", path.display())),
    }
}

fn read_properties(worker: &mut Section<'_, '_>) -> Vec<Property> {
    let Some(properties) = worker.texts("properties", parse_property) else { return Vec::new() };
    let values: Vec<Property> = properties.value.into_iter().map(|at| at.value).collect();
    if let Err(error) = Platform::new(values.clone()) {
        worker.mistake("properties", properties.place, &error.to_string());
    }
    values
}

fn parse_property(text: &str) -> Result<Property, String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok(Property { name: name.into(), value: value.into() }),
        _ => Err(format!("{text:?} is not a property: write it as \"name=value\"")),
    }
}
