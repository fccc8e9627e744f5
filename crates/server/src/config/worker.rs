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
}

/// Whether actions may reach the network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Network {
    /// None does.
    Refused,
    /// Those do that ask for it.
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
        }
    }
}

/// The largest machine there is has fewer.
const MAX_CORES: u64 = 4096;

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
    };
    enabled.then_some(settings)
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
