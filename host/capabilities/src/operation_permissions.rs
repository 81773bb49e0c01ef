//! Checks, before anything is stopped, whether the connection to the engine permits every call that a replacement needs.
//!
//! A socket proxy that refuses one call would leave a container down midway. The result is cached for a while, so a refresh of a
//! hundred containers probes once.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::time::{Duration, Instant};

use refit_engine::Engine;
use refit_engine::operations::Operation;
use refit_engine::permissions::{CallPermissions, Permission, probe_calls};
use refit_model::recreation::Strategy;
use tokio::sync::Mutex;

/// How long a result is valid. A proxy's rules change when it restarts.
const FRESH: Duration = Duration::from_secs(60);

/// A cache of the calls that the engine or a proxy in front of it permits, by operation.
#[derive(Default)]
pub struct OperationPermissions(Mutex<HashMap<Operation, (Instant, CallPermissions)>>);

impl OperationPermissions {
    /// The reason why a container must not be recreated, as a sentence fragment, or `None` if no call is known to be refused.
    pub(super) async fn objection(
        &self,
        engine: &dyn Engine,
        strategy: Strategy,
    ) -> Option<String> {
        let operation = match strategy {
            Strategy::Replace => Operation::Replace,
            Strategy::Overlap => Operation::Overlap,
            Strategy::Remove => Operation::Remove,
        };
        let mut known = self.0.lock().await;
        known.retain(|_, (asked, _)| asked.elapsed() < FRESH);
        let (_, permissions) = match known.entry(operation) {
            Entry::Occupied(found) => found.into_mut(),
            Entry::Vacant(place) => {
                let found = probe_calls(engine, &operation.changing_calls()).await;
                place.insert((Instant::now(), found))
            }
        };
        let call = operation.blocked_by(permissions).into_iter().next()?;
        let answer = match permissions.get(call) {
            Some(Permission::Refused(answer)) => answer.as_str(),
            _ => "",
        };
        Some(format!(
            "the way to the engine refuses `{call}` ({answer}), without which it could not be put back; `refit doctor` shows what a proxy must let through"
        ))
    }
}
