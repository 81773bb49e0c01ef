//! Connects the host's call with the policy's trait: it parses the configuration into a type, or into a list of problems.
//!
//! Any configuration gets a value as an answer: a panic here would end the call as a trap, without an explanation.

use crate::docker::Context;
use crate::facts::{ConfigProblem, Failure, Report, Request};
use crate::policy::Policy;

/// Parse the JSON configuration, if it has the right shape and the policy accepts it.
pub fn configuration<P: Policy>(json: &str) -> Result<P::Config, Vec<ConfigProblem>> {
    let config = parse(json).map_err(|problem| vec![problem])?;
    match P::check(&config) {
        problems if problems.is_empty() => Ok(config),
        problems => Err(problems),
    }
}

/// Run one refresh with the configuration from the host.
pub(crate) fn refresh<P: Policy>(
    json: &str,
    request: &Request,
    context: &mut Context<'_>,
) -> Result<Report, Failure> {
    let config = configuration::<P>(json).map_err(Failure::InvalidConfig)?;
    P::refresh(&config, request, context)
}

fn parse<C: serde::de::DeserializeOwned>(json: &str) -> Result<C, ConfigProblem> {
    // In two steps, because an error of the first has a line in the text, and an error of the second a path in the value.
    let value: serde_json::Value = match json.trim() {
        // The host has no configuration at all.
        "" => serde_json::Value::Object(serde_json::Map::new()),
        json => serde_json::from_str(json)
            .map_err(|error| ConfigProblem::new("", format!("this is no JSON: {error}")))?,
    };
    if !value.is_object() {
        // serde would accept a list with the fields in their order.
        return Err(ConfigProblem::new("", "must be keys and values"));
    }
    serde_path_to_error::deserialize(value).map_err(
        |error: serde_path_to_error::Error<serde_json::Error>| {
            let path = error.path().to_string();
            // `.` is the whole configuration.
            let path = if path == "." { String::new() } else { path };
            ConfigProblem::new(path, error.into_inner().to_string())
        },
    )
}
