//! The file format of a scenario, and the engine that it describes.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use jiff::{SignedDuration, Timestamp};
use refit_capabilities::snapshot::{
    ContainerFacts, ImageFacts, PullFault, RecreationFault, Snapshot, SnapshotError,
};
use refit_model::container::{ContainerId, Health, State};
use refit_model::diagnostic::Hints;
use refit_model::grants::{GrantPatterns, Grants, PatternError, Verb};
use refit_model::image::{ImageId, ImageRef, ImageRefError};
use refit_model::request::{Request, Trigger};
use serde::Deserialize;
use serde_json::Value;
use sha2::{Digest as _, Sha256};

use super::expect::Expect;

/// The time of a scenario that does not set one.
const SOME_TIME: &str = "2026-01-01T00:00:00Z";

/// The largest file. Handwritten files have some kilobytes; a larger one should be a snapshot.
const BYTES_MAX: u64 = 1 << 20;

/// The largest number of files in one run. A folder with more is the wrong folder.
const FILES_MAX: usize = 1_000;

/// A complete scenario: it refers to no other files any more.
pub struct Scenario {
    /// The file name without the extension.
    pub name: String,
    pub path: PathBuf,
    pub about: Option<String>,
    /// The policy's configuration as JSON.
    pub config: String,
    /// The state that the policy has stored before.
    pub state: BTreeMap<String, String>,
    pub(super) grants: Grants,
    /// The engine before the first step.
    pub(super) engine: Snapshot,
    pub(super) steps: Vec<Step>,
}

/// One refresh: the changes before it, the request, and the expected result.
pub(super) struct Step {
    pub(super) when: When,
    pub(super) changes: Changes,
    pub(super) request: Request,
    pub(super) expect: Expect,
}

pub(super) enum When {
    At(Timestamp),
    /// A duration after the previous step.
    After(SignedDuration),
}

/// The changes on the engine from a step on.
#[derive(Debug, Default)]
pub(super) struct Changes {
    images: BTreeMap<String, ImageText>,
    containers: BTreeMap<String, ContainerText>,
    recreations: BTreeMap<String, RecreationFault>,
    listing_fails: Option<String>,
}

#[derive(Debug, thiserror::Error)]
pub enum ScenarioError {
    #[error("cannot read the scenario `{}`", path.display())]
    Unreadable {
        path: PathBuf,
        source: std::io::Error,
    },
    #[error("`{}` is no scenario", path.display())]
    Wrong { path: PathBuf, source: Problem },
    #[error("there is no scenario in `{}`", path.display())]
    None { path: PathBuf },
}

/// The problem with a scenario's text.
#[derive(Debug, thiserror::Error)]
pub enum Problem {
    #[error(transparent)]
    Text(#[from] toml::de::Error),
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    #[error(transparent)]
    Grants(#[from] PatternError),
    #[error(transparent)]
    Reference(#[from] ImageRefError),
    #[error("container `{0}` is not in the snapshot, so it needs an `image`")]
    NoImage(String),
    #[error("`{step}` expects nothing, so it would pass whatever the policy does")]
    ExpectsNothing { step: String },
    #[error("{0}")]
    Other(String),
}

impl Hints for ScenarioError {
    fn hints(&self) -> Vec<String> {
        match self {
            Self::Wrong {
                source: Problem::ExpectsNothing { .. },
                ..
            } => vec!["`decisions = {}` in `[expect]`, for a start: what the policy decided is shown then".into()],
            Self::Unreadable { .. } | Self::Wrong { .. } => vec![],
            Self::None { .. } => vec!["scenarios are files that end with `.toml`".into()],
        }
    }
}

/// Read all scenarios of these paths: files, and folders with files, sorted by name.
pub fn read_all(paths: &[PathBuf]) -> Result<Vec<Scenario>, ScenarioError> {
    let mut scenarios = Vec::new();
    for path in paths {
        let files = files(path)?;
        if files.is_empty() {
            return Err(ScenarioError::None { path: path.clone() });
        }
        for file in files {
            scenarios.push(Scenario::read(&file)?);
        }
    }
    Ok(scenarios)
}

fn files(path: &Path) -> Result<Vec<PathBuf>, ScenarioError> {
    if !path.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let unreadable = |source| ScenarioError::Unreadable {
        path: path.to_owned(),
        source,
    };
    let mut files = Vec::new();
    for entry in std::fs::read_dir(path).map_err(unreadable)? {
        let file = entry.map_err(unreadable)?.path();
        if file
            .extension()
            .is_some_and(|extension| extension == "toml")
            && file.is_file()
        {
            files.push(file);
        }
        if files.len() > FILES_MAX {
            let many = format!("it holds more than {FILES_MAX} scenarios");
            return Err(unreadable(std::io::Error::other(many)));
        }
    }
    files.sort();
    Ok(files)
}

impl Scenario {
    pub fn read(path: &Path) -> Result<Self, ScenarioError> {
        use std::io::Read as _;
        let unreadable = |source| ScenarioError::Unreadable {
            path: path.to_owned(),
            source,
        };
        let mut text = String::new();
        std::fs::File::open(path)
            .and_then(|file| file.take(BYTES_MAX + 1).read_to_string(&mut text))
            .map_err(unreadable)?;
        if text.len() as u64 > BYTES_MAX {
            let large = format!(
                "it has more than {BYTES_MAX} bytes; facts of a real engine belong in a snapshot"
            );
            return Err(unreadable(std::io::Error::other(large)));
        }
        Self::parse(&text, path).map_err(|source| ScenarioError::Wrong {
            path: path.to_owned(),
            source,
        })
    }

    /// A refresh on a recorded snapshot, without expectations.
    pub fn from_snapshot(path: &Path, config: String) -> Result<Self, ScenarioError> {
        let wrong = |source: Problem| ScenarioError::Wrong {
            path: path.to_owned(),
            source,
        };
        let engine = Snapshot::load(path).map_err(|error| wrong(error.into()))?;
        let grants = GrantsText::default().grants(&engine);
        let step = Step {
            when: When::At(engine.taken),
            changes: Changes::default(),
            request: RequestText::default().request(),
            expect: Expect::default(),
        };
        Ok(Self {
            name: path
                .file_stem()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned(),
            path: path.to_owned(),
            about: None,
            config,
            state: BTreeMap::new(),
            grants: grants.map_err(|error| wrong(error.into()))?,
            engine,
            steps: vec![step],
        })
    }

    /// `path` determines the name, and the folder in which the snapshot is looked up.
    pub fn parse(text: &str, path: &Path) -> Result<Self, Problem> {
        let document: Document = toml::from_str(text)?;
        let mut engine = match &document.snapshot {
            None => Snapshot::new(SOME_TIME.parse().unwrap_or(Timestamp::UNIX_EPOCH)),
            Some(snapshot) => {
                let folder = path.parent().unwrap_or(Path::new("."));
                Snapshot::load(&folder.join(snapshot))?
            }
        };
        let (steps, config) = (document.steps(engine.taken)?, document.config);
        // Check all statements about containers before anything runs.
        let mut known = engine.clone();
        for step in &steps {
            step.changes.apply(&mut known)?;
        }
        let grants = document.grants.unwrap_or_default().grants(&known)?;
        if let Some(Step {
            when: When::At(now),
            ..
        }) = steps.first()
        {
            engine.taken = *now;
        }
        let name = path.file_stem().unwrap_or_default().to_string_lossy();
        Ok(Self {
            name: name.into_owned(),
            path: path.to_owned(),
            about: document.about,
            config: Value::Object(config).to_string(),
            state: document.state,
            grants,
            engine,
            steps,
        })
    }
}

impl Scenario {
    /// Whether the scenario expects the policy to refuse the configuration.
    pub(super) fn expects_invalid_config(&self) -> bool {
        self.steps
            .iter()
            .any(|step| step.expect.is_invalid_config())
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Document {
    about: Option<String>,
    snapshot: Option<PathBuf>,
    now: Option<Timestamp>,
    #[serde(default)]
    config: serde_json::Map<String, Value>,
    #[serde(default)]
    state: BTreeMap<String, String>,
    grants: Option<GrantsText>,
    #[serde(default)]
    request: RequestText,
    #[serde(default)]
    images: BTreeMap<String, ImageText>,
    #[serde(default)]
    containers: BTreeMap<String, ContainerText>,
    #[serde(default)]
    recreations: BTreeMap<String, RecreationFault>,
    listing_fails: Option<String>,
    #[serde(default)]
    expect: Expect,
    #[serde(default)]
    then: Vec<Then>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Then {
    after: Option<SignedDuration>,
    now: Option<Timestamp>,
    #[serde(default)]
    request: RequestText,
    #[serde(default)]
    images: BTreeMap<String, ImageText>,
    #[serde(default)]
    containers: BTreeMap<String, ContainerText>,
    #[serde(default)]
    recreations: BTreeMap<String, RecreationFault>,
    listing_fails: Option<String>,
    #[serde(default)]
    expect: Expect,
}

impl Document {
    fn steps(&self, taken: Timestamp) -> Result<Vec<Step>, Problem> {
        let first = Step {
            when: When::At(self.now.unwrap_or(taken)),
            changes: Changes {
                images: self.images.clone(),
                containers: self.containers.clone(),
                recreations: self.recreations.clone(),
                listing_fails: self.listing_fails.clone(),
            },
            request: self.request.request(),
            expect: self.expect.clone(),
        };
        let mut steps = vec![first];
        for then in &self.then {
            let when = match (then.now, then.after) {
                (Some(now), None) => When::At(now),
                (None, Some(after)) => When::After(after),
                (None, None) => When::After(SignedDuration::ZERO),
                (Some(_), Some(_)) => {
                    return Err(Problem::Other(
                        "a `[[then]]` has `now` and `after`, and takes one of them".into(),
                    ));
                }
            };
            steps.push(Step {
                when,
                changes: Changes {
                    images: then.images.clone(),
                    containers: then.containers.clone(),
                    recreations: then.recreations.clone(),
                    listing_fails: then.listing_fails.clone(),
                },
                request: then.request.request(),
                expect: then.expect.clone(),
            });
        }
        match steps.iter().position(|step| step.expect.is_empty()) {
            Some(0) => Err(Problem::ExpectsNothing {
                step: "[expect]".into(),
            }),
            Some(nth) => Err(Problem::ExpectsNothing {
                step: format!("[[then]] {nth}"),
            }),
            None => Ok(steps),
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
struct RequestText {
    targets: Vec<String>,
    images: Vec<String>,
    recreate: bool,
    force: bool,
    trigger: Trigger,
}

impl Default for RequestText {
    fn default() -> Self {
        Self {
            targets: vec![],
            images: vec![],
            recreate: true,
            force: false,
            trigger: Trigger::Operator,
        }
    }
}

impl RequestText {
    fn request(&self) -> Request {
        Request {
            trigger: self.trigger,
            targets: self.targets.clone(),
            images: self.images.clone(),
            recreate: self.recreate,
            force: self.force,
        }
    }
}

/// The grants, as in `refit.toml`. Unset grants allow everything, since a scenario tests the policy.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct GrantsText {
    images: Option<Vec<String>>,
    containers: Option<Vec<String>>,
    #[serde(default)]
    labels: BTreeMap<String, String>,
    environment: Option<Vec<String>>,
    verbs: Option<Vec<Verb>>,
}

impl GrantsText {
    fn grants(self, engine: &Snapshot) -> Result<Grants, PatternError> {
        let shown = || {
            let variables = engine
                .containers
                .iter()
                .flat_map(|it| it.environment.keys());
            variables.cloned().collect()
        };
        Grants::new(&GrantPatterns {
            images: self.images.unwrap_or_else(|| vec!["**".into()]),
            containers: self.containers.unwrap_or_else(|| vec!["*".into()]),
            labels: self.labels,
            environment: self.environment.unwrap_or_else(shown),
            verbs: self.verbs.unwrap_or_else(|| Verb::ALL.to_vec()),
            followers: false,
        })
    }
}

#[derive(Clone, Debug, Deserialize)]
#[serde(untagged, deny_unknown_fields)]
enum ImageText {
    Pulled(String),
    Failed {
        failed: PullFault,
        #[serde(default)]
        message: String,
    },
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
struct ContainerText {
    gone: bool,
    image: Option<String>,
    runs: Option<String>,
    state: Option<State>,
    health: Option<Health>,
    created: Option<Timestamp>,
    started: Option<Timestamp>,
    labels: BTreeMap<String, String>,
    environment: BTreeMap<String, String>,
    networks: Option<Vec<String>>,
    restart_policy: Option<String>,
    platform: Option<String>,
    /// The reason why the container cannot be inspected.
    inspection_fails: Option<String>,
}

impl Changes {
    pub(super) fn apply(&self, engine: &mut Snapshot) -> Result<(), Problem> {
        for (reference, image) in &self.images {
            let facts = match image {
                ImageText::Pulled(word) => ImageFacts::Pulled {
                    id: image_id(word),
                    digest: None,
                },
                ImageText::Failed { failed, message } => ImageFacts::Failed {
                    failed: *failed,
                    message: message.clone(),
                },
            };
            let parsed: ImageRef = reference.parse()?;
            engine.images.insert(parsed.to_string(), facts);
        }
        for (name, text) in &self.containers {
            text.apply(name, engine)?;
        }
        engine.containers.sort_by(|a, b| a.name.cmp(&b.name));
        engine.recreations.extend(self.recreations.clone());
        if self.listing_fails.is_some() {
            engine.listing_fails.clone_from(&self.listing_fails);
        }
        Ok(())
    }
}

/// Normalize an image reference like the host. An invalid one stays as it is.
pub(super) fn normalize_reference(reference: &str) -> String {
    match reference.parse::<ImageRef>() {
        Ok(parsed) => parsed.to_string(),
        Err(_) => reference.to_owned(),
    }
}

impl ContainerText {
    fn apply(&self, name: &str, engine: &mut Snapshot) -> Result<(), Problem> {
        engine.inspections_fail.remove(name);
        if self.gone {
            engine.containers.retain(|facts| facts.name != name);
            return Ok(());
        }
        if let Some(why) = &self.inspection_fails {
            engine.inspections_fail.insert(name.to_owned(), why.clone());
        }
        let at = match engine.containers.iter().position(|it| it.name == name) {
            Some(at) => at,
            None => {
                let image = self.image.clone();
                let image = image.ok_or_else(|| Problem::NoImage(name.to_owned()))?;
                engine.containers.push(new_container(name, image));
                engine.containers.len() - 1
            }
        };
        let facts = &mut engine.containers[at];
        set(&mut facts.image, &self.image);
        set(&mut facts.state, &self.state);
        set(&mut facts.health, &self.health);
        set(&mut facts.networks, &self.networks);
        set(&mut facts.restart_policy, &self.restart_policy);
        set(&mut facts.created, &self.created.map(Timestamp::as_second));
        set(&mut facts.image_id, &self.runs.as_deref().map(image_id));
        facts.started = self.started.or(facts.started);
        facts.platform = self.platform.clone().or(facts.platform.take());
        facts.labels.extend(self.labels.clone());
        facts.environment.extend(self.environment.clone());
        Ok(())
    }
}

fn set<T: Clone>(value: &mut T, new: &Option<T>) {
    if let Some(new) = new {
        value.clone_from(new);
    }
}

fn new_container(name: &str, image: String) -> ContainerFacts {
    ContainerFacts {
        name: name.to_owned(),
        id: ContainerId::new(hex(&format!("container {name}"))),
        image,
        image_id: image_id("old"),
        platform: None,
        state: State::Running,
        health: Health::default(),
        created: 0,
        started: None,
        labels: BTreeMap::new(),
        environment: BTreeMap::new(),
        networks: vec![],
        published_ports: vec![],
        restart_policy: String::new(),
    }
}

/// The image id for a word of the scenario.
pub(super) fn image_id(word: &str) -> ImageId {
    if word.starts_with("sha256:") {
        ImageId::new(word)
    } else {
        ImageId::new(format!("sha256:{}", hex(&format!("image {word}"))))
    }
}

fn hex(text: &str) -> String {
    let digest = Sha256::digest(text);
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}
