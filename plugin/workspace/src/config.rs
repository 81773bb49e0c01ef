//! What an operator may set, and what can be wrong with it.
//!
//! The host turns `[policy.config]` of `refit.toml` into JSON and hands it over. Every key may be left out. A configuration
//! that passes [`Config::problems`] gives each runtime a repository of its own; the policy relies on that and checks no more.

use refit_policy::reference::{Reference, same_repository};
use refit_policy::{ConfigProblem, Strategy, glob};
use serde::Deserialize;

/// Where the name of a runtime goes in the template.
const PLACEHOLDER: &str = "{runtime}";

/// `[policy.config]`.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// The template: an image reference that holds `{runtime}` once, in its repository.
    pub images: String,
    /// The runtimes, in the order in which a person should read them.
    pub runtimes: Vec<String>,
    /// Which names a workspace's container may have: `*` for any run of characters, `?` for one. Anchored.
    pub containers: String,
    /// How a container gets its new image.
    pub strategy: Strategy,
}

impl Default for Config {
    fn default() -> Self {
        let runtimes = [
            "claude-code",
            "langgraph",
            "crewai",
            "autogen",
            "deepagents",
            "hermes",
            "gemini-cli",
            "openclaw",
        ];
        Self {
            images: "ghcr.io/molecule-ai/workspace-template-{runtime}:latest".to_owned(),
            runtimes: runtimes.map(str::to_owned).to_vec(),
            containers: "ws-*".to_owned(),
            strategy: Strategy::Replace,
        }
    }
}

/// JSON Schema of [`Config`]. Written by hand, because the crates that derive one would be half of the component; a test keeps
/// it in step.
pub const SCHEMA: &str = r#"{
  "$schema": "https://json-schema.org/draft/2020-12/schema",
  "title": "Configuration of the policy `workspace`",
  "type": "object",
  "additionalProperties": false,
  "properties": {
    "images": {
      "description": "Image of a runtime. Holds `{runtime}` exactly once, in the repository.",
      "type": "string",
      "pattern": "^[^{}]*\\{runtime\\}[^{}]*$",
      "default": "ghcr.io/molecule-ai/workspace-template-{runtime}:latest"
    },
    "runtimes": {
      "description": "The runtimes that are known, in the order in which they are shown.",
      "type": "array",
      "items": { "type": "string", "pattern": "^[a-z0-9._-]+$" },
      "minItems": 1,
      "uniqueItems": true,
      "default": ["claude-code", "langgraph", "crewai", "autogen", "deepagents", "hermes", "gemini-cli", "openclaw"]
    },
    "containers": {
      "description": "Names of the containers that may be refreshed, whole: `*` stands for any run of characters, `?` for one.",
      "type": "string",
      "pattern": "^[A-Za-z0-9_.*?-]+$",
      "default": "ws-*"
    },
    "strategy": {
      "description": "`replace`: the container comes back on the new image. `remove`: it is removed, and the platform makes a new one. `overlap`: the new one is proven before the old one stops.",
      "enum": ["replace", "remove", "overlap"],
      "default": "replace"
    }
  }
}"#;

impl Config {
    /// The image of a runtime.
    pub fn image(&self, runtime: &str) -> String {
        self.images.replace(PLACEHOLDER, runtime)
    }

    /// All that is wrong, in the order of the keys.
    pub fn problems(&self) -> Vec<ConfigProblem> {
        let template = self.template_problem();
        // An image of a bad template is bad for every runtime: said once, at the template.
        let is_template_good = template.is_none();
        let mut problems: Vec<_> = template
            .map(|p| ConfigProblem::new("images", p))
            .into_iter()
            .collect();
        problems.extend(self.runtime_problems(is_template_good));
        problems
            .extend(glob::problem(&self.containers).map(|p| ConfigProblem::new("containers", p)));
        problems
    }

    fn template_problem(&self) -> Option<String> {
        let template = &self.images;
        match template.matches(PLACEHOLDER).count() {
            0 => {
                return Some(format!(
                    "`{template}` must hold `{PLACEHOLDER}` where the name of a runtime goes"
                ));
            }
            1 => {}
            n => {
                return Some(format!(
                    "`{template}` holds `{PLACEHOLDER}` {n} times, and must hold it once"
                ));
            }
        }
        // Two names that fit wherever a name can stand. What they differ in is where the placeholder is.
        let (one, other) = (self.image("a"), self.image("b"));
        match one.parse::<Reference>() {
            Err(error) => Some(format!("`{template}` makes no image reference: {error}")),
            Ok(_) if same_repository(&one, &other) => Some(format!(
                "`{template}` holds `{PLACEHOLDER}` in its tag, so that all runtimes would be one repository: it must stand before the tag"
            )),
            Ok(_) => None,
        }
    }

    fn runtime_problems(&self, is_template_good: bool) -> Vec<ConfigProblem> {
        if self.runtimes.is_empty() {
            return vec![ConfigProblem::new(
                "runtimes",
                "must name at least one runtime",
            )];
        }
        let mut problems = Vec::new();
        for (at, runtime) in self.runtimes.iter().enumerate() {
            let problem = if let Some(first) = self.runtimes[..at].iter().position(|r| r == runtime)
            {
                Some(format!("`{runtime}` is already at `runtimes[{first}]`"))
            } else if runtime.is_empty() {
                Some("must not be empty".to_owned())
            } else if !runtime.chars().all(is_repository_char) {
                Some(format!(
                    "`{runtime}` may hold only lower case letters, digits, `.`, `_` and `-`"
                ))
            } else if is_template_good {
                // Each character fits, and still `-.` is no way to separate two words.
                let image = self.image(runtime);
                let error = image.parse::<Reference>().err();
                error.map(|error| {
                    format!("`{runtime}` makes no image reference of the template: {error}")
                })
            } else {
                None
            };
            problems.extend(problem.map(|p| ConfigProblem::new(format!("runtimes[{at}]"), p)));
        }
        problems
    }
}

fn is_repository_char(c: char) -> bool {
    c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '.' | '_' | '-')
}

#[cfg(test)]
mod tests;
