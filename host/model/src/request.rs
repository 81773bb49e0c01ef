//! The request for a refresh.

/// Who or what asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
#[derive(utoipa::ToSchema)]
pub enum Trigger {
    Operator,
    Api,
    Schedule,
    Webhook,
}

impl Trigger {
    pub const ALL: [Self; 4] = [Self::Operator, Self::Api, Self::Schedule, Self::Webhook];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Operator => "operator",
            Self::Api => "api",
            Self::Schedule => "schedule",
            Self::Webhook => "webhook",
        }
    }
}

/// What is asked for.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize, utoipa::ToSchema)]
pub struct Request {
    pub trigger: Trigger,
    /// In the policy's vocabulary (the default policy: runtimes). Empty means all.
    pub targets: Vec<String>,
    /// By registry and repository. Empty means all.
    pub images: Vec<String>,
    pub recreate: bool,
    pub force: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
#[derive(utoipa::ToSchema)]
pub enum Mode {
    /// Do it.
    Refresh,
    /// Say what would be done.
    Plan,
}
