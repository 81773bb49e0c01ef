//! Converts bollard's errors: with the engine's message if it responded, and with the system's if it did not.

use bollard::errors::Error;
use refit_model::image::{ImageRef, Platform};
use refit_model::secret::Login;

use super::super::{EngineError, PullError};
use super::ssh;
use crate::refusal::{self, Refusal, classify};

/// The system's code for a missing file, on Unix and Windows alike.
const ENOENT: i32 = 2;

/// Converts an error of a pull. `platform` is the requested platform.
pub(super) fn pull_error(
    image: &ImageRef,
    platform: Option<&Platform>,
    login: Option<&Login>,
    error: Error,
) -> PullError {
    match error {
        Error::DockerResponseServerError {
            status_code,
            message,
        } => refusal_error(image, platform, login, status_code, message),
        other => {
            let source = engine_error(format!("ask the engine for `{image}`"), other);
            PullError::Engine {
                image: image.clone(),
                source,
            }
        }
    }
}

pub(super) fn refusal_error(
    image: &ImageRef,
    platform: Option<&Platform>,
    login: Option<&Login>,
    status: u16,
    message: String,
) -> PullError {
    let (image, registry) = (image.clone(), image.registry().to_owned());
    let refusal = classify(Some(status), &message);
    if refusal == Refusal::Proxy {
        let error = Error::DockerResponseServerError {
            status_code: status,
            message,
        };
        let source = engine_error(format!("ask the engine for `{image}`"), error);
        return PullError::Engine { image, source };
    }
    let platform = platform.map(ToString::to_string);
    let platform = platform.or_else(|| refusal::platform_in(&message).map(str::to_owned));
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
        Refusal::NoPlatform => PullError::NoPlatform {
            image,
            platform,
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
        Refusal::Proxy | Refusal::Other => PullError::Other { image, source },
    }
}

pub(super) fn engine_error(action: String, error: Error) -> EngineError {
    match error {
        Error::DockerResponseServerError {
            status_code: status,
            message,
        } if refusal::proxy_message(status, &message).is_some() => {
            let proxy_message = refusal::proxy_message(status, &message).unwrap_or_default();
            let source = format!("a proxy before the engine answered: {proxy_message}").into();
            match status {
                // The proxy does not reach the engine, which may be back in a moment.
                502..=504 => EngineError::Broken { action, source },
                _ => EngineError::Refused {
                    action,
                    status,
                    source,
                },
            }
        }
        // The image exists, but not for this platform: nothing is missing that existed before.
        Error::DockerResponseServerError {
            status_code: status,
            message,
        } if refusal::is_about_platform(&message) => EngineError::Refused {
            action,
            status,
            source: message.into(),
        },
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
            source: unwrap_cause(error),
        },
        other => EngineError::Broken {
            action,
            source: unwrap_cause(other),
        },
    }
}

/// Unwraps I/O errors, which bollard passes on "transparently" and so hides from the chain of causes.
pub(super) fn unwrap_cause(error: Error) -> Box<dyn std::error::Error + Send + Sync> {
    match error {
        Error::IOError { err } => ssh::unwrap_ssh_error(err),
        Error::HyperLegacyError { err } => Box::new(err),
        Error::HyperResponseError { err } => Box::new(err),
        // bollard checks for the socket itself. Use the system's message: "No such file or directory".
        Error::SocketNotFoundError(_) => Box::new(std::io::Error::from_raw_os_error(ENOENT)),
        other => Box::new(other),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FORBIDDEN: &str = "<html><body><h1>403 Forbidden</h1>\nRequest forbidden by administrative rules.\n</body></html>\n";

    fn answer(status_code: u16, message: &str) -> Error {
        Error::DockerResponseServerError {
            status_code,
            message: message.to_owned(),
        }
    }

    fn pull(status: u16, message: &str) -> PullError {
        let image = "ghcr.io/acme/app:1".parse().unwrap();
        pull_error(&image, None, None, answer(status, message))
    }

    #[test]
    fn proxy_before_the_engine_is_not_the_registry() {
        let PullError::Engine { source, .. } = pull(403, FORBIDDEN) else {
            panic!("the registry has said nothing")
        };
        let EngineError::Refused {
            status: 403,
            source,
            ..
        } = source
        else {
            panic!("it is refused: {source:?}")
        };
        let expected = "a proxy before the engine answered: 403 Forbidden Request forbidden by administrative rules.";
        assert_eq!(source.to_string(), expected);
        let denied = pull(403, "denied: requested access to the resource is denied");
        assert!(
            matches!(denied, PullError::Unauthorized { .. }),
            "{denied:?}"
        );
    }

    #[test]
    fn page_of_a_proxy_says_nothing_of_containers() {
        let error = |status, message| engine_error("inspect".into(), answer(status, message));
        for status in [403, 404, 405] {
            let error = error(status, "<html><h1>No</h1></html>");
            assert!(matches!(error, EngineError::Refused { .. }), "{error:?}");
        }
        let down = error(503, "<html><h1>503 Service Unavailable</h1></html>");
        assert!(down.is_passing(), "{down:?}");
        assert!(error(404, "No such container: x").is_not_found());
    }

    #[test]
    fn missing_platform_is_not_a_missing_image() {
        let words = "no matching manifest for linux/arm64/v8 in the manifest list entries: no match for platform in manifest: not found";
        let error = pull(404, words);
        let expected = "image `ghcr.io/acme/app:1` has no version for platform `linux/arm64/v8`";
        assert_eq!(error.to_string(), expected);
        let bare = pull(404, "no match for platform in manifest: not found");
        let expected = "image `ghcr.io/acme/app:1` has no version for the engine's platform";
        assert_eq!(bare.to_string(), expected);
        let create = "image with reference x was found but does not match the specified platform: wanted linux/arm64, actual: linux/amd64";
        let error = engine_error("create container `x`".into(), answer(404, create));
        assert!(!error.is_not_found(), "{error:?}");
    }
}
