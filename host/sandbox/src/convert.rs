//! Converts between WIT's records and our types. Only this module does that.

use refit_capabilities::{CallError, Recreated};
use refit_engine::{EngineError, PullError};
use refit_model::container::{Container, Health, State};
use refit_model::diagnostic::Diagnostic;
use refit_model::grants::Grants;
use refit_model::image::ImageRefError;
use refit_model::recreation::{Step, Strategy};
use refit_model::request::{Request, Trigger};
use refit_recreate::{RecreateError, StepError};

use super::bindings::exports::refit::policy::policy as wit;
use super::bindings::refit::policy::{docker, host, types};
use super::state::StateError;

/// The label that holds the project of Docker Compose.
const LABEL_COMPOSE_PROJECT: &str = "com.docker.compose.project";

pub(super) fn request(request: &Request) -> wit::Request {
    wit::Request {
        trigger: match request.trigger {
            Trigger::Operator => wit::Trigger::Operator,
            Trigger::Api => wit::Trigger::Api,
            Trigger::Schedule => wit::Trigger::Schedule,
            Trigger::Webhook => wit::Trigger::Webhook,
        },
        targets: request.targets.clone(),
        images: request.images.clone(),
        recreate: request.recreate,
        force: request.force,
    }
}

pub(super) fn strategy(strategy: docker::Strategy) -> Strategy {
    match strategy {
        docker::Strategy::Replace => Strategy::Replace,
        docker::Strategy::Remove => Strategy::Remove,
        docker::Strategy::Overlap => Strategy::Overlap,
    }
}

pub(super) fn container_info(container: &Container, grants: &Grants) -> types::ContainerInfo {
    let mut environment: Vec<(String, String)> = container
        .environment()
        .filter(|(name, _)| grants.may_read_variable(name))
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect();
    environment.sort();
    types::ContainerInfo {
        id: container.id.as_str().to_owned(),
        name: container.name.clone(),
        image: container.image().to_owned(),
        image_id: container.image_id.as_str().to_owned(),
        platform: container.platform.clone(),
        state: match container.state {
            State::Created => types::ContainerState::Created,
            State::Running => types::ContainerState::Running,
            State::Paused => types::ContainerState::Paused,
            State::Restarting => types::ContainerState::Restarting,
            State::Removing => types::ContainerState::Removing,
            State::Exited => types::ContainerState::Exited,
            State::Dead => types::ContainerState::Dead,
        },
        health: match container.health {
            Health::None => types::Health::None,
            Health::Starting => types::Health::Starting,
            Health::Healthy => types::Health::Healthy,
            Health::Unhealthy => types::Health::Unhealthy,
        },
        created: u64::try_from(container.created.as_second()).unwrap_or_default(),
        started: container
            .started
            .and_then(|started| u64::try_from(started.as_second()).ok()),
        labels: container.labels().into_iter().collect(),
        environment,
        networks: container.endpoints.keys().cloned().collect(),
        published_ports: container
            .published_ports
            .iter()
            .map(|port| types::PublishedPort {
                container_port: port.container_port,
                protocol: match port.protocol.as_str() {
                    "udp" => types::Transport::Udp,
                    "sctp" => types::Transport::Sctp,
                    _ => types::Transport::Tcp,
                },
                host_address: port.host_address.clone(),
                host_port: port.host_port,
            })
            .collect(),
        restart_policy: match container.restart_policy() {
            "always" => types::RestartPolicy::Always,
            "unless-stopped" => types::RestartPolicy::UnlessStopped,
            "on-failure" => types::RestartPolicy::OnFailure,
            _ => types::RestartPolicy::No,
        },
        compose_project: container.label(LABEL_COMPOSE_PROJECT).map(str::to_owned),
    }
}

pub(super) fn engine_error(error: CallError<EngineError>) -> types::EngineError {
    use types::EngineError as E;
    error.map_or_else(E::Denied, E::QuotaExceeded, E::Cancelled, |error| {
        let text = Diagnostic::of(&error).sentence();
        if error.is_not_found() {
            E::NotFound
        } else if error.is_passing() {
            E::Unavailable(text)
        } else {
            E::Other(text)
        }
    })
}

pub(super) fn invalid_reference(error: ImageRefError) -> types::PullError {
    let cause = std::error::Error::source(&error)
        .map(ToString::to_string)
        .unwrap_or_default();
    types::PullError::InvalidReference(format!("{error}: {cause}"))
}

pub(super) fn pull_error(error: CallError<PullError>) -> types::PullError {
    use types::PullError as E;
    error.map_or_else(E::Denied, E::QuotaExceeded, E::Cancelled, |error| {
        let message = Diagnostic::of(&error).sentence();
        match error {
            PullError::NotFound { .. } => E::NotFound,
            PullError::Unauthorized {
                credentials_sent, ..
            } => E::Unauthorized(types::Refusal {
                credentials_sent,
                message,
            }),
            PullError::Credentials { .. } => E::Unauthorized(types::Refusal {
                credentials_sent: false,
                message,
            }),
            PullError::RateLimited { retry_after, .. } => E::RateLimited(
                retry_after.map(|after| u32::try_from(after.as_secs()).unwrap_or(u32::MAX)),
            ),
            PullError::NoSpace { .. } => E::NoSpace(message),
            PullError::RegistryUnavailable { .. }
            | PullError::TimedOut { .. }
            | PullError::Incomplete { .. } => E::Unavailable(message),
            PullError::Engine { source, .. } if source.is_passing() => E::Unavailable(message),
            PullError::NoPlatform { .. } | PullError::Engine { .. } | PullError::Other { .. } => {
                E::Other(message)
            }
        }
    })
}

pub(super) fn recreated(recreated: Recreated) -> types::Recreated {
    types::Recreated {
        id: recreated.id.map(|id| id.as_str().to_owned()),
        image_id: recreated.image_id.as_str().to_owned(),
        gap_ms: recreated
            .gap
            .map(|gap| u32::try_from(gap.as_millis()).unwrap_or(u32::MAX)),
    }
}

pub(super) fn recreate_error(error: CallError<RecreateError>) -> types::RecreateError {
    use types::RecreateError as E;
    error.map_or_else(
        E::Denied,
        E::QuotaExceeded,
        E::Cancelled,
        |error| match error {
            RecreateError::Current { .. } => E::Current,
            RecreateError::Gone { .. } => E::Gone,
            RecreateError::ReplacedByOther {
                id,
                image_id,
                current,
                ..
            } => E::ReplacedByOther(types::Successor {
                id: id.as_str().to_owned(),
                image_id: image_id.as_str().to_owned(),
                current,
            }),
            RecreateError::Busy { .. } => E::Busy,
            RecreateError::Withdrawn { .. } => E::Cancelled,
            RecreateError::Unsupported { reason, .. } => E::Unsupported(reason),
            RecreateError::Aborted { step, source, .. } => E::Aborted(failed_step(step, &source)),
            RecreateError::RolledBack { step, source, .. } => {
                E::RolledBack(failed_step(step, &source))
            }
            RecreateError::Stranded { step, source, .. } => E::Stranded(failed_step(step, &source)),
            error @ RecreateError::StillStopping { .. } => E::Stranded(types::FailedStep {
                step: Step::Stop.to_string(),
                cause: error.to_string(),
            }),
        },
    )
}

fn failed_step(step: Step, source: &StepError) -> types::FailedStep {
    let mut cause = source.to_string();
    for below in refit_model::diagnostic::causes(source) {
        cause.push_str(": ");
        cause.push_str(&below);
    }
    types::FailedStep {
        step: step.to_string(),
        cause,
    }
}

pub(super) fn state_error(error: StateError) -> host::StateError {
    match error {
        StateError::TooLarge(limit) => host::StateError::TooLarge(limit),
        StateError::Unavailable(message) => host::StateError::Unavailable(message),
    }
}
