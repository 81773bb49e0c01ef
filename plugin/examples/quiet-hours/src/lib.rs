//! Only at night, only what is idle, one first, and no container twice within hours.
//!
//! The parts are where the layers of the SDK want them: what a single container and the clock tell is in `decide`; what needs
//! the memory of earlier refreshes is in `refresh`; the order is a [`Rollout`]. [`window`] and [`cooldown`] are plain arithmetic.
//!
//! Images are pulled at any time: that disturbs nobody, and makes the refresh at night short.

mod config;
pub mod cooldown;
pub mod window;

use refit_policy::{
    Action, Candidate, Choice, ConfigProblem, ContainerInfo, Context, Description, Failure, Level,
    Outcome, Policy, RecreateError, Report, Request, Rollout, Strategy, Survey, Target, Trigger,
    export_policy, glob, reference, survey,
};

pub use config::{Config, SCHEMA};
use cooldown::Cooldown;

/// The rules of this policy, beside those that it inherits.
pub mod rules {
    /// It is behind, and its label says that somebody works in it.
    pub const BUSY: &str = "busy";
    /// It is behind, and the window is closed.
    pub const OUTSIDE_WINDOW: &str = "outside-window";
    /// It is behind again, and was stopped for another image not long ago.
    pub const COOLING_DOWN: &str = "cooling-down";
}

/// The policy. It has no instance: see [`Policy`].
pub struct QuietHours;

export_policy!(QuietHours);

impl Policy for QuietHours {
    type Config = Config;

    fn describe() -> Description {
        Description {
            name: "quiet-hours".to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            summary: "at night, what is idle, one first, and no container twice within hours"
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

    fn decide(config: &Config, candidate: &Candidate<'_>) -> Choice {
        let choice = candidate.by_default(config.strategy);
        if !matches!(choice.action, Action::Recreate(_)) {
            return choice;
        }
        // Force is about what is up to date. It is no reason to disturb somebody.
        let left = |rule: &'static str, reason: String| match candidate.is_current() {
            true => Choice::current(rule, reason),
            false => Choice::stale(rule, reason),
        };
        if is_busy(config, candidate.container) {
            let label = &config.busy_label;
            return left(
                rules::BUSY,
                format!("its label `{label}` says that somebody works in it"),
            );
        }
        let is_exempt =
            config.operator_ignores_window && candidate.request.trigger == Trigger::Operator;
        match config.window() {
            _ if is_exempt => choice,
            Ok(window) if window.is_open(candidate.now) => choice,
            Ok(window) => left(
                rules::OUTSIDE_WINDOW,
                format!("it may be recreated only from {window}"),
            ),
            // `check` lets no such configuration pass. If one did, nobody would be disturbed.
            Err(_) => left(
                rules::OUTSIDE_WINDOW,
                "its window cannot be read".to_owned(),
            ),
        }
    }

    fn refresh(
        config: &Config,
        request: &Request,
        context: &mut Context<'_>,
    ) -> Result<Report, Failure> {
        let mut survey = survey::<Self>(config, request, context)?;
        let now = context.host.now();
        let cooldown_seconds = config.cooldown_hours * 60 * 60;
        let before = context.host.state_get(cooldown::KEY).unwrap_or_default();
        let mut cooldown = Cooldown::parse(&before, now, cooldown_seconds);
        if request.targets.is_empty() && request.images.is_empty() {
            // Only a refresh of everything sees who is gone.
            cooldown.retain(|name| is_seen(&survey, name));
        }
        if !request.force {
            spare_who_cools_down(&mut survey, &cooldown, now, cooldown_seconds);
        }
        let wave = match config.wave {
            0 => usize::MAX,
            wave => wave,
        };
        let rollout = Rollout::in_waves_of(wave).with_canaries(config.canaries);
        for outcome in survey.roll_out(context.docker, &rollout) {
            if was_stopped(&outcome) {
                cooldown.note(&outcome.container, now);
            }
        }
        let after = match config.cooldown_hours {
            0 => String::new(),
            _ => cooldown.text(),
        };
        if after != before {
            let value = Some(after.as_str()).filter(|text| !text.is_empty());
            if let Err(error) = context.host.state_set(cooldown::KEY, value) {
                context.host.log(
                    Level::Error,
                    &format!("containers may be recreated again too early, since it could not be noted when they were: {error:?}"),
                );
            }
        }
        Ok(survey.into_report())
    }
}

fn is_busy(config: &Config, container: &ContainerInfo) -> bool {
    container
        .label(&config.busy_label)
        .is_some_and(|value| !matches!(value, "" | "0" | "no" | "false"))
}

fn is_seen(survey: &Survey, name: &str) -> bool {
    let is_settled = survey.settled.iter().any(|d| d.container == name);
    is_settled || survey.due.iter().any(|due| due.info.name == name)
}

fn spare_who_cools_down(survey: &mut Survey, cooldown: &Cooldown, now: u64, seconds: u64) {
    for due in std::mem::take(&mut survey.due) {
        match cooldown.seconds_left(&due.info.name, now, seconds) {
            None => survey.due.push(due),
            Some(left) => {
                let reason = format!(
                    "it was recreated not long ago, and has to be left alone for another {} min",
                    left.div_ceil(60)
                );
                survey.settle(
                    due.container.name(),
                    Choice::stale(rules::COOLING_DOWN, reason),
                );
            }
        }
    }
}

/// Also one that has its old container back was down for a moment.
fn was_stopped(outcome: &Outcome) -> bool {
    matches!(
        outcome.result,
        Ok(_) | Err(RecreateError::RolledBack(_) | RecreateError::Stranded(_))
    )
}
