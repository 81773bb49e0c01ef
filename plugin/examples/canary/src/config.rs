//! What an operator may set, and what can be wrong with it.

use std::collections::BTreeMap;

use refit_policy::reference::{self, same_repository};
use refit_policy::{ConfigProblem, Strategy, glob};
use serde::Deserialize;

/// More images than this would not fit into what the host keeps for a policy, and nobody has them.
const IMAGES_MAX: usize = 32;

/// Longer than any soak that somebody still waits for.
const SOAK_MINUTES_MAX: u64 = 30 * 24 * 60;

/// `[policy.config]`.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// A name of the operator's choice, and the image it stands for. At least one.
    pub images: BTreeMap<String, String>,
    /// Which names a container may have.
    pub containers: String,
    /// A container with this label goes first. Without one the first by name does.
    pub canary_label: String,
    /// How long the canary has to run the new image before the rest follows. 0: the rest follows at once.
    pub soak_minutes: u64,
    /// How many of the rest at a time. 0: all.
    pub wave: usize,
    pub strategy: Strategy,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            images: BTreeMap::new(),
            containers: "*".to_owned(),
            canary_label: "refit.canary".to_owned(),
            soak_minutes: 30,
            wave: 0,
            strategy: Strategy::Replace,
        }
    }
}

/// JSON Schema of [`Config`]; a test keeps it in step.
pub const SCHEMA: &str = r#"{
  "$schema": "https://json-schema.org/draft/2020-12/schema",
  "title": "Configuration of the policy `canary`",
  "type": "object",
  "additionalProperties": false,
  "required": ["images"],
  "properties": {
    "images": {
      "description": "A name for each image, and the image. Containers made from its repository follow it.",
      "type": "object",
      "additionalProperties": { "type": "string" },
      "propertyNames": { "pattern": "^[A-Za-z0-9_.-]{1,64}$" },
      "minProperties": 1,
      "maxProperties": 32
    },
    "containers": {
      "description": "Names of the containers that may be refreshed, whole: `*` stands for any run of characters, `?` for one.",
      "type": "string",
      "default": "*"
    },
    "canary_label": {
      "description": "A container with this label (unless its value is `false`) goes first. Without one the first by name does.",
      "type": "string",
      "minLength": 1,
      "default": "refit.canary"
    },
    "soak_minutes": {
      "description": "How long the first container has to run the new image, and be healthy, before the rest follows in a later refresh. 0: in the same refresh.",
      "type": "integer",
      "minimum": 0,
      "maximum": 43200,
      "default": 30
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
    /// All that is wrong, in the order of the keys.
    pub fn problems(&self) -> Vec<ConfigProblem> {
        let mut problems = image_problems(&self.images);
        problems
            .extend(glob::problem(&self.containers).map(|p| ConfigProblem::new("containers", p)));
        if self.canary_label.is_empty() {
            problems.push(ConfigProblem::new("canary_label", "must not be empty"));
        }
        if self.soak_minutes > SOAK_MINUTES_MAX {
            problems.push(ConfigProblem::new(
                "soak_minutes",
                format!(
                    "{} is more than {SOAK_MINUTES_MAX}, which is a month",
                    self.soak_minutes
                ),
            ));
        }
        if self.strategy == Strategy::Remove && self.soak_minutes > 0 {
            problems.push(ConfigProblem::new(
                "strategy",
                "`remove` leaves no container that could prove itself: set `soak_minutes = 0`, or use another strategy",
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
    if images.len() > IMAGES_MAX {
        problems.push(ConfigProblem::new(
            "images",
            format!("{} images are more than {IMAGES_MAX}", images.len()),
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
        let earlier = images.iter().take(at);
        let same = earlier
            .into_iter()
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
