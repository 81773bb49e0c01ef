//! What a policy decides about a container.

#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize, utoipa::ToSchema)]
pub struct Target {
    pub name: String,
    pub image: String,
}

#[derive(Clone, Debug)]
pub struct Decision {
    pub verdict: Verdict,
    pub rule: String,
    pub reason: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
#[derive(utoipa::ToSchema)]
pub enum Verdict {
    Recreate,
    Current,
    Stale,
    Unknown,
    Leave,
}
