//! What no single call that goes wrong shows: calls that are refused for good, an engine that goes away, a lost state folder, a second
//! Refit. Each is a sample in a normal run, and whole with `REFIT_FAULTS=all`.

use std::sync::Mutex;
use std::time::Duration;

use anyhow::Context;
use futures_util::future::try_join_all;
use refit_tests::fault_proxy::{Fault, Plan, Refused};
use refit_tests::scenario::bench::{Bench, Slot};
use refit_tests::scenario::{self, Outcome, Scenario};
use refit_tests::{progress, with_world_for};

use super::refit;

/// Those whose way differs.
const SCENARIOS: [Scenario; 4] = [
    Scenario::Replace,
    Scenario::Overlap,
    Scenario::Linked,
    Scenario::HexName,
];
const LIMIT: Duration = Duration::from_secs(3 * 60 * 60);

/// What a proxy may refuse, of what a refresh and a recovery call.
const REFUSED: [&str; 12] = [
    "GET /containers/json",
    "GET /containers/{id}/json",
    "GET /events",
    "GET /info",
    "POST /containers/create",
    "POST /containers/{id}/start",
    "POST /containers/{id}/stop",
    "POST /containers/{id}/rename",
    "DELETE /containers/{id}",
    "GET /images/{id}/json",
    "POST /networks/{id}/connect",
    "POST /networks/{id}/disconnect",
];

#[derive(Clone, Copy, Debug)]
enum Trial {
    Refused(Refused),
    Away(Plan),
    LostState(Plan),
    SecondRefit(Plan),
}

#[derive(Clone, Copy, Debug)]
struct Case {
    scenario: Scenario,
    trial: Trial,
}

fn all() -> bool {
    std::env::var("REFIT_FAULTS").is_ok_and(|it| it == "all")
}

/// Every `step`th of them, from a place that differs from day to day.
fn sample(cases: Vec<Case>, count: usize) -> Vec<Case> {
    if all() || cases.len() <= count {
        return cases;
    }
    let mut random = super::matrix::random();
    let mut cases = cases;
    random.shuffle(&mut cases);
    cases.truncate(count);
    cases
}

async fn try_all(
    title: &'static str,
    cases: impl FnOnce(&[(Scenario, u32)]) -> Vec<Case> + Send + 'static,
) -> anyhow::Result<()> {
    with_world_for(LIMIT, title, |w| async move {
        let bench = Bench::new(&w).await?;
        let slots =
            try_join_all((0..super::matrix::slots()?).map(|number| bench.slot(number))).await?;
        let mut calls = Vec::new();
        for scenario in SCENARIOS {
            let whole = scenario::run(refit(), &bench, &slots[0], scenario, None).await?;
            anyhow::ensure!(
                !whole.is_lost(),
                "{scenario} without a fault: {}",
                whole.story()
            );
            calls.push((scenario, whole.numbered));
        }
        let cases = cases(&calls);
        anyhow::ensure!(!cases.is_empty(), "no case was chosen");
        let count = cases.len();
        let (left, lost) = (Mutex::new(cases), Mutex::new(Vec::new()));
        try_join_all(slots.iter().map(|slot| work(&bench, slot, &left, &lost))).await?;
        let lost = lost.into_inner().expect("nobody panicked");
        progress(&format!("{title}: {count} cases, {} lost", lost.len()));
        anyhow::ensure!(lost.is_empty(), "{lost:?}");
        Ok(())
    })
    .await
}

async fn work(
    bench: &Bench,
    slot: &Slot,
    left: &Mutex<Vec<Case>>,
    lost: &Mutex<Vec<Case>>,
) -> anyhow::Result<()> {
    loop {
        let next = left.lock().expect("nobody panics while it is held").pop();
        let Some(case) = next else { return Ok(()) };
        let outcome = run(bench, slot, case)
            .await
            .with_context(|| format!("{case:?}"))?;
        if outcome.is_lost() && !outcome.disturbed {
            progress(&format!("LOST {case:?}\n{}", outcome.story()));
            lost.lock()
                .expect("nobody panics while it is held")
                .push(case);
        }
    }
}

async fn run(bench: &Bench, slot: &Slot, case: Case) -> anyhow::Result<Outcome> {
    let Case { scenario, trial } = case;
    match trial {
        Trial::Refused(refused) => {
            scenario::run_with_refused_calls(refit(), bench, slot, scenario, refused).await
        }
        Trial::Away(plan) => scenario::run(refit(), bench, slot, scenario, Some(plan)).await,
        Trial::LostState(plan) => {
            scenario::run_with_lost_state(refit(), bench, slot, scenario, plan).await
        }
        Trial::SecondRefit(plan) => {
            scenario::run_beside_a_second_refit(refit(), bench, slot, scenario, plan).await
        }
    }
}

/// Every place of the second half of a refresh, in which containers are touched.
fn places(calls: &[(Scenario, u32)]) -> impl Iterator<Item = (Scenario, u32)> + '_ {
    let places = |&(scenario, calls): &(Scenario, u32)| {
        (calls / 3..=calls).map(move |number| (scenario, number.max(1)))
    };
    calls.iter().flat_map(places)
}

fn planned(fault: Fault, trial: fn(Plan) -> Trial) -> impl Fn((Scenario, u32)) -> Case {
    move |(scenario, number)| Case {
        scenario,
        trial: trial(Plan { number, fault }),
    }
}

#[tokio::test]
async fn refused_calls_leave_every_container_serving() -> anyhow::Result<()> {
    try_all("calls refused for good", |_| {
        let mut cases = Vec::new();
        for label in REFUSED {
            for only_what_exists in [false, true] {
                for scenario in SCENARIOS {
                    let refused = Refused {
                        label,
                        only_what_exists,
                    };
                    cases.push(Case {
                        scenario,
                        trial: Trial::Refused(refused),
                    });
                }
            }
        }
        sample(cases, 28)
    })
    .await
}

#[tokio::test]
async fn engine_that_goes_away_loses_no_container() -> anyhow::Result<()> {
    try_all("an engine that goes away", |calls| {
        let cases = Fault::AWAY.map(|fault| {
            let count = if fault == Fault::Away60 { 2 } else { 5 };
            let cases = places(calls).map(planned(fault, Trial::Away)).collect();
            sample(cases, count)
        });
        cases.concat()
    })
    .await
}

#[tokio::test]
async fn lost_state_folder_loses_no_container() -> anyhow::Result<()> {
    try_all("a lost state folder", |calls| {
        let kills = [Fault::KillBefore, Fault::KillAfter];
        let cases = kills.map(|fault| {
            let cases = places(calls)
                .map(planned(fault, Trial::LostState))
                .collect();
            sample(cases, 6)
        });
        cases.concat()
    })
    .await
}

#[tokio::test]
async fn second_refit_undoes_no_living_refresh() -> anyhow::Result<()> {
    try_all("a second Refit", |calls| {
        let hangs = [Fault::Hang, Fault::HangAfter];
        let cases = hangs.map(|fault| {
            let cases = places(calls)
                .map(planned(fault, Trial::SecondRefit))
                .collect();
            sample(cases, 6)
        });
        cases.concat()
    })
    .await
}
