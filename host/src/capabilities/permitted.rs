//! Whether the way to the engine lets through what a replacement needs, asked before anything is stopped.
//!
//! A socket proxy that refuses one call would leave a container down midway. What it says is kept for a while: a refresh of a hundred
//! containers asks once.

use std::time::{Duration, Instant};

use tokio::sync::Mutex;

use super::Strategy;
use crate::engine::Engine;
use crate::engine::permissions::{CallPermissions, EngineCall, probe_calls};

/// A proxy's rules change with its restart.
const FRESH: Duration = Duration::from_secs(60);

/// What `replace` calls from its first change to the end, the way back included.
const REPLACE: [EngineCall; 7] = [
    EngineCall::ListContainers,
    EngineCall::InspectContainer,
    EngineCall::CreateContainer,
    EngineCall::StopContainer,
    EngineCall::StartContainer,
    EngineCall::RenameContainer,
    EngineCall::RemoveContainer,
];
/// What `overlap` calls besides.
const OVERLAP: [EngineCall; 2] = [EngineCall::ConnectNetwork, EngineCall::DisconnectNetwork];
const REMOVE: [EngineCall; 1] = [EngineCall::RemoveContainer];

/// See the module.
#[derive(Default)]
pub struct Permitted(Mutex<Option<(Instant, CallPermissions)>>);

impl Permitted {
    /// Why a container must not be recreated, as a sentence fragment; `None` where no call is known to be refused.
    pub(super) async fn objection(
        &self,
        engine: &dyn Engine,
        strategy: Strategy,
    ) -> Option<String> {
        let mut known = self.0.lock().await;
        let fresh = known.take().filter(|(asked, _)| asked.elapsed() < FRESH);
        let (_, permissions) = match fresh {
            Some(fresh) => known.insert(fresh),
            None => {
                let calls = [REPLACE.as_slice(), OVERLAP.as_slice()].concat();
                known.insert((Instant::now(), probe_calls(engine, &calls).await))
            }
        };
        let needed: Vec<EngineCall> = match strategy {
            Strategy::Replace => REPLACE.to_vec(),
            Strategy::Overlap => [REPLACE.as_slice(), OVERLAP.as_slice()].concat(),
            Strategy::Remove => REMOVE.to_vec(),
        };
        let mut refused = permissions.refused();
        let (call, answer) = refused.find(|(call, _)| needed.contains(call))?;
        Some(format!(
            "the way to the engine refuses `{call}` ({answer}), without which it could not be put back; `refit doctor` shows what a proxy must let through"
        ))
    }
}
