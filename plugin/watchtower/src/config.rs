//! What an operator may set: Watchtower's flags that are about *which* containers are updated and in which order, by their names.
//!
//! Flags about anything else (schedules, notifications, logins, cleaning up) are the host's, and not taken: `README.md` has the table.

use refit_policy::{ConfigProblem, Strategy, glob};
use serde::Deserialize;

/// `[policy.config]`.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct Config {
    /// Only these, by name. None: all. Watchtower's arguments.
    pub containers: Vec<String>,
    /// But not these.
    pub disable_containers: Vec<String>,
    /// Only containers with an `enable` label.
    pub label_enable: bool,
    /// Only containers with this `scope` label. `none`: only those without one. Absent: all.
    pub scope: Option<String>,
    /// Pull and report, recreate nothing.
    pub monitor_only: bool,
    /// Ask no registry.
    pub no_pull: bool,
    /// Whether a label `false` overrides `monitor-only` and `no-pull` above.
    pub label_take_precedence: bool,
    /// One at a time.
    pub rolling_restart: bool,
    /// Report also on stopped containers.
    pub include_stopped: bool,
    /// Report also on containers that are between two starts.
    pub include_restarting: bool,
    pub strategy: Strategy,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            containers: Vec::new(),
            disable_containers: Vec::new(),
            label_enable: false,
            scope: None,
            monitor_only: false,
            no_pull: false,
            label_take_precedence: false,
            rolling_restart: false,
            include_stopped: false,
            include_restarting: false,
            strategy: Strategy::Replace,
        }
    }
}

/// JSON Schema of [`Config`]; a test keeps it in step.
pub const SCHEMA: &str = r#"{
  "$schema": "https://json-schema.org/draft/2020-12/schema",
  "title": "Configuration of the policy `watchtower`",
  "type": "object",
  "additionalProperties": false,
  "properties": {
    "containers": {
      "description": "Only these, by name: `*` stands for any run of characters, `?` for one. None: all. Watchtower's arguments.",
      "type": "array",
      "items": { "type": "string" },
      "default": []
    },
    "disable-containers": {
      "description": "But not these. Patterns too.",
      "type": "array",
      "items": { "type": "string" },
      "default": []
    },
    "label-enable": {
      "description": "Only containers with the label `com.centurylinklabs.watchtower.enable`.",
      "type": "boolean",
      "default": false
    },
    "scope": {
      "description": "Only containers whose label `com.centurylinklabs.watchtower.scope` is this. `none`: only those without a scope. Absent: all.",
      "type": "string",
      "minLength": 1
    },
    "monitor-only": {
      "description": "Pull and report, and recreate nothing.",
      "type": "boolean",
      "default": false
    },
    "no-pull": {
      "description": "Pull nothing. Containers of images that are not pulled are reported as `unknown`.",
      "type": "boolean",
      "default": false
    },
    "label-take-precedence": {
      "description": "Whether a label with the value `false` overrides `monitor-only` and `no-pull`.",
      "type": "boolean",
      "default": false
    },
    "rolling-restart": {
      "description": "One container at a time.",
      "type": "boolean",
      "default": false
    },
    "include-stopped": {
      "description": "Report also on containers that were created, or have exited. They are never recreated.",
      "type": "boolean",
      "default": false
    },
    "include-restarting": {
      "description": "Report also on containers that are between two starts. They are never recreated.",
      "type": "boolean",
      "default": false
    },
    "strategy": {
      "description": "`replace`: the container comes back on the new image. `remove`: it is removed, and somebody else makes a new one. `overlap`: the new one is proven before the old one stops.",
      "enum": ["replace", "remove", "overlap"],
      "default": "replace"
    }
  }
}"#;

impl Config {
    /// All that is wrong, in the order of the keys.
    pub fn problems(&self) -> Vec<ConfigProblem> {
        let mut problems = Vec::new();
        for (key, names) in [
            ("containers", &self.containers),
            ("disable-containers", &self.disable_containers),
        ] {
            for (at, name) in names.iter().enumerate() {
                // Watchtower takes names with the engine's leading slash too.
                let problem = glob::problem(without_slash(name));
                problems.extend(problem.map(|p| ConfigProblem::new(format!("{key}[{at}]"), p)));
            }
        }
        if self.scope.as_deref() == Some("") {
            problems.push(ConfigProblem::new(
                "scope",
                "must not be empty: `none` means containers without a scope, and leaving it out means all",
            ));
        }
        problems
    }

    /// Whether a container of this name is meant at all.
    pub fn considers(&self, name: &str) -> bool {
        let fits = |pattern: &String| glob::matches(without_slash(pattern), name);
        (self.containers.is_empty() || self.containers.iter().any(fits))
            && !self.disable_containers.iter().any(fits)
    }
}

/// Names as an engine gives them have a leading slash, and people have copied it.
pub(crate) fn without_slash(name: &str) -> &str {
    name.strip_prefix('/').unwrap_or(name)
}
