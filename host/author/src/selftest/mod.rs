//! Runs hostile policies, each against one guarantee of the host, and after each the built-in policy on the same engine.
//!
//! `refit selftest` runs them on an operator's machine, and the tests run them from the same table ([`guests()`]). They need no
//! container engine, network or files: the policies act on an engine in memory, behind the guard and the journal of every refresh.

mod guests;
mod machine;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use refit_capabilities::guard::{Counts, Guard};
use refit_capabilities::journal::Journal;
use refit_capabilities::scope::Scope;
use refit_model::decision::Verdict;
use refit_model::event::no_events;
use refit_model::grants::{GrantPatterns, Grants, Verb};
use refit_model::recreation::RecreationOutcome;
use refit_model::request::{Request, Trigger};
use refit_sandbox::limits::{
    BACKTRACE_FRAMES_MAX, PROBLEMS_MAX, SHOWN_FRAMES_MAX, TEXT_BYTES_MAX, Times,
};
use refit_sandbox::{
    Concurrency, DEFAULT_POLICY, Decisions, Failure, LeftOut, Policy, PolicyEngine, PolicyError,
    PolicyErrorKind, PolicyState, Session, Task,
};
use tokio_util::sync::CancellationToken;

use self::machine::{BEHIND, Machine, WORKSPACES};

pub use self::guests::{Ending, Guest, Pace, component, guests};

/// The time limits of a guest that would use all of its time. They are far apart, so that a busy machine does not confuse them.
const SHORT: Times = Times {
    compute: Duration::from_millis(200),
    probe: Duration::from_secs(5),
};

/// The time limit of a whole refresh of such a guest.
const SHORT_REFRESH: Duration = Duration::from_secs(5);

/// The time limit of any other refresh. None comes close to it.
const REFRESH: Duration = Duration::from_secs(120);

/// The number of containers that a guest may recreate: one less than are outdated.
const RECREATES_MAX: usize = BEHIND - 1;

/// The longest message about a guest, whatever the guest writes into names and texts.
const MESSAGE_BYTES_MAX: usize = 2 * TEXT_BYTES_MAX;

/// The result of a guest.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Outcome {
    pub guest: &'static str,
    pub tries: &'static str,
    /// The expected result, as in the table of guests, in a few words.
    pub expected: String,
    pub got: String,
    /// The message for an operator.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub told: Option<String>,
    pub duration_ms: u64,
    pub passed: bool,
    /// The problems, if the guest did not pass.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub problems: Vec<String>,
}

impl std::fmt::Display for Ending {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Refused(kind) => write!(f, "not loaded ({})", words(*kind)),
            Self::Stopped(task, kind) => {
                write!(f, "stopped when it was to {task} ({})", words(*kind))
            }
            Self::Held => f.write_str("held to its limits and grants, and answered"),
            Self::Cut => f.write_str("answered, and what it said beyond its limits was left out"),
            Self::Fails => f.write_str("its failure was passed on, cut"),
        }
    }
}

fn words(kind: PolicyErrorKind) -> &'static str {
    use PolicyErrorKind as Kind;
    match kind {
        Kind::TooLarge => "too large",
        Kind::NotAComponent => "not a component",
        Kind::Invalid => "invalid",
        Kind::WrongContract => "another version of the contract",
        Kind::Misfit => "another idea of the contract",
        Kind::UnknownImport => "an import that is not offered",
        Kind::NotAPolicy => "no policy",
        Kind::Unstartable => "cannot be started",
        Kind::Interrupted => "computed too long",
        Kind::TimedOut => "took too long",
        Kind::Exceeded => "beyond a limit",
        Kind::Trapped => "panicked",
        Kind::Exited => "ended itself",
        Kind::Broke => "broke the contract",
        Kind::BadAnswer => "an answer that cannot be used",
        Kind::Config => "does not accept its configuration",
        Kind::Compiler => "takes too much to compile",
        Kind::Host => "the host failed",
    }
}

/// An engine to run guests on, and the built-in policy on the same engine.
struct Host {
    engine: PolicyEngine,
    good: Policy,
    refresh: Duration,
}

impl Host {
    async fn new(times: Times, refresh: Duration) -> Result<Self, PolicyError> {
        let engine = PolicyEngine::with_times(times)?;
        let good = engine.load(DEFAULT_POLICY, "the built-in policy").await?;
        Ok(Self {
            engine,
            good,
            refresh,
        })
    }
}

/// The hosts that guests run on. Creating them compiles the built-in policy twice.
pub struct Selftest {
    full: Host,
    short: Host,
}

impl Selftest {
    pub async fn new() -> Result<Self, PolicyError> {
        Ok(Self {
            full: Host::new(Times::default(), REFRESH).await?,
            short: Host::new(SHORT, SHORT_REFRESH).await?,
        })
    }

    /// Run all guests, one after the other, and concurrently the guest that computes as long as a policy may. Calls `each` with an
    /// outcome as soon as it is known.
    pub async fn run_all(self: Arc<Self>, mut each: impl FnMut(&Outcome)) -> Vec<Outcome> {
        let guests = guests();
        let (long, short): (Vec<Guest>, Vec<Guest>) = guests.into_iter().partition(Guest::is_slow);
        let beside: Vec<_> = long
            .into_iter()
            .map(|guest| {
                let this = self.clone();
                tokio::spawn(async move { this.run(&guest).await })
            })
            .collect();
        let mut outcomes = Vec::new();
        for guest in short {
            let outcome = self.run(&guest).await;
            each(&outcome);
            outcomes.push(outcome);
        }
        for outcome in beside {
            let outcome = outcome.await.expect("running a guest does not panic");
            each(&outcome);
            outcomes.push(outcome);
        }
        outcomes
    }

    /// Run one guest, and the built-in policy after it.
    pub async fn run(&self, guest: &Guest) -> Outcome {
        let host = match guest.pace {
            Pace::Full => &self.full,
            Pace::Short => &self.short,
        };
        let began = Instant::now();
        let machine = Arc::new(Machine::new());
        let came_to = host.come_to(guest, &machine).await;
        let duration = began.elapsed();
        let mut problems = came_to.problems(guest);
        let recreated = machine.recreated().len();
        if recreated != guest.recreates {
            problems.push(format!(
                "{recreated} containers were recreated, and {} should have been",
                guest.recreates
            ));
        }
        if let Err(problem) = host.answers().await {
            problems.push(format!("the next refresh went wrong: {problem}"));
        }
        Outcome {
            guest: guest.name,
            tries: guest.tries,
            expected: guest.ending.to_string(),
            got: came_to.ending().to_string(),
            told: came_to.message(),
            duration_ms: u64::try_from(duration.as_millis()).unwrap_or(u64::MAX),
            passed: problems.is_empty(),
            problems,
        }
    }
}

/// The actual result of a guest, as its host sees it.
enum CameTo {
    Refused(PolicyError),
    Stopped(Task, PolicyError),
    Answered(Decisions),
    Failed(Failure),
}

impl CameTo {
    fn ending(&self) -> Ending {
        match self {
            Self::Refused(error) => Ending::Refused(error.kind()),
            Self::Stopped(task, error) => Ending::Stopped(*task, error.kind()),
            Self::Answered(decisions) if decisions.left_out == LeftOut::default() => Ending::Held,
            Self::Answered(_) => Ending::Cut,
            Self::Failed(_) => Ending::Fails,
        }
    }

    fn message(&self) -> Option<String> {
        match self {
            Self::Refused(error) | Self::Stopped(_, error) => Some(error.to_string()),
            Self::Answered(_) | Self::Failed(_) => None,
        }
    }

    fn problems(&self, guest: &Guest) -> Vec<String> {
        let mut problems = Vec::new();
        if self.ending() != guest.ending {
            problems.push(format!("expected {}, got {}", guest.ending, self.ending()));
        }
        let mut texts = Vec::new();
        match self {
            Self::Refused(error) | Self::Stopped(_, error) => {
                texts.push((error.to_string(), MESSAGE_BYTES_MAX));
                if let PolicyError::Trapped { place, .. } = error
                    && (place.functions().len() > SHOWN_FRAMES_MAX
                        || place.frames() > BACKTRACE_FRAMES_MAX)
                {
                    problems.push(format!("its backtrace has {} frames", place.frames()));
                }
            }
            Self::Answered(decisions) => {
                let reasons = decisions.by_container.values().map(|it| &it.reason);
                let cut = TEXT_BYTES_MAX + "…".len();
                texts.extend(reasons.map(|reason| (reason.clone(), cut)));
            }
            Self::Failed(Failure::UnknownTargets { asked, .. }) => {
                if asked.len() > PROBLEMS_MAX {
                    problems.push(format!("{} targets are shown", asked.len()));
                }
            }
            Self::Failed(_) => {}
        }
        for (text, bytes_max) in texts {
            if text.chars().any(char::is_control) {
                problems.push("a control character of its got through".into());
            }
            if text.len() > bytes_max {
                problems.push(format!("a text of {} bytes got through", text.len()));
            }
        }
        problems
    }
}

impl Host {
    async fn come_to(&self, guest: &Guest, machine: &Arc<Machine>) -> CameTo {
        let policy = match self.engine.load(guest.bytes(), guest.name).await {
            Ok(policy) => policy,
            Err(error) => {
                return match error.task() {
                    Some(task) => CameTo::Stopped(task, error),
                    None => CameTo::Refused(error),
                };
            }
        };
        if let Err(error) = policy.validate_config("{}").await {
            return CameTo::Stopped(Task::CheckConfig, error);
        }
        match refresh(&policy, machine.clone(), RECREATES_MAX, self.refresh)
            .await
            .0
        {
            Ok(Ok(decisions)) => CameTo::Answered(decisions),
            Ok(Err(failure)) => CameTo::Failed(failure),
            Err(error) => CameTo::Stopped(Task::Refresh, error),
        }
    }

    /// Check that the built-in policy still works on the engine that a guest has just used.
    async fn answers(&self) -> Result<(), String> {
        let machine = Arc::new(Machine::new());
        let (answer, recreated) = refresh(&self.good, machine.clone(), BEHIND, REFRESH).await;
        let decisions = answer
            .map_err(|error| error.to_string())?
            .map_err(|failure| format!("{failure:?}"))?;
        let count = |verdict| {
            let all = decisions.by_container.values();
            all.filter(|decision| decision.verdict == verdict).count()
        };
        let decided = (count(Verdict::Recreate), count(Verdict::Current));
        if decided != (BEHIND, WORKSPACES - BEHIND) {
            return Err(format!("it decided {decided:?}"));
        }
        let mut names = machine.recreated();
        names.sort();
        if recreated != BEHIND || names != ["ws-00", "ws-01", "ws-02"] {
            return Err(format!("it recreated {names:?}"));
        }
        Ok(())
    }
}

/// Run a refresh on the engine in memory behind guard and journal, and count the recreations in the journal.
async fn refresh(
    policy: &Policy,
    machine: Arc<Machine>,
    recreates_max: usize,
    limit: Duration,
) -> (Result<Result<Decisions, Failure>, PolicyError>, usize) {
    let grants = Arc::new(grants());
    // The production limit on inspections, and low limits on the rest, so that few calls exceed them.
    let counts = Counts {
        inspects: 20_000,
        pulls: 8,
        recreates: u32::try_from(recreates_max).unwrap_or(u32::MAX),
    };
    let scope = Arc::new(Scope::new(grants.clone(), counts.recreates));
    let guard = Guard::new(machine, scope, counts, CancellationToken::new());
    let journal = Arc::new(Journal::new(Arc::new(guard), false, no_events()));
    let session = Session {
        capabilities: journal.clone(),
        grants,
        concurrency: Concurrency {
            inspects: 8,
            pulls: 4,
            recreates: 2,
        },
        state: PolicyState::empty(),
        clock: refit_sandbox::Clock(jiff::Timestamp::now()),
    };
    let request = Request {
        trigger: Trigger::Operator,
        targets: vec![],
        images: vec![],
        recreate: true,
        force: false,
    };
    let answer = policy.refresh(&request, "{}", session, limit).await;
    let record = journal.finish().await;
    let done = record.recreations.iter();
    let done = done.filter(|record| record.outcome == RecreationOutcome::Recreated);
    (answer, done.count())
}

fn grants() -> Grants {
    Grants::new(&GrantPatterns {
        images: vec!["ghcr.io/molecule-ai/workspace-template-*".into()],
        containers: vec!["ws-*".into()],
        labels: BTreeMap::new(),
        environment: vec![],
        verbs: vec![Verb::Inspect, Verb::Pull, Verb::Replace],
        followers: false,
    })
    .expect("three patterns that a test has tried")
}

/// Generate the page `docs/hostile-guests.md`. A test compares the two, so the page always matches the table.
///
/// `limits` is `[limits]` of the default configuration.
pub fn page(limits: &serde_json::Value) -> String {
    use refit_sandbox::limits::Limit;
    use std::fmt::Write as _;
    let guests = guests();
    let mut page = String::from(include_str!("page.md"));
    page.push_str("\n## The guests\n\n| guest | tries | must come to |\n| --- | --- | --- |\n");
    for guest in &guests {
        let _ = writeln!(
            page,
            "| `{}` | {} | {} |",
            guest.name, guest.tries, guest.ending
        );
    }
    page.push_str("\n## The limits\n\n| limit | value | crossed by |\n| --- | --- | --- |\n");
    for limit in Limit::ALL {
        let value = limit.value().map_or_else(
            || limits[limit.key()].to_string(),
            |value| value.to_string(),
        );
        let crossing = guests.iter().filter(|guest| guest.crosses.contains(limit));
        let names: Vec<String> = crossing.map(|guest| format!("`{}`", guest.name)).collect();
        let _ = writeln!(
            page,
            "| `{}` | {} | {} |",
            limit.key(),
            value,
            names.join(", ")
        );
    }
    page
}
