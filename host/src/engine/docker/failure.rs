//! What bollard's errors mean: in the engine's words where it answered, and in the system's where it did not.

use bollard::errors::Error;

use super::super::{EngineError, PullError};
use super::ssh;
use crate::image::ImageRef;
use crate::registry::refusal::{Refusal, classify};
use crate::secret::Login;

/// What the system calls a file that is not there, on Unix and Windows alike.
const ENOENT: i32 = 2;

pub(super) fn pull_error(image: &ImageRef, login: Option<&Login>, error: Error) -> PullError {
    match error {
        Error::DockerResponseServerError {
            status_code,
            message,
        } => refused(image, login, Some(status_code), message),
        other => {
            let source = engine_error(format!("ask the engine for `{image}`"), other);
            PullError::Engine {
                image: image.clone(),
                source,
            }
        }
    }
}

pub(super) fn refused(
    image: &ImageRef,
    login: Option<&Login>,
    status: Option<u16>,
    message: String,
) -> PullError {
    let (image, registry) = (image.clone(), image.registry().to_owned());
    let refusal = classify(status, &message);
    let source = message.into();
    match refusal {
        Refusal::Unauthorized => PullError::Unauthorized {
            registry,
            image,
            credentials_sent: login.is_some(),
            source,
        },
        Refusal::NotFound => PullError::NotFound {
            registry,
            image,
            source,
        },
        Refusal::RateLimited => PullError::RateLimited {
            registry,
            image,
            retry_after: None,
            source,
        },
        Refusal::NoSpace => PullError::NoSpace { image, source },
        Refusal::Unavailable => PullError::RegistryUnavailable {
            registry,
            image,
            source,
        },
        Refusal::Other => PullError::Other { image, source },
    }
}

pub(super) fn engine_error(action: String, error: Error) -> EngineError {
    match error {
        Error::DockerResponseServerError {
            status_code: 404,
            message,
        } => EngineError::NotFound {
            action,
            source: message.into(),
        },
        Error::DockerResponseServerError {
            status_code: 409,
            message,
        } => EngineError::Conflict {
            action,
            source: message.into(),
        },
        Error::DockerResponseServerError {
            status_code,
            message,
        } => EngineError::Refused {
            action,
            status: status_code,
            source: message.into(),
        },
        error @ (Error::JsonDataError { .. }
        | Error::JsonSerdeError { .. }
        | Error::StrParseError { .. }) => EngineError::Nonsense {
            action,
            source: plain(error),
        },
        other => EngineError::Broken {
            action,
            source: plain(other),
        },
    }
}

/// bollard hands I/O errors through "transparently", which hides them from whoever walks the chain of causes.
pub(super) fn plain(error: Error) -> Box<dyn std::error::Error + Send + Sync> {
    match error {
        Error::IOError { err } => ssh::unwrap(err),
        Error::HyperLegacyError { err } => Box::new(err),
        Error::HyperResponseError { err } => Box::new(err),
        // bollard looks for itself. Said as the system would: "No such file or directory".
        Error::SocketNotFoundError(_) => Box::new(std::io::Error::from_raw_os_error(ENOENT)),
        other => Box::new(other),
    }
}
