//! The keys of `refit.toml`, with their defaults and the reasons for these. Types only.
//!
//! The comment on a key appears in docs/configuration.md and in editors. Run `cargo xtask references` after a change to update the
//! page.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;

use refit_model::grants::Verb;
use refit_revisions::artifact;
use refit_revisions::artifact::signature::KeyConfig;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::ConfigError;
use super::approval::ApprovalConfig;
use super::credentials::CredentialsConfig;
use super::schema;
use super::watch::WatchConfig;

pub use super::hooks::HooksConfig;
pub use super::metrics::MetricsConfig;
pub use super::notify::NotifyConfig;

/// A week. A larger value is a typing error, and sums of larger times could overflow.
pub(super) const SECONDS_MAX: u64 = 7 * 24 * 60 * 60;
/// Some thirty times the default: every query and every end of a refresh reads all of them.
pub(super) const KEEP_MAX: u32 = 30_000;
/// Ten years.
pub(super) const DAYS_MAX: u32 = 3650;
/// A day. Counts over half a year are useless.
const REQUESTS_WINDOW_MAX: u64 = 24 * 60 * 60;

/// A key may be left out anywhere; [`Config::default`] says what then holds.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Address of the container engine, `unix:///path/to.sock` or `tcp://host:port`. Unset: `DOCKER_HOST`, then the Docker CLI's
    /// context, then `unix:///var/run/docker.sock`. Flag: `--engine`.
    pub engine: Option<String>,
    /// Where policies keep their state, where the daemon keeps the policies that were swapped in (`policies`) and all keep what
    /// they compiled (`compiled`, under a seal; may be deleted), where refreshes are written down (`history`), where those are
    /// that wait for approval (`approvals`), and where two Refits on one machine see that the other is at work. Unset:
    /// `$XDG_STATE_HOME/refit`, then `~/.local/state/refit`, and for root `/var/lib/refit`.
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
    /// Who is told what came of refreshes.
    pub notify: Vec<NotifyConfig>,
    pub approval: ApprovalConfig,
    pub serve: ServeConfig,
    pub watch: WatchConfig,
}

/// Images that are pulled.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ImagesConfig {
    /// Platform to pull and to create for, `linux/amd64`. Empty: whatever the engine chooses. Unset: `linux/amd64` on Apple silicon,
    /// elsewhere whatever the engine chooses.
    #[schemars(schema_with = "schema::platform")]
    pub platform: Option<String>,
    /// How many images that a tag meant before are kept of each repository that was pulled: a number, or `"all"`. Older ones are
    /// removed after a refresh if no container refers to them.
    #[schemars(schema_with = "schema::keep_previous")]
    pub keep_previous: KeepPrevious,
}

/// How many images are kept for a way back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeepPrevious {
    /// Until a person removes them.
    All,
    Newest(usize),
}

impl KeepPrevious {
    const ALL: &str = "all";

    /// The number of kept images, or `None` if nothing is removed.
    pub fn number(self) -> Option<usize> {
        match self {
            Self::All => None,
            Self::Newest(number) => Some(number),
        }
    }
}

impl Default for KeepPrevious {
    /// The previous image, and one more for a late rollback. Without a limit, a tag that moves each night fills any disk.
    fn default() -> Self {
        Self::Newest(2)
    }
}

impl Serialize for KeepPrevious {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::All => serializer.serialize_str(Self::ALL),
            Self::Newest(number) => number.serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for KeepPrevious {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl serde::de::Visitor<'_> for Visitor {
            type Value = KeepPrevious;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                write!(f, "a number of images, or `\"{}\"`", KeepPrevious::ALL)
            }

            fn visit_u64<E: serde::de::Error>(self, number: u64) -> Result<KeepPrevious, E> {
                let number = usize::try_from(number);
                number.map(KeepPrevious::Newest).map_err(E::custom)
            }

            fn visit_i64<E: serde::de::Error>(self, number: i64) -> Result<KeepPrevious, E> {
                let wrong = |_| E::invalid_value(serde::de::Unexpected::Signed(number), &self);
                usize::try_from(number)
                    .map(KeepPrevious::Newest)
                    .map_err(wrong)
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<KeepPrevious, E> {
                match text {
                    KeepPrevious::ALL => Ok(KeepPrevious::All),
                    other => Err(E::invalid_value(serde::de::Unexpected::Str(other), &self)),
                }
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

/// How registries are spoken to.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RegistriesConfig {
    /// Registries, as `host:port`, that policies are fetched from and pushed to, and the watcher asks, without TLS. Those on loopback
    /// need not be listed. Images are pulled by the engine, which has a list of its own.
    pub plain_http: Vec<String>,
    /// Requests that the watcher may make of one registry within the window. What is left is `unknown`, and asked in the next one.
    #[schemars(range(min = 1))]
    pub requests_max: u32,
    /// That window.
    #[schemars(range(min = 1, max = REQUESTS_WINDOW_MAX))]
    pub requests_window_seconds: u64,
}

/// Which policy decides, and with which configuration.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct PolicyConfig {
    /// File with a policy component, or one in a registry: `oci://ghcr.io/acme/canary:1.2.0`, with `@sha256:…` behind it to pin it.
    /// Unset: the default policy, which is built in. Flag: `--policy`.
    #[schemars(schema_with = "schema::component")]
    pub component: Option<artifact::Source>,
    /// Whether `refit serve` looks at the file, and the signature beside it, twice a second, and swaps it in when it has changed and
    /// been left alone for half a second. Not for one in a registry.
    pub watch: bool,
    /// Who may ship policies. With any key, a policy is taken only if one of them signed it; see below. The built-in policy needs
    /// no signature.
    pub keys: Vec<KeyConfig>,
    /// Whether a start or a reload takes a signed policy of which a newer version was active before.
    pub allow_older: bool,
    /// A table that is handed to the policy as JSON. What may be in it, the policy says; it is checked before anything is done.
    pub config: serde_json::Map<String, serde_json::Value>,
}

/// What the host lets any policy see and do. A policy cannot widen it.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct GrantsConfig {
    /// Patterns of registry and repository, without tag, that may be pulled. `*` does not cross a `/`, `**` does.
    pub images: Vec<String>,
    /// Patterns of the names of containers that a policy may know of.
    pub containers: Vec<String>,
    /// Labels that such a container must carry, all of them: `{ "acme.refresh" = "yes" }`.
    pub labels: BTreeMap<String, String>,
    /// Names of environment variables of a container that a policy may read.
    pub environment: Vec<String>,
    /// What a policy may ask for.
    pub verbs: Vec<Verb>,
    /// Recreate containers that the other keys do not cover, if they depend on one that is recreated: they share its network or other
    /// namespaces, use its volumes or link to it. Without it such a container keeps the one that it depends on from being recreated.
    pub followers: bool,
}

/// How much, how long and how many at once.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct LimitsConfig {
    /// Time for any call to the engine but a pull.
    #[schemars(range(min = 1, max = SECONDS_MAX))]
    pub engine_seconds: u64,
    /// Time for one pull.
    #[schemars(range(min = 1, max = SECONDS_MAX))]
    pub pull_seconds: u64,
    /// Time for a whole refresh. What was begun by then is finished.
    #[schemars(range(min = 1, max = SECONDS_MAX))]
    pub refresh_seconds: u64,
    /// Images that one refresh may pull.
    pub pulls_max: u32,
    /// Containers that one refresh may inspect.
    pub inspects_max: u32,
    /// Containers that one refresh may recreate.
    pub recreates_max: u32,
    /// Pulls at once.
    #[schemars(range(min = 1))]
    pub pull_concurrency: usize,
    /// Inspections at once.
    #[schemars(range(min = 1))]
    pub inspect_concurrency: usize,
    /// Containers that are down at once, over all refreshes. More are faster in all, with a longer gap for each; with `1` nothing
    /// else is done beside a gap, and it is shortest. Flag: `--concurrency`.
    #[schemars(range(min = 1))]
    pub recreate_concurrency: usize,
    /// Containers of one refresh at once whose replacement is made ready, takes over, or proves itself. `1`: one is begun when the
    /// one before it is done.
    #[schemars(range(min = 1))]
    pub recreate_pipeline: usize,
    /// Computing time for examining and for compiling a policy, all threads together. Four times as long on the clock.
    #[schemars(range(min = 1, max = SECONDS_MAX))]
    pub compile_seconds: u64,
    /// Address space of the worker process that examines or compiles it, in MiB.
    #[schemars(range(min = 1))]
    pub compile_megabytes: u64,
}

/// When a replacement counts as good, so that the old container may be removed.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ProofConfig {
    /// How long it must keep running.
    #[schemars(range(max = SECONDS_MAX))]
    pub grace_seconds: u64,
    /// How long one with a health check may take to become healthy, beyond its own start period.
    #[schemars(range(max = SECONDS_MAX))]
    pub health_seconds: u64,
}

/// What became of refreshes is written down.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct HistoryConfig {
    /// How many refreshes are kept, 30000 at most: a month of them at thirty a day, and with 40 containers each some 30 MB. `0`: none
    /// is written down.
    #[schemars(range(max = KEEP_MAX))]
    pub keep: u32,
    /// How many days each is kept, 3650 at most: whoever asks what a container ran a quarter ago finds it.
    #[schemars(range(min = 1, max = DAYS_MAX))]
    pub keep_days: u32,
}

/// The daemon.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ServeConfig {
    /// Where the daemon listens. Flag: `--listen`.
    #[schemars(schema_with = "schema::socket_address")]
    pub listen: SocketAddr,
    /// File with the admin token. `ADMIN_TOKEN` and `ADMIN_TOKEN_FILE` go first. With none of them the daemon makes a token at its first
    /// start: the file `token` in the state folder, which commands of the same user read by themselves.
    pub token_file: Option<PathBuf>,
    /// Names under which the daemon is reached, each with or without a port: `refit.example`, `localhost:9000`. A request for any other
    /// name is refused, but for loopback and the address that the daemon listens on.
    pub hosts: Vec<String>,
    /// Whether the daemon runs without an admin token, on loopback only. Then every user and program of the machine can recreate containers.
    pub allow_no_token: bool,
}

impl ServeConfig {
    pub(super) fn check(&self) -> Result<(), ConfigError> {
        let is_host = |name: &&String| {
            name.parse::<http::uri::Authority>()
                .is_ok_and(|it| !it.as_str().contains('@') && !it.host().is_empty())
        };
        match self.hosts.iter().find(|name| !is_host(name)) {
            None => Ok(()),
            Some(name) => Err(ConfigError::Value {
                key: "serve.hosts",
                problem: format!(
                    "`{name}`, which is no host name: `refit.example`, without `http://` and without a path"
                ),
            }),
        }
    }
}

impl Default for RegistriesConfig {
    fn default() -> Self {
        Self {
            plain_http: vec![],
            // Five checks of a hundred images. GHCR allows 44,000 requests in a minute.
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
        match self.requests_window_seconds {
            1..=REQUESTS_WINDOW_MAX => Ok(()),
            seconds => Err(ConfigError::Value {
                key: "registries.requests_window_seconds",
                problem: format!("{seconds}, and may be 1 to {REQUESTS_WINDOW_MAX}"),
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
            allow_older: false,
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
            followers: false,
        }
    }
}

impl Default for LimitsConfig {
    fn default() -> Self {
        Self {
            // The slowest call, a start on a loaded machine, took 0.7 s; after a minute the engine hangs.
            engine_seconds: 60,
            // 7 GB at 4 MB/s.
            pull_seconds: 30 * 60,
            refresh_seconds: 4 * 60 * 60,
            pulls_max: 200,
            inspects_max: 20_000,
            recreates_max: 5_000,
            pull_concurrency: 4,
            inspect_concurrency: 8,
            // The engine is the bottleneck. Stop and start of forty containers, so many at a time, took it on two processors: one 23.6 s
            // with a gap of 0.58 s, two 17.8 and 0.86, three 15.9 and 1.11, four 16.1 and 1.49.
            recreate_concurrency: 2,
            // A health check mostly waits, and two containers a second start in that time: enough for one of fifteen seconds. A
            // higher limit would take down more containers at once if a release is broken.
            recreate_pipeline: 32,
            // Policies of 18 MB (Python) took 15 s. 19 MB of code alone took 47 s and 687 MiB in a debug build, on two cores,
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
            // A month, with thirty refreshes a day; for 40 containers each, 30 MB.
            keep: 1000,
            // Long enough for questions about the last quarter.
            keep_days: 100,
        }
    }
}

impl Default for ServeConfig {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 8787)),
            token_file: None,
            hosts: vec![],
            allow_no_token: false,
        }
    }
}
