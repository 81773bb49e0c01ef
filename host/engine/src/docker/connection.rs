//! Connects to an engine: opens the connection, negotiates the API version, and explains failures.

use std::path::Path;
use std::time::Duration;

use bollard::Docker;
use bollard::errors::Error;

use super::super::address::{EngineAddress, Way};
use super::super::tls::{self, TlsError};
use super::super::{EngineError, EngineVersion};
use super::failure::unwrap_cause;
use super::{CallLimits, STOP_MARGIN, raw, ssh};

/// The oldest API version that Refit supports: Docker 20.10, which Debian 12 ships.
const API_MINIMUM: &str = "1.41";

/// How long the engine may take to report its version. A healthy one needs milliseconds; Podman once took four seconds.
const CONNECT_SECONDS_MAX: u64 = 15;

/// A client of an engine that has responded.
pub(super) struct Client {
    pub(super) docker: Docker,
    pub(super) version: EngineVersion,
}

impl Client {
    pub(super) fn is_podman(&self) -> bool {
        let product = self.version.product.as_deref();
        product.is_some_and(|product| product.contains("Podman"))
    }
}

/// Connects to the engine and reads its version. `limits` applies to later calls.
pub(super) async fn connect(
    address: &EngineAddress,
    limits: CallLimits,
) -> Result<Client, EngineError> {
    let unreachable = |source: Error| EngineError::Unreachable {
        address: address.url.clone(),
        source: explain_failure(address, source),
    };
    if let Way::Tls(files) = &address.way {
        files.check().map_err(|error| EngineError::Unreachable {
            address: address.url.clone(),
            source: Box::new(error),
        })?;
    }
    let docker = open(address, limits).map_err(unreachable)?;
    let seconds = match &address.way {
        // The login takes time before the engine does.
        Way::Ssh(_) => ssh::CONNECT_SECONDS_MAX + CONNECT_SECONDS_MAX,
        Way::Local | Way::Plain | Way::Tls(_) => CONNECT_SECONDS_MAX,
    };
    let answer = tokio::time::timeout(Duration::from_secs(seconds), docker.version()).await;
    let reported = match answer {
        Ok(answer) => answer.map_err(unreachable)?,
        Err(_) => {
            let source = format!("no answer within {seconds} s").into();
            return Err(EngineError::Unreachable {
                address: address.url.clone(),
                source,
            });
        }
    };
    let newest = docker.client_version().to_string();
    let offered = reported.api_version.unwrap_or_default();
    if parse_version(&offered) < parse_version(API_MINIMUM) {
        return Err(EngineError::TooOld {
            address: address.url.clone(),
            version: offered,
            minimum: API_MINIMUM,
        });
    }
    let version = if parse_version(&offered) < parse_version(&newest) {
        offered
    } else {
        newest
    };
    let component = reported
        .components
        .as_ref()
        .and_then(|components| components.first())
        .map(|component| component.name.clone());
    let prefix = version.clone();
    Ok(Client {
        docker: docker.with_request_modifier(move |request| raw::add_version(request, &prefix)),
        version: EngineVersion {
            engine: reported.version.unwrap_or_default(),
            api: version,
            platform: format!(
                "{}/{}",
                reported.os.unwrap_or_default(),
                reported.arch.unwrap_or_default()
            ),
            product: component,
        },
    })
}

fn open(address: &EngineAddress, limits: CallLimits) -> Result<Docker, Error> {
    let url = address.url.as_str();
    // bollard's own limit is for the first byte of a response; Refit's limits are per call and tighter, so bollard's must not
    // fire first.
    let seconds = limits.pull.as_secs().max(limits.call.as_secs()) + STOP_MARGIN.as_secs();
    let version = bollard::API_DEFAULT_VERSION;
    match &address.way {
        Way::Local => Docker::connect_with_socket(url, seconds, version),
        Way::Plain => Docker::connect_with_http(url, seconds, version),
        Way::Tls(tls) => {
            // Without a certificate, bollard sends none.
            let none = Path::new("");
            let client = tls.client.as_ref();
            let (key, cert) =
                client.map_or((none, none), |it| (it.key.as_path(), it.cert.as_path()));
            Docker::connect_with_ssl(url, key, cert, &tls.ca, seconds, version)
        }
        Way::Ssh(destination) => ssh::open(destination.clone(), seconds, version),
    }
}

/// Explains why the first call failed.
fn explain_failure(
    address: &EngineAddress,
    error: Error,
) -> Box<dyn std::error::Error + Send + Sync> {
    match (&address.way, error) {
        (
            Way::Plain,
            Error::DockerResponseServerError {
                status_code: 400,
                message,
            },
        ) if tls::is_spoken_only(&message) => Box::new(TlsError::Only),
        (Way::Tls(files), error) => {
            let error = unwrap_cause(error);
            match files.explain(error.as_ref(), &address.url) {
                Some(explained) => Box::new(explained),
                None => error,
            }
        }
        (_, error) => unwrap_cause(error),
    }
}

/// Parses `1.41` into a pair of numbers, so that 1.9 is older than 1.41.
fn parse_version(version: &str) -> (u32, u32) {
    let (major, minor) = version.split_once('.').unwrap_or((version, "0"));
    (
        major.parse().unwrap_or_default(),
        minor.parse().unwrap_or_default(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_compare_as_numbers() {
        assert!(parse_version("1.9") < parse_version("1.41"));
        assert!(parse_version("1.53") > parse_version("1.41"));
        assert!(parse_version("nonsense") < parse_version("1.41"));
    }
}
