//! Replacements that have started and have not ended.

/// A replacement that was begun and has not ended, and that no living process on this machine is at work on.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize, utoipa::ToSchema)]
pub struct Unfinished {
    /// The name that it is about.
    pub container: String,
    pub state: UnfinishedState,
    pub detail: String,
}

impl Unfinished {
    /// Whether nobody is at work on it: it fails the refresh that finds it. Of one that another Refit may be at work on that cannot be
    /// said.
    pub fn is_abandoned(&self) -> bool {
        self.state != UnfinishedState::InProgress
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
#[derive(utoipa::ToSchema)]
pub enum UnfinishedState {
    /// It was begun and not ended. Recovery has not tried yet.
    HalfDone,
    /// Another Refit may be at work on it. Recovery waits until any replacement would have ended.
    InProgress,
    /// The right container runs under the name, and another one could not be removed.
    LeftOver,
    /// Recovery could neither finish nor undo it.
    Stranded,
}
