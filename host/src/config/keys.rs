//! The keys of `refit.toml`, their defaults, and the reasons for these. Types only.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::ConfigError;
use super::approval::ApprovalConfig;
use super::watch::WatchConfig;
use crate::artifact;
use crate::artifact::signature::KeyConfig;
use crate::grants::Verb;

pub use super::hooks::HooksConfig;
pub use super::metrics::MetricsConfig;

/// A key may be left out anywhere; [`Config::default`] says what then holds.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Address of the engine. Without it, `DOCKER_HOST`, the Docker CLI's context, or the usual socket.
    pub engine: Option<String>,
    /// Where policies keep their state. Without it, a folder for the user.
    pub state_dir: Option<PathBuf>,
    pub images: ImagesConfig,
    pub credentials: CredentialsConfig,
    pub registries: RegistriesConfig,
    pub policy: PolicyConfig,
    pub grants: GrantsConfig,
    pub limits: LimitsConfig,
    pub proof: ProofConfig,
    pub history: HistoryConfig,
    pub metrics: MetricsConfig,
    pub hooks: HooksConfig,
    pub approval: ApprovalConfig,
    pub serve: ServeConfig,
    pub watch: WatchConfig,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ImagesConfig {
    /// Platform to pull and create for, `linux/amd64`. Empty: whatever the engine chooses. `MOLECULE_IMAGE_PLATFORM` sets it too.
    pub platform: Option<String>,
    /// How many images that a tag meant before are kept of each repository, for a way back; older ones are removed after a
    /// refresh where no container refers to them. Without it, all are kept.
    pub keep_previous: Option<usize>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CredentialsConfig {
    /// The registry that `GHCR_USER` and `GHCR_TOKEN` are for. They are sent nowhere else.
    pub registry: String,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RegistriesConfig {
    /// Registries, as `host:port`, that policies are fetched from, and the watcher asks, without TLS. Those on this machine need
    /// not be listed.
    pub plain_http: Vec<String>,
    /// How often the watcher may ask one registry within the window.
    pub requests_max: u32,
    pub requests_window_seconds: u64,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PolicyConfig {
    /// A component file, or `oci://…`. Without it, the default policy that is built in.
    pub component: Option<artifact::Source>,
    /// Whether the daemon looks at the file again and again, and swaps it in when it has changed.
    pub watch: bool,
    /// Who may ship policies. With none, nobody needs to sign anything.
    pub keys: Vec<KeyConfig>,
    /// Handed to the policy as JSON. What it may contain, the policy says.
    pub config: serde_json::Map<String, serde_json::Value>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct GrantsConfig {
    pub images: Vec<String>,
    pub containers: Vec<String>,
    pub labels: BTreeMap<String, String>,
    pub environment: Vec<String>,
    pub verbs: Vec<Verb>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LimitsConfig {
    /// Any call to the engine but a pull.
    pub engine_seconds: u64,
    /// One pull.
    pub pull_seconds: u64,
    /// A whole refresh.
    pub refresh_seconds: u64,
    pub pulls_max: u32,
    pub inspects_max: u32,
    pub recreates_max: u32,
    pub pull_concurrency: usize,
    pub inspect_concurrency: usize,
    /// Containers that are down at once.
    pub recreate_concurrency: usize,
    /// Containers at once whose replacement is made ready, takes over, or proves itself.
    pub recreate_pipeline: usize,
    /// Computing time for compiling a policy, all threads together.
    pub compile_seconds: u64,
    /// Address space of the process that compiles it, in MiB.
    pub compile_megabytes: u64,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ProofConfig {
    /// How long a replacement must keep running before the old container is removed.
    pub grace_seconds: u64,
    /// How long one with a health check may take to become healthy, beyond its own start period.
    pub health_seconds: u64,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct HistoryConfig {
    /// How many refreshes are kept; 0: none is written down.
    pub keep: u32,
    pub keep_days: u32,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ServeConfig {
    pub listen: SocketAddr,
    /// A file with the admin token. `ADMIN_TOKEN` sets it too, and goes first.
    pub token_file: Option<PathBuf>,
}

impl Default for CredentialsConfig {
    fn default() -> Self {
        Self {
            registry: crate::registry::credentials::GHCR.to_owned(),
        }
    }
}

impl Default for RegistriesConfig {
    fn default() -> Self {
        Self {
            plain_http: vec![],
            // Five looks at a hundred images. GHCR lets 44,000 through in a minute.
            requests_max: 600,
            requests_window_seconds: 60,
        }
    }
}

impl RegistriesConfig {
    pub(super) fn check(&self) -> Result<(), ConfigError> {
        let zero = |key: &'static str| ConfigError::Value {
            key,
            problem: "0, and must be at least 1".into(),
        };
        if self.requests_max == 0 {
            return Err(zero("registries.requests_max"));
        }
        /// A day; counts of half a year are nobody's.
        const WINDOW_MAX: u64 = 24 * 60 * 60;
        match self.requests_window_seconds {
            1..=WINDOW_MAX => Ok(()),
            seconds => Err(ConfigError::Value {
                key: "registries.requests_window_seconds",
                problem: format!("{seconds}, and may be 1 to {WINDOW_MAX}"),
            }),
        }
    }
}

impl Default for PolicyConfig {
    fn default() -> Self {
        Self {
            component: None,
            watch: false,
            keys: vec![],
            config: serde_json::Map::new(),
        }
    }
}

impl Default for GrantsConfig {
    fn default() -> Self {
        Self {
            images: vec!["ghcr.io/molecule-ai/workspace-template-*".into()],
            containers: vec!["ws-*".into()],
            labels: BTreeMap::new(),
            environment: vec![],
            verbs: vec![
                Verb::Inspect,
                Verb::Pull,
                Verb::Replace,
                Verb::Remove,
                Verb::Overlap,
            ],
        }
    }
}

impl Default for LimitsConfig {
    fn default() -> Self {
        Self {
            // The slowest call seen, a start on a loaded machine, took 0.7 s; a minute means that the engine hangs.
            engine_seconds: 60,
            // 7 GB at 4 MB/s.
            pull_seconds: 30 * 60,
            refresh_seconds: 4 * 60 * 60,
            pulls_max: 200,
            inspects_max: 20_000,
            recreates_max: 5_000,
            pull_concurrency: 4,
            inspect_concurrency: 8,
            // The engine is the bottleneck: four at a time were twice as fast as one, at twice the gap for each.
            recreate_concurrency: 2,
            // A proof of five seconds is nothing but waiting, and five containers take over meanwhile.
            recreate_pipeline: 16,
            // Policies of 18 MB (Python) took 15 s. 19 MB of nothing but code took 47 s and 687 MiB in a debug build, two cores,
            // 2026-11-23: this is more than twice that.
            compile_seconds: 120,
            compile_megabytes: 2048,
        }
    }
}

impl Default for ProofConfig {
    fn default() -> Self {
        Self {
            grace_seconds: 5,
            health_seconds: 120,
        }
    }
}

impl Default for HistoryConfig {
    fn default() -> Self {
        Self {
            // A month of them, where thirty a day are published; of 40 containers each, 30 MB.
            keep: 1000,
            // Who asks what a container ran last quarter finds it.
            keep_days: 100,
        }
    }
}

impl Default for ServeConfig {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 8787)),
            token_file: None,
        }
    }
}
