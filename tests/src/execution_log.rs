//! What Bazel did with every spawn, from `--execution_log_json_file`.
//!
//! A cache that fails never fails a build, so an exit code proves nothing: tests assert on this log.

use std::{collections::BTreeMap, fs, path::Path};

use anyhow::{Context, Result, bail};
use serde::Deserialize;

/// One process that Bazel ran or had answered.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Spawn {
    /// The target that wanted it.
    #[serde(default)]
    pub target_label: String,
    /// What kind of action it is, as `CppCompile`.
    #[serde(default)]
    pub mnemonic: String,
    /// What answered: `remote cache hit`, `processwrapper-sandbox`, ….
    #[serde(default)]
    pub runner: String,
    /// Whether the result may be kept in a remote cache.
    #[serde(default)]
    pub remote_cacheable: bool,
    #[serde(default)]
    actual_outputs: Vec<Output>,
    #[serde(default)]
    metrics: SpawnMetrics,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Output {
    #[serde(default)]
    digest: Option<OutputDigest>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct OutputDigest {
    /// 64-bit numbers are strings in protobuf's JSON.
    #[serde(default)]
    size_bytes: String,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct SpawnMetrics {
    #[serde(default)]
    execution_wall_time: String,
}

impl Spawn {
    /// Whether the remote cache answered it.
    pub fn is_remote_hit(&self) -> bool {
        self.runner == "remote cache hit"
    }

    /// Whether a remote worker ran it.
    pub fn is_remote_run(&self) -> bool {
        self.runner == "remote"
    }

    /// The size of everything that it made.
    pub fn output_bytes(&self) -> u64 {
        let sizes = self.actual_outputs.iter().filter_map(|output| output.digest.as_ref());
        sizes.filter_map(|digest| digest.size_bytes.parse::<u64>().ok()).sum()
    }

    fn seconds(&self) -> f64 {
        self.metrics.execution_wall_time.trim_end_matches('s').parse().unwrap_or_default()
    }
}

/// The spawns of one build.
#[derive(Clone, Debug, Default)]
pub struct ExecutionLog {
    /// In the order of the log.
    pub spawns: Vec<Spawn>,
}

impl ExecutionLog {
    /// Reads a log: one JSON object after the other.
    pub fn read(path: &Path) -> Result<Self> {
        let text = fs::read_to_string(path).with_context(|| format!("no execution log at {}", path.display()))?;
        Self::parse(&text)
    }

    fn parse(text: &str) -> Result<Self> {
        let spawns = serde_json::Deserializer::from_str(text).into_iter::<Spawn>();
        Ok(Self { spawns: spawns.collect::<Result<_, _>>().context("the execution log is not what it should be")? })
    }

    /// Spawns whose results a remote cache may keep.
    pub fn cacheable(&self) -> usize {
        self.spawns.iter().filter(|spawn| spawn.remote_cacheable).count()
    }

    /// Spawns that the remote cache answered.
    pub fn remote_hits(&self) -> usize {
        self.spawns.iter().filter(|spawn| spawn.is_remote_hit()).count()
    }

    /// The size of what the remote cache answered with.
    pub fn hit_bytes(&self) -> u64 {
        self.spawns.iter().filter(|spawn| spawn.is_remote_hit()).map(Spawn::output_bytes).sum()
    }

    /// How long its processes ran, added up.
    pub fn process_seconds(&self) -> f64 {
        self.spawns.iter().map(Spawn::seconds).sum()
    }

    /// The number of spawns of each mnemonic, for people.
    pub fn mnemonics(&self) -> BTreeMap<&str, usize> {
        let mut counts = BTreeMap::new();
        for spawn in &self.spawns {
            *counts.entry(spawn.mnemonic.as_str()).or_default() += 1;
        }
        counts
    }

    /// The number of spawns of each mnemonic that a remote worker ran, or an error that names every spawn which ran
    /// elsewhere or was not run.
    pub fn all_remote_runs(&self) -> Result<BTreeMap<&str, usize>> {
        let elsewhere = self.spawns.iter().filter(|spawn| !spawn.is_remote_run());
        let elsewhere: Vec<_> =
            elsewhere.map(|spawn| format!("{} {} ({})", spawn.mnemonic, spawn.target_label, spawn.runner)).collect();
        if !elsewhere.is_empty() {
            bail!(
                "{} of {} actions did not run remotely: {}",
                elsewhere.len(),
                self.spawns.len(),
                elsewhere.join(", ")
            );
        }
        if self.spawns.is_empty() {
            bail!("the build had nothing to run");
        }
        Ok(self.mnemonics())
    }

    /// The number of hits, or an error that names every spawn which was cacheable but no hit.
    pub fn all_remote_hits(&self) -> Result<usize> {
        let missed = self.spawns.iter().filter(|spawn| spawn.remote_cacheable && !spawn.is_remote_hit());
        let missed: Vec<_> =
            missed.map(|spawn| format!("{} {} ({})", spawn.mnemonic, spawn.target_label, spawn.runner)).collect();
        if !missed.is_empty() {
            bail!("{} of {} actions missed the cache: {}", missed.len(), self.cacheable(), missed.join(", "));
        }
        match self.remote_hits() {
            0 => bail!("the build had nothing to ask the cache for"),
            hits => Ok(hits),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOG: &str = r#"
        {"targetLabel": "//a:a", "mnemonic": "CppCompile", "runner": "remote cache hit", "remoteCacheable": true,
         "actualOutputs": [{"path": "a.o", "digest": {"hash": "00", "sizeBytes": "70"}},
                           {"path": "a.d", "digest": {"hash": "01", "sizeBytes": "8"}},
                           {"path": "link", "symlinkTargetPath": "a.o"}],
         "metrics": {"executionWallTime": "0.250s"}}
        {"targetLabel": "//a:t", "mnemonic": "TestRunner", "runner": "processwrapper-sandbox", "remoteCacheable": true,
         "metrics": {"executionWallTime": "1.5s"}}
        {"targetLabel": "//a:u", "mnemonic": "Local", "runner": "local", "remoteCacheable": false}"#;

    #[test]
    fn a_log_is_counted() {
        let log = ExecutionLog::parse(LOG).unwrap();
        assert_eq!((log.cacheable(), log.remote_hits(), log.hit_bytes()), (2, 1, 78));
        assert!((log.process_seconds() - 1.75).abs() < 1e-9);
    }

    #[test]
    fn a_miss_is_named() {
        let message = ExecutionLog::parse(LOG).unwrap().all_remote_hits().unwrap_err().to_string();
        assert_eq!(message, "1 of 2 actions missed the cache: TestRunner //a:t (processwrapper-sandbox)");
    }

    #[test]
    fn a_run_elsewhere_is_named() {
        let message = ExecutionLog::parse(LOG).unwrap().all_remote_runs().unwrap_err().to_string();
        assert!(message.contains("3 of 3") && message.contains("Local //a:u (local)"), "{message}");
        let remote = ExecutionLog::parse(&LOG.replace("processwrapper-sandbox", "remote")).unwrap();
        let spawns = remote.spawns.into_iter().filter(Spawn::is_remote_run).collect();
        assert_eq!(ExecutionLog { spawns }.all_remote_runs().unwrap(), BTreeMap::from([("TestRunner", 1)]));
    }

    #[test]
    fn a_build_without_actions_proves_nothing() {
        assert!(ExecutionLog::default().all_remote_hits().is_err());
        assert!(ExecutionLog::default().all_remote_runs().is_err());
    }
}
