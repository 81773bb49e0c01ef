//! Single faults and what they may come to: worlds with one container that is behind, one refresh of each through a
//! [`Proxy`], recovery, and then the promise.
//!
//! The promise: under any single fault, followed by `refit recover`, the name has exactly one container, running as it was
//! before, on the old image or the new one, with its data; and nothing temporary is left.
//! `bench` has the images, `set_up` makes the container, `program` runs Refit, `promise` judges. Which faults are
//! tried is up to `tests/faults`.

pub mod bench;
pub mod fixtures;
pub mod invariants;
pub mod program;

use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::Context;
use futures_util::future::pending;

use self::bench::{Bench, Slot};
pub use self::fixtures::Scenario;
use self::invariants::{End, Problem};
use self::program::{Ending, Program, Run};
use crate::fault_proxy::{Call, Plan, Proxy, Refused, Setting};
use crate::world::{self, World, with_world};

/// Longer than any replacement may take.
const HOUR: Duration = Duration::from_secs(60 * 60);
/// How long a second Refit waits for the first one to be in the middle of something, and works then.
const MEDDLING: Duration = Duration::from_secs(30);

/// What came of one case.
#[derive(Debug)]
pub struct Outcome {
    pub end: End,
    /// None is what we want.
    pub problems: Vec<Problem>,
    /// Of the refresh, and of the recovery after it.
    pub calls: Vec<Call>,
    pub recovery: Vec<Call>,
    pub refresh: Run,
    pub recover: Run,
    /// Whether there was something to recover at all.
    pub was_half_done: bool,
    /// Calls that have numbers.
    pub numbered: u32,
    /// Whether the call that should go wrong was made.
    pub fault_happened: bool,
    /// The machine was too slow for Refit's time limits: a second fault that nobody asked for.
    pub disturbed: bool,
    pub took: Duration,
}

/// How a case is run.
#[derive(Clone, Copy)]
enum Course {
    /// As the promise has it.
    Whole(Option<Plan>),
    /// With nothing between the refresh and the engine.
    WithoutProxy,
    /// Judged as if nobody had recovered.
    WithoutRecovery(Plan),
    /// The first recovery goes wrong too; a second one does not.
    FaultInRecovery(Plan, Plan),
    /// A kind of call is refused for good, to the refresh and to a recovery after it.
    Refused(Refused),
    /// The state folder is gone after the refresh: it may be that another Refit is at work, until the engine's clock says that none
    /// can be.
    LostState(Plan),
    /// While the refresh is in the middle of a call, a Refit with a state folder of its own recovers and refreshes.
    SecondRefit(Plan),
}

impl Course {
    fn plan(self) -> Option<Plan> {
        match self {
            Self::Whole(plan) => plan,
            Self::WithoutProxy | Self::Refused(_) => None,
            Self::WithoutRecovery(plan)
            | Self::FaultInRecovery(plan, _)
            | Self::LostState(plan)
            | Self::SecondRefit(plan) => Some(plan),
        }
    }
}

/// One refresh of one container, with one fault or none, then recovery, then the judgement.
pub async fn run(
    program: &Path,
    bench: &Bench,
    slot: &Slot,
    scenario: Scenario,
    plan: Option<Plan>,
) -> anyhow::Result<Outcome> {
    run_by(program, bench, slot, scenario, Course::Whole(plan)).await
}

/// The same with nothing between the refresh and the engine, to see that the proxy itself changes nothing.
pub async fn run_without_proxy(
    program: &Path,
    bench: &Bench,
    slot: &Slot,
    scenario: Scenario,
) -> anyhow::Result<Outcome> {
    run_by(program, bench, slot, scenario, Course::WithoutProxy).await
}

/// The same without the recovery, to see that the judge notices what is half done.
pub async fn run_without_recovery(
    program: &Path,
    bench: &Bench,
    slot: &Slot,
    scenario: Scenario,
    plan: Plan,
) -> anyhow::Result<Outcome> {
    run_by(
        program,
        bench,
        slot,
        scenario,
        Course::WithoutRecovery(plan),
    )
    .await
}

/// A refresh with one fault, then a recovery with another one, then a recovery without, then the judgement.
pub async fn run_with_fault_in_recovery(
    program: &Path,
    bench: &Bench,
    slot: &Slot,
    scenario: Scenario,
    plan: Plan,
    in_recovery: Plan,
) -> anyhow::Result<Outcome> {
    let course = Course::FaultInRecovery(plan, in_recovery);
    run_by(program, bench, slot, scenario, course).await
}

/// A refresh, and a recovery after it, to which a kind of call is refused for good; then a recovery to which nothing is refused, then
/// the judgement. In between the container must serve.
pub async fn run_with_refused_calls(
    program: &Path,
    bench: &Bench,
    slot: &Slot,
    scenario: Scenario,
    refused: Refused,
) -> anyhow::Result<Outcome> {
    run_by(program, bench, slot, scenario, Course::Refused(refused)).await
}

/// A refresh that is killed and whose state folder is lost; a recovery too soon, which must not touch anything; one when it is time, then
/// the judgement.
pub async fn run_with_lost_state(
    program: &Path,
    bench: &Bench,
    slot: &Slot,
    scenario: Scenario,
    plan: Plan,
) -> anyhow::Result<Outcome> {
    run_by(program, bench, slot, scenario, Course::LostState(plan)).await
}

/// A refresh that hangs in a call for a while, beside which a second Refit recovers and refreshes; then the judgement.
pub async fn run_beside_a_second_refit(
    program: &Path,
    bench: &Bench,
    slot: &Slot,
    scenario: Scenario,
    plan: Plan,
) -> anyhow::Result<Outcome> {
    run_by(program, bench, slot, scenario, Course::SecondRefit(plan)).await
}

async fn run_by(
    program: &Path,
    bench: &Bench,
    slot: &Slot,
    scenario: Scenario,
    course: Course,
) -> anyhow::Result<Outcome> {
    let title = match course.plan() {
        Some(plan) => format!("{scenario}:{}:{}", plan.number, plan.fault),
        None => format!("{scenario} without a fault"),
    };
    let outcome = Arc::new(Mutex::new(None));
    let result = outcome.clone();
    with_world(&title, |w| async move {
        let found = run_in(&w, program, bench, slot, scenario, course).await?;
        *result.lock().expect("nobody panics while it is held") = Some(found);
        Ok(())
    })
    .await
    .with_context(|| format!("cannot judge {title}"))?;
    let outcome = outcome
        .lock()
        .expect("nobody panics while it is held")
        .take();
    outcome.context("the case ended without an outcome")
}

async fn run_in(
    w: &World,
    program: &Path,
    bench: &Bench,
    slot: &Slot,
    scenario: Scenario,
    course: Course,
) -> anyhow::Result<Outcome> {
    let began = Instant::now();
    let image = slot.image_for(scenario);
    bench.put_back(image).await?;
    let before = fixtures::set_up(w, bench, slot, scenario).await?;

    let folder = tempfile::tempdir().context("cannot make a temporary folder")?;
    let only_label = Some(format!("{}={}", world::LABEL, w.prefix()));
    let program = Program::new(
        program,
        folder.path(),
        bench.config(w, image, scenario, &before.name),
    );
    let plan = course.plan();
    let faulty = Proxy::start(
        w.docker_host(),
        &folder.path().join("faulty.sock"),
        Setting {
            plan,
            refused: match course {
                Course::Refused(refused) => Some(refused),
                _ => None,
            },
            clock_ahead: Duration::ZERO,
            only_label: only_label.clone(),
        },
    )?;
    let engine = match course {
        Course::WithoutProxy => w.docker_host().to_owned(),
        _ => faulty.docker_host(),
    };
    let refreshing = program.run(&["refresh", "--json"], &engine, faulty.until_kill_is_due());
    let (refresh, mut problems) = match course {
        Course::SecondRefit(_) => {
            let other = tempfile::tempdir().context("cannot make a temporary folder")?;
            let config = bench.config(w, image, scenario, &before.name);
            let second = Program::new(program.program(), other.path(), config);
            let beside = Setting {
                only_label: only_label.clone(),
                ..Setting::default()
            };
            let socket = other.path().join("beside.sock");
            let beside = Proxy::start(w.docker_host(), &socket, beside)?;
            let meddling = async {
                faulty.until_fault().await;
                for arguments in [["recover", "--json"], ["refresh", "--json"]] {
                    let engine = beside.docker_host();
                    let run = second.run(&arguments, &engine, pending()).await?;
                    anyhow::ensure!(run.ending != Ending::TooLong, "the second Refit hangs");
                }
                Ok(())
            };
            let (refresh, meddled) = tokio::join!(refreshing, async {
                // A fault whose call never comes must not be waited for.
                tokio::time::timeout(MEDDLING, meddling)
                    .await
                    .unwrap_or(Ok(()))
            });
            meddled?;
            (refresh?, Vec::new())
        }
        _ => (refreshing.await?, Vec::new()),
    };
    let half_done = invariants::is_half_done(w, &before).await?;
    if let Course::Refused(refused) = course {
        problems.extend(invariants::judge_service(w, &before, refused, "the refresh").await?);
        program
            .run(&["recover", "--json"], &engine, pending())
            .await?;
        problems.extend(invariants::judge_service(w, &before, refused, "a recovery").await?);
    }
    let mut clock_ahead = Duration::ZERO;
    if let Course::LostState(_) = course {
        let _ = std::fs::remove_dir_all(folder.path().join("state"));
        let setting = Setting {
            only_label: only_label.clone(),
            ..Setting::default()
        };
        let early = Proxy::start(w.docker_host(), &folder.path().join("early.sock"), setting)?;
        let run = program
            .run(&["recover", "--json"], &early.docker_host(), pending())
            .await?;
        problems.extend(invariants::judge_early_recovery(
            half_done,
            &run,
            &early.calls(),
        ));
        clock_ahead = HOUR;
    }

    let mut disturbed = false;
    let mut recovery_fault_happened = true;
    if let Course::FaultInRecovery(_, plan) = course {
        let setting = Setting {
            plan: Some(plan),
            refused: None,
            clock_ahead: Duration::ZERO,
            only_label: only_label.clone(),
        };
        let faulty = Proxy::start(w.docker_host(), &folder.path().join("second.sock"), setting)?;
        program
            .run(
                &["recover", "--json"],
                &faulty.docker_host(),
                faulty.until_kill_is_due(),
            )
            .await?;
        let calls = faulty.calls();
        recovery_fault_happened = calls.iter().any(|call| call.fault.is_some());
        disturbed = !plan.fault.kills() && calls.iter().any(Call::was_abandoned);
    }

    let sound = Proxy::start(
        w.docker_host(),
        &folder.path().join("sound.sock"),
        Setting {
            clock_ahead,
            plan: None,
            refused: None,
            only_label,
        },
    )?;
    let recovering: &[&str] = match course {
        // A command that calls no engine.
        Course::WithoutRecovery(_) => &["config", "show"],
        _ => &["recover", "--json"],
    };
    let recover = program
        .run(recovering, &sound.docker_host(), pending())
        .await?;
    let recovery = sound.calls();
    let again = program
        .run(recovering, &sound.docker_host(), pending())
        .await?;
    let recovery_again = sound.calls().split_off(recovery.len());

    let calls = faulty.calls();
    let first_fault_happened = calls.iter().any(|call| call.fault.is_some());
    let fault_happened = first_fault_happened && recovery_fault_happened;
    let kill_was_due = first_fault_happened && plan.is_some_and(|plan| plan.fault.kills());
    // Who is killed leaves calls unanswered that it made at the same time as the one at which it was.
    let waited_for: &[Call] = if kill_was_due { &[] } else { &calls };
    disturbed |= waited_for.iter().chain(&recovery).any(Call::was_abandoned);
    let (end, judged) = invariants::judge(w, bench, image, scenario, &before, &faulty).await?;
    problems.extend(judged);
    problems.extend(invariants::judge_refresh(
        scenario,
        end,
        &refresh,
        kill_was_due,
    ));
    problems.extend(invariants::judge_recovery(
        &recover,
        &again,
        &recovery_again,
    ));
    Ok(Outcome {
        end,
        problems,
        numbered: faulty.numbered(),
        fault_happened,
        disturbed,
        calls,
        recovery,
        refresh,
        recover,
        was_half_done: half_done,
        took: began.elapsed(),
    })
}

impl Outcome {
    pub fn is_lost(&self) -> bool {
        !self.problems.is_empty()
    }

    /// All there is to know, for a person.
    pub fn story(&self) -> String {
        use std::fmt::Write as _;
        let mut text = String::new();
        for problem in &self.problems {
            let _ = writeln!(text, "  {}: {}", problem.cause, problem.detail);
        }
        for (title, calls, run) in [
            ("refresh", &self.calls, &self.refresh),
            ("recover", &self.recovery, &self.recover),
        ] {
            let _ = writeln!(
                text,
                "  {title} ended with {} after {} ms; its calls:",
                run.ending,
                run.took.as_millis()
            );
            for call in calls {
                let _ = writeln!(text, "    {call}");
            }
            for line in run.said.lines().take(STORY_LINES_MAX) {
                let _ = writeln!(text, "    | {line}");
            }
        }
        text
    }
}

/// Of what a program printed. A report of one container has some forty lines.
const STORY_LINES_MAX: usize = 80;
