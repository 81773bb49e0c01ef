//! Watchtower's labels and its flags about which containers are updated, for people who come from there.
//!
//! Unlike other policies this one has no list of images: each container follows the image that it was made from. So it takes
//! `refresh` into its own hands. In order: `lent` (which containers), `covered` (what their labels say), `pull`, `decide`, and waves
//! in the order of who depends on whom ([`order`]). A *target* is the name of a container, as Watchtower's arguments are.
//!
//! What Watchtower does and a policy has no word for (signals, hooks, a restart on the same image, stopped containers) is said in
//! the log and in `README.md`, and not imitated.

mod config;
pub mod labels;
pub mod order;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::rc::Rc;

use refit_policy::reference::{Reference, ReferenceError, same_repository};
use refit_policy::{
    Action, Candidate, Choice, ConfigProblem, Container, ContainerInfo, ContainerState, Context,
    Description, Due, EngineError, Evidence, Failure, Host, Level, Outcome, Policy, PullError,
    PulledImage, Report, Request, Rollout, Survey, Target, UnknownTargets, Unlisted, Verdict,
    export_policy, rule, words,
};

pub use config::{Config, SCHEMA};
use labels::{DependsOn, Labels};

/// The rules of this policy, beside those that it inherits.
pub mod rules {
    /// Its label `enable` says no.
    pub const DISABLED: &str = "disabled";
    /// Only containers with a label `enable` are meant, and it has none.
    pub const NOT_ENABLED: &str = "not-enabled";
    /// It belongs to another scope.
    pub const OTHER_SCOPE: &str = "other-scope";
    /// It is Watchtower itself.
    pub const WATCHTOWER: &str = "watchtower-itself";
    /// It was made from a digest or an image id, which never stands for another image.
    pub const PINNED: &str = "pinned";
    /// It is behind, and only watched.
    pub const MONITOR_ONLY: &str = "monitor-only";
    /// No registry was asked, so nobody knows whether it is behind.
    pub const NO_PULL: &str = "no-pull";
    /// It is up to date, and what it depends on was recreated. Watchtower would restart it.
    pub const PROVIDER_RECREATED: &str = "provider-recreated";
}

/// The policy. It has no instance: see [`Policy`].
pub struct Watchtower;

export_policy!(Watchtower);

type Pulled = HashMap<String, Result<Rc<PulledImage>, PullError>>;

/// A container, and what the engine says of it.
struct Seen {
    container: Container,
    info: ContainerInfo,
}

impl Policy for Watchtower {
    type Config = Config;

    fn describe() -> Description {
        Description {
            name: "watchtower".to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            summary: "each container follows its own image, as Watchtower's labels say".to_owned(),
            config_schema: SCHEMA.to_owned(),
        }
    }

    fn check(config: &Config) -> Vec<ConfigProblem> {
        config.problems()
    }

    /// None: they are the containers, and which those are is known only to a refresh.
    fn targets(_: &Config) -> Vec<Target> {
        Vec::new()
    }

    fn considers(config: &Config, name: &str) -> bool {
        config.considers(name)
    }

    fn refresh(
        config: &Config,
        request: &Request,
        context: &mut Context<'_>,
    ) -> Result<Report, Failure> {
        let lent = lent(config, request, context)?;
        let mut survey = Survey::default();
        let seen = inspect(lent, request, context, &mut survey);
        // Order is by all that are there, asked for or not: the way from one to another may lead over a third.
        let (levels, providers) = dependencies(&seen, context.host);
        let is_asked = |info: &ContainerInfo| is_asked(request, info);
        let seen: Vec<Seen> = seen
            .into_iter()
            .filter(|seen| is_asked(&seen.info))
            .collect();
        let covered = covered(config, seen, &mut survey);
        say_what_is_not_heeded(&covered, context.host);
        let pulled = pull(config, &covered, context);
        let now = context.host.now();
        for Seen { container, info } in covered {
            let target = Target::new(&info.name, &info.image);
            survey.targets.push(target.clone());
            let image = match pulled.get(&info.image) {
                Some(Ok(image)) => image,
                Some(Err(error)) => {
                    let reason = words::pull_error(&info.image, error);
                    survey.settle(&info.name, Choice::unknown(rule::PULL_FAILED, reason));
                    continue;
                }
                None => {
                    let reason = "no registry was asked for its image";
                    survey.settle(&info.name, Choice::unknown(rules::NO_PULL, reason));
                    continue;
                }
            };
            let candidate = Candidate {
                container: &info,
                target: &target,
                image,
                request,
                now,
            };
            let choice = Self::decide(config, &candidate);
            match choice.action {
                Action::Recreate(strategy) => survey.due.push(Due {
                    container,
                    target: target.name,
                    image: Rc::clone(image),
                    strategy,
                    rule: choice.rule.into_owned(),
                    reason: choice.reason,
                    info,
                }),
                Action::Current | Action::Stale | Action::Unknown | Action::Leave => {
                    survey.settle(&info.name, choice);
                }
            }
        }
        let recreated = roll_out(config, &mut survey, &levels, context);
        say_who_would_restart(&mut survey, &providers, recreated);
        Ok(survey.into_report())
    }

    fn decide(config: &Config, candidate: &Candidate<'_>) -> Choice {
        let choice = candidate.by_default(config.strategy);
        let Action::Recreate(_) = choice.action else {
            return choice;
        };
        let is_watched = Labels(candidate.container).either(
            "monitor-only",
            config.monitor_only,
            config.label_take_precedence,
        );
        match is_watched {
            false => choice,
            true if candidate.is_current() => {
                Choice::current(rules::MONITOR_ONLY, "it is up to date, and only watched")
            }
            true => Choice::stale(
                rules::MONITOR_ONLY,
                format!(
                    "`{}` stands for another image now, and it is only watched",
                    candidate.image.reference()
                ),
            ),
        }
    }
}

/// The containers that names select: those of the configuration.
fn lent(
    config: &Config,
    request: &Request,
    context: &mut Context<'_>,
) -> Result<Vec<Container>, Failure> {
    let mut lent = context.docker.containers().map_err(|error| {
        // Nothing is pulled before it is known what for.
        let targets = Vec::new();
        Failure::Unlisted(Unlisted { error, targets })
    })?;
    lent.retain(|container| config.considers(container.name()));
    let is_there = |name: &&String| lent.iter().any(|container| container.name() == *name);
    let unknown: Vec<String> = request
        .targets
        .iter()
        .filter(|name| !is_there(name))
        .cloned()
        .collect();
    if !unknown.is_empty() {
        let known = lent.iter().map(|c| c.name().to_owned()).collect();
        return Err(Failure::UnknownTargets(UnknownTargets {
            asked: unknown,
            known,
        }));
    }
    Ok(lent)
}

fn inspect(
    lent: Vec<Container>,
    request: &Request,
    context: &mut Context<'_>,
    survey: &mut Survey,
) -> Vec<Seen> {
    if lent.is_empty() {
        return Vec::new();
    }
    let infos = context.docker.inspect(&lent.iter().collect::<Vec<_>>());
    let mut seen = Vec::new();
    for (container, info) in lent.into_iter().zip(infos) {
        match info {
            Ok(info) => seen.push(Seen { container, info }),
            Err(EngineError::NotFound) => {}
            Err(_) if !is_named(request, container.name()) => {}
            Err(error) => {
                let reason = format!("it could not be inspected: {}", words::engine_error(&error));
                let choice = Choice::unknown(rule::INSPECT_FAILED, reason);
                survey.settle(container.name(), choice);
            }
        }
    }
    seen
}

fn is_named(request: &Request, name: &str) -> bool {
    request.targets.is_empty() || request.targets.iter().any(|target| target == name)
}

/// Whether the request means this one. The request's images select by repository, as the contract says.
fn is_asked(request: &Request, info: &ContainerInfo) -> bool {
    let images = &request.images;
    is_named(request, &info.name)
        && (images.is_empty() || images.iter().any(|i| same_repository(i, &info.image)))
}

/// Those that labels and states select; the others are settled, where somebody might wonder.
fn covered(config: &Config, seen: Vec<Seen>, survey: &mut Survey) -> Vec<Seen> {
    let is_covered = |seen: &Seen| {
        let in_state = match seen.info.state {
            ContainerState::Running | ContainerState::Paused => true,
            ContainerState::Created | ContainerState::Exited => config.include_stopped,
            ContainerState::Restarting => config.include_restarting,
            ContainerState::Removing | ContainerState::Dead => false,
        };
        if !in_state {
            return false;
        }
        match left_alone(config, &seen.info) {
            None => true,
            Some(choice) => {
                survey.settle(&seen.info.name, choice);
                false
            }
        }
    };
    seen.into_iter().filter(is_covered).collect()
}

fn left_alone(config: &Config, info: &ContainerInfo) -> Option<Choice> {
    let labels = Labels(info);
    let enable = labels.enable();
    if labels.is_watchtower() {
        let reason = "it is Watchtower, which updates itself, and should be stopped where Refit has its work";
        return Some(Choice::leave(rules::WATCHTOWER, reason));
    }
    if enable == Some(false) {
        let reason = "its label `com.centurylinklabs.watchtower.enable` says no";
        return Some(Choice::leave(rules::DISABLED, reason));
    }
    if config.label_enable && enable.is_none() {
        let reason = "it has no label `com.centurylinklabs.watchtower.enable`";
        return Some(Choice::leave(rules::NOT_ENABLED, reason));
    }
    if let Some(scope) = &config.scope
        && labels.scope() != scope
    {
        let reason = format!("its scope is `{}`, and not `{scope}`", labels.scope());
        return Some(Choice::leave(rules::OTHER_SCOPE, reason));
    }
    let is_pinned = match info.image.parse::<Reference>() {
        Ok(reference) => reference.digest().is_some(),
        Err(error) => matches!(error, ReferenceError::Id(_)),
    };
    is_pinned.then(|| {
        let reason =
            "it was made from a digest or an image id, which never stands for another image";
        Choice::leave(rules::PINNED, reason)
    })
}

/// Each image once, in one batch; by its exact spelling, which is the one that a container keeps. A container with `no-pull`
/// follows its image all the same where another one has it pulled, since that moves the tag on this machine.
fn pull(config: &Config, covered: &[Seen], context: &mut Context<'_>) -> Pulled {
    let mut images: Vec<String> = Vec::new();
    for Seen { info, .. } in covered {
        let is_pulled =
            !Labels(info).either("no-pull", config.no_pull, config.label_take_precedence);
        if is_pulled && !images.contains(&info.image) {
            images.push(info.image.clone());
        }
    }
    if images.is_empty() {
        return Pulled::new();
    }
    let results = context.docker.pull(&images);
    let results = results.into_iter().map(|result| result.map(Rc::new));
    images.into_iter().zip(results).collect()
}

/// Of each container its level, and the names of those that it depends on.
fn dependencies(
    seen: &[Seen],
    host: &mut dyn Host,
) -> (HashMap<String, usize>, BTreeMap<String, Vec<String>>) {
    let place: HashMap<&str, usize> = seen
        .iter()
        .enumerate()
        .map(|(at, seen)| (seen.info.name.as_str(), at))
        .collect();
    let mut services: HashMap<(&str, &str), Vec<usize>> = HashMap::new();
    for (at, Seen { info, .. }) in seen.iter().enumerate() {
        if let (Some(project), Some(service)) = (&info.compose_project, Labels(info).service()) {
            services.entry((project, service)).or_default().push(at);
        }
    }
    let mut unknown = Vec::new();
    let mut depends_on = Vec::new();
    for Seen { info, .. } in seen {
        depends_on.push(match Labels(info).depends_on() {
            DependsOn::Containers(names) => names
                .into_iter()
                .filter_map(|name| {
                    let at = place.get(name).copied();
                    if at.is_none() {
                        unknown.push(format!("`{name}` of `{}`", info.name));
                    }
                    at
                })
                .collect(),
            // Compose knows services that were never started, so one that is not there is nothing to wonder about.
            DependsOn::Services(names) => names
                .into_iter()
                .filter_map(|service| services.get(&(info.compose_project.as_deref()?, service)))
                .flatten()
                .copied()
                .collect::<Vec<usize>>(),
        });
    }
    if !unknown.is_empty() {
        let line = format!(
            "`depends-on` names containers that are not there: {}",
            list(&unknown)
        );
        host.log(Level::Warn, &line);
    }
    let (levels, early) = order::levels(&depends_on);
    if !early.is_empty() {
        let names: Vec<String> = early.iter().map(|&at| quoted(&seen[at].info)).collect();
        let line = format!(
            "some containers depend on each other in a circle; there {} will not wait for the others",
            list(&names)
        );
        host.log(Level::Warn, &line);
    }
    let name = |at: usize| seen[at].info.name.clone();
    let providers = depends_on
        .iter()
        .enumerate()
        .map(|(at, list)| (name(at), list.iter().copied().map(name).collect()));
    let providers = providers.collect();
    let levels = levels
        .into_iter()
        .enumerate()
        .map(|(at, level)| (name(at), level));
    (levels.collect(), providers)
}

/// A wave for each level, or one for each container. Whatever fails, the others go on, as they do in Watchtower.
fn roll_out(
    config: &Config,
    survey: &mut Survey,
    levels: &HashMap<String, usize>,
    context: &mut Context<'_>,
) -> Vec<String> {
    let rollout = match config.rolling_restart {
        true => Rollout::in_waves_of(1),
        false => Rollout::at_once(),
    }
    .never_stop();
    let mut by_level: BTreeMap<usize, Vec<Due>> = BTreeMap::new();
    for due in std::mem::take(&mut survey.due) {
        let level = levels.get(&due.info.name).copied().unwrap_or_default();
        by_level.entry(level).or_default().push(due);
    }
    let mut outcomes: Vec<Outcome> = Vec::new();
    for (_, due) in by_level {
        survey.due = due;
        if outcomes.iter().any(|o| o.evidence() == Evidence::Over) {
            let reason = "the refresh was ended before its turn";
            survey.hold_back(rule::NOT_REACHED, reason);
            continue;
        }
        outcomes.extend(survey.roll_out(context.docker, &rollout));
    }
    let works = outcomes
        .into_iter()
        .filter(|outcome| outcome.evidence() == Evidence::Works);
    works.map(|outcome| outcome.container).collect()
}

/// Dependents of what was recreated, and dependents of those, that are up to date: a policy can only have them recreated on a
/// newer image, or by force.
fn say_who_would_restart(
    survey: &mut Survey,
    providers: &BTreeMap<String, Vec<String>>,
    recreated: Vec<String>,
) {
    let mut restarted: HashSet<String> = recreated.into_iter().collect();
    let mut because: BTreeMap<&str, &str> = BTreeMap::new();
    // Once round for each step of the longest chain.
    loop {
        let next = providers.iter().find_map(|(name, of)| {
            let provider = of.iter().find(|provider| restarted.contains(*provider))?;
            (!restarted.contains(name)).then_some((name, provider))
        });
        let Some((name, provider)) = next else { break };
        because.insert(name, provider);
        restarted.insert(name.clone());
    }
    for decision in &mut survey.settled {
        if decision.verdict == Verdict::Current
            && decision.rule == rule::UP_TO_DATE
            && let Some(provider) = because.get(decision.container.as_str())
        {
            decision.rule = rules::PROVIDER_RECREATED.to_owned();
            decision.reason.push_str(&format!(
                "; it depends on `{provider}`, and Watchtower would restart it now, for which a policy has no word"
            ));
        }
    }
}

/// One line each, however many containers have the label.
fn say_what_is_not_heeded(covered: &[Seen], host: &mut dyn Host) {
    let mut unheeded: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    let mut misspelt = Vec::new();
    for Seen { info, .. } in covered {
        for key in Labels(info).unheeded() {
            unheeded.entry(key).or_default().push(quoted(info));
        }
        for (key, value) in Labels(info).misspelt() {
            misspelt.push(format!("{key}={value} of `{}`", info.name));
        }
    }
    for (key, names) in unheeded {
        let why = match key.ends_with(".stop-signal") {
            true => "a container is stopped with its own signal (`docker run --stop-signal`)",
            false => "nothing is run inside of containers",
        };
        let line = format!("the label `{key}` of {} is not heeded: {why}", list(&names));
        host.log(Level::Warn, &line);
    }
    if !misspelt.is_empty() {
        let line = format!(
            "labels that are neither true nor false count as absent: {}",
            list(&misspelt)
        );
        host.log(Level::Warn, &line);
    }
}

fn quoted(info: &ContainerInfo) -> String {
    format!("`{}`", info.name)
}

/// A line of the log has an end, and nobody reads a hundred names.
fn list(words: &[String]) -> String {
    const SHOWN_MAX: usize = 5;
    match words.len().checked_sub(SHOWN_MAX) {
        Some(more @ 1..) => format!("{} and {more} more", words[..SHOWN_MAX].join(", ")),
        _ => words.join(", "),
    }
}
