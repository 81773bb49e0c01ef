//! An engine in memory: a few containers, some of them outdated. It records the changes to them.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use refit_capabilities::{CallError, Capabilities, PulledImage, Recreated, Recreation, Transfer};
use refit_engine::{EngineError, PullError};
use refit_model::container::{Container, ContainerId, ContainerSummary, Health, Object, State};
use refit_model::image::{ImageId, ImageRef};
use refit_model::recreation::Strategy;
use refit_recreate::RecreateError;
use serde_json::json;

/// The image of all workspaces here.
const IMAGE: &str = "ghcr.io/molecule-ai/workspace-template-hermes:latest";

/// The number of workspaces `ws-00`, `ws-01`, …: enough for a hostile guest to exceed the limit on handles within its limit on
/// lists.
pub(super) const WORKSPACES: usize = 24;

/// The number of workspaces, from the first, that run an older image.
pub(super) const BEHIND: usize = 3;

/// A container that is not a workspace.
const STRANGER: &str = "database";

/// A value in the environment of every container, which no guest may read.
const SECRET: &str = "canary-5f2c9e";

pub(super) struct Machine {
    /// The image of each container, by name.
    runs: Mutex<BTreeMap<String, ImageId>>,
    recreated: Mutex<Vec<String>>,
}

impl Machine {
    pub(super) fn new() -> Self {
        let name = |n: usize| format!("ws-{n:02}");
        let mut runs: BTreeMap<String, ImageId> = (0..WORKSPACES)
            .map(|n| (name(n), if n < BEHIND { older() } else { newer() }))
            .collect();
        runs.insert(STRANGER.into(), older());
        Self {
            runs: Mutex::new(runs),
            recreated: Mutex::default(),
        }
    }

    /// The names of the recreated containers, in order.
    pub(super) fn recreated(&self) -> Vec<String> {
        self.recreated
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    fn runs(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, ImageId>> {
        self.runs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn older() -> ImageId {
    ImageId::new(format!("sha256:{}", "1".repeat(64)))
}

fn newer() -> ImageId {
    ImageId::new(format!("sha256:{}", "2".repeat(64)))
}

fn object(value: serde_json::Value) -> Object {
    match value {
        serde_json::Value::Object(object) => object,
        _ => Object::new(),
    }
}

#[async_trait]
impl Capabilities for Machine {
    async fn containers(&self) -> Result<Vec<ContainerSummary>, CallError<EngineError>> {
        let names: Vec<String> = self.runs().keys().cloned().collect();
        let listed = names.into_iter().map(|name| ContainerSummary {
            id: ContainerId::new(name.as_str()),
            name,
            labels: BTreeMap::new(),
            state: Some(State::Running),
            network_mode: "bridge".into(),
        });
        Ok(listed.collect())
    }

    async fn inspect(
        &self,
        container: &ContainerSummary,
    ) -> Result<Container, CallError<EngineError>> {
        let image_id = self.runs().get(&container.name).cloned();
        Ok(Container {
            id: container.id.clone(),
            name: container.name.clone(),
            image_id: image_id.unwrap_or_else(older),
            manifest_digest: None,
            platform: None,
            state: State::Running,
            health: Health::None,
            last_health_check: None,
            exit_code: None,
            error: None,
            created: jiff::Timestamp::UNIX_EPOCH,
            started: Some(jiff::Timestamp::UNIX_EPOCH),
            finished: None,
            config: object(json!({ "Image": IMAGE, "Env": [format!("TOKEN={SECRET}")] })),
            host_config: object(json!({ "NetworkMode": "bridge" })),
            endpoints: BTreeMap::new(),
            published_ports: vec![],
            mounts: vec![],
            upper_dir: None,
        })
    }

    async fn pull(&self, image: &ImageRef) -> Result<PulledImage, CallError<PullError>> {
        Ok(PulledImage {
            reference: image.clone(),
            id: newer(),
            digest: None,
            local: None,
            replaced: None,
            transfer: Transfer::UpToDate,
        })
    }

    async fn recreate(
        &self,
        recreation: Recreation,
    ) -> Result<Recreated, CallError<RecreateError>> {
        let name = recreation.container.name;
        // Yield like a real recreation, which takes time: stopping the policy must not stop it.
        tokio::task::yield_now().await;
        let from = self
            .runs()
            .insert(name.clone(), recreation.image.id.clone());
        if from.as_ref() == Some(&recreation.image.id) {
            return Err(RecreateError::Current { name }.into());
        }
        self.recreated
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(name.clone());
        let stays = recreation.strategy != Strategy::Remove;
        Ok(Recreated {
            id: stays.then(|| ContainerId::new(name)),
            image_id: recreation.image.id,
            from_image_id: from.unwrap_or_else(older),
            gap: stays.then_some(Duration::ZERO),
            followers: vec![],
            left_over: None,
        })
    }
}
