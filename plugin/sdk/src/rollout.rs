//! The order and the caution with which the containers of a [`Survey`] get their image: canaries, waves, and when to stop.
//!
//! A [`Rollout`] is a plan of four numbers and knows no container; [`Survey::roll_out`] executes it. Read [`Evidence`] first: it
//! alone defines which results count as failures. A policy decides itself what happens *between* refreshes, with the clock and the
//! state of its host.

use std::collections::HashMap;
use std::rc::Rc;

use crate::docker::{Docker, PulledImage};
use crate::facts::{RecreateError, Recreated};
use crate::policy::rule;
use crate::survey::{Due, Survey};
use crate::words;

/// The caution with which containers are recreated.
///
/// ```
/// use refit_policy::*;
/// use refit_policy::fake::{self, FakeDocker, FakeHost};
///
/// struct Careful;
///
/// impl Policy for Careful {
///     type Config = NoConfig;
/// #     fn describe() -> Description { unreachable!() }
///
///     fn targets(_: &NoConfig) -> Vec<Target> {
///         vec![Target::new("app", "acme/app")]
///     }
///
///     // One first, then two at a time, until two of those have failed.
///     fn refresh(config: &NoConfig, request: &Request, context: &mut Context<'_>) -> Result<Report, Failure> {
///         let mut survey = survey::<Self>(config, request, context)?;
///         survey.roll_out(context.docker, &Rollout::in_waves_of(2).with_canaries(1).stop_after(2));
///         Ok(survey.into_report())
///     }
/// }
///
/// let five = || {
///     let docker = FakeDocker::new().image("acme/app", "monday", "tuesday");
///     ["a", "b", "c", "d", "e"].iter().fold(docker, |docker, name| docker.container(name, "acme/app"))
/// };
/// let mut docker = five();
/// fake::refresh::<Careful>(&mut docker, &mut FakeHost::default(), "{}", &fake::request()).unwrap();
/// assert_eq!(docker.waves(), [vec!["a"], vec!["b", "c"], vec!["d", "e"]]);
///
/// // The image is bad: the canary is rolled back, and no other container was touched.
/// let mut docker = five().recreate_fails("a", fake::rolled_back("unhealthy"));
/// let report = fake::refresh::<Careful>(&mut docker, &mut FakeHost::default(), "{}", &fake::request()).unwrap();
/// assert_eq!(docker.waves(), [["a"]]);
/// assert_eq!((report.decisions[1].verdict, &*report.decisions[1].rule), (Verdict::Stale, rule::CANARY_FAILED));
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rollout {
    canaries: usize,
    wave_size: usize,
    failures_max: usize,
}

/// What the result of a recreation says about the image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Evidence {
    /// A container became healthy on the image, as the host has checked. (After `remove`, another program still has to create one.)
    Works,
    /// A replacement was tried and failed: `aborted`, `rolled-back`, `stranded`.
    Fails,
    /// The replacement was not tried, for reasons of the container: `current`, `gone`, `replaced-by-other`, `busy`, `unsupported`,
    /// `denied`, `other`. This is no reason to doubt the image, and none to trust it, even if another program's container runs it
    /// already.
    Nothing,
    /// The replacement was not tried, and no other will be: `cancelled`, `quota-exceeded`. The image is not the cause.
    Over,
}

impl Evidence {
    pub fn of(outcome: &Result<Recreated, RecreateError>) -> Self {
        match outcome {
            Ok(_) => Self::Works,
            Err(
                RecreateError::Aborted(_)
                | RecreateError::RolledBack(_)
                | RecreateError::Stranded(_),
            ) => Self::Fails,
            Err(RecreateError::Cancelled | RecreateError::QuotaExceeded(_)) => Self::Over,
            Err(
                RecreateError::Denied(_)
                | RecreateError::Current
                | RecreateError::Gone
                | RecreateError::ReplacedByOther(_)
                | RecreateError::Busy
                | RecreateError::Unsupported(_)
                | RecreateError::Other(_),
            ) => Self::Nothing,
        }
    }
}

/// A container that was given to the host, with the result.
#[derive(Debug)]
pub struct Outcome {
    pub container: String,
    /// The name of the container's target.
    pub target: String,
    pub image: Rc<PulledImage>,
    pub result: Result<Recreated, RecreateError>,
}

impl Outcome {
    pub fn evidence(&self) -> Evidence {
        Evidence::of(&self.result)
    }
}

impl Rollout {
    /// All due containers in one wave, like the default of [`Policy::refresh`](crate::Policy::refresh).
    pub fn at_once() -> Self {
        Self::in_waves_of(usize::MAX)
    }

    /// At most this many at a time, and no further wave after one with a failure. The minimum is one.
    pub fn in_waves_of(most: usize) -> Self {
        Self {
            canaries: 0,
            wave_size: most.max(1),
            failures_max: 1,
        }
    }

    /// Recreate this many of *each image* first, since a canary proves only the image that it runs. If one fails, the rest of its
    /// image is held back by the rule [`rule::CANARY_FAILED`], and other images continue. If a canary gives no evidence (see
    /// [`Evidence`]), the next one takes its place.
    pub fn with_canaries(self, canaries: usize) -> Self {
        Self { canaries, ..self }
    }

    /// Start no further wave after this many failures, not counting canaries; the rest is held back by the rule [`rule::HALTED`].
    /// The minimum, and the default, is one.
    pub fn stop_after(self, failures: usize) -> Self {
        Self {
            failures_max: failures.max(1),
            ..self
        }
    }

    /// Continue after any failure.
    pub fn never_stop(self) -> Self {
        self.stop_after(usize::MAX)
    }
}

impl Survey {
    /// Recreate the due containers in the order of [`Survey::due`], and return the result of each that was tried.
    ///
    /// Afterwards nothing is due: containers that were not reached are settled by the rule that held them back, as `stale` (or
    /// `current`, if only force made them due).
    pub fn roll_out(&mut self, docker: &mut dyn Docker, rollout: &Rollout) -> Vec<Outcome> {
        let mut done = self.canaries(docker, rollout.canaries);
        let mut failures = 0;
        while !self.due.is_empty() {
            let size = rollout.wave_size.min(self.due.len());
            let next = self.due.drain(..size).collect();
            let wave = self.recreate(docker, next);
            for outcome in &wave {
                match outcome.evidence() {
                    Evidence::Fails => failures += 1,
                    Evidence::Over => self.hold_back_unreached(outcome),
                    Evidence::Works | Evidence::Nothing => {}
                }
            }
            if failures >= rollout.failures_max {
                let of = wave
                    .iter()
                    .rfind(|outcome| outcome.evidence() == Evidence::Fails)
                    .map_or_else(String::new, |outcome| {
                        format!(", the last of them `{}`", outcome.container)
                    });
                self.hold_back(
                    rule::HALTED,
                    &format!(
                        "the refresh was halted after {failures} of those before it failed{of}"
                    ),
                );
            }
            done.extend(wave);
        }
        done
    }

    /// Do only the first part of [`roll_out`](Self::roll_out): this many canaries of each image. The containers of an image with a
    /// failed canary are held back; all others stay due, for a policy that wants to wait before it continues.
    pub fn canaries(&mut self, docker: &mut dyn Docker, most: usize) -> Vec<Outcome> {
        let mut done = Vec::new();
        let mut proven: HashMap<String, usize> = HashMap::new();
        while let canaries = self.next_canaries(most, &proven)
            && !canaries.is_empty()
        {
            let wave = self.recreate(docker, canaries);
            for outcome in &wave {
                let image = outcome.image.id();
                match outcome.evidence() {
                    Evidence::Works => *proven.entry(image.to_owned()).or_default() += 1,
                    Evidence::Fails => self.hold_back_image(image, &outcome.container),
                    Evidence::Nothing => {}
                    Evidence::Over => self.hold_back_unreached(outcome),
                }
            }
            done.extend(wave);
        }
        done
    }

    /// The first container of each image that has fewer than `most` proven ones.
    fn next_canaries(&mut self, most: usize, proven: &HashMap<String, usize>) -> Vec<Due> {
        let mut missing: HashMap<String, usize> = HashMap::new();
        let is_canary = |due: &mut Due| {
            let image = due.image.id();
            let missing = missing
                .entry(image.to_owned())
                .or_insert_with(|| most.saturating_sub(proven.get(image).copied().unwrap_or(0)));
            let is_wanted = *missing > 0;
            *missing = missing.saturating_sub(1);
            is_wanted
        };
        self.due.extract_if(.., is_canary).collect()
    }

    fn hold_back_image(&mut self, image: &str, canary: &str) {
        let reason = format!("`{canary}`, which went first, did not come up on the same image");
        let of_image: Vec<Due> = self
            .due
            .extract_if(.., |due| due.image.id() == image)
            .collect();
        for due in of_image {
            self.settle_stale(due, rule::CANARY_FAILED, &reason);
        }
    }

    fn hold_back_unreached(&mut self, outcome: &Outcome) {
        let why = match &outcome.result {
            Err(error) => words::recreate_error(error),
            Ok(_) => return,
        };
        self.hold_back(rule::NOT_REACHED, &format!("its turn did not come: {why}"));
    }
}
