//! Loads the configuration from defaults, `refit.toml`, the environment and flags, in this order; each overrides the one before.
//!
//! It is loaded once; after that, only the type is used. This module has the layers and the errors of values; [`keys`] has the keys
//! and their defaults. The layers remember the source of each value, for `refit config show`, and know all keys, so that a misspelt
//! key is an error.

pub mod approval;
pub mod credentials;
pub mod hooks;
pub mod keys;
pub mod metrics;
pub mod notify;
mod places;
pub mod reference;
pub mod schema;
pub mod watch;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use figment::providers::{Env, Format as _, Serialized, Toml};
use figment::value::Value;
use figment::{Figment, error::Kind};
use serde::Serialize;

pub use self::keys::Config;
use refit_capabilities::guard::Counts;
use refit_engine::docker::CallLimits;
use refit_model::diagnostic::{Diagnostic, Hints};
use refit_model::grants::GrantPatterns;
use refit_model::image::{Platform, image_platform};
use refit_recreate::health_gate::ReadinessCheck;
use refit_refresh::Bounds;
use refit_revisions::artifact;
use refit_sandbox::{Concurrency, WorkerLimits};

use self::keys::{DAYS_MAX, KEEP_MAX, SECONDS_MAX};

/// The prefix of variables that set a key: `REFIT_LIMITS__PULL_SECONDS` is `[limits] pull_seconds`.
const PREFIX: &str = "REFIT_";

/// Why a configuration cannot be used. Nothing was done.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("cannot read the configuration `{}`", .path.display())]
    Unreadable {
        path: PathBuf,
        source: std::io::Error,
    },
    #[error("will not use the configuration `{}`: `{}` {problem}", .path.display(), .part.display())]
    Insecure {
        path: PathBuf,
        /// The file, or a folder above it.
        part: PathBuf,
        problem: &'static str,
    },
    #[error("the configuration cannot be used: {problem}")]
    Wrong { problem: String, hints: Vec<String> },
    #[error("`{key}` in the configuration is {problem}")]
    Value { key: &'static str, problem: String },
}

impl Hints for ConfigError {
    fn hints(&self) -> Vec<String> {
        match self {
            Self::Unreadable { .. } => vec!["`--config FILE` names another one".into()],
            Self::Insecure { part, .. } => {
                let part = part.display();
                vec![
                    format!(
                        "whoever can change it decides what Refit does: `chown root {part}` and `chmod go-w {part}`"
                    ),
                    "in a container, mount it read-only (`:ro`)".into(),
                ]
            }
            Self::Wrong { hints, .. } => hints.clone(),
            Self::Value { .. } => {
                vec!["`refit config show` prints each value and where it came from".into()]
            }
        }
    }
}

/// A configuration, with the source of each value.
pub struct Loaded {
    pub config: Config,
    /// The configuration file, or `None` if there is none, and the defaults apply.
    pub file: Option<PathBuf>,
    figment: Figment,
}

/// The values of flags. `None` keeps the value of the layer below.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Flags {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub engine: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub policy: Option<PolicyFlags>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limits: Option<LimitsFlags>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub serve: Option<ServeFlags>,
}

#[derive(Clone, Debug, Serialize)]
pub struct PolicyFlags {
    pub component: artifact::Source,
}

#[derive(Clone, Debug, Serialize)]
pub struct LimitsFlags {
    pub recreate_concurrency: usize,
}

#[derive(Clone, Debug, Serialize)]
pub struct ServeFlags {
    pub listen: SocketAddr,
}

/// Load the configuration. `file` is the value of `--config`, and must exist. Otherwise the user's file is used, then the
/// machine's.
pub fn load(file: Option<&Path>, flags: &Flags) -> Result<Loaded, ConfigError> {
    let found = match file.filter(|file| !file.as_os_str().is_empty()) {
        Some(file) => Some(file.to_owned()),
        None => places::find(),
    };
    match &found {
        Some(path) => {
            tracing::debug!(file = %path.display(), "configuration");
            places::check(path)?;
        }
        None => tracing::debug!("no configuration file, the defaults hold"),
    }
    let mut figment = Figment::from(Serialized::defaults(Config::default()));
    if let Some(path) = &found {
        let text = std::fs::read_to_string(path).map_err(|source| ConfigError::Unreadable {
            path: path.clone(),
            source,
        })?;
        figment = figment.merge(NamedToml {
            name: path.display().to_string(),
            text,
        });
    }
    if let Ok(platform) = std::env::var("MOLECULE_IMAGE_PLATFORM") {
        figment = figment.merge(Named {
            name: "MOLECULE_IMAGE_PLATFORM",
            inner: Serialized::default("images.platform", platform),
        });
    }
    if let Some(enabled) = std::env::var("IMAGE_AUTO_REFRESH")
        .ok()
        .and_then(|variable| watch::auto_refresh(&variable))
    {
        figment = figment.merge(Named {
            name: "IMAGE_AUTO_REFRESH",
            inner: Serialized::default("watch.enabled", enabled),
        });
    }
    // `REFIT_CONFIG` names the file and is not a key.
    figment = figment.merge(Env::prefixed(PREFIX).ignore(&["config", "log"]).split("__"));
    figment = figment.merge(Named {
        name: "a flag",
        inner: Serialized::defaults(flags),
    });
    let config = extract(&figment)?;
    Ok(Loaded {
        config,
        file: found,
        figment,
    })
}

/// Parse one document over the defaults, without environment and flags. `origin` is for people.
pub fn parse(text: &str, origin: &str) -> Result<Config, ConfigError> {
    let defaults = Figment::from(Serialized::defaults(Config::default()));
    extract(&defaults.merge(NamedToml {
        name: origin.to_owned(),
        text: text.to_owned(),
    }))
}

fn extract(figment: &Figment) -> Result<Config, ConfigError> {
    let config: Config = figment.extract().map_err(|error| wrong(&error))?;
    config.check()?;
    Ok(config)
}

/// A layer with a name for people.
struct Named<P> {
    name: &'static str,
    inner: P,
}

impl<P: figment::Provider> figment::Provider for Named<P> {
    fn metadata(&self) -> figment::Metadata {
        figment::Metadata::named(self.name)
    }

    fn data(
        &self,
    ) -> figment::error::Result<figment::value::Map<figment::Profile, figment::value::Dict>> {
        self.inner.data()
    }
}

/// The file with its own path as name.
struct NamedToml {
    name: String,
    text: String,
}

impl figment::Provider for NamedToml {
    fn metadata(&self) -> figment::Metadata {
        figment::Metadata::named(self.name.clone())
    }

    fn data(
        &self,
    ) -> figment::error::Result<figment::value::Map<figment::Profile, figment::value::Dict>> {
        Toml::string(&self.text).data()
    }
}

fn wrong(error: &figment::Error) -> ConfigError {
    let place = error
        .metadata
        .as_ref()
        .map_or_else(String::new, |metadata| format!(" in {}", metadata.name));
    let key = error.path.join(".");
    let (problem, hints) = match &error.kind {
        Kind::UnknownField(field, expected) => {
            let table = if key.is_empty() || key == *field {
                "at the top".to_owned()
            } else {
                format!("in `[{}]`", table_of(&key, field))
            };
            let valid = expected
                .iter()
                .map(|key| format!("`{key}`"))
                .collect::<Vec<_>>()
                .join(", ");
            (
                format!("unknown key `{field}` {table}{place}"),
                vec![format!("the keys there are {valid}")],
            )
        }
        // A message of several lines, with an excerpt of the file.
        Kind::Message(message) if key.is_empty() => {
            let message = without_addresses(message.trim());
            let said = [place.trim_start(), &message];
            let said = said.into_iter().filter(|part| !part.is_empty());
            (said.collect::<Vec<_>>().join(": "), vec![])
        }
        // The value may be an address in the wrong place.
        Kind::InvalidType(_, expected) | Kind::InvalidValue(_, expected)
            if key.starts_with("notify") =>
        {
            (format!("`{key}`{place} is not {expected}"), vec![])
        }
        Kind::UnknownVariant(_, expected) if key.starts_with("notify") => {
            let expected = expected.join("`, `");
            (format!("`{key}`{place} is none of `{expected}`"), vec![])
        }
        kind => (format!("`{key}`{place}: {kind}"), vec![]),
    };
    ConfigError::Wrong { problem, hints }
}

/// The excerpt without lines of the file that may hold a secret, such as the addresses of notifications.
fn without_addresses(message: &str) -> String {
    let line = |line: &str| match line.split_once(" | ") {
        Some((number, text))
            if number.trim().parse::<u32>().is_ok()
                && (text.contains("://") || text.contains("url")) =>
        {
            format!("{number} | (hidden)")
        }
        _ => line.to_owned(),
    };
    message.lines().map(line).collect::<Vec<_>>().join("\n")
}

/// The path of an unknown key may or may not end in the key itself.
fn table_of<'a>(path: &'a str, field: &str) -> &'a str {
    path.strip_suffix(field)
        .and_then(|table| table.strip_suffix('.'))
        .unwrap_or(path)
}

impl Config {
    fn check(&self) -> Result<(), ConfigError> {
        let positive: [(&'static str, u64); 9] = [
            ("limits.compile_seconds", self.limits.compile_seconds),
            ("limits.compile_megabytes", self.limits.compile_megabytes),
            ("limits.engine_seconds", self.limits.engine_seconds),
            ("limits.pull_seconds", self.limits.pull_seconds),
            ("limits.refresh_seconds", self.limits.refresh_seconds),
            (
                "limits.pull_concurrency",
                self.limits.pull_concurrency as u64,
            ),
            (
                "limits.inspect_concurrency",
                self.limits.inspect_concurrency as u64,
            ),
            (
                "limits.recreate_pipeline",
                self.limits.recreate_pipeline as u64,
            ),
            (
                "limits.recreate_concurrency",
                self.limits.recreate_concurrency as u64,
            ),
        ];
        for (key, value) in positive {
            if value == 0 {
                return Err(ConfigError::Value {
                    key,
                    problem: "0, and must be at least 1".into(),
                });
            }
        }
        let times: [(&'static str, u64); 6] = [
            ("limits.compile_seconds", self.limits.compile_seconds),
            ("limits.engine_seconds", self.limits.engine_seconds),
            ("limits.pull_seconds", self.limits.pull_seconds),
            ("limits.refresh_seconds", self.limits.refresh_seconds),
            ("proof.grace_seconds", self.proof.grace_seconds),
            ("proof.health_seconds", self.proof.health_seconds),
        ];
        for (key, value) in times {
            if value > SECONDS_MAX {
                return Err(ConfigError::Value {
                    key,
                    problem: format!("{value}, and may be {SECONDS_MAX} at most"),
                });
            }
        }
        let kept: [(&'static str, u32, u32, u32); 2] = [
            ("history.keep", self.history.keep, 0, KEEP_MAX),
            ("history.keep_days", self.history.keep_days, 1, DAYS_MAX),
        ];
        for (key, value, least, most) in kept {
            if !(least..=most).contains(&value) {
                return Err(ConfigError::Value {
                    key,
                    problem: format!("{value}, and may be {least} to {most}"),
                });
            }
        }
        if let Some(artifact::Source::Registry(_)) = &self.policy.component
            && self.policy.watch
        {
            return Err(ConfigError::Value {
                key: "policy.watch",
                problem: "true, and `policy.component` is no file that could be watched".into(),
            });
        }
        self.credentials.check()?;
        self.hooks.check()?;
        notify::check(&self.notify)?;
        self.approval.check()?;
        self.registries.check()?;
        self.serve.check()?;
        self.watch.settings()?;
        self.platform().map(drop)
    }

    /// The platform for pulls and creates.
    pub fn platform(&self) -> Result<Option<Platform>, ConfigError> {
        image_platform(self.images.platform.as_deref()).map_err(|error| ConfigError::Value {
            key: "images.platform",
            problem: format!("wrong: {error}"),
        })
    }

    pub fn call_limits(&self) -> CallLimits {
        CallLimits {
            call: Duration::from_secs(self.limits.engine_seconds),
            pull: Duration::from_secs(self.limits.pull_seconds),
        }
    }

    pub fn worker_limits(&self) -> WorkerLimits {
        WorkerLimits {
            computing: Duration::from_secs(self.limits.compile_seconds),
            memory_bytes: self.limits.compile_megabytes.saturating_mul(1 << 20),
        }
    }

    pub fn proof(&self) -> ReadinessCheck {
        ReadinessCheck {
            grace: Duration::from_secs(self.proof.grace_seconds),
            health: Duration::from_secs(self.proof.health_seconds),
        }
    }

    pub fn bounds(&self) -> Bounds {
        let limits = &self.limits;
        Bounds {
            counts: Counts {
                inspects: limits.inspects_max,
                pulls: limits.pulls_max,
                recreates: limits.recreates_max,
            },
            concurrency: Concurrency {
                inspects: limits.inspect_concurrency,
                pulls: limits.pull_concurrency,
                recreates: limits.recreate_pipeline,
            },
            whole: Duration::from_secs(limits.refresh_seconds),
            keep_previous_images: self.images.keep_previous.number(),
        }
    }

    pub fn grants(&self) -> GrantPatterns {
        GrantPatterns {
            images: self.grants.images.clone(),
            containers: self.grants.containers.clone(),
            labels: self.grants.labels.clone(),
            environment: self.grants.environment.clone(),
            verbs: self.grants.verbs.clone(),
            followers: self.grants.followers,
        }
    }

    /// The state folder: the configured one, otherwise the user's default folder, or the machine's for root.
    pub fn state_folder(&self) -> PathBuf {
        self.state_dir.clone().unwrap_or_else(places::state_folder)
    }
}

/// A value of the configuration.
#[derive(Clone, Debug, Serialize)]
pub struct Setting {
    pub key: String,
    pub value: serde_json::Value,
    /// The source: a file, a variable, `a flag` or `default`.
    pub from: String,
}

impl Loaded {
    /// All values with their keys and sources, sorted by key.
    pub fn settings(&self) -> Result<Vec<Setting>, Diagnostic> {
        let whole: Value = self
            .figment
            .extract()
            .map_err(|error| Diagnostic::of(&wrong(&error)))?;
        let mut settings = Vec::new();
        self.flatten("", &whole, &mut settings);
        Ok(settings)
    }

    fn flatten(&self, key: &str, value: &Value, settings: &mut Vec<Setting>) {
        if let Value::Dict(_, entries) = value
            && !entries.is_empty()
        {
            for (name, value) in entries {
                let key = if key.is_empty() {
                    name.clone()
                } else {
                    format!("{key}.{name}")
                };
                self.flatten(&key, value, settings);
            }
            return;
        }
        let metadata = self.figment.find_metadata(key);
        let from = match metadata.map(|metadata| metadata.name.as_ref()) {
            Some(name) if name.contains("environment variable") => {
                format!("{PREFIX}{}", key.to_uppercase().replace('.', "__"))
            }
            Some(name) if !name.contains("refit::config") => name.to_owned(),
            _ => "default".to_owned(),
        };
        let mut value = serde_json::to_value(value).unwrap_or_default();
        if key == "notify" {
            notify::hide(&mut value);
        }
        settings.push(Setting {
            key: key.to_owned(),
            value,
            from,
        });
    }
}

#[cfg(test)]
#[expect(
    clippy::result_large_err,
    reason = "the closure's error type is figment's own"
)]
mod tests {
    use super::*;
    use figment::Jail;

    fn problem(text: &str) -> (String, Vec<String>) {
        let mut answer = None;
        Jail::expect_with(|jail| {
            jail.create_file("refit.toml", text)?;
            let error = load(Some(Path::new("refit.toml")), &Flags::default())
                .err()
                .expect("it must be refused");
            answer = Some((error.to_string(), error.hints()));
            Ok(())
        });
        answer.unwrap()
    }

    #[test]
    fn an_unknown_key_is_an_error_that_lists_the_valid_ones() {
        let (error, hints) = problem("[proof]\ngrace = 3\n");
        assert_eq!(
            error,
            "the configuration cannot be used: unknown key `grace` in `[proof]` in refit.toml"
        );
        assert_eq!(
            hints,
            ["the keys there are `grace_seconds`, `health_seconds`"]
        );
        let (error, _) = problem("polcy = 1\n");
        assert_eq!(
            error,
            "the configuration cannot be used: unknown key `polcy` at the top in refit.toml"
        );
    }

    #[test]
    fn a_wrong_type_and_a_wrong_value_name_the_key() {
        assert!(
            problem("[limits]\npull_seconds = \"long\"\n")
                .0
                .contains("`limits.pull_seconds`")
        );
        assert!(
            problem("[limits]\nengine_seconds = 0\n")
                .0
                .contains("`limits.engine_seconds` in the configuration is 0")
        );
        assert!(
            problem("[images]\nplatform = \"amd64\"\n")
                .0
                .contains("`amd64` is not a platform")
        );
        assert!(problem("[limits\n").0.contains("refit.toml"));
        assert!(
            problem("[policy]\ncomponent = \"oci://ghcr.io/acme/canary\"\n")
                .0
                .contains("it names no tag and no digest")
        );
        assert!(
            problem("[policy]\ncomponent = \"oci://ghcr.io/acme/canary:1\"\nwatch = true\n")
                .0
                .contains(
                    "`policy.watch` in the configuration is true, and `policy.component` is no file"
                )
        );
        assert!(
            problem("[[policy.keys]]\nname = \"release\"\n")
                .0
                .contains("`key`")
        );
    }

    #[test]
    fn each_layer_goes_over_the_one_before_and_says_so() {
        Jail::expect_with(|jail| {
            jail.create_file("refit.toml", "engine = \"unix:///file\"\n[limits]\npull_seconds = 7\nengine_seconds = 8\n[policy.config]\ncontainers = \"ws-*\"\n")?;
            jail.set_env("REFIT_LIMITS__PULL_SECONDS", "9");
            jail.set_env("MOLECULE_IMAGE_PLATFORM", "");
            let flags = Flags {
                engine: Some("unix:///flag".into()),
                ..Flags::default()
            };
            let loaded = load(Some(Path::new("refit.toml")), &flags).unwrap();
            assert_eq!(loaded.config.engine.as_deref(), Some("unix:///flag"));
            assert_eq!(loaded.config.limits.pull_seconds, 9);
            assert_eq!(loaded.config.limits.engine_seconds, 8);
            assert_eq!(
                loaded.config.images.platform.as_deref(),
                Some(""),
                "set but empty is set"
            );
            let settings = loaded.settings().unwrap();
            let from = |key: &str| {
                settings
                    .iter()
                    .find(|setting| setting.key == key)
                    .unwrap()
                    .from
                    .clone()
            };
            assert_eq!(from("engine"), "a flag");
            assert_eq!(from("limits.pull_seconds"), "REFIT_LIMITS__PULL_SECONDS");
            assert_eq!(from("limits.engine_seconds"), "refit.toml");
            assert_eq!(from("images.platform"), "MOLECULE_IMAGE_PLATFORM");
            assert_eq!(from("policy.config.containers"), "refit.toml");
            assert_eq!(from("serve.listen"), "default");
            Ok(())
        });
    }

    #[test]
    fn defaults_are_a_configuration() {
        Jail::expect_with(|_| {
            assert_eq!(
                load(None, &Flags::default())
                    .unwrap()
                    .config
                    .grants
                    .containers,
                ["ws-*"]
            );
            Ok(())
        });
    }
}
