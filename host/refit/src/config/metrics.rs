//! `[metrics]`: access to the metrics.

use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Who may look at the metrics.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct MetricsConfig {
    /// File with a token that `/metrics` takes beside the admin's, so that whoever collects the numbers need not hold that.
    pub token_file: Option<PathBuf>,
}
