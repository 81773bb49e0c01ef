//! Shadow evaluation: a candidate decides on the same facts as the active policy, and changes nothing.
//!
//! After each refresh or plan of the generation that it is compared with, the candidate gets the same request on a replay of
//! the recorded facts. If both have the same result, they agree. A candidate may be configured to take over after it has agreed
//! a number of times in a row. If it traps or decides differently, the count starts again at zero.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};

use refit_model::decision::Verdict;
use refit_model::diagnostic::Diagnostic;
use refit_model::image::ImageId;
use refit_model::recreation::Strategy;
use serde::Serialize;

use super::PolicyRevision;

/// The number of comparisons with differences that are kept, the last ones.
const COMPARISONS_MAX: usize = 20;
/// The number of differences of a comparison that are kept. On a thousand containers, one wrong rule makes a thousand equal
/// ones.
const DIFFERENCES_MAX: usize = 100;

/// What one policy said of a container, and had done to it.
#[derive(Clone, Debug, PartialEq, Serialize, utoipa::ToSchema)]
pub struct ShadowDecision {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub verdict: Option<Verdict>,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub rule: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub reason: String,
    /// What it gave the container to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub recreation: Option<Recreation>,
}

#[derive(Clone, Debug, PartialEq, Serialize, utoipa::ToSchema)]
#[schema(as = ShadowRecreation)]
pub struct Recreation {
    pub strategy: Strategy,
    pub to_image_id: ImageId,
}

/// A container of which two policies think differently. `None`: that one said nothing of it.
#[derive(Clone, Debug, PartialEq, Serialize, utoipa::ToSchema)]
#[schema(as = ShadowDifference)]
pub struct Difference {
    pub container: String,
    pub old: Option<ShadowDecision>,
    pub new: Option<ShadowDecision>,
}

/// All decisions and actions of a policy in one refresh, by container.
pub type DecisionSet = BTreeMap<String, ShadowDecision>;

/// Returns the containers with a different effect. Different reason texts do not count; leaving a container alone equals not
/// mentioning it.
pub fn differences(old: &DecisionSet, new: &DecisionSet) -> Vec<Difference> {
    let mut containers: Vec<&String> = old.keys().chain(new.keys()).collect();
    containers.sort();
    containers.dedup();
    let effect = |decision: Option<&ShadowDecision>| {
        let verdict = decision
            .and_then(|decision| decision.verdict)
            .filter(|verdict| *verdict != Verdict::Leave);
        (
            verdict,
            decision.and_then(|decision| decision.recreation.clone()),
        )
    };
    containers
        .into_iter()
        .filter(|container| effect(old.get(*container)) != effect(new.get(*container)))
        .map(|container| Difference {
            container: container.clone(),
            old: old.get(container).cloned(),
            new: new.get(container).cloned(),
        })
        .collect()
}

/// One question that both were asked, where they did not come to the same.
#[derive(Clone, Debug, Serialize, utoipa::ToSchema)]
pub struct Comparison {
    pub at: jiff::Timestamp,
    pub differences: Vec<Difference>,
    /// Beyond those that are listed.
    #[serde(skip_serializing_if = "is_zero")]
    pub more: usize,
    /// Why the candidate did not answer at all.
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = refit_model::diagnostic::Failure)]
    pub failure: Option<Diagnostic>,
}

fn is_zero(number: &usize) -> bool {
    *number == 0
}

/// What came of the comparisons so far.
#[derive(Clone, Debug, Default, Serialize, utoipa::ToSchema)]
#[schema(as = ShadowTally)]
pub struct Tally {
    pub compared: u64,
    pub agreed: u64,
    pub agreed_in_a_row: u32,
    /// Questions that came while the candidate was still at the one before.
    pub skipped: u64,
    /// The last that differed, the oldest first.
    #[schema(value_type = Vec<Comparison>)]
    pub differing: VecDeque<Comparison>,
}

/// A candidate in a shadow evaluation.
pub struct Shadow {
    pub(super) content: PolicyRevision,
    pub began: jiff::Timestamp,
    pub by: String,
    /// The generation that it is compared with. A different one would invalidate the comparison.
    pub beside: u64,
    /// How often it must agree in a row to take over; `None`: never automatically.
    pub after: Option<u32>,
    tally: Mutex<Tally>,
    /// Held while the candidate decides: runs of a slow candidate must not pile up.
    pub(super) deciding: tokio::sync::Semaphore,
}

impl Shadow {
    pub(super) fn new(
        content: PolicyRevision,
        by: String,
        beside: u64,
        after: Option<u32>,
    ) -> Self {
        Self {
            content,
            began: jiff::Timestamp::now(),
            by,
            beside,
            after,
            tally: Mutex::default(),
            deciding: tokio::sync::Semaphore::new(1),
        }
    }

    pub fn content(&self) -> &PolicyRevision {
        &self.content
    }

    pub fn tally(&self) -> Tally {
        self.lock().clone()
    }

    /// Returns a permit for a run, unless one is in progress.
    pub fn try_begin(&self) -> Option<tokio::sync::SemaphorePermit<'_>> {
        let permit = self.deciding.try_acquire().ok();
        if permit.is_none() {
            self.lock().skipped += 1;
        }
        permit
    }

    /// Records the result of a comparison. Returns whether the candidate has agreed often enough to take over.
    pub fn record(&self, outcome: Result<Vec<Difference>, Diagnostic>) -> bool {
        let mut tally = self.lock();
        tally.compared += 1;
        let (mut differences, failure) = match outcome {
            Ok(differences) => (differences, None),
            Err(failure) => (vec![], Some(failure)),
        };
        if differences.is_empty() && failure.is_none() {
            tally.agreed += 1;
            tally.agreed_in_a_row = tally.agreed_in_a_row.saturating_add(1);
            return self.after == Some(tally.agreed_in_a_row);
        }
        tally.agreed_in_a_row = 0;
        let more = differences.len().saturating_sub(DIFFERENCES_MAX);
        differences.truncate(DIFFERENCES_MAX);
        if tally.differing.len() == COMPARISONS_MAX {
            tally.differing.pop_front();
        }
        tally.differing.push_back(Comparison {
            at: jiff::Timestamp::now(),
            differences,
            more,
            failure,
        });
        false
    }

    fn lock(&self) -> MutexGuard<'_, Tally> {
        self.tally.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decision(verdict: Verdict, reason: &str) -> ShadowDecision {
        ShadowDecision {
            verdict: Some(verdict),
            rule: "r".into(),
            reason: reason.into(),
            recreation: None,
        }
    }

    fn decision_set<const N: usize>(all: [(&str, ShadowDecision); N]) -> DecisionSet {
        all.into_iter()
            .map(|(container, decision)| (container.to_owned(), decision))
            .collect()
    }

    #[test]
    fn different_reason_text_is_no_difference() {
        let old = decision_set([
            ("a", decision(Verdict::Current, "up to date")),
            ("b", decision(Verdict::Leave, "not mine")),
        ]);
        let new = decision_set([("a", decision(Verdict::Current, "it is"))]);
        assert_eq!(differences(&old, &new), []);
    }

    #[test]
    fn different_verdict_image_or_strategy_is_a_difference() {
        let recreated = |strategy, image: &str| ShadowDecision {
            recreation: Some(Recreation {
                strategy,
                to_image_id: ImageId::new(image),
            }),
            ..decision(Verdict::Recreate, "")
        };
        let old = decision_set([
            ("a", decision(Verdict::Current, "")),
            ("b", recreated(Strategy::Replace, "x")),
            ("c", recreated(Strategy::Replace, "x")),
            ("d", recreated(Strategy::Replace, "x")),
            ("e", decision(Verdict::Stale, "")),
        ]);
        let new = decision_set([
            ("a", decision(Verdict::Stale, "")),
            ("b", recreated(Strategy::Remove, "x")),
            ("c", recreated(Strategy::Replace, "y")),
            ("d", recreated(Strategy::Replace, "x")),
        ]);
        let differences = differences(&old, &new);
        let names: Vec<&str> = differences
            .iter()
            .map(|difference| difference.container.as_str())
            .collect();
        assert_eq!(names, ["a", "b", "c", "e"]);
        assert_eq!(differences[3].new, None);
    }
}
