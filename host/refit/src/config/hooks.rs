//! `[hooks]`: the webhooks that may announce published images. Types only; secrets are in files or variables.

use std::collections::BTreeSet;
use std::path::PathBuf;

use refit_model::image::ImageRef;
use refit_registry::credentials::GHCR;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::ConfigError;

/// Each is a secret to compare with, and a name in logs. No platform has more.
const REGISTRIES_MAX: usize = 32;

/// Who may say by a webhook that an image was published.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct HooksConfig {
    pub github: GithubHookConfig,
    /// Registries that send the notifications of the OCI distribution.
    #[schemars(length(max = REGISTRIES_MAX))]
    pub registry: Vec<RegistryHookConfig>,
}

/// GitHub's webhook of packages.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct GithubHookConfig {
    /// File with the webhook's secret. `GITHUB_WEBHOOK_SECRET` and `GITHUB_WEBHOOK_SECRET_FILE` go first. With neither there is no such webhook.
    pub secret_file: Option<PathBuf>,
    /// Where the packages that it tells of are pulled from.
    pub registry: String,
}

/// One registry. Which one sent a notification is known by its secret.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RegistryHookConfig {
    /// For people: logs and answers say it.
    pub name: String,
    /// A file with the secret that it sends. `REGISTRY_WEBHOOK_SECRET`, or the file that `REGISTRY_WEBHOOK_SECRET_FILE` names, is for the one without a file.
    #[serde(default)]
    pub secret_file: Option<PathBuf>,
    /// What the images are pulled from, `registry.example:5000`. Without it, what the registry was called by whoever pushed.
    #[serde(default)]
    pub host: Option<String>,
}

impl Default for GithubHookConfig {
    fn default() -> Self {
        Self {
            secret_file: None,
            registry: GHCR.to_owned(),
        }
    }
}

impl HooksConfig {
    pub(super) fn check(&self) -> Result<(), ConfigError> {
        if !is_registry(&self.github.registry) {
            return Err(no_registry("hooks.github.registry", &self.github.registry));
        }
        let wrong = |key, problem: String| Err(ConfigError::Value { key, problem });
        if self.registry.len() > REGISTRIES_MAX {
            let problem = format!(
                "{}, and may be {REGISTRIES_MAX} at most",
                self.registry.len()
            );
            return wrong("hooks.registry", problem);
        }
        let mut names = BTreeSet::new();
        for registry in &self.registry {
            if registry.name.trim().is_empty() {
                return wrong("hooks.registry.name", "empty".into());
            }
            if !names.insert(&registry.name) {
                let problem = format!("`{}` twice", registry.name);
                return wrong("hooks.registry.name", problem);
            }
            if let Some(host) = &registry.host
                && !is_registry(host)
            {
                return Err(no_registry("hooks.registry.host", host));
            }
        }
        let without_file = self.registry.iter().filter(|it| it.secret_file.is_none());
        if without_file.count() > 1 {
            let problem = "missing in two of them, and there is one `REGISTRY_WEBHOOK_SECRET`";
            return wrong("hooks.registry.secret_file", problem.into());
        }
        Ok(())
    }
}

/// Whether an image's name can start with this host.
pub(super) fn is_registry(host: &str) -> bool {
    format!("{host}/image")
        .parse::<ImageRef>()
        .is_ok_and(|image| image.registry() == host)
}

pub(super) fn no_registry(key: &'static str, host: &str) -> ConfigError {
    let shown: String = host.chars().take(80).collect();
    ConfigError::Value {
        key,
        problem: format!("`{shown}`, which is no registry: it looks like `registry.example:5000`"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn registry(name: &str, host: &str, file: Option<&str>) -> RegistryHookConfig {
        RegistryHookConfig {
            name: name.into(),
            secret_file: file.map(PathBuf::from),
            host: Some(host.into()),
        }
    }

    fn problem(registries: Vec<RegistryHookConfig>) -> String {
        let config = HooksConfig {
            registry: registries,
            ..HooksConfig::default()
        };
        config.check().unwrap_err().to_string()
    }

    #[test]
    fn a_host_is_what_an_image_can_begin_with() {
        for host in ["127.0.0.1:5000", "registry.example", "localhost"] {
            assert!(is_registry(host), "{host}");
        }
        for host in [
            "",
            "acme",
            "https://registry.example",
            "registry.example/acme",
            "a b",
        ] {
            assert!(!is_registry(host), "{host}");
        }
        assert!(problem(vec![registry("a", "http://a.example", None)]).contains("no registry"));
    }

    #[test]
    fn who_sent_a_notification_is_one_only() {
        let twice = vec![
            registry("a", "a.example", Some("a")),
            registry("a", "b.example", Some("b")),
        ];
        assert!(problem(twice).contains("`a` twice"));
        let without = vec![
            registry("a", "a.example", None),
            registry("b", "b.example", None),
        ];
        assert!(problem(without).contains("REGISTRY_WEBHOOK_SECRET"));
    }
}
