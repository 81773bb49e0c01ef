//! What an operator may set, and what can be wrong with it.

use std::collections::BTreeMap;

use refit_policy::reference::{self, same_repository};
use refit_policy::{ConfigProblem, Strategy, glob};
use serde::Deserialize;

use crate::window::{self, Window};

/// A month. Who wants longer wants the container left alone.
const COOLDOWN_HOURS_MAX: u64 = 31 * 24;

/// `[policy.config]`.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// A name of the operator's choice, and the image it stands for. At least one.
    pub images: BTreeMap<String, String>,
    /// Which names a container may have.
    pub containers: String,
    /// When the window opens and closes, `22:30`; it may run across midnight.
    pub from: String,
    pub to: String,
    /// The days on which it opens.
    pub days: Vec<String>,
    /// What those times are relative to: `+01:00`.
    pub utc_offset: String,
    /// Whether a person at a terminal may refresh at any time.
    pub operator_ignores_window: bool,
    /// A container with this label is left alone.
    pub busy_label: String,
    /// For how long a container that was just stopped for a new image is spared the next one. 0: not at all.
    pub cooldown_hours: u64,
    /// How many of each image go first. 0: none.
    pub canaries: usize,
    /// How many of the rest at a time. 0: all.
    pub wave: usize,
    pub strategy: Strategy,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            images: BTreeMap::new(),
            containers: "*".to_owned(),
            from: "22:00".to_owned(),
            to: "06:00".to_owned(),
            days: window::DAYS.map(str::to_owned).to_vec(),
            utc_offset: "+00:00".to_owned(),
            operator_ignores_window: false,
            busy_label: "acme.busy".to_owned(),
            cooldown_hours: 12,
            canaries: 1,
            wave: 0,
            strategy: Strategy::Replace,
        }
    }
}

/// JSON Schema of [`Config`]; a test keeps it in step.
pub const SCHEMA: &str = r#"{
  "$schema": "https://json-schema.org/draft/2020-12/schema",
  "title": "Configuration of the policy `quiet-hours`",
  "type": "object",
  "additionalProperties": false,
  "required": ["images"],
  "properties": {
    "images": {
      "description": "A name for each image, and the image. Containers made from its repository follow it.",
      "type": "object",
      "additionalProperties": { "type": "string" },
      "propertyNames": { "pattern": "^[A-Za-z0-9_.-]{1,64}$" },
      "minProperties": 1
    },
    "containers": {
      "description": "Names of the containers that may be refreshed, whole: `*` stands for any run of characters, `?` for one.",
      "type": "string",
      "default": "*"
    },
    "from": {
      "description": "When the window opens.",
      "type": "string",
      "pattern": "^([01][0-9]|2[0-3]):[0-5][0-9]$",
      "default": "22:00"
    },
    "to": {
      "description": "When it closes; on the next day, if that is not after `from`. `24:00` is the end of the day.",
      "type": "string",
      "pattern": "^(([01][0-9]|2[0-3]):[0-5][0-9]|24:00)$",
      "default": "06:00"
    },
    "days": {
      "description": "The days on which the window opens.",
      "type": "array",
      "items": { "enum": ["mon", "tue", "wed", "thu", "fri", "sat", "sun"] },
      "minItems": 1,
      "uniqueItems": true,
      "default": ["mon", "tue", "wed", "thu", "fri", "sat", "sun"]
    },
    "utc_offset": {
      "description": "What these times are relative to. Fixed: nothing here knows of summer time.",
      "type": "string",
      "pattern": "^[+-](0[0-9]|1[0-4]):[0-5][0-9]$",
      "default": "+00:00"
    },
    "operator_ignores_window": {
      "description": "Whether a person at a terminal may refresh at any time.",
      "type": "boolean",
      "default": false
    },
    "busy_label": {
      "description": "A container with this label is left alone, unless its value is empty, `0`, `no` or `false`.",
      "type": "string",
      "minLength": 1,
      "default": "acme.busy"
    },
    "cooldown_hours": {
      "description": "For how long a container that was stopped for a new image is spared the next one. 0: not at all.",
      "type": "integer",
      "minimum": 0,
      "maximum": 744,
      "default": 12
    },
    "canaries": {
      "description": "How many containers of each image go first; where one fails, the rest of its image stays. 0: none.",
      "type": "integer",
      "minimum": 0,
      "default": 1
    },
    "wave": {
      "description": "How many of the rest at a time; nothing more is begun after a wave in which one failed. 0: all at once.",
      "type": "integer",
      "minimum": 0,
      "default": 0
    },
    "strategy": {
      "description": "`replace`: the container comes back on the new image. `remove`: it is removed, and somebody else makes a new one. `overlap`: the new one is proven before the old one stops.",
      "enum": ["replace", "remove", "overlap"],
      "default": "replace"
    }
  }
}"#;

impl Config {
    pub fn window(&self) -> Result<Window, Vec<ConfigProblem>> {
        Window::new(&self.from, &self.to, &self.days, &self.utc_offset)
    }

    /// All that is wrong, in the order of the keys.
    pub fn problems(&self) -> Vec<ConfigProblem> {
        let mut problems = image_problems(&self.images);
        problems
            .extend(glob::problem(&self.containers).map(|p| ConfigProblem::new("containers", p)));
        problems.extend(self.window().err().unwrap_or_default());
        if self.busy_label.is_empty() {
            problems.push(ConfigProblem::new("busy_label", "must not be empty"));
        }
        if self.cooldown_hours > COOLDOWN_HOURS_MAX {
            problems.push(ConfigProblem::new(
                "cooldown_hours",
                format!(
                    "{} is more than {COOLDOWN_HOURS_MAX}, which is a month",
                    self.cooldown_hours
                ),
            ));
        }
        problems
    }
}

fn image_problems(images: &BTreeMap<String, String>) -> Vec<ConfigProblem> {
    let mut problems = Vec::new();
    if images.is_empty() {
        problems.push(ConfigProblem::new(
            "images",
            "must name at least one image, for example `app = \"ghcr.io/acme/app:latest\"`",
        ));
    }
    for (at, (name, image)) in images.iter().enumerate() {
        let is_word = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-');
        let path = format!("images.{name}");
        if name.is_empty() || name.len() > 64 || !name.chars().all(is_word) {
            problems.push(ConfigProblem::new(
                &path,
                "a name is 1 to 64 letters, digits, `.`, `_` and `-`",
            ));
        }
        let same = images
            .iter()
            .take(at)
            .find(|(_, other)| same_repository(other, image));
        let problem = reference::problem(image).or_else(|| {
            same.map(|(other, _)| {
                format!("`{image}` is of the same repository as `images.{other}`, so that nothing would follow it")
            })
        });
        problems.extend(problem.map(|p| ConfigProblem::new(path, p)));
    }
    problems
}
