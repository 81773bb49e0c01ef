//! `refit policy swap --shadow | shadow | diff | record`: what a policy would do, beside another one or over what was written down.

use std::path::Path;
use std::sync::Arc;

use serde_json::{Value, json};

use super::super::arguments::{DiffArguments, RecordArguments};
use super::super::remote::Answer;
use super::super::{Status, print, tell};
use super::policy::{answered, object, print_json, text};
use super::{Common, author, compiler};
use crate::artifact::Source as PolicySource;
use crate::config::{Config, Flags, PolicyFlags};
use crate::diagnostic::Diagnostic;
use crate::generation::Generations;
use crate::generation::shadow::{Difference, Said, differences};
use crate::generation::start::Keep;
use crate::policy::Clock;
use crate::refresh::{Question, Request, Trigger, sayings_of};
use crate::setup;
use crate::snapshot::Snapshot;
use crate::snapshot::replay::Replay;

/// A trial began, or the candidate was refused.
pub(super) fn begun(answer: Answer, json: bool) -> Result<Status, Diagnostic> {
    if let Answer::Refused(problem) = &answer {
        tell(problem);
        return Ok(Status::SomeFailed);
    }
    answered(answer, json, trial)
}

pub(super) fn trial(body: &Value) -> String {
    let mut lines = format!(
        "on trial          {} {}, beside generation {}",
        text(&body["name"]),
        text(&body["version"]),
        body["beside"]
    );
    if let Some(after) = body["after"].as_u64() {
        lines += &format!("; takes over after {after} in a row that agree");
    }
    lines += &format!(
        "\ncompared          {}, agreed {}, {} in a row; skipped {}\n",
        body["compared"], body["agreed"], body["agreed_in_a_row"], body["skipped"]
    );
    for comparison in body["differing"].as_array().into_iter().flatten() {
        lines += &comparison_lines(comparison);
    }
    lines
}

/// One comparison in which the two did not come to the same.
pub(super) fn comparison_lines(comparison: &Value) -> String {
    let mut lines = String::new();
    let at = text(&comparison["at"])
        .split('.')
        .next()
        .unwrap_or_default();
    if let Some(error) = comparison["error"].as_str() {
        let causes = comparison["causes"].as_array().into_iter().flatten();
        let causes: String = causes.map(|cause| format!(": {}", text(cause))).collect();
        lines += &format!("{at}  {error}{causes}\n");
    }
    for difference in comparison["differences"].as_array().into_iter().flatten() {
        lines += &format!("{at}  {}\n", text(&difference["container"]));
        for (side, said) in [
            ("active", &difference["old"]),
            ("candidate", &difference["new"]),
        ] {
            lines += &format!("    {side:<10} {}\n", said_line(said));
        }
    }
    if let Some(more) = comparison["more"].as_u64() {
        lines += &format!("{at}  and {more} more\n");
    }
    lines
}

/// `recreate  image-moved: the tag moved; replace to sha256:…`
fn said_line(said: &Value) -> String {
    if said.is_null() {
        return "says nothing of it".to_owned();
    }
    let mut line = match (said["verdict"].as_str(), text(&said["rule"])) {
        (None, _) => "decided nothing".to_owned(),
        (Some(verdict), rule) => format!("{verdict}  {rule}: {}", text(&said["reason"])),
    };
    if said["recreation"].is_object() {
        line += &format!(
            "; {} to {}",
            text(&said["recreation"]["strategy"]),
            text(&said["recreation"]["to_image_id"])
        );
    }
    line
}

/// Loaded as a start would, and never put anywhere.
async fn loaded(
    config: &Config,
    source: &PolicySource,
    text: serde_json::Map<String, Value>,
) -> Result<Generations, Diagnostic> {
    let mut config = config.clone();
    config.policy.component = (!author::is_built_in(source)).then(|| source.clone());
    config.policy.config = text;
    let credentials = setup::credentials(&config)?;
    setup::generations(&config, credentials, compiler(&config), Keep::Nothing).await
}

pub(super) async fn diff(config: &Config, arguments: DiffArguments) -> Result<Status, Diagnostic> {
    let in_force = config.policy.config.clone();
    let other = match arguments.policy_config.as_deref().map(object).transpose()? {
        Some(Value::Object(other)) => other,
        _ => in_force.clone(),
    };
    let old = loaded(config, &arguments.old, in_force).await?;
    let new = loaded(config, &arguments.new, other).await?;
    let mut results = Vec::new();
    for path in &arguments.snapshots {
        results.push(compared(config, path, arguments.force, &old, &new).await?);
    }
    let differ = results.iter().any(|(_, _, found)| !found.is_empty());
    if arguments.json {
        let results = results.iter().map(|(path, of, found)| {
            json!({"snapshot": path.display().to_string(), "containers": of, "differences": found})
        });
        print_json(&json!({ "snapshots": results.collect::<Vec<_>>() }));
    } else {
        for (path, of, found) in &results {
            print(&told(path, *of, found));
        }
    }
    Ok(if differ && arguments.detailed_exitcode {
        Status::SomethingToDo
    } else {
        Status::Done
    })
}

async fn compared<'a>(
    config: &Config,
    path: &'a Path,
    force: bool,
    old: &Generations,
    new: &Generations,
) -> Result<(&'a Path, usize, Vec<Difference>), Diagnostic> {
    let snapshot = Snapshot::read(path)?;
    let request = Request {
        trigger: Trigger::Operator,
        targets: vec![],
        images: vec![],
        recreate: true,
        force,
    };
    let mut answers = Vec::new();
    for generations in [old, new] {
        let content = &generations.active().content;
        let question = Question {
            request: request.clone(),
            hands: Arc::new(Replay::new(snapshot.clone(), force)),
            bounds: config.bounds(),
            clock: Clock::Stopped(snapshot.taken),
        };
        answers.push(sayings_of(content, content.state.scratch(), question).await?);
    }
    let found = differences(&answers[0], &answers[1]);
    Ok((path, snapshot.containers.len(), found))
}

fn told(path: &Path, of: usize, found: &[Difference]) -> String {
    let mut lines = match found.len() {
        0 => format!("the same           {} ({of} containers)\n", path.display()),
        count => format!("{count} of {of} differ  {}\n", path.display()),
    };
    for difference in found {
        lines += &format!("  {}\n", difference.container);
        let line = |said: &Option<Said>| said_line(&json!(said));
        lines += &format!("    old  {}\n", line(&difference.old));
        lines += &format!("    new  {}\n", line(&difference.new));
    }
    lines
}

pub(super) async fn record(
    common: Common,
    arguments: RecordArguments,
) -> Result<Status, Diagnostic> {
    let flags = Flags {
        policy: arguments.policy.map(|component| PolicyFlags { component }),
        ..Flags::default()
    };
    let config = common.load(flags)?.config;
    let refresher = setup::refresher(&config, compiler(&config), Keep::Nothing).await?;
    let request = Request {
        trigger: Trigger::Operator,
        targets: vec![],
        images: vec![],
        recreate: true,
        force: false,
    };
    let mut snapshot = refresher.record(&request).await?;
    snapshot.redact();
    match arguments.output {
        None => print(&snapshot.to_text()),
        Some(path) => std::fs::write(&path, snapshot.to_text()).map_err(|error| {
            Diagnostic::new(format!("cannot write the snapshot `{}`", path.display()))
                .because(error.to_string())
        })?,
    }
    Ok(Status::Done)
}
