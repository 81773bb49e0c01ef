//! `refit policy diff`: the decisions of two policies on recorded snapshots.

use std::path::Path;
use std::sync::Arc;

use refit_capabilities::snapshot::Snapshot;
use refit_capabilities::snapshot::replay::SnapshotCapabilities;
use refit_model::diagnostic::Diagnostic;
use refit_model::request::{Request, Trigger};
use refit_refresh::{DryRunInput, dry_run_decisions};
use refit_revisions::Generations;
use refit_revisions::artifact::Source;
use refit_revisions::shadow::{Difference, ShadowDecision, differences};
use refit_revisions::start::Persistence;
use refit_sandbox::Clock;
use serde_json::{Value, json};

use super::is_built_in;
use crate::cli::arguments::author::DiffArguments;
use crate::cli::commands::compare::decision_line;
use crate::cli::commands::isolation;
use crate::cli::commands::policy::{object, print_json};
use crate::cli::{Status, print};
use crate::config::Config;
use crate::setup;

/// Load a policy like at a start, without activating it.
async fn load_revision(
    config: &Config,
    source: &Source,
    text: serde_json::Map<String, Value>,
) -> Result<Generations, Diagnostic> {
    let mut config = config.clone();
    config.policy.component = (!is_built_in(source)).then(|| source.clone());
    config.policy.config = text;
    let credentials = setup::credentials(&config)?;
    setup::generations(
        &config,
        credentials,
        isolation(&config),
        Persistence::Nothing,
    )
    .await
}

pub(super) async fn diff(config: &Config, arguments: DiffArguments) -> Result<Status, Diagnostic> {
    let in_force = config.policy.config.clone();
    let other = match arguments.policy_config.as_deref().map(object).transpose()? {
        Some(Value::Object(other)) => other,
        _ => in_force.clone(),
    };
    let old = load_revision(config, &arguments.old, in_force).await?;
    let new = load_revision(config, &arguments.new, other).await?;
    let mut results = Vec::new();
    for path in &arguments.snapshots {
        results.push(compare_policies(config, path, arguments.force, &old, &new).await?);
    }
    let differ = results.iter().any(|(_, _, found)| !found.is_empty());
    if arguments.json {
        let results = results.iter().map(|(path, of, found)| {
            json!({"snapshot": path.display().to_string(), "containers": of, "differences": found})
        });
        print_json(&json!({ "snapshots": results.collect::<Vec<_>>() }));
    } else {
        for (path, of, found) in &results {
            print(&format_differences(path, *of, found));
        }
    }
    Ok(if differ && arguments.detailed_exitcode {
        Status::SomethingToDo
    } else {
        Status::Done
    })
}

async fn compare_policies<'a>(
    config: &Config,
    path: &'a Path,
    force: bool,
    old: &Generations,
    new: &Generations,
) -> Result<(&'a Path, usize, Vec<Difference>), Diagnostic> {
    let snapshot = Snapshot::load(path)?;
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
        let question = DryRunInput {
            request: request.clone(),
            capabilities: Arc::new(SnapshotCapabilities::new(snapshot.clone(), force)),
            bounds: config.bounds(),
            clock: Clock(snapshot.taken),
        };
        answers.push(dry_run_decisions(content, content.state.scratch(), question).await?);
    }
    let found = differences(&answers[0], &answers[1]);
    Ok((path, snapshot.containers.len(), found))
}

fn format_differences(path: &Path, of: usize, found: &[Difference]) -> String {
    let mut lines = match found.len() {
        0 => format!("the same           {} ({of} containers)\n", path.display()),
        count => format!("{count} of {of} differ  {}\n", path.display()),
    };
    for difference in found {
        lines += &format!("  {}\n", difference.container);
        let line = |decision: &Option<ShadowDecision>| decision_line(&json!(decision));
        lines += &format!("    old  {}\n", line(&difference.old));
        lines += &format!("    new  {}\n", line(&difference.new));
    }
    lines
}
