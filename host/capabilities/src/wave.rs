//! Containers of one wave that depend on each other: they get their new images in one replacement of the group, and not one
//! after the other in competition for each other.
//!
//! The calls of a wave come one by one, in any order and within a limit. The first of a group replaces all of it; the others wait for
//! that and take their own answers.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use refit_engine::EngineError;
use refit_model::container::ContainerId;
use refit_model::recreation::{Step, Strategy};
use refit_recreate::dependents::{Dependencies, Node, find_dependents};
use refit_recreate::replace::Target;
use refit_recreate::{RecreateError, StepError};
use tokio::sync::OnceCell;

use super::live::EngineContext;
use super::{CallError, Recreated, Recreation};

type Answers = HashMap<String, Result<Recreated, CallError<RecreateError>>>;

/// The groups of the waves that are under way.
#[derive(Default)]
pub(super) struct WaveGroups(Mutex<HashMap<ContainerId, Arc<WaveGroup>>>);

/// Containers that are replaced together.
pub(super) struct WaveGroup {
    wanted: Vec<Recreation>,
    answers: OnceCell<Mutex<Answers>>,
}

impl WaveGroup {
    /// The answers, which the first caller works for.
    pub(super) async fn run<F: Future<Output = Answers>>(
        &self,
        recreate: impl FnOnce(Vec<Recreation>) -> F,
    ) -> &Mutex<Answers> {
        let work = async || Mutex::new(recreate(self.wanted.clone()).await);
        self.answers.get_or_init(work).await
    }
}

impl WaveGroups {
    /// These are recreated next: which of them depend on each other?
    pub(super) async fn expect(
        &self,
        workshop: &EngineContext,
        wave: &[Recreation],
    ) -> Result<(), EngineError> {
        let replaced: Vec<&Recreation> = wave
            .iter()
            .filter(|wanted| wanted.strategy == Strategy::Replace)
            .collect();
        if replaced.len() < 2 {
            return Ok(());
        }
        let listed = workshop.engine.containers().await?;
        let nodes = workshop.ties.of(workshop.engine.as_ref(), &listed).await?;
        let mut groups: Vec<Vec<&Recreation>> = Vec::new();
        for wanted in replaced {
            let id = &wanted.container.id;
            let tied = |other: &&Recreation| are_tied(&nodes, id, &other.container.id);
            let (with_it, others): (Vec<_>, Vec<_>) =
                groups.into_iter().partition(|group| group.iter().any(tied));
            groups = others;
            groups.push(with_it.into_iter().flatten().chain([wanted]).collect());
        }
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for wanted in wave {
            known.remove(&wanted.container.id);
        }
        for group in groups.into_iter().filter(|group| group.len() > 1) {
            let group = Arc::new(WaveGroup {
                wanted: group.into_iter().cloned().collect(),
                answers: OnceCell::new(),
            });
            for wanted in &group.wanted {
                known.insert(wanted.container.id.clone(), group.clone());
            }
        }
        Ok(())
    }

    pub(super) fn group_of(&self, container: &ContainerId) -> Option<Arc<WaveGroup>> {
        let groups = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        groups.get(container).cloned()
    }
}

/// Whether one depends on the other, directly or through any container.
fn are_tied(nodes: &[Node], one: &ContainerId, other: &ContainerId) -> bool {
    let depends = |first: &ContainerId, second: &ContainerId| {
        let first = nodes.iter().find(|node| node.id == *first);
        first.is_some_and(|first| {
            let found = find_dependents(first, nodes.to_vec());
            found.iter().any(|(node, _)| node.id == *second)
        })
    };
    one == other || depends(one, other) || depends(other, one)
}

/// Each behind all that it depends on.
pub(crate) fn in_order(targets: Vec<Target>) -> Vec<Target> {
    refit_recreate::dependents::sort_providers_first(targets, |target, others| {
        let ties = Dependencies::from_container(&target.container);
        others
            .iter()
            .map(|other| &other.container)
            .filter(|other| other.id != target.container.id)
            .any(|other| ties.dependency_on(&other.id, &other.name).is_some())
    })
}

/// What is to be said of another container of a group whose replacement failed with `error`; `None` for the one that it is about.
pub(super) fn error_for(error: &RecreateError, name: &str) -> Option<RecreateError> {
    if error.name() == name {
        return None;
    }
    let name = name.to_owned();
    let with_it = || StepError::Unfit(format!("it is replaced together with another one: {error}"));
    Some(match error {
        RecreateError::RolledBack { step, .. } => RecreateError::RolledBack {
            name,
            step: *step,
            source: with_it(),
            notes: vec![],
            left_over: vec![],
        },
        RecreateError::Stranded {
            step,
            old,
            new,
            kept_as,
            ..
        } => RecreateError::Stranded {
            name,
            step: *step,
            source: with_it(),
            old: old.clone(),
            new: new.clone(),
            kept_as: kept_as.clone(),
            undoing: Box::new(EngineError::Refused {
                action: "put the group back".into(),
                status: 0,
                source: error.to_string().into(),
            }),
        },
        RecreateError::Busy { .. } => RecreateError::Busy { name },
        RecreateError::Withdrawn { .. } => RecreateError::Withdrawn { name },
        RecreateError::Current { .. }
        | RecreateError::Gone { .. }
        | RecreateError::ReplacedByOther { .. }
        | RecreateError::Unsupported { .. }
        | RecreateError::StillStopping { .. } => RecreateError::Aborted {
            name,
            step: Step::Verify,
            source: with_it(),
        },
        RecreateError::Aborted { step, .. } => RecreateError::Aborted {
            name,
            step: *step,
            source: with_it(),
        },
    })
}
