//! Calls a policy step by step. The result is reproducible: the clock stands still, random bytes are fixed, and nothing runs
//! concurrently.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use refit_capabilities::guard::Counts;
use refit_capabilities::snapshot::replay::SnapshotCapabilities;
use refit_refresh::{Bounds, DryRunInput, DryRunRequest, DryRunResult, dry_run};
use refit_sandbox::{Clock, Concurrency, Cost, LogLine, Policy, PolicyError, PolicyState};

use super::document::{Scenario, When};
use super::expect::{Mismatch, format_expectation};

/// The time limit of a refresh. Nothing waits, so it covers the policy's computing time and the machine's other load.
const WHOLE: Duration = Duration::from_secs(60);

/// The result of a scenario.
#[derive(Debug, serde::Serialize)]
pub struct Ran {
    /// The configuration problems that the policy reports. If there are any, no step has run.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub config_problems: Vec<String>,
    pub steps: Vec<RanStep>,
}

/// The result of one refresh of a scenario.
#[derive(Debug, serde::Serialize)]
pub struct RanStep {
    pub at: Timestamp,
    pub mismatches: Vec<Mismatch>,
    /// The actual result, as an expectation in TOML.
    pub came_to: String,
    pub log: Vec<LogLine>,
    pub decisions: usize,
    pub cost: Cost,
}

impl Ran {
    pub fn passed(&self) -> bool {
        self.config_problems.is_empty() && self.steps.iter().all(|step| step.mismatches.is_empty())
    }
}

/// Run a scenario. This fails if the policy cannot check its configuration; a trap in a refresh is a mismatch.
pub async fn run(policy: &Policy, scenario: &Scenario) -> Result<Ran, PolicyError> {
    let problems = policy.validate_config(&scenario.config).await?;
    let expects_that = scenario.expects_invalid_config();
    if !problems.is_empty() && !expects_that {
        return Ok(Ran {
            config_problems: problems.iter().map(ToString::to_string).collect(),
            steps: vec![],
        });
    }
    let state = PolicyState::in_memory(scenario.state.clone());
    let grants = Arc::new(scenario.grants.clone());
    let mut engine = scenario.engine.clone();
    let mut steps = Vec::new();
    for step in &scenario.steps {
        engine.taken = match step.when {
            When::At(now) => now,
            When::After(after) => engine.taken.saturating_add(after).unwrap_or(engine.taken),
        };
        // `parse` has checked the changes already.
        let _ = step.changes.apply(&mut engine);
        let replay = Arc::new(SnapshotCapabilities::new(
            engine.clone(),
            step.request.force,
        ));
        let asked = DryRunRequest {
            policy,
            config: &scenario.config,
            grants: grants.clone(),
            state: state.clone(),
        };
        let question = DryRunInput {
            request: step.request.clone(),
            capabilities: replay.clone(),
            bounds: bounds(),
            clock: Clock(engine.taken),
        };
        let answer = dry_run(asked, question).await;
        engine = replay.snapshot();
        // Faults apply to one step only.
        engine.recreations.clear();
        engine.listing_fails = None;
        let (log, decisions, cost) = match &answer.answer {
            Ok(Ok(said)) => (said.log.clone(), said.by_container.len(), said.cost),
            Ok(Err(_)) | Err(_) => Default::default(),
        };
        steps.push(RanStep {
            at: engine.taken,
            mismatches: step.expect.compare(&answer, &state, &engine),
            came_to: format_expectation(&answer),
            log,
            decisions,
            cost,
        });
        if matches!(answer, DryRunResult { answer: Err(_), .. }) {
            break;
        }
    }
    Ok(Ran {
        config_problems: vec![],
        steps,
    })
}

fn bounds() -> Bounds {
    let most = u32::MAX;
    Bounds {
        counts: Counts {
            inspects: most,
            pulls: most,
            recreates: most,
        },
        // One call at a time, so that the calls have the same order each time.
        concurrency: Concurrency {
            inspects: 1,
            pulls: 1,
            recreates: 1,
        },
        whole: WHOLE,
        keep_previous_images: None,
    }
}
