//! `refit policy bench`: the cost of a policy's decisions. The counts are reproducible, so CI can compare them with a baseline;
//! times are only shown.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use refit_author::scenario::{Ran, Scenario, read_all, run};
use refit_model::diagnostic::Diagnostic;
use refit_sandbox::{Metering, Policy};
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::cli::arguments::author::BenchArguments;
use crate::cli::commands::policy::{object, print_json};
use crate::cli::{Status, print};
use crate::config::Config;

/// The counts of a whole scenario, all of its refreshes together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Counted {
    instructions: u64,
    memory_bytes: usize,
    host_calls: u64,
}

#[derive(Debug, Serialize)]
struct Measured {
    #[serde(flatten)]
    counted: Counted,
    decisions: usize,
    /// The median time of one run, in microseconds.
    median_us: u128,
    slowest_us: u128,
}

/// The file with the baseline, to commit together with the policy.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Baseline {
    /// The policy's name, for people. Another policy may be compared with it.
    policy: String,
    scenarios: BTreeMap<String, Counted>,
}

pub(in super::super) async fn bench(
    config: &Config,
    arguments: BenchArguments,
) -> Result<Status, Diagnostic> {
    let (source, paths) = super::chosen(arguments.policy, arguments.paths)?;
    let over_snapshots = match arguments.policy_config.as_deref().map(object).transpose()? {
        Some(object) => object.to_string(),
        None => serde_json::Value::Object(config.policy.config.clone()).to_string(),
    };
    let scenarios = inputs(&paths, &over_snapshots)?;
    let baseline = arguments.baseline.as_deref().map(read).transpose()?;
    let component = super::component(config, &source).await?;
    let metered = super::load(config, &component, Metering::Instructions).await?;
    let policy = super::load(config, &component, Metering::Off).await?;
    let mut measured = BTreeMap::new();
    for scenario in &scenarios {
        let found = measure(&metered, &policy, scenario, arguments.runs).await?;
        if measured.insert(scenario.name.clone(), found).is_some() {
            let twice = format!("two scenarios are called `{}`", scenario.name);
            return Err(Diagnostic::new(twice).hint("a baseline goes by their names"));
        }
    }
    let grown = baseline.map(|baseline| find_growth(&baseline, &measured, arguments.threshold));
    if let Some(path) = &arguments.save {
        save(path, &policy.title(), &measured)?;
    }
    if arguments.json {
        print_json(&json!({
            "policy": {"name": policy.name, "version": policy.version, "digest": policy.digest},
            "scenarios": measured,
            "grown": grown,
        }));
    } else {
        print(&table(&measured));
        for line in grown.iter().flatten() {
            print(&format!("GREW  {line}\n"));
        }
    }
    Ok(match grown {
        Some(grown) if !grown.is_empty() => Status::SomeFailed,
        _ => Status::Done,
    })
}

fn inputs(paths: &[PathBuf], over_snapshots: &str) -> Result<Vec<Scenario>, Diagnostic> {
    let mut scenarios = Vec::new();
    for path in paths {
        if path
            .extension()
            .is_some_and(|extension| extension == "json")
        {
            scenarios.push(Scenario::from_snapshot(path, over_snapshots.to_owned())?);
        } else {
            scenarios.extend(read_all(std::slice::from_ref(path))?);
        }
    }
    Ok(scenarios)
}

async fn measure(
    metered: &Policy,
    policy: &Policy,
    scenario: &Scenario,
    runs: u32,
) -> Result<Measured, Diagnostic> {
    let ran = check_completed(scenario, run(metered, scenario).await?)?;
    let mut times: Vec<Duration> = Vec::new();
    for _ in 0..runs {
        let began = Instant::now();
        run(policy, scenario).await?;
        times.push(began.elapsed());
    }
    times.sort_unstable();
    let costs = || ran.steps.iter().map(|step| step.cost);
    Ok(Measured {
        counted: Counted {
            instructions: costs().filter_map(|cost| cost.instructions).sum(),
            memory_bytes: costs().map(|cost| cost.memory_bytes).max().unwrap_or(0),
            host_calls: costs().map(|cost| cost.host_calls).sum(),
        },
        decisions: ran.steps.iter().map(|step| step.decisions).sum(),
        median_us: times[times.len() / 2].as_micros(),
        slowest_us: times[times.len() - 1].as_micros(),
    })
}

/// Return an error if the scenario did not run to its end, since then it has no cost. `test` checks its expectations.
fn check_completed(scenario: &Scenario, ran: Ran) -> Result<Ran, Diagnostic> {
    if ran.config_problems.is_empty() {
        return Ok(ran);
    }
    let name = &scenario.name;
    let error = format!("the policy does not accept the configuration of `{name}`");
    let problems = ran.config_problems.iter();
    Err(
        problems.fold(Diagnostic::new(error), |diagnostic, problem| {
            diagnostic.because(problem.clone())
        }),
    )
}

fn read(path: &Path) -> Result<Baseline, Diagnostic> {
    let cannot = |cause: String| {
        Diagnostic::new(format!("cannot read the baseline `{}`", path.display()))
            .because(cause)
            .hint("`--save FILE` writes one")
    };
    let text = std::fs::read(path).map_err(|error| cannot(error.to_string()))?;
    serde_json::from_slice(&text).map_err(|error| cannot(error.to_string()))
}

fn save(
    path: &Path,
    policy: &str,
    measured: &BTreeMap<String, Measured>,
) -> Result<(), Diagnostic> {
    let counted = measured.iter().map(|(name, it)| (name.clone(), it.counted));
    let baseline = Baseline {
        policy: policy.to_owned(),
        scenarios: counted.collect(),
    };
    let text = serde_json::to_string_pretty(&baseline).unwrap_or_default() + "\n";
    std::fs::write(path, text).map_err(|error| {
        Diagnostic::new(format!("cannot write the baseline `{}`", path.display()))
            .because(error.to_string())
    })
}

/// One line for each number that grew beyond the threshold, and for each scenario that has disappeared.
fn find_growth(
    baseline: &Baseline,
    measured: &BTreeMap<String, Measured>,
    threshold: f64,
) -> Vec<String> {
    let mut lines = Vec::new();
    for (name, before) in &baseline.scenarios {
        let Some(now) = measured.get(name).map(|it| it.counted) else {
            lines.push(format!(
                "{name}: it is in the baseline, and was not measured"
            ));
            continue;
        };
        let numbers = [
            ("instructions", before.instructions, now.instructions),
            (
                "bytes of memory",
                before.memory_bytes as u64,
                now.memory_bytes as u64,
            ),
            ("calls of the host", before.host_calls, now.host_calls),
        ];
        for (what, before, now) in numbers {
            let percent = (now as f64 / before.max(1) as f64 - 1.0) * 100.0;
            if percent > threshold {
                let (before, now) = (group_digits(before), group_digits(now));
                lines.push(format!(
                    "{name}: {percent:.1} % more {what}, {now} after {before}"
                ));
            }
        }
    }
    lines
}

fn table(measured: &BTreeMap<String, Measured>) -> String {
    let width = measured.keys().map(String::len).max().unwrap_or(0).max(8);
    let mut text = format!(
        "{:<width$}  {:>9}  {:>14}  {:>10}  {:>10}  {:>10}  {:>10}\n",
        "scenario", "decisions", "instructions", "memory", "host calls", "median", "slowest"
    );
    for (name, it) in measured {
        let milliseconds = |us: u128| format!("{:.2} ms", us as f64 / 1_000.0);
        let _ = writeln!(
            text,
            "{name:<width$}  {:>9}  {:>14}  {:>6.1} MiB  {:>10}  {:>10}  {:>10}",
            it.decisions,
            group_digits(it.counted.instructions),
            it.counted.memory_bytes as f64 / f64::from(1 << 20),
            it.counted.host_calls,
            milliseconds(it.median_us),
            milliseconds(it.slowest_us),
        );
    }
    text
}

/// Format a number like `1,234,567`.
fn group_digits(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn measured(instructions: u64) -> Measured {
        Measured {
            counted: Counted {
                instructions,
                memory_bytes: 1 << 20,
                host_calls: 7,
            },
            decisions: 1,
            median_us: 1,
            slowest_us: 2,
        }
    }

    fn baseline(name: &str, instructions: u64) -> Baseline {
        Baseline {
            policy: "a 1.0.0".into(),
            scenarios: BTreeMap::from([(name.into(), measured(instructions).counted)]),
        }
    }

    #[test]
    fn growth_is_reported_and_shrinking_is_not() {
        let now = BTreeMap::from([("s".to_owned(), measured(1_200_000))]);
        assert_eq!(
            find_growth(&baseline("s", 1_000_000), &now, 10.0),
            ["s: 20.0 % more instructions, 1,200,000 after 1,000,000"]
        );
        assert!(find_growth(&baseline("s", 1_000_000), &now, 20.0).is_empty());
        assert!(find_growth(&baseline("s", 2_000_000), &now, 0.0).is_empty());
    }

    #[test]
    fn missing_scenario_does_not_pass() {
        let now = BTreeMap::from([("s".to_owned(), measured(1))]);
        assert_eq!(
            find_growth(&baseline("other", 1), &now, 10.0),
            ["other: it is in the baseline, and was not measured"]
        );
    }

    #[test]
    fn numbers_are_grouped_by_three() {
        let texts = [0, 999, 1_000, 1_234_567].map(group_digits);
        assert_eq!(texts, ["0", "999", "1,000", "1,234,567"]);
    }
}
