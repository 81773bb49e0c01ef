//! `refit policy test`: run scenarios, and print one line for each, with the differences if it fails.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use refit_author::scenario::{Ran, Scenario, read_all, run};
use refit_model::diagnostic::Diagnostic;
use refit_revisions::artifact::Source;
use refit_sandbox::{Metering, Policy};
use serde_json::json;

use super::junit;
use crate::cli::arguments::author::TestArguments;
use crate::cli::commands::policy::print_json;
use crate::cli::{Status, print};
use crate::config::Config;

/// The result of a scenario.
pub(super) struct Case {
    pub(super) scenario: Scenario,
    pub(super) ran: Ran,
    pub(super) took: Duration,
}

pub(in super::super) async fn test(
    config: &Config,
    arguments: TestArguments,
) -> Result<Status, Diagnostic> {
    let (source, paths) = super::chosen(arguments.policy, arguments.paths)?;
    let (policy, cases) = run_all(config, &source, &paths).await?;
    if !arguments.json {
        cases.iter().for_each(|case| print(&format_case(case)));
    }
    let failed = cases.iter().filter(|case| !case.ran.passed()).count();
    let passed = cases.len() - failed;
    if let Some(path) = &arguments.junit {
        junit::write(path, &policy.title(), &cases)?;
    }
    if arguments.json {
        let scenarios = cases.iter().map(|case| {
            json!({
                "name": case.scenario.name,
                "path": case.scenario.path.display().to_string(),
                "passed": case.ran.passed(),
                "ran": case.ran,
            })
        });
        print_json(&json!({
            "policy": {"name": policy.name, "version": policy.version, "digest": policy.digest},
            "passed": passed,
            "failed": failed,
            "scenarios": scenarios.collect::<Vec<_>>(),
        }));
    } else {
        print(&format!(
            "{}: {passed} passed, {failed} failed\n",
            policy.title()
        ));
    }
    Ok(match failed {
        0 => Status::Done,
        _ => Status::SomeFailed,
    })
}

/// Print the totals and the failures, for users who do something else.
pub(super) async fn print_summary(
    config: &Config,
    source: &Source,
    paths: &[PathBuf],
) -> Result<(), Diagnostic> {
    let (_, cases) = run_all(config, source, paths).await?;
    let (passed, failed): (Vec<&Case>, Vec<&Case>) =
        cases.iter().partition(|case| case.ran.passed());
    failed.iter().for_each(|case| print(&format_case(case)));
    let (passed, failed) = (passed.len(), failed.len());
    print(&format!("test        {passed} passed, {failed} failed\n"));
    Ok(())
}

async fn run_all(
    config: &Config,
    source: &Source,
    paths: &[PathBuf],
) -> Result<(Policy, Vec<Case>), Diagnostic> {
    // Read all scenarios before running one: a misspelt key is not the policy's failure.
    let scenarios = read_all(paths)?;
    let component = super::component(config, source).await?;
    let policy = super::load(config, &component, Metering::Off).await?;
    let mut cases = Vec::new();
    for scenario in scenarios {
        let began = Instant::now();
        let ran = run(&policy, &scenario).await?;
        cases.push(Case {
            scenario,
            ran,
            took: began.elapsed(),
        });
    }
    Ok((policy, cases))
}

fn format_case(case: &Case) -> String {
    let name = &case.scenario.name;
    if case.ran.passed() {
        let about = case.scenario.about.as_deref().unwrap_or_default();
        return format!("pass  {name}  {about}").trim_end().to_owned() + "\n";
    }
    format!(
        "FAIL  {name}  {}\n{}",
        case.scenario.path.display(),
        failure(&case.ran)
    )
}

/// The differences, and the expectation that would pass.
pub(super) fn failure(ran: &Ran) -> String {
    let mut text = String::new();
    for problem in &ran.config_problems {
        let _ = writeln!(
            text,
            "  the policy does not accept its configuration: {problem}"
        );
    }
    for (nth, step) in ran.steps.iter().enumerate() {
        if step.mismatches.is_empty() {
            continue;
        }
        let _ = match nth {
            0 => writeln!(text, "  the refresh at {}", step.at),
            _ => writeln!(text, "  `[[then]]` {nth}, the refresh at {}", step.at),
        };
        for mismatch in &step.mismatches {
            let _ = writeln!(
                text,
                "    {}\n      expected  {}\n      found     {}",
                mismatch.what, mismatch.expected, mismatch.found
            );
        }
        for line in &step.log {
            let _ = writeln!(text, "    log  {}: {}", line.level, line.text);
        }
        if !step.came_to.is_empty() {
            text += "    all of it, as it would be expected:\n";
            for line in step.came_to.lines() {
                let _ = writeln!(text, "      {line}");
            }
        }
    }
    text
}
