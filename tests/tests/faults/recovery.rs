//! A refresh is killed, and the recovery after it goes wrong too; the next recovery must end it all the same.

use std::sync::Mutex;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use futures_util::future::try_join_all;
use refit_tests::fault_proxy::{Fault, Plan};
use refit_tests::scenario::bench::{Bench, Slot};
use refit_tests::scenario::{self, Scenario};
use refit_tests::{progress, with_world_for};

use super::refit;

/// Those whose recovery differs.
const SCENARIOS: [Scenario; 3] = [Scenario::Replace, Scenario::Overlap, Scenario::Linked];
/// Cases of a quick look.
const SAMPLE: usize = 16;
/// Cases of `REFIT_FAULTS=all`. A recovery has some ten calls, and there are a hundred places to be killed at: all of them in
/// all ways would be days.
const MANY: usize = 400;
/// At once.
const LIMIT: Duration = Duration::from_secs(2 * 60 * 60);
/// The calls of a recovery that go wrong: it lists, looks at each container twice, removes, renames, starts.
const RECOVERY_CALLS: u32 = 12;

#[derive(Clone, Copy, Debug)]
struct Case {
    scenario: Scenario,
    killed_at: u32,
    recovery: Plan,
}

fn cases(seed: u64, count: usize, calls: &[(Scenario, u32)]) -> Vec<Case> {
    let mut random = fastrand::Rng::with_seed(seed);
    let case = |index: usize| {
        let (scenario, calls) = calls[index % calls.len()];
        Case {
            scenario,
            // Before the replacement is made there is nothing to recover: that is the first half of the calls.
            killed_at: random.u32(calls / 2..=calls),
            recovery: Plan {
                number: random.u32(1..=RECOVERY_CALLS),
                fault: Fault::ALL[index % Fault::ALL.len()],
            },
        }
    };
    (0..count).map(case).collect()
}

#[tokio::test]
async fn no_fault_of_a_recovery_loses_a_container() -> anyhow::Result<()> {
    let all = std::env::var("REFIT_FAULTS").is_ok_and(|it| it == "all");
    let seed = match std::env::var("REFIT_FAULTS_SEED") {
        Ok(seed) => seed.parse()?,
        Err(_) => SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs() / (24 * 60 * 60),
    };
    with_world_for(LIMIT, "faults of a recovery", |w| async move {
        let bench = Bench::new(&w).await?;
        let slots = try_join_all((0..super::matrix::slots()?).map(|number| bench.slot(number))).await?;
        let mut calls = Vec::new();
        for scenario in SCENARIOS {
            let whole = scenario::run(refit(), &bench, &slots[0], scenario, None).await?;
            calls.push((scenario, whole.numbered));
        }
        let cases = cases(seed, if all { MANY } else { SAMPLE }, &calls);
        let count = cases.len();
        let (left, lost) = (Mutex::new(cases), Mutex::new(Vec::new()));
        let reached = try_join_all(slots.iter().map(|slot| work(&bench, slot, &left, &lost)));
        let reached: usize = reached.await?.into_iter().sum();
        let lost = lost.into_inner().expect("nobody panicked");
        progress(&format!(
            "a killed refresh and a fault in its recovery: {count} cases, in {reached} both happened, {} lost",
            lost.len()
        ));
        anyhow::ensure!(reached > 0, "no recovery went wrong, so nothing was tried");
        anyhow::ensure!(lost.is_empty(), "REFIT_FAULTS_SEED={seed}: {lost:?}");
        Ok(())
    })
    .await
}

/// In how many cases both faults happened.
async fn work(
    bench: &Bench,
    slot: &Slot,
    left: &Mutex<Vec<Case>>,
    lost: &Mutex<Vec<Case>>,
) -> anyhow::Result<usize> {
    let mut reached = 0;
    loop {
        let next = left.lock().expect("nobody panics while it is held").pop();
        let Some(case) = next else { return Ok(reached) };
        let killed = Plan {
            number: case.killed_at,
            fault: Fault::KillAfter,
        };
        let outcome = scenario::run_with_fault_in_recovery(
            refit(),
            bench,
            slot,
            case.scenario,
            killed,
            case.recovery,
        )
        .await?;
        reached += usize::from(outcome.fault_happened);
        // A machine that is too slow is one fault more; the promise is about those that were chosen.
        if outcome.is_lost() && !outcome.disturbed {
            progress(&format!("LOST {case:?}\n{}", outcome.story()));
            lost.lock()
                .expect("nobody panics while it is held")
                .push(case);
        }
    }
}
