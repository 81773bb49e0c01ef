//! `[approval]`: the refreshes that wait for a person's approval, and for how long.

use std::time::Duration;

use refit_model::request::Trigger;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::ConfigError;

/// A month. A refresh that waited longer should be planned again.
const SECONDS_MAX: u64 = 30 * 24 * 60 * 60;

/// Refreshes that wait for a person.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ApprovalConfig {
    /// What proposes refreshes that wait: `"schedule"`, `"webhook"`. Of what is not named here, each begins at once.
    pub required_for: Vec<Proposer>,
    /// How long one waits, 2592000 (a month) at most: somebody looks once a day.
    #[schemars(range(min = 1, max = SECONDS_MAX))]
    pub expires_seconds: u64,
}

/// What proposes a refresh without a person. A person who asks for one has approved it by asking.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Proposer {
    Schedule,
    Webhook,
}

impl From<Proposer> for Trigger {
    fn from(proposer: Proposer) -> Self {
        match proposer {
            Proposer::Schedule => Self::Schedule,
            Proposer::Webhook => Self::Webhook,
        }
    }
}

impl Default for ApprovalConfig {
    fn default() -> Self {
        Self {
            required_for: vec![],
            // Enough for a person who checks once a day.
            expires_seconds: 24 * 60 * 60,
        }
    }
}

impl ApprovalConfig {
    pub(super) fn check(&self) -> Result<(), ConfigError> {
        let seconds = self.expires_seconds;
        if (1..=SECONDS_MAX).contains(&seconds) {
            return Ok(());
        }
        Err(ConfigError::Value {
            key: "approval.expires_seconds",
            problem: format!("{seconds}, and may be 1 to {SECONDS_MAX}"),
        })
    }

    pub fn required_for(&self) -> Vec<Trigger> {
        self.required_for
            .iter()
            .copied()
            .map(Trigger::from)
            .collect()
    }

    pub fn life(&self) -> Duration {
        Duration::from_secs(self.expires_seconds)
    }
}
