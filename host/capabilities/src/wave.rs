//! Groups the containers of one wave that depend on each other: Refit gives a group its new images in one replacement, since
//! separate replacements would compete for the containers.
//!
//! The recreate calls of a wave arrive one by one, in any order and within a limit. The first call of a group replaces the whole
//! group; the others wait for it and take their own results.

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

/// The groups of the waves that are in progress.
#[derive(Default)]
pub(super) struct WaveGroups(Mutex<HashMap<ContainerId, Arc<WaveGroup>>>);

/// Containers that are replaced together.
pub(super) struct WaveGroup {
    recreations: Vec<Recreation>,
    answers: OnceCell<Mutex<Answers>>,
}

impl WaveGroup {
    /// The results of the group. The first caller does the work.
    pub(super) async fn run<F: Future<Output = Answers>>(
        &self,
        recreate: impl FnOnce(Vec<Recreation>) -> F,
    ) -> &Mutex<Answers> {
        let work = async || Mutex::new(recreate(self.recreations.clone()).await);
        self.answers.get_or_init(work).await
    }
}

impl WaveGroups {
    /// Find out which of the containers that are recreated next depend on each other.
    pub(super) async fn expect(
        &self,
        context: &EngineContext,
        wave: &[Recreation],
    ) -> Result<(), EngineError> {
        let replaced: Vec<&Recreation> = wave
            .iter()
            .filter(|recreation| recreation.strategy == Strategy::Replace)
            .collect();
        if replaced.len() < 2 {
            return Ok(());
        }
        let listed = context.engine.containers().await?;
        let nodes = context.ties.nodes(context.engine.as_ref(), &listed).await?;
        let mut groups: Vec<Vec<&Recreation>> = Vec::new();
        for recreation in replaced {
            let id = &recreation.container.id;
            let is_connected = |other: &&Recreation| are_connected(&nodes, id, &other.container.id);
            let (connected, others): (Vec<_>, Vec<_>) = groups
                .into_iter()
                .partition(|group| group.iter().any(is_connected));
            groups = others;
            groups.push(
                connected
                    .into_iter()
                    .flatten()
                    .chain([recreation])
                    .collect(),
            );
        }
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for recreation in wave {
            known.remove(&recreation.container.id);
        }
        for group in groups.into_iter().filter(|group| group.len() > 1) {
            let group = Arc::new(WaveGroup {
                recreations: group.into_iter().cloned().collect(),
                answers: OnceCell::new(),
            });
            for recreation in &group.recreations {
                known.insert(recreation.container.id.clone(), group.clone());
            }
        }
        Ok(())
    }

    pub(super) fn find_group(&self, container: &ContainerId) -> Option<Arc<WaveGroup>> {
        let groups = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        groups.get(container).cloned()
    }
}

/// Whether one container depends on the other, directly or through others.
fn are_connected(nodes: &[Node], one: &ContainerId, other: &ContainerId) -> bool {
    let depends = |first: &ContainerId, second: &ContainerId| {
        let first = nodes.iter().find(|node| node.id == *first);
        first.is_some_and(|first| {
            let found = find_dependents(first, nodes.to_vec());
            found.iter().any(|(node, _)| node.id == *second)
        })
    };
    one == other || depends(one, other) || depends(other, one)
}

/// Sort the targets so that each comes after all that it depends on.
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

/// The error of another container in a group whose replacement failed with `error`, or `None` for the container that the error
/// names.
pub(super) fn error_for_member(error: &RecreateError, name: &str) -> Option<RecreateError> {
    if error.name() == name {
        return None;
    }
    let name = name.to_owned();
    let group_failed =
        || StepError::Unfit(format!("it is replaced together with another one: {error}"));
    Some(match error {
        RecreateError::RolledBack { step, .. } => RecreateError::RolledBack {
            name,
            step: *step,
            source: group_failed(),
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
            source: group_failed(),
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
            source: group_failed(),
        },
        RecreateError::Aborted { step, .. } => RecreateError::Aborted {
            name,
            step: *step,
            source: group_failed(),
        },
    })
}
