//! One container first. It runs the new image for a while; if it is still well then, a later refresh does the rest.
//!
//! A refresh cannot wait for half an hour, so the wait is between refreshes: which container went first, on which image and when,
//! is kept in the policy's state ([`record`]), and every refresh looks how that one is doing. Something has to ask for refreshes
//! now and then, a schedule for example; the policy wakes nobody.
//!
//! A canary that failed, or did not stay well, halts *this image*: by id, until the tag stands for another one, or somebody asks by
//! force. Each image has its own canary. Whether it failed is the SDK's [`Evidence`]; what a container must be to be well is in
//! `verdict_on`.

mod config;
pub mod record;

use refit_policy::{
    ConfigProblem, ContainerInfo, Context, Description, Evidence, Failure, Health, Level, Policy,
    Report, Request, Rollout, Strategy, Survey, Target, export_policy, glob, reference, rule,
    survey,
};

pub use config::{Config, SCHEMA};
use record::{Entry, Record, Stage};

/// The rules of this policy, beside those that it inherits.
pub mod rules {
    /// It goes first.
    pub const CANARY: &str = "canary";
    /// It is behind, and the one that went first has not yet run the image for long enough.
    pub const SOAKING: &str = "soaking";
}

/// The policy. It has no instance: see [`Policy`].
pub struct Canary;

export_policy!(Canary);

impl Policy for Canary {
    type Config = Config;

    fn describe() -> Description {
        Description {
            name: "canary".to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            summary: "one container first, and the rest when it has run the image for a while"
                .to_owned(),
            config_schema: SCHEMA.to_owned(),
        }
    }

    fn check(config: &Config) -> Vec<ConfigProblem> {
        config.problems()
    }

    fn targets(config: &Config) -> Vec<Target> {
        let target = |(name, image): (&String, &String)| Target::new(name, image);
        config.images.iter().map(target).collect()
    }

    fn considers(config: &Config, name: &str) -> bool {
        glob::matches(&config.containers, name)
    }

    fn matches(config: &Config, container: &ContainerInfo, target: &Target) -> bool {
        Self::considers(config, &container.name)
            && reference::same_repository(&container.image, &target.image)
    }

    fn strategy(config: &Config, _: &ContainerInfo) -> Strategy {
        config.strategy
    }

    fn refresh(
        config: &Config,
        request: &Request,
        context: &mut Context<'_>,
    ) -> Result<Report, Failure> {
        let mut survey = survey::<Self>(config, request, context)?;
        if survey.due.is_empty() {
            return Ok(survey.into_report());
        }
        let before = context.host.state_get(record::KEY).unwrap_or_default();
        let mut record = Record::parse(&before);
        let soak_seconds = match request.force {
            // Somebody who asks by force does not want to ask again in half an hour, and knows of what failed before.
            true => 0,
            false => config.soak_minutes * 60,
        };
        let now = context.host.now();

        let mut proven = Vec::new();
        for image in images_due(&survey) {
            let known = record.get(&image).filter(|_| !request.force).cloned();
            match known.map_or(Standing::Unknown, |entry| {
                standing(&survey, entry, now, soak_seconds)
            }) {
                Standing::Unknown => {}
                Standing::Proven(entry) => {
                    record.note(entry);
                    proven.push(image);
                }
                Standing::Soaking {
                    entry,
                    seconds_left,
                } => {
                    let reason = soaking_reason(&entry.canary, seconds_left);
                    survey.hold_back_if(rules::SOAKING, &reason, |due| due.image.id() == image);
                    record.note(entry);
                }
                Standing::Failed(entry) => {
                    let reason = format!(
                        "`{}`, which went first, did not stay up on this image: nothing follows until there is a newer one, or a refresh is forced",
                        entry.canary
                    );
                    survey
                        .hold_back_if(rule::CANARY_FAILED, &reason, |due| due.image.id() == image);
                    record.note(entry);
                }
            }
        }

        let (rest_of_proven, mut unproven): (Vec<_>, Vec<_>) = std::mem::take(&mut survey.due)
            .into_iter()
            .partition(|due| proven.iter().any(|image| image == due.image.id()));
        // The others keep their order, by name.
        unproven.sort_by_key(|due| !is_labelled(config, &due.info));
        survey.due = unproven;
        for outcome in survey.canaries(context.docker, 1) {
            say_it_goes_first(&mut survey, &outcome.container);
            let stage = match outcome.evidence() {
                Evidence::Works if soak_seconds == 0 => Stage::Passed,
                Evidence::Works => Stage::Soaking,
                Evidence::Fails => Stage::Failed,
                Evidence::Nothing | Evidence::Over => continue,
            };
            record.note(Entry {
                image: outcome.image.id().to_owned(),
                stage,
                since: now,
                canary: outcome.container.clone(),
            });
            if stage == Stage::Soaking {
                let reason = soaking_reason(&outcome.container, soak_seconds);
                let image = outcome.image.id();
                survey.hold_back_if(rules::SOAKING, &reason, |due| due.image.id() == image);
            }
        }
        survey.due.extend(rest_of_proven);
        // Before the rest, which may take long: the host may be stopped in the middle of it.
        let after = record.text();
        if after != before
            && let Err(error) = context.host.state_set(record::KEY, Some(&after))
        {
            context.host.log(
                Level::Error,
                &format!("the next refresh will begin with another canary, since it could not be noted how this one did: {error:?}"),
            );
        }
        let wave = match config.wave {
            0 => usize::MAX,
            wave => wave,
        };
        survey.roll_out(context.docker, &Rollout::in_waves_of(wave));
        Ok(survey.into_report())
    }
}

/// What earlier refreshes mean for the rest of an image now.
enum Standing {
    /// Nothing is known, or the canary is gone: another one goes first.
    Unknown,
    Soaking {
        entry: Entry,
        seconds_left: u64,
    },
    Proven(Entry),
    Failed(Entry),
}

fn standing(survey: &Survey, entry: Entry, now: u64, soak_seconds: u64) -> Standing {
    let since = match entry.stage {
        Stage::Passed => return Standing::Proven(entry),
        Stage::Failed => return Standing::Failed(entry),
        // A clock that was put back: what was counted before cannot be trusted, so it counts anew.
        Stage::Soaking => entry.since.min(now),
    };
    let failed = |entry| {
        Standing::Failed(Entry {
            stage: Stage::Failed,
            since: now,
            ..entry
        })
    };
    let is_canary = |name: &str| name == entry.canary;
    if survey.due.iter().any(|due| is_canary(&due.info.name)) {
        // It is behind again: somebody put it back.
        return failed(entry);
    }
    let other = survey
        .others
        .iter()
        .find(|other| is_canary(&other.info.name));
    let health = match other {
        Some(other) => verdict_on(&other.info, &entry.image),
        // It could not be inspected: nobody knows, so nothing goes on.
        None if survey.settled.iter().any(|d| is_canary(&d.container)) => Verdict::Wait,
        None => return Standing::Unknown,
    };
    let seconds_left = soak_seconds.saturating_sub(now - since);
    let entry = Entry { since, ..entry };
    match health {
        Verdict::Ill => failed(entry),
        Verdict::Well if seconds_left == 0 => Standing::Proven(Entry {
            stage: Stage::Passed,
            since: now,
            ..entry
        }),
        Verdict::Well | Verdict::Wait => Standing::Soaking {
            entry,
            seconds_left,
        },
    }
}

enum Verdict {
    Well,
    /// It cannot be told yet.
    Wait,
    Ill,
}

/// A canary is well while it runs this image and its healthcheck, if it has one, agrees. One that stopped is not, even if a person
/// stopped it: the policy cannot tell that from a crash, and a rollout that goes on after a crash costs more.
fn verdict_on(canary: &ContainerInfo, image: &str) -> Verdict {
    if canary.image_id != image || !canary.is_running() {
        return Verdict::Ill;
    }
    match canary.health {
        Health::None | Health::Healthy => Verdict::Well,
        Health::Starting => Verdict::Wait,
        Health::Unhealthy => Verdict::Ill,
    }
}

fn images_due(survey: &Survey) -> Vec<String> {
    let mut images: Vec<String> = Vec::new();
    for due in &survey.due {
        if !images.iter().any(|image| image == due.image.id()) {
            images.push(due.image.id().to_owned());
        }
    }
    images
}

fn is_labelled(config: &Config, info: &ContainerInfo) -> bool {
    info.label(&config.canary_label)
        .is_some_and(|value| value != "false")
}

fn say_it_goes_first(survey: &mut Survey, container: &str) {
    for decision in &mut survey.settled {
        if decision.container == container {
            decision.rule = rules::CANARY.to_owned();
            decision.reason.push_str("; it goes first");
        }
    }
}

fn soaking_reason(canary: &str, seconds_left: u64) -> String {
    match seconds_left.div_ceil(60) {
        0 => format!("`{canary}`, which went first, has not said that it is well yet"),
        minutes => {
            format!("`{canary}`, which went first, has to run the image for another {minutes} min")
        }
    }
}
