//! Which cases are run, several at once, and what is said of them.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::fs::File;
use std::io::Write as _;
use std::str::FromStr;
use std::sync::Mutex;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, bail};
use futures_util::future::try_join_all;
use refit_tests::fault_proxy::{Call, Fault, Plan};
use refit_tests::scenario::bench::{Bench, Slot};
use refit_tests::scenario::{self, Outcome, Scenario};
use refit_tests::{progress, with_world_for};

use super::refit;

/// A quick look at every pull request. Some three minutes on two cores.
const SAMPLE: usize = 70;
/// Two for each core of the smallest machine that runs this: cases wait for the engine most of the time.
const SLOTS: usize = 4;
/// How often a case is tried on a machine that is too slow for Refit's time limits.
const ATTEMPTS: usize = 3;
/// The whole matrix takes a quarter of an hour on two cores, and hours on a machine that does much else.
const MATRIX: Duration = Duration::from_secs(6 * 60 * 60);
/// How often a person who waits is told how far it is.
const TELL_EVERY: usize = 25;

/// The numbered calls of each scenario, in their order.
type Calls = BTreeMap<Scenario, Vec<String>>;

/// One refresh with one fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Case {
    scenario: Scenario,
    number: u32,
    fault: Fault,
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}", self.scenario, self.number, self.fault)
    }
}

impl FromStr for Case {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parts: Vec<&str> = text.trim().split(':').collect();
        let [scenario, number, fault] = parts.as_slice() else {
            bail!("`{text}` is no case: write `replace:12:cut-after`");
        };
        let number = number
            .parse()
            .with_context(|| format!("`{number}` in `{text}` is no number of a call"))?;
        Ok(Self {
            scenario: scenario.parse()?,
            number,
            fault: fault.parse()?,
        })
    }
}

/// What is asked for by the environment.
enum Selection {
    All,
    Sample { seed: u64 },
    These(Vec<Case>),
}

impl Selection {
    fn read() -> anyhow::Result<Self> {
        let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        if let Some(cases) = variable("REFIT_FAULTS_CASE") {
            return Ok(Self::These(
                cases
                    .split(',')
                    .map(str::parse)
                    .collect::<anyhow::Result<_>>()?,
            ));
        }
        match variable("REFIT_FAULTS").as_deref() {
            Some("all") => return Ok(Self::All),
            None | Some("sample") => {}
            Some(other) => bail!("REFIT_FAULTS is `{other}`, and may be `all` or `sample`"),
        }
        let seed = match variable("REFIT_FAULTS_SEED") {
            Some(seed) => seed
                .parse()
                .with_context(|| format!("REFIT_FAULTS_SEED is `{seed}`, and must be a number"))?,
            None => SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs() / (24 * 60 * 60),
        };
        Ok(Self::Sample { seed })
    }

    fn scenarios(&self) -> anyhow::Result<Vec<Scenario>> {
        if let Self::These(cases) = self {
            let mut scenarios: Vec<Scenario> = cases.iter().map(|case| case.scenario).collect();
            scenarios.sort();
            scenarios.dedup();
            return Ok(scenarios);
        }
        match std::env::var("REFIT_FAULTS_SCENARIO") {
            Ok(names) if !names.is_empty() => names.split(',').map(str::parse).collect(),
            _ => Ok(Scenario::ALL.to_vec()),
        }
    }

    /// `calls`: how many each scenario has.
    fn cases(&self, calls: &Calls) -> VecDeque<Case> {
        match self {
            Self::These(cases) => cases.clone().into(),
            Self::All => calls
                .iter()
                .flat_map(|(scenario, calls)| all(*scenario, calls))
                .collect(),
            Self::Sample { seed } => sample(calls, *seed),
        }
    }
}

/// Each fault at each call. A probe changes nothing, and is the same in each scenario: one of them is enough.
fn all(scenario: Scenario, calls: &[String]) -> impl Iterator<Item = Case> + use<'_> {
    let numbered = numbers(calls).zip(calls);
    let worth_it =
        numbered.filter(move |(_, label)| scenario == Scenario::Replace || !label.ends_with(PROBE));
    worth_it.flat_map(move |(number, _)| {
        Fault::ALL.map(|fault| Case {
            scenario,
            number,
            fault,
        })
    })
}

/// Tells a probe of [`permissions`](refit::engine::permissions) from a call that does something.
const PROBE: &str = " (probe)";

fn label(call: &Call) -> String {
    match call.is_probe() {
        true => format!("{}{PROBE}", call.label()),
        false => call.label(),
    }
}

fn numbers(calls: &[String]) -> std::ops::RangeInclusive<u32> {
    1..=u32::try_from(calls.len()).unwrap_or(u32::MAX)
}

/// The same number from each scenario, its calls spread evenly over the whole refresh, and the kinds of fault in turn.
fn sample(calls: &Calls, seed: u64) -> VecDeque<Case> {
    let mut random = fastrand::Rng::with_seed(seed);
    let each = SAMPLE.div_ceil(calls.len().max(1));
    let mut cases = VecDeque::new();
    for (scenario, calls) in calls {
        let (start, first_kind) = (random.f64(), random.usize(..Fault::ALL.len()));
        for index in 0..each {
            let place = (index as f64 + start) / each as f64 * calls.len() as f64;
            let fault = Fault::ALL[(first_kind + index) % Fault::ALL.len()];
            cases.push_back(Case {
                scenario: *scenario,
                number: (place as u32 + 1).min(*numbers(calls).end()),
                fault,
            });
        }
    }
    random.shuffle(cases.make_contiguous());
    cases
}

/// What has been run so far.
struct Tally {
    log: File,
    began: Instant,
    cases: usize,
    planned: usize,
    ends: BTreeMap<String, usize>,
    half_done: usize,
    calls: Calls,
    unreached: Vec<String>,
    moved: Vec<String>,
    disturbed: Vec<String>,
    lost: Vec<(String, String)>,
    causes: BTreeMap<&'static str, Vec<String>>,
}

impl Tally {
    fn add(&mut self, case: Case, outcome: &Outcome) -> anyhow::Result<()> {
        self.cases += 1;
        *self
            .ends
            .entry(format!("{:?}", outcome.end).to_lowercase())
            .or_default() += 1;
        self.half_done += usize::from(outcome.was_half_done);
        let wrong = outcome.calls.iter().find(|call| call.fault.is_some());
        let label = wrong.map(label).unwrap_or_default();
        let causes: Vec<&str> = outcome
            .problems
            .iter()
            .map(|problem| problem.cause)
            .collect();
        writeln!(
            self.log,
            "{case}\t{label}\t{:?}\t{}\t{}\t{} ms\t{}",
            outcome.end,
            outcome.refresh.ending,
            if outcome.was_half_done {
                "recovered"
            } else {
                ""
            },
            outcome.took.as_millis(),
            causes.join(", ")
        )?;
        if !outcome.fault_happened {
            self.unreached.push(case.to_string());
        } else if self.calls[&case.scenario].get(case.number as usize - 1) != Some(&label) {
            self.moved.push(case.to_string());
        }
        if outcome.disturbed {
            self.disturbed.push(case.to_string());
        }
        if outcome.is_lost() {
            let story = outcome.story();
            progress(&format!(
                "LOST {case} at {label}: repeat it with REFIT_FAULTS_CASE={case}\n{story}"
            ));
            writeln!(self.log, "{story}")?;
            let mut causes = causes;
            causes.sort_unstable();
            causes.dedup();
            for cause in causes {
                self.causes.entry(cause).or_default().push(case.to_string());
            }
            self.lost.push((case.to_string(), label));
        }
        if self.cases.is_multiple_of(TELL_EVERY) {
            progress(&format!(
                "{} of {} cases, {} lost, {} s",
                self.cases,
                self.planned,
                self.lost.len(),
                self.began.elapsed().as_secs()
            ));
        }
        Ok(())
    }

    fn summary(&self) -> String {
        use std::fmt::Write as _;
        let mut text = format!("{} cases, {} lost", self.cases, self.lost.len());
        let ends: Vec<String> = self
            .ends
            .iter()
            .map(|(end, count)| format!("{count} {end}"))
            .collect();
        let _ = write!(
            text,
            "; {} s; in the end {}; {} had something to recover",
            self.began.elapsed().as_secs(),
            ends.join(", "),
            self.half_done
        );
        for (what, cases) in [
            ("the call was never made", &self.unreached),
            (
                "another call than without a fault had the number",
                &self.moved,
            ),
            ("the machine was too slow", &self.disturbed),
        ] {
            if !cases.is_empty() {
                let _ = write!(text, "\n{what} in {}: {}", cases.len(), cases.join(" "));
            }
        }
        for (cause, cases) in &self.causes {
            let _ = write!(text, "\n{cause}, {}: {}", cases.len(), cases.join(" "));
        }
        text
    }
}

/// By the seed that is asked for, or the day's.
pub(super) fn random() -> fastrand::Rng {
    let seed = std::env::var("REFIT_FAULTS_SEED").ok();
    let day = || {
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        now.as_secs() / (24 * 60 * 60)
    };
    let seed = seed.and_then(|seed| seed.parse().ok()).unwrap_or_else(day);
    fastrand::Rng::with_seed(seed)
}

/// How many cases run at once, in each suite here.
pub(super) fn slots() -> anyhow::Result<usize> {
    match std::env::var("REFIT_FAULTS_SLOTS") {
        Ok(slots) => slots
            .parse()
            .with_context(|| format!("REFIT_FAULTS_SLOTS is `{slots}`, and must be a number")),
        Err(_) => Ok(SLOTS),
    }
}

#[tokio::test]
async fn no_single_fault_loses_a_container() -> anyhow::Result<()> {
    let selection = Selection::read()?;
    if let Selection::Sample { seed } = &selection {
        progress(&format!(
            "a sample of the faults; REFIT_FAULTS_SEED={seed} repeats it, REFIT_FAULTS=all runs the whole matrix"
        ));
    }
    let slots = slots()?;
    with_world_for(MATRIX, "the matrix of faults", |w| async move {
        let bench = Bench::new(&w).await?;
        let slots = try_join_all((0..slots).map(|number| bench.slot(number))).await?;
        let calls = look_at_calls(&selection.scenarios()?, &bench, &slots).await?;
        let cases = selection.cases(&calls);
        let log = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join("faults.log");
        let tally = Tally {
            log: File::create(&log).with_context(|| format!("cannot write {}", log.display()))?,
            began: Instant::now(),
            cases: 0,
            planned: cases.len(),
            ends: BTreeMap::new(),
            half_done: 0,
            calls,
            unreached: Vec::new(),
            moved: Vec::new(),
            disturbed: Vec::new(),
            lost: Vec::new(),
            causes: BTreeMap::new(),
        };
        let (cases, tally) = (Mutex::new(cases), Mutex::new(tally));
        try_join_all(slots.iter().map(|slot| work(&bench, slot, &cases, &tally))).await?;
        let tally = tally.into_inner().expect("nobody panicked");
        progress(&tally.summary());
        anyhow::ensure!(tally.lost.is_empty(), "{}", tally.summary());
        Ok(())
    })
    .await
}

/// Each scenario once without a fault, which must come to what was asked for. Says which calls can go wrong.
async fn look_at_calls(
    scenarios: &[Scenario],
    bench: &Bench,
    slots: &[Slot],
) -> anyhow::Result<Calls> {
    let mut calls = BTreeMap::new();
    let slot = slots.first().context("no slot to run anything in")?;
    for scenario in scenarios {
        let outcome = scenario::run(refit(), bench, slot, *scenario, None).await?;
        anyhow::ensure!(
            !outcome.is_lost(),
            "{scenario} without a fault goes wrong:\n{}",
            outcome.story()
        );
        anyhow::ensure!(
            outcome.end == scenario.wanted(),
            "{scenario} without a fault came to {:?}:\n{}",
            outcome.end,
            outcome.story()
        );
        anyhow::ensure!(
            !outcome.was_half_done,
            "{scenario} without a fault leaves something to recover:\n{}",
            outcome.story()
        );
        progress(&format!(
            "{scenario}: {} calls in {} ms",
            outcome.numbered,
            outcome.took.as_millis()
        ));
        let labels = outcome
            .calls
            .iter()
            .filter(|call| call.number.is_some())
            .map(label);
        calls.insert(*scenario, labels.collect());
    }
    Ok(calls)
}

async fn work(
    bench: &Bench,
    slot: &Slot,
    cases: &Mutex<VecDeque<Case>>,
    tally: &Mutex<Tally>,
) -> anyhow::Result<()> {
    loop {
        let next = cases
            .lock()
            .expect("nobody panics while it is held")
            .pop_front();
        let Some(case) = next else { return Ok(()) };
        let plan = Plan {
            number: case.number,
            fault: case.fault,
        };
        let mut outcome = scenario::run(refit(), bench, slot, case.scenario, Some(plan)).await?;
        for _ in 1..ATTEMPTS {
            if !outcome.disturbed {
                break;
            }
            outcome = scenario::run(refit(), bench, slot, case.scenario, Some(plan)).await?;
        }
        tally
            .lock()
            .expect("nobody panics while it is held")
            .add(case, &outcome)?;
    }
}

#[test]
fn a_case_is_written_as_it_is_read() {
    for text in ["replace:12:cut-after", "two-networks:1:kill-before"] {
        assert_eq!(text.parse::<Case>().unwrap().to_string(), text);
    }
    assert!("replace:12".parse::<Case>().is_err());
}

#[test]
fn a_sample_has_every_scenario_every_kind_and_the_whole_refresh() {
    let calls: Calls = Scenario::ALL
        .into_iter()
        .map(|scenario| (scenario, vec![String::new(); 20]))
        .collect();
    let cases = sample(&calls, 1);
    assert!((SAMPLE..SAMPLE + calls.len()).contains(&cases.len()));
    for scenario in Scenario::ALL {
        let ours: Vec<&Case> = cases
            .iter()
            .filter(|case| case.scenario == scenario)
            .collect();
        assert!(
            Fault::ALL
                .iter()
                .all(|fault| ours.iter().any(|case| case.fault == *fault))
        );
        assert!(
            ours.iter().any(|case| case.number <= 3) && ours.iter().any(|case| case.number >= 18)
        );
    }
    assert_eq!(cases, sample(&calls, 1), "a seed repeats a sample");
}
