//! `[[notify]]`: the recipients of notifications about refreshes. Types only; an address may be a secret, and is never printed.

use std::collections::BTreeSet;
use std::path::PathBuf;

use refit_model::secret::SecretString;
use refit_service::notify::notification::Kind;
use refit_service::notify::sink::PayloadFormat;
use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::Value;

use super::ConfigError;

/// Each has a queue and a task.
const SINKS_MAX: usize = 16;
/// An hour. A later message is no notification any more.
const BATCH_SECONDS_MAX: u64 = 60 * 60;

/// The text in place of an address.
const HIDDEN: &str = "(hidden)";

/// One who is told.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct NotifyConfig {
    /// What logs and errors call it; they never say the address.
    pub name: String,
    /// How it is told: `webhook`, `slack` or `ntfy`.
    pub kind: PayloadFormat,
    /// Where to post. It may hold a secret, as Slack's do, and is better in a file then. Hidden wherever it would be printed.
    #[schemars(with = "Option<String>")]
    #[serde(default, serialize_with = "hidden", deserialize_with = "secret")]
    pub url: Option<SecretString>,
    /// A file with it, in its place.
    #[serde(default)]
    pub url_file: Option<PathBuf>,
    /// File with a token, sent as `Authorization: Bearer`.
    #[serde(default)]
    pub token_file: Option<PathBuf>,
    /// What is told: `failed`, `recreated`, `held`, `behind`, `unknown`.
    #[serde(default = "usual")]
    pub on: Vec<Kind>,
    /// What comes within so long of the first is one message, 3600 (an hour) at most.
    #[schemars(range(max = BATCH_SECONDS_MAX))]
    #[serde(default = "batch_seconds")]
    pub batch_seconds: u64,
}

/// The default: failures, changes, and requests for approval. An outdated container alone is not reported, because a refresh
/// follows.
fn usual() -> Vec<Kind> {
    vec![Kind::Failed, Kind::Recreated, Kind::Held]
}

/// The default batch joins a push of several images, or the refreshes of one hour.
fn batch_seconds() -> u64 {
    10
}

fn secret<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<SecretString>, D::Error> {
    let text = Option::<String>::deserialize(deserializer)?;
    Ok(text.map(SecretString::from))
}

fn hidden<S: Serializer>(url: &Option<SecretString>, serializer: S) -> Result<S::Ok, S::Error> {
    match url {
        Some(_) => serializer.serialize_some(HIDDEN),
        None => serializer.serialize_none(),
    }
}

/// Hide the addresses in the configuration as it was written.
pub(super) fn hide(sinks: &mut Value) {
    for sink in sinks.as_array_mut().into_iter().flatten() {
        if let Some(url) = sink.get_mut("url") {
            *url = HIDDEN.into();
        }
    }
}

pub(super) fn check(sinks: &[NotifyConfig]) -> Result<(), ConfigError> {
    let wrong = |key, problem: String| Err(ConfigError::Value { key, problem });
    if sinks.len() > SINKS_MAX {
        let problem = format!(
            "{} times there, and may be {SINKS_MAX} at most",
            sinks.len()
        );
        return wrong("notify", problem);
    }
    let mut names = BTreeSet::new();
    for sink in sinks {
        let name = &sink.name;
        if name.trim().is_empty() {
            return wrong("notify.name", "empty".into());
        }
        if !names.insert(name) {
            return wrong("notify.name", format!("`{name}` twice"));
        }
        match (&sink.url, &sink.url_file) {
            (None, None) => {
                return wrong(
                    "notify.url",
                    format!("missing for `{name}`, and so is `url_file`"),
                );
            }
            (Some(_), Some(_)) => {
                return wrong(
                    "notify.url",
                    format!("set for `{name}`, and `url_file` too"),
                );
            }
            (Some(_), None) | (None, Some(_)) => {}
        }
        if sink.on.is_empty() {
            return wrong(
                "notify.on",
                format!("empty for `{name}`, which would be told nothing"),
            );
        }
        if sink.batch_seconds > BATCH_SECONDS_MAX {
            let problem = format!(
                "{} for `{name}`, and may be {BATCH_SECONDS_MAX} at most",
                sink.batch_seconds
            );
            return wrong("notify.batch_seconds", problem);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn sinks(value: Value) -> Vec<NotifyConfig> {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn what_is_left_out_is_what_most_want() {
        let sinks = sinks(
            json!([{ "name": "ops", "kind": "slack", "url": "https://hooks.example/T/B/x" }]),
        );
        check(&sinks).unwrap();
        assert_eq!(sinks[0].on, [Kind::Failed, Kind::Recreated, Kind::Held]);
        assert_eq!(sinks[0].batch_seconds, 10);
    }

    #[test]
    fn an_address_is_printed_nowhere() {
        let mut written =
            json!([{ "name": "ops", "kind": "slack", "url": "https://hooks.example/T/B/x" }]);
        let sinks = sinks(written.clone());
        hide(&mut written);
        for shown in [
            format!("{sinks:?}"),
            json!(sinks).to_string(),
            written.to_string(),
        ] {
            assert!(!shown.contains("hooks.example"), "{shown}");
        }
    }

    #[test]
    fn one_that_could_not_be_told_is_refused_by_its_name() {
        let with = |more: Value| {
            let mut sink = json!({ "name": "ops", "kind": "ntfy" });
            sink.as_object_mut()
                .unwrap()
                .extend(more.as_object().unwrap().clone());
            sink
        };
        for (list, problem) in [
            (json!([with(json!({}))]), "missing for `ops`"),
            (
                json!([with(json!({ "url": "a", "url_file": "b" }))]),
                "`url_file` too",
            ),
            (
                json!([with(json!({ "url": "a", "on": [] }))]),
                "told nothing",
            ),
            (
                json!([with(json!({ "url": "a", "batch_seconds": 86_400 }))]),
                "at most",
            ),
            (
                json!([with(json!({ "url": "a" })), with(json!({ "url": "b" }))]),
                "`ops` twice",
            ),
        ] {
            let error = check(&sinks(list)).unwrap_err().to_string();
            assert!(error.contains(problem), "{error}");
        }
    }
}
