//! `[metrics]`: who may look at them.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct MetricsConfig {
    /// A file with a token that `/metrics` takes beside the admin's, so that whoever collects them need not hold that.
    pub token_file: Option<PathBuf>,
}
