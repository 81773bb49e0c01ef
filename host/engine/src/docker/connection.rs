//! The first words with an engine: how its address is reached, which version is spoken, and what is in the way.

use std::path::Path;
use std::time::Duration;

use bollard::Docker;
use bollard::errors::Error;

use super::super::address::{EngineAddress, Way};
use super::super::tls::{self, TlsError};
use super::super::{EngineError, EngineVersion};
use super::failure::plain;
use super::{CallLimits, STOP_MARGIN, raw, ssh};

/// The oldest interface we speak: Docker 20.10, which Debian 12 ships.
const API_MINIMUM: &str = "1.41";

/// How long the engine may take to say who it is. A healthy one needs milliseconds; Podman was seen to need four seconds.
const CONNECT_SECONDS_MAX: u64 = 15;

/// An engine that has answered.
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

/// Ask the engine who it is. `limits` is for the calls that follow.
pub(super) async fn connect(
    address: &EngineAddress,
    limits: CallLimits,
) -> Result<Client, EngineError> {
    let unreachable = |source: Error| EngineError::Unreachable {
        address: address.url.clone(),
        source: in_the_way(address, source),
    };
    if let Way::Tls(files) = &address.way {
        files.check().map_err(|error| EngineError::Unreachable {
            address: address.url.clone(),
            source: Box::new(error),
        })?;
    }
    let docker = open(address, limits).map_err(unreachable)?;
    let seconds = match &address.way {
        // A log-in comes before the engine's own time.
        Way::Ssh(_) => ssh::CONNECT_SECONDS_MAX + CONNECT_SECONDS_MAX,
        Way::Local | Way::Plain | Way::Tls(_) => CONNECT_SECONDS_MAX,
    };
    let answer = tokio::time::timeout(Duration::from_secs(seconds), docker.version()).await;
    let said = match answer {
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
    let offered = said.api_version.unwrap_or_default();
    if api(&offered) < api(API_MINIMUM) {
        return Err(EngineError::TooOld {
            address: address.url.clone(),
            version: offered,
            minimum: API_MINIMUM,
        });
    }
    let version = if api(&offered) < api(&newest) {
        offered
    } else {
        newest
    };
    let component = said
        .components
        .as_ref()
        .and_then(|components| components.first())
        .map(|component| component.name.clone());
    let prefix = version.clone();
    Ok(Client {
        docker: docker.with_request_modifier(move |request| raw::versioned(request, &prefix)),
        version: EngineVersion {
            engine: said.version.unwrap_or_default(),
            api: version,
            platform: format!(
                "{}/{}",
                said.os.unwrap_or_default(),
                said.arch.unwrap_or_default()
            ),
            product: component,
        },
    })
}

fn open(address: &EngineAddress, limits: CallLimits) -> Result<Docker, Error> {
    let url = address.url.as_str();
    // bollard's own limit is for the first byte of an answer; ours are per call and tighter, so its must not fire first.
    let seconds = limits.pull.as_secs().max(limits.call.as_secs()) + STOP_MARGIN.as_secs();
    let version = bollard::API_DEFAULT_VERSION;
    match &address.way {
        Way::Local => Docker::connect_with_socket(url, seconds, version),
        Way::Plain => Docker::connect_with_http(url, seconds, version),
        Way::Tls(tls) => {
            // Where there is none it sends none.
            let none = Path::new("");
            let client = tls.client.as_ref();
            let (key, cert) =
                client.map_or((none, none), |it| (it.key.as_path(), it.cert.as_path()));
            Docker::connect_with_ssl(url, key, cert, &tls.ca, seconds, version)
        }
        Way::Ssh(destination) => ssh::open(destination.clone(), seconds, version),
    }
}

/// Why the first call came to nothing.
fn in_the_way(address: &EngineAddress, error: Error) -> Box<dyn std::error::Error + Send + Sync> {
    match (&address.way, error) {
        (
            Way::Plain,
            Error::DockerResponseServerError {
                status_code: 400,
                message,
            },
        ) if tls::is_spoken_only(&message) => Box::new(TlsError::Only),
        (Way::Tls(files), error) => {
            let error = plain(error);
            match files.explain(error.as_ref(), &address.url) {
                Some(explained) => Box::new(explained),
                None => error,
            }
        }
        (_, error) => plain(error),
    }
}

/// `1.41` as a pair of numbers, so that 1.9 is older than 1.41.
fn api(version: &str) -> (u32, u32) {
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
        assert!(api("1.9") < api("1.41"));
        assert!(api("1.53") > api("1.41"));
        assert!(api("nonsense") < api("1.41"));
    }
}
