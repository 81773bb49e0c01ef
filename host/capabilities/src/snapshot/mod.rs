//! A document of what a policy saw of an engine at one moment, so that the policy can decide on it again, elsewhere and later.
//!
//! [`record`] writes a snapshot while a policy runs. [`replay`] acts as the engine of a snapshot: the same four operations, without
//! an engine and with the same answers each time. A snapshot holds only data that crosses the contract, so that it can be stored
//! with a policy's source and be reviewed: no mounts, no commands, and only the environment variables that a grant lets a policy
//! read.

pub mod record;
pub mod replay;

use std::collections::BTreeMap;
use std::time::Duration;

use refit_engine::PullError;
use refit_model::container::{
    Container, ContainerId, ContainerSummary, Health, Object, PublishedPort, State,
};
use refit_model::diagnostic::Diagnostic;
use refit_model::grants::Grants;
use refit_model::image::{ImageId, ImageRef};
use refit_model::printable::printable;
use refit_model::recreation::Step;
use refit_recreate::{RecreateError, StepError};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::CallError;

/// The version of the document format. A host reads the versions that it knows.
pub const FORM: u32 = 1;

/// The largest document that Refit reads: some 30,000 containers.
pub const BYTES_MAX: usize = 32 << 20;

/// The longest quotation of a parse error in an error message.
const PROBLEM_BYTES_MAX: usize = 1000;

/// The state of an engine as a policy saw it. Everything is sorted, so that two snapshots of one engine differ only in the changes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Snapshot {
    pub snapshot: u32,
    /// The time of the snapshot. A policy that decides on it gets this time.
    pub taken: jiff::Timestamp,
    /// The containers, sorted by name.
    pub containers: Vec<ContainerFacts>,
    /// The result of pulling each image, by reference.
    #[serde(default)]
    pub images: BTreeMap<String, ImageFacts>,
    /// The failures of recreations, by container name. A recreation that is not listed succeeds.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub recreations: BTreeMap<String, RecreationFault>,
    /// Why the containers cannot be listed. Recording never sets this; a person writes it to test a policy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub listing_fails: Option<String>,
    /// Why these containers cannot be inspected, by name. A person writes this, too.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub inspections_fail: BTreeMap<String, String>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ContainerFacts {
    pub name: String,
    pub id: ContainerId,
    /// The image reference in the container's configuration.
    pub image: String,
    pub image_id: ImageId,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platform: Option<String>,
    pub state: State,
    #[serde(default)]
    pub health: Health,
    /// Seconds since the Unix epoch.
    pub created: i64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started: Option<jiff::Timestamp>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub environment: BTreeMap<String, String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub networks: Vec<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub published_ports: Vec<PublishedPort>,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub restart_policy: String,
}

/// The result of a pull.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged, deny_unknown_fields)]
pub enum ImageFacts {
    Pulled {
        /// The id on this engine.
        id: ImageId,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        digest: Option<String>,
    },
    Failed {
        failed: PullFault,
        #[serde(default)]
        message: String,
    },
}

/// Why an image was not pulled, as far as a policy can see.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PullFault {
    NotFound,
    Unauthorized,
    RateLimited,
    NoSpace,
    Unavailable,
    Other,
}

/// Why a container was not recreated, as far as a policy can see.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RecreationFault {
    Gone,
    Busy,
    Unsupported,
    Aborted,
    RolledBack,
    Stranded,
}

/// Why a document is not a usable snapshot.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    #[error("cannot read the snapshot `{origin}`")]
    Unreadable {
        origin: String,
        source: std::io::Error,
    },
    #[error("`{origin}` is no snapshot: {problem}")]
    Wrong { origin: String, problem: String },
}

impl refit_model::diagnostic::Hints for SnapshotError {
    fn hints(&self) -> Vec<String> {
        vec!["`refit policy record` writes one".into()]
    }
}

impl Snapshot {
    pub fn new(taken: jiff::Timestamp) -> Self {
        Self {
            snapshot: FORM,
            taken,
            containers: vec![],
            images: BTreeMap::new(),
            recreations: BTreeMap::new(),
            listing_fails: None,
            inspections_fail: BTreeMap::new(),
        }
    }

    pub fn load(path: &std::path::Path) -> Result<Self, SnapshotError> {
        use std::io::Read as _;
        let origin = path.display().to_string();
        let mut text = Vec::new();
        let read = std::fs::File::open(path)
            .and_then(|file| file.take(BYTES_MAX as u64 + 1).read_to_end(&mut text));
        if let Err(source) = read {
            return Err(SnapshotError::Unreadable { origin, source });
        }
        Self::parse(&text, &origin)
    }

    pub fn parse(text: &[u8], origin: &str) -> Result<Self, SnapshotError> {
        let wrong = |problem: String| SnapshotError::Wrong {
            origin: origin.to_owned(),
            // The text quotes the document.
            problem: printable(&problem, PROBLEM_BYTES_MAX),
        };
        if text.len() > BYTES_MAX {
            return Err(wrong(format!("it has more than {BYTES_MAX} bytes")));
        }
        let snapshot: Self =
            serde_json::from_slice(text).map_err(|error| wrong(error.to_string()))?;
        if snapshot.snapshot != FORM {
            return Err(wrong(format!(
                "its form is {}, and this host reads {FORM}",
                snapshot.snapshot
            )));
        }
        let mut names: Vec<&str> = snapshot
            .containers
            .iter()
            .map(|it| it.name.as_str())
            .collect();
        names.sort_unstable();
        match names.windows(2).find(|pair| pair[0] == pair[1]) {
            Some(twice) => Err(wrong(format!("it has two containers `{}`", twice[0]))),
            None => Ok(snapshot),
        }
    }

    /// The document as it is stored: indented, with a line break at the end.
    pub fn to_text(&self) -> String {
        let text = serde_json::to_string_pretty(self).unwrap_or_default();
        text + "\n"
    }

    /// Replace the values of variables and labels with secret-looking names by `redacted`: a shared document needs none of them,
    /// even if a grant lets the policy read them.
    pub fn redact(&mut self) {
        for container in &mut self.containers {
            for (name, value) in &mut container.environment {
                if is_secret(name) {
                    *value = "redacted".to_owned();
                }
            }
            for (name, value) in &mut container.labels {
                if is_secret(name) {
                    *value = "redacted".to_owned();
                }
            }
        }
    }
}

fn is_secret(name: &str) -> bool {
    let name = name.to_ascii_uppercase();
    [
        "TOKEN",
        "SECRET",
        "PASSWORD",
        "PASSWD",
        "CREDENTIAL",
        "APIKEY",
        "API_KEY",
        "PRIVATE_KEY",
    ]
    .iter()
    .any(|word| name.contains(word))
}

impl ContainerFacts {
    /// The facts that a policy may see.
    pub fn from_container(container: &Container, grants: &Grants) -> Self {
        let environment = container
            .environment()
            .filter(|(name, _)| grants.may_read_variable(name));
        Self {
            name: container.name.clone(),
            id: container.id.clone(),
            image: container.image().to_owned(),
            image_id: container.image_id.clone(),
            platform: container.platform.clone(),
            state: container.state,
            health: container.health,
            created: container.created.as_second(),
            started: container.started,
            labels: container.labels(),
            environment: environment
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .collect(),
            networks: container.endpoints.keys().cloned().collect(),
            published_ports: container.published_ports.clone(),
            restart_policy: container.restart_policy().to_owned(),
        }
    }

    fn summary(&self) -> ContainerSummary {
        ContainerSummary {
            id: self.id.clone(),
            name: self.name.clone(),
            labels: self.labels.clone(),
            state: Some(self.state),
            network_mode: String::new(),
        }
    }

    /// Convert the facts back to the container that the host works with.
    fn container(&self) -> Container {
        let environment: Vec<String> = self
            .environment
            .iter()
            .map(|(name, value)| format!("{name}={value}"))
            .collect();
        let object = |value: Value| value.as_object().cloned().unwrap_or_default();
        Container {
            id: self.id.clone(),
            name: self.name.clone(),
            image_id: self.image_id.clone(),
            manifest_digest: None,
            platform: self.platform.clone(),
            state: self.state,
            health: self.health,
            last_health_check: None,
            exit_code: None,
            error: None,
            created: jiff::Timestamp::from_second(self.created).unwrap_or_default(),
            started: self.started,
            finished: None,
            config: object(json!({"Image": self.image, "Labels": self.labels, "Env": environment})),
            host_config: object(json!({"RestartPolicy": {"Name": self.restart_policy}})),
            endpoints: self
                .networks
                .iter()
                .map(|network| (network.clone(), Object::new()))
                .collect(),
            published_ports: self.published_ports.clone(),
            mounts: vec![],
            upper_dir: None,
        }
    }
}

impl PullFault {
    fn from_error(error: &CallError<PullError>) -> Self {
        match error {
            CallError::Failed(PullError::NotFound { .. }) => Self::NotFound,
            CallError::Failed(PullError::Unauthorized { .. } | PullError::Credentials { .. }) => {
                Self::Unauthorized
            }
            CallError::Failed(PullError::RateLimited { .. }) => Self::RateLimited,
            CallError::Failed(PullError::NoSpace { .. }) => Self::NoSpace,
            CallError::Failed(
                PullError::RegistryUnavailable { .. }
                | PullError::TimedOut { .. }
                | PullError::Incomplete { .. },
            ) => Self::Unavailable,
            CallError::Failed(PullError::Engine { source, .. }) if source.is_passing() => {
                Self::Unavailable
            }
            CallError::Failed(
                PullError::NoPlatform { .. } | PullError::Engine { .. } | PullError::Other { .. },
            )
            | CallError::Denied(_)
            | CallError::QuotaExceeded(_)
            | CallError::Cancelled => Self::Other,
        }
    }

    fn error(self, image: &ImageRef, message: &str) -> PullError {
        let (registry, image) = (image.registry().to_owned(), image.clone());
        let source = message.to_owned().into();
        match self {
            Self::NotFound => PullError::NotFound {
                registry,
                image,
                source,
            },
            Self::Unauthorized => PullError::Unauthorized {
                registry,
                image,
                credentials_sent: false,
                source,
            },
            Self::RateLimited => PullError::RateLimited {
                registry,
                image,
                retry_after: Some(Duration::from_secs(60)),
                source,
            },
            Self::NoSpace => PullError::NoSpace { image, source },
            Self::Unavailable => PullError::RegistryUnavailable {
                registry,
                image,
                source,
            },
            Self::Other => PullError::Other { image, source },
        }
    }
}

impl ImageFacts {
    fn from_error(error: &CallError<PullError>) -> Self {
        let message = match error {
            CallError::Failed(error) => Diagnostic::of(error).sentence(),
            CallError::Denied(text) | CallError::QuotaExceeded(text) => text.clone(),
            CallError::Cancelled => "the refresh was being ended".to_owned(),
        };
        Self::Failed {
            failed: PullFault::from_error(error),
            message,
        }
    }
}

impl RecreationFault {
    /// The fault, or `None` if the container is up to date or was refused for a reason that the policy knows already.
    fn from_error(error: &CallError<RecreateError>) -> Option<Self> {
        let CallError::Failed(error) = error else {
            return None;
        };
        Some(match error {
            RecreateError::Current { .. } | RecreateError::Withdrawn { .. } => return None,
            RecreateError::Gone { .. } | RecreateError::ReplacedByOther { .. } => Self::Gone,
            RecreateError::Busy { .. } => Self::Busy,
            RecreateError::Unsupported { .. } => Self::Unsupported,
            RecreateError::Aborted { .. } => Self::Aborted,
            RecreateError::RolledBack { .. } => Self::RolledBack,
            RecreateError::Stranded { .. } | RecreateError::StillStopping { .. } => Self::Stranded,
        })
    }

    fn error(self, container: &ContainerSummary) -> RecreateError {
        let name = container.name.clone();
        let source = || StepError::Unfit("as the snapshot has it".into());
        match self {
            Self::Gone => RecreateError::Gone { name },
            Self::Busy => RecreateError::Busy { name },
            Self::Unsupported => RecreateError::Unsupported {
                name,
                reason: "as the snapshot has it".into(),
            },
            Self::Aborted => RecreateError::Aborted {
                name,
                step: Step::Create,
                source: source(),
            },
            Self::RolledBack => RecreateError::RolledBack {
                name,
                step: Step::Prove,
                source: source(),
                notes: vec![],
                left_over: vec![],
            },
            Self::Stranded => RecreateError::Stranded {
                kept_as: name.clone(),
                name,
                step: Step::Start,
                source: source(),
                old: container.id.clone(),
                new: container.id.clone(),
                undoing: Box::new(refit_engine::EngineError::Unreachable {
                    address: "a snapshot".into(),
                    source: "as the snapshot has it".into(),
                }),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use refit_model::grants::GrantPatterns;

    fn facts() -> ContainerFacts {
        ContainerFacts {
            name: "ws-a".into(),
            id: ContainerId::new("a".repeat(64)),
            image: "ghcr.io/acme/app:latest".into(),
            image_id: ImageId::new("sha256:old"),
            platform: Some("linux/amd64".into()),
            state: State::Running,
            health: Health::Healthy,
            created: 1_795_428_000,
            started: "2026-11-23T10:00:01.5Z".parse().ok(),
            labels: BTreeMap::from([("owner".into(), "me".into())]),
            environment: BTreeMap::from([("WS_VERSION".into(), "1".into())]),
            networks: vec!["net".into()],
            published_ports: vec![PublishedPort {
                container_port: 8000,
                protocol: "tcp".into(),
                host_address: "127.0.0.1".into(),
                host_port: 49153,
            }],
            restart_policy: "unless-stopped".into(),
        }
    }

    fn reads(variables: &[&str]) -> Grants {
        Grants::new(&GrantPatterns {
            images: vec![],
            containers: vec![],
            labels: BTreeMap::new(),
            environment: variables.iter().map(|it| (*it).to_owned()).collect(),
            verbs: vec![],
            followers: false,
        })
        .unwrap()
    }

    #[test]
    fn a_container_is_the_same_before_and_after_and_hides_what_no_grant_shows() {
        let container = facts().container();
        assert_eq!(
            ContainerFacts::from_container(&container, &reads(&["WS_VERSION"])),
            facts()
        );
        let hidden = ContainerFacts::from_container(&container, &reads(&[]));
        assert_eq!(hidden.environment, BTreeMap::new());
    }

    #[test]
    fn a_document_comes_back_as_it_was_written() {
        let mut snapshot = Snapshot::new("2026-11-23T10:00:00Z".parse().unwrap());
        snapshot.containers.push(facts());
        let id = ImageId::new("sha256:new");
        snapshot
            .images
            .insert("a/b:1".into(), ImageFacts::Pulled { id, digest: None });
        let failed = ImageFacts::Failed {
            failed: PullFault::RateLimited,
            message: "slowly".into(),
        };
        snapshot.images.insert("a/c:1".into(), failed);
        snapshot
            .recreations
            .insert("ws-a".into(), RecreationFault::RolledBack);
        let text = snapshot.to_text();
        assert_eq!(Snapshot::parse(text.as_bytes(), "x").unwrap(), snapshot);
        assert!(text.ends_with("}\n"));
    }

    #[test]
    fn what_is_no_snapshot_is_refused_in_words() {
        let refusal = |text: &str| {
            Snapshot::parse(text.as_bytes(), "x")
                .unwrap_err()
                .to_string()
        };
        assert!(refusal("[]").starts_with("`x` is no snapshot: "));
        let other = r#"{"snapshot": 7, "taken": "2026-11-23T10:00:00Z", "containers": []}"#;
        assert_eq!(
            refusal(other),
            "`x` is no snapshot: its form is 7, and this host reads 1"
        );
        let mut twice = Snapshot::new(jiff::Timestamp::UNIX_EPOCH);
        twice.containers = vec![facts(), facts()];
        assert_eq!(
            refusal(&twice.to_text()),
            "`x` is no snapshot: it has two containers `ws-a`"
        );
    }

    #[test]
    fn what_is_called_a_secret_is_not_shared() {
        let mut snapshot = Snapshot::new(jiff::Timestamp::UNIX_EPOCH);
        let mut container = facts();
        container
            .environment
            .insert("GITHUB_TOKEN".into(), "ghp_x".into());
        container
            .labels
            .insert("db.password".into(), "hunter2".into());
        snapshot.containers.push(container);
        snapshot.redact();
        let text = snapshot.to_text();
        assert!(
            !text.contains("ghp_x") && !text.contains("hunter2"),
            "{text}"
        );
        assert!(text.contains("\"WS_VERSION\": \"1\""), "{text}");
    }
}
