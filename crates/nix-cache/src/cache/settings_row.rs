//! Settings as the database keeps them: one JSON text, so that a new setting needs no migration.

use gf_nix_formats::{KeyName, PublicKey, StoreDir};
use gf_tenancy::Visibility;
use serde::{Deserialize, Serialize};

use crate::{CacheError, Retention, Settings, UpstreamSettings};

/// What is not there has the default; what is not known is passed over, so an older program reads what a newer one wrote.
#[derive(Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct SettingsRow {
    public: bool,
    priority: u32,
    store_dir: String,
    unused_period_s: Option<u64>,
    quota_bytes: Option<u64>,
    grace_s: u64,
    upstreams: Vec<UpstreamRow>,
    upstream_key_names: Vec<String>,
    /// What was written before there was this choice could give them.
    gives_toolchains: Option<bool>,
}

#[derive(Default, Serialize, Deserialize)]
#[serde(default)]
struct UpstreamRow {
    url: String,
    keys: Vec<String>,
}

impl SettingsRow {
    pub(crate) fn format(settings: &Settings) -> String {
        // A struct of text and numbers cannot fail to be written.
        serde_json::to_string(&Self::from(settings)).unwrap_or_default()
    }

    pub(crate) fn parse(text: &str) -> Result<Settings, CacheError> {
        let failed = |reason: String| CacheError::row("settings of a cache", reason);
        let row: Self = serde_json::from_str(text).map_err(|error| failed(error.to_string()))?;
        row.settings().map_err(failed)
    }

    fn settings(self) -> Result<Settings, String> {
        fn parsed<T, E: ToString>(texts: Vec<String>, parse: impl Fn(&str) -> Result<T, E>) -> Result<Vec<T>, String> {
            texts.iter().map(|text| parse(text).map_err(|error| error.to_string())).collect()
        }
        let upstream = |UpstreamRow { url, keys }: UpstreamRow| {
            Ok(UpstreamSettings { url, keys: parsed(keys, PublicKey::parse)? })
        };
        Ok(Settings {
            visibility: if self.public { Visibility::Public } else { Visibility::Private },
            priority: self.priority,
            store_dir: StoreDir::new(&self.store_dir).map_err(|error| error.to_string())?,
            retention: self.unused_period_s.map_or(Retention::Forever, |period_s| Retention::Unused { period_s }),
            quota_bytes: self.quota_bytes,
            grace_s: self.grace_s,
            upstreams: self.upstreams.into_iter().map(upstream).collect::<Result<_, String>>()?,
            upstream_key_names: parsed(self.upstream_key_names, KeyName::new)?,
            gives_toolchains: self.gives_toolchains.unwrap_or(true),
        })
    }
}

impl Default for SettingsRow {
    fn default() -> Self {
        let mut row = Self::from(&Settings::default());
        row.gives_toolchains = None;
        row
    }
}

impl From<&Settings> for SettingsRow {
    fn from(settings: &Settings) -> Self {
        let upstream = |upstream: &UpstreamSettings| UpstreamRow {
            url: upstream.url.clone(),
            keys: upstream.keys.iter().map(ToString::to_string).collect(),
        };
        Self {
            public: settings.visibility == Visibility::Public,
            priority: settings.priority,
            store_dir: settings.store_dir.as_str().to_owned(),
            unused_period_s: match settings.retention {
                Retention::Forever => None,
                Retention::Unused { period_s } => Some(period_s),
            },
            quota_bytes: settings.quota_bytes,
            grace_s: settings.grace_s,
            upstreams: settings.upstreams.iter().map(upstream).collect(),
            upstream_key_names: settings.upstream_key_names.iter().map(ToString::to_string).collect(),
            gives_toolchains: Some(settings.gives_toolchains),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_read_as_they_were_written() {
        let key = PublicKey::parse("cache.nixos.org-1:6NCHdD59X431o0gWypbMrAURkbJ16ZPMQFGspcDShjY=").unwrap();
        let all = Settings {
            visibility: Visibility::Public,
            priority: 7,
            store_dir: StoreDir::new("/other/store").unwrap(),
            retention: Retention::Unused { period_s: 60 },
            quota_bytes: Some(5),
            grace_s: 1,
            upstreams: vec![UpstreamSettings { url: "https://cache.example".into(), keys: vec![key] }],
            upstream_key_names: vec![KeyName::new("cache.nixos.org-1").unwrap()],
            gives_toolchains: true,
        };
        for settings in [all, Settings::default()] {
            assert_eq!(SettingsRow::parse(&SettingsRow::format(&settings)).unwrap(), settings);
        }
    }

    #[test]
    fn what_is_not_there_has_the_default_and_what_is_unknown_is_passed_over() {
        let settings = SettingsRow::parse(r#"{"priority":3,"from_the_future":[1]}"#).unwrap();
        assert_eq!(settings, Settings { priority: 3, gives_toolchains: true, ..Settings::default() });
        for bad in ["", "7", r#"{"store_dir":"nowhere"}"#, r#"{"upstream_key_names":["a:b"]}"#] {
            assert!(SettingsRow::parse(bad).is_err(), "{bad}");
        }
    }
}
