//! What an operator says about a cache.

use gf_nix_formats::{KeyName, PublicKey, StoreDir};
use gf_tenancy::Visibility;

const DAY_S: u64 = 24 * 60 * 60;

/// How long a path stays that nobody uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retention {
    /// Until the quota needs its place.
    Forever,
    /// So many seconds since it was published, or its narinfo or archive was read last.
    Unused {
        /// The seconds; above 0.
        period_s: u64,
    },
}

/// Another cache, whose paths this one serves as its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UpstreamSettings {
    /// Where it is: `https://cache.example`. `http` and `https` only.
    pub url: String,
    /// A path of it is taken when one of these keys signed it, or when its content names it.
    pub keys: Vec<PublicKey>,
}

/// Everything that can be set on a cache but its signing key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Who may read.
    pub visibility: Visibility,
    /// Lower is asked first by clients that have several caches. Clients remember it for a week.
    pub priority: u32,
    /// The folder of the store that the paths are of. Never changes after creation.
    pub store_dir: StoreDir,
    /// How long unused paths stay.
    pub retention: Retention,
    /// The most bytes of archives, or no limit.
    pub quota_bytes: Option<u64>,
    /// For so many seconds after a narinfo was served its path stays, whatever retention and quota say: clients remember
    /// for 30 days what they saw.
    pub grace_s: u64,
    /// Where to look for what is not here, in this order. At most [`Settings::MAX_UPSTREAMS`].
    pub upstreams: Vec<UpstreamSettings>,
    /// Names of keys of caches that every client of this one has too, declared without saying where they are, as Attic
    /// does. Its client leaves out what they signed, so a reference that no client announced counts as theirs.
    pub upstream_key_names: Vec<KeyName>,
    /// Whether actions of the tenant may name paths of it as their tools: whoever may push here then decides what other
    /// people's builds run.
    pub gives_toolchains: bool,
}

impl Settings {
    /// The most upstreams of one cache.
    pub const MAX_UPSTREAMS: usize = 8;

    /// The most names of keys.
    pub const MAX_KEY_NAMES: usize = 32;
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            visibility: Visibility::Private,
            priority: 40,
            store_dir: StoreDir::default(),
            retention: Retention::Forever,
            quota_bytes: None,
            grace_s: 30 * DAY_S,
            upstreams: Vec::new(),
            upstream_key_names: Vec::new(),
            gives_toolchains: false,
        }
    }
}

/// Which of the [`Settings`] to change; `None` leaves one as it is. What is about retention is in [`RetentionChange`],
/// which asks for another permission.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SettingsChange {
    /// Who may read.
    pub visibility: Option<Visibility>,
    /// The priority.
    pub priority: Option<u32>,
    /// All upstreams.
    pub upstreams: Option<Vec<UpstreamSettings>>,
    /// All names of keys.
    pub upstream_key_names: Option<Vec<KeyName>>,
    /// Whether it gives toolchains. Turning this on takes the right to configure every cache of the tenant that does.
    pub gives_toolchains: Option<bool>,
}

impl SettingsChange {
    /// Whether it changes nothing at all.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    pub(crate) fn apply(self, settings: &mut Settings) {
        set(&mut settings.visibility, self.visibility);
        set(&mut settings.priority, self.priority);
        set(&mut settings.upstreams, self.upstreams);
        set(&mut settings.upstream_key_names, self.upstream_key_names);
        set(&mut settings.gives_toolchains, self.gives_toolchains);
    }
}

/// Which of the [`Settings`] about what stays to change; `None` leaves one as it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RetentionChange {
    /// How long unused paths stay.
    pub retention: Option<Retention>,
    /// The quota; `Some(None)` lifts it.
    pub quota_bytes: Option<Option<u64>>,
    /// The grace.
    pub grace_s: Option<u64>,
}

impl RetentionChange {
    /// Whether it changes nothing at all.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    pub(crate) fn apply(self, settings: &mut Settings) {
        set(&mut settings.retention, self.retention);
        set(&mut settings.quota_bytes, self.quota_bytes);
        set(&mut settings.grace_s, self.grace_s);
    }
}

fn set<T>(place: &mut T, value: Option<T>) {
    if let Some(value) = value {
        *place = value;
    }
}
