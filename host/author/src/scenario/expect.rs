//! The expected result of a step, and its comparison with the actual one.

use std::collections::BTreeMap;

use refit_capabilities::journal::Record;
use refit_capabilities::snapshot::Snapshot;
use refit_model::decision::{Decision, Verdict};
use refit_model::recreation::RecreationOutcome;
use refit_refresh::DryRunResult;
use refit_sandbox::{Decisions, Failure, PolicyError, PolicyState};
use serde::{Deserialize, Serialize};

use super::document::{image_id, normalize_reference};

/// The expectations of a step. `None` means that the scenario does not check this.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct Expect {
    /// The complete list of decisions.
    decisions: Option<BTreeMap<String, ExpectedDecision>>,
    pulls: Option<Vec<String>>,
    waves: Option<Vec<Vec<String>>>,
    #[serde(default)]
    outcomes: BTreeMap<String, RecreationOutcome>,
    /// The image of each container after the step.
    #[serde(default)]
    runs: BTreeMap<String, String>,
    failure: Option<FailureKind>,
    #[serde(default)]
    state: BTreeMap<String, String>,
    #[serde(default)]
    log: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(untagged)]
enum ExpectedDecision {
    Verdict(Verdict),
    Full(FullDecision),
}

#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
struct FullDecision {
    verdict: Verdict,
    rule: Option<String>,
    /// A part of the reason.
    reason: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum FailureKind {
    UnknownTargets,
    InvalidConfig,
    Unlisted,
    Other,
}

impl FailureKind {
    fn from_failure(failure: &Failure) -> Self {
        match failure {
            Failure::UnknownTargets { .. } => Self::UnknownTargets,
            Failure::InvalidConfig(_) => Self::InvalidConfig,
            Failure::Unlisted { .. } => Self::Unlisted,
            Failure::Other(_) => Self::Other,
        }
    }
}

/// A difference between the expected and the actual result.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Mismatch {
    /// The subject, for example ``decision about `ws-a` ``.
    pub what: String,
    pub expected: String,
    pub found: String,
}

impl Expect {
    pub(super) fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    pub(super) fn is_invalid_config(&self) -> bool {
        self.failure == Some(FailureKind::InvalidConfig)
    }

    pub(super) fn compare(
        &self,
        answer: &DryRunResult,
        state: &PolicyState,
        engine: &Snapshot,
    ) -> Vec<Mismatch> {
        let mut found = Found::default();
        let decisions = match &answer.answer {
            Ok(Ok(decisions)) => Some(decisions),
            Ok(Err(_)) | Err(_) => None,
        };
        self.compare_ending(&answer.answer, &mut found);
        if let Some(decisions) = decisions {
            self.compare_decisions(decisions, &mut found);
            let waves = |waves: &[Vec<String>]| inline(waves);
            if let Some(expected) = &self.waves {
                found.check("waves", waves(expected), waves(&decisions.waves));
            }
            for part in &self.log {
                if !decisions.log.iter().any(|line| line.text.contains(part)) {
                    let lines: Vec<&str> = decisions
                        .log
                        .iter()
                        .map(|line| line.text.as_str())
                        .collect();
                    found.add("log", format!("a line with `{part}`"), inline(lines));
                }
            }
        }
        if let Some(expected) = &self.pulls {
            let expected: Vec<String> = expected.iter().map(|it| normalize_reference(it)).collect();
            found.check("pulls", inline(expected), inline(pulls(&answer.record)));
        }
        for (name, expected) in &self.outcomes {
            let outcome = outcome(&answer.record, name);
            let actual = outcome.map_or("not given to `recreate`".to_owned(), word);
            found.check(&format!("outcome of `{name}`"), word(expected), actual);
        }
        for (name, expected) in &self.runs {
            let runs = engine.containers.iter().find(|it| it.name == *name);
            let what = format!("image of `{name}`");
            match runs {
                Some(facts) if facts.image_id == image_id(expected) => {}
                Some(facts) => {
                    found.add(&what, expected.clone(), find_word(&facts.image_id, engine))
                }
                None => found.add(&what, expected.clone(), "there is no such container".into()),
            }
        }
        for (key, expected) in &self.state {
            let kept = state.get(key);
            let actual = kept.map_or("nothing is kept".to_owned(), |value| format!("{value:?}"));
            found.check(&format!("state `{key}`"), format!("{expected:?}"), actual);
        }
        found.0
    }

    fn compare_ending(
        &self,
        said: &Result<Result<Decisions, Failure>, PolicyError>,
        found: &mut Found,
    ) {
        let expected = self.failure.map_or("a report".to_owned(), |kind| {
            format!("the failure `{}`", word(kind))
        });
        let what = "the policy's answer";
        match said {
            Ok(Ok(_)) if self.failure.is_none() => {}
            Ok(Ok(_)) => found.add(what, expected, "a report".into()),
            Ok(Err(failure)) if self.failure == Some(FailureKind::from_failure(failure)) => {}
            Ok(Err(failure)) => {
                let kind = word(FailureKind::from_failure(failure));
                found.add(what, expected, format!("the failure `{kind}`: {failure}"));
            }
            Err(error) => found.add(what, expected, format!("none: {error}")),
        }
    }

    fn compare_decisions(&self, decisions: &Decisions, found: &mut Found) {
        let Some(expected) = &self.decisions else {
            return;
        };
        for (name, expected) in expected {
            let decision = decisions.by_container.get(name);
            if !expected.matches(decision) {
                let actual = decision.map_or("it says nothing of it".to_owned(), describe_decision);
                found.add(
                    &format!("decision about `{name}`"),
                    expected.describe(),
                    actual,
                );
            }
        }
        for (name, decision) in &decisions.by_container {
            if !expected.contains_key(name) && decision.verdict != Verdict::Leave {
                let what = format!("decision about `{name}`");
                found.add(&what, "none".into(), describe_decision(decision));
            }
        }
    }
}

impl ExpectedDecision {
    fn matches(&self, decision: Option<&Decision>) -> bool {
        // Leaving a container alone is the same as not reporting it.
        let Some(decision) = decision else {
            return *self == Self::Verdict(Verdict::Leave);
        };
        match self {
            Self::Verdict(verdict) => decision.verdict == *verdict,
            Self::Full(full) => {
                decision.verdict == full.verdict
                    && full.rule.as_ref().is_none_or(|rule| decision.rule == *rule)
                    && full
                        .reason
                        .as_ref()
                        .is_none_or(|part| decision.reason.contains(part))
            }
        }
    }

    fn describe(&self) -> String {
        match self {
            Self::Verdict(verdict) => word(verdict),
            Self::Full(full) => {
                let rule = full.rule.as_deref().unwrap_or("any rule");
                let reason = full.reason.as_deref().unwrap_or("…");
                format!("{}  {rule}: {reason}", word(full.verdict))
            }
        }
    }
}

fn describe_decision(decision: &Decision) -> String {
    let Decision {
        verdict,
        rule,
        reason,
    } = decision;
    format!("{}  {rule}: {reason}", word(verdict))
}

#[derive(Default)]
struct Found(Vec<Mismatch>);

impl Found {
    fn add(&mut self, what: &str, expected: String, found: String) {
        self.0.push(Mismatch {
            what: what.to_owned(),
            expected,
            found,
        });
    }

    fn check(&mut self, what: &str, expected: String, found: String) {
        if expected != found {
            self.add(what, expected, found);
        }
    }
}

fn pulls(record: &Record) -> Vec<String> {
    let images = record.images.iter();
    images.map(|record| record.image.to_string()).collect()
}

fn outcome(record: &Record, name: &str) -> Option<RecreationOutcome> {
    let mut of_it = record.recreations.iter().filter(|it| it.container == name);
    of_it.next_back().map(|it| it.outcome)
}

/// The scenario's name for an image id, since the id no longer contains the word.
fn find_word(id: &refit_model::image::ImageId, engine: &Snapshot) -> String {
    let is_it = |facts: &refit_capabilities::snapshot::ImageFacts| matches!(facts, refit_capabilities::snapshot::ImageFacts::Pulled { id: it, .. } if it == id);
    match engine.images.iter().find(|(_, facts)| is_it(facts)) {
        Some((reference, _)) => format!("what `{reference}` stands for"),
        None => id.as_str().to_owned(),
    }
}

/// Format an enumeration value as in the file.
fn word(value: impl Serialize) -> String {
    match serde_json::to_value(value) {
        Ok(serde_json::Value::String(word)) => word,
        other => format!("{other:?}"),
    }
}

fn inline(value: impl Serialize) -> String {
    serde_json::to_string(&value).unwrap_or_default()
}

/// Format the result of a step as an expectation, to paste into the scenario.
pub(super) fn format_expectation(answer: &DryRunResult) -> String {
    let mut text = String::new();
    let decisions = match &answer.answer {
        Ok(Ok(decisions)) => decisions,
        Ok(Err(failure)) => {
            return format!("failure = {:?}\n", word(FailureKind::from_failure(failure)));
        }
        Err(_) => return text,
    };
    text += &format!("pulls = {}\n", inline(pulls(&answer.record)));
    text += &format!("waves = {}\n", inline(&decisions.waves));
    text += "[expect.decisions]\n";
    for (name, decision) in &decisions.by_container {
        text += &format!(
            "{} = {{ verdict = \"{}\", rule = {:?} }}\n",
            key(name),
            word(decision.verdict),
            decision.rule
        );
    }
    text
}

/// A TOML key, unquoted if possible.
fn key(name: &str) -> String {
    let is_bare = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
    if !name.is_empty() && name.chars().all(is_bare) {
        name.to_owned()
    } else {
        format!("{name:?}")
    }
}
