//! TLS to an engine: its files, and the errors of these files and of the peer.
//!
//! Refit reads the files before it connects, since a client without a key connects without one, and the engine then closes the
//! connection without a message. This module knows no engine client.

use std::error::Error;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use refit_model::diagnostic::Hints;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use rustls::{AlertDescription, CertificateError};

/// The certificate authority of the engine's certificate, and the client's identity.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsFiles {
    pub ca: PathBuf,
    /// A context of the Docker CLI may have none.
    pub client: Option<ClientFiles>,
}

/// A client certificate and its key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientFiles {
    pub cert: PathBuf,
    pub key: PathBuf,
}

/// Why TLS to an engine failed.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error("cannot read {what} `{}`", .path.display())]
    Unreadable {
        what: &'static str,
        path: PathBuf,
        source: std::io::Error,
    },
    #[error("there is no {what} in `{}`", .path.display())]
    Nothing { what: &'static str, path: PathBuf },
    #[error("the key in `{}` is not that of the certificate in `{}`", .0.key.display(), .0.cert.display())]
    Mismatch(ClientFiles),
    #[error("its certificate is not from the authority in `{}`", .ca.display())]
    Authority { ca: PathBuf, source: rustls::Error },
    #[error("its certificate is not for `{host}`")]
    Name { host: String, source: rustls::Error },
    #[error("its certificate cannot be trusted")]
    Certificate { source: rustls::Error },
    #[error("it refused the certificate in `{}`", .cert.display())]
    Refused {
        cert: PathBuf,
        source: rustls::Error,
    },
    #[error("it wants a client certificate, and there is none")]
    Wanted { source: rustls::Error },
    #[error("what answers there does not speak TLS")]
    NotSpoken { source: rustls::Error },
    #[error("it speaks TLS only")]
    Only,
}

impl Hints for TlsError {
    fn hints(&self) -> Vec<String> {
        match self {
            Self::Unreadable { .. } | Self::Nothing { .. } | Self::Mismatch(_) => vec![
                "`ca.pem`, `cert.pem` and `key.pem` are looked for in `DOCKER_CERT_PATH`, in the Docker CLI's folder, or in that of its context".into(),
            ],
            Self::Authority { ca, .. } => vec![format!(
                "`{}` must hold the certificate of the authority that signed the engine's (`--tlscacert`, or `--tlscert` where it signed itself)",
                ca.display()
            )],
            Self::Name { .. } => vec![
                "call the engine by a name that its certificate has, or give it one that has this name".into(),
            ],
            Self::Certificate { .. } => vec![
                "the clocks of both machines must be right, and the certificate in its time".into(),
            ],
            Self::Refused { .. } | Self::Wanted { .. } => vec![
                "the engine takes certificates for clients from its own authority, `--tlscacert`".into(),
            ],
            Self::NotSpoken { .. } => vec![
                "unset `DOCKER_TLS_VERIFY` and `DOCKER_CERT_PATH` where the way to it is safe, or start it with `--tlsverify`".into(),
            ],
            Self::Only => vec![
                "set `DOCKER_TLS_VERIFY=1`, and `DOCKER_CERT_PATH` to the folder with `ca.pem`, `cert.pem` and `key.pem`".into(),
            ],
        }
    }
}

impl TlsFiles {
    pub fn in_folder(folder: &Path) -> Self {
        Self {
            ca: folder.join("ca.pem"),
            client: Some(ClientFiles {
                cert: folder.join("cert.pem"),
                key: folder.join("key.pem"),
            }),
        }
    }

    /// Returns the files of a context, which may have a client certificate.
    pub fn from_context(folder: &Path) -> Self {
        let files = Self::in_folder(folder);
        let client = files
            .client
            .filter(|client| client.cert.exists() || client.key.exists());
        Self {
            ca: files.ca,
            client,
        }
    }

    /// Checks everything that can be checked before the connection.
    pub fn check(&self) -> Result<(), TlsError> {
        read_certificates("the authority's certificate", &self.ca)?;
        let Some(client) = &self.client else {
            return Ok(());
        };
        let chain = read_certificates("the client certificate", &client.cert)?;
        let text = read("the client's key", &client.key)?;
        let nothing = || TlsError::Nothing {
            what: "key that could be read without a passphrase",
            path: client.key.clone(),
        };
        let key = PrivateKeyDer::from_pem_slice(&text).map_err(|_| nothing())?;
        let key = rustls::crypto::ring::sign::any_supported_type(&key).map_err(|_| nothing())?;
        match CertifiedKey::new(chain, key).keys_match() {
            Err(rustls::Error::InconsistentKeys(rustls::InconsistentKeys::KeyMismatch)) => {
                Err(TlsError::Mismatch(client.clone()))
            }
            // If the keys cannot be compared, the engine finds a mismatch.
            Ok(()) | Err(_) => Ok(()),
        }
    }

    /// Explains a connection error, if it is about TLS.
    pub fn explain(&self, error: &(dyn Error + 'static), url: &str) -> Option<TlsError> {
        let source = find_tls_error(error)?;
        let (ca, client) = (self.ca.clone(), self.client.as_ref());
        Some(match &source {
            rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer) => {
                TlsError::Authority { ca, source }
            }
            // An authority with the same name and another key.
            rustls::Error::InvalidCertificate(CertificateError::BadSignature) => {
                TlsError::Authority { ca, source }
            }
            rustls::Error::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            ) => {
                let host = parse_host(url).to_owned();
                TlsError::Name { host, source }
            }
            rustls::Error::InvalidCertificate(_) => TlsError::Certificate { source },
            rustls::Error::AlertReceived(
                AlertDescription::BadCertificate
                | AlertDescription::CertificateRequired
                | AlertDescription::CertificateUnknown
                | AlertDescription::CertificateExpired
                | AlertDescription::CertificateRevoked
                | AlertDescription::UnsupportedCertificate
                | AlertDescription::UnknownCA
                | AlertDescription::AccessDenied,
            ) => match client {
                Some(client) => TlsError::Refused {
                    cert: client.cert.clone(),
                    source,
                },
                None => TlsError::Wanted { source },
            },
            rustls::Error::InvalidMessage(_) => TlsError::NotSpoken { source },
            _ => return None,
        })
    }
}

/// Recognizes the response of Go's servers to plain HTTP on a TLS port.
pub fn is_spoken_only(answer: &str) -> bool {
    answer.contains("HTTP request to an HTTPS server")
}

fn read(what: &'static str, path: &Path) -> Result<Vec<u8>, TlsError> {
    std::fs::read(path).map_err(|source| TlsError::Unreadable {
        what,
        path: path.to_owned(),
        source,
    })
}

fn read_certificates(
    what: &'static str,
    path: &Path,
) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let text = read(what, path)?;
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&text).collect();
    match found {
        Ok(found) if !found.is_empty() => Ok(found),
        Ok(_) | Err(_) => Err(TlsError::Nothing {
            what: "certificate",
            path: path.to_owned(),
        }),
    }
}

/// Finds the TLS error in a chain of causes. An I/O error does not show its inner error in that chain.
fn find_tls_error(error: &(dyn Error + 'static)) -> Option<rustls::Error> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref::<rustls::Error>() {
            return Some(found.clone());
        }
        if let Some(shared) = error.downcast_ref::<Arc<rustls::Error>>() {
            return Some(rustls::Error::clone(shared));
        }
        let inner = error
            .downcast_ref::<std::io::Error>()
            .and_then(std::io::Error::get_ref);
        if let Some(found) = inner.and_then(|inner| find_tls_error(inner)) {
            return Some(found);
        }
        next = error.source();
    }
    None
}

fn parse_host(url: &str) -> &str {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    let rest = rest.split('/').next().unwrap_or(rest);
    match rest.strip_prefix('[') {
        Some(v6) => v6.split(']').next().unwrap_or(v6),
        None => rest.rsplit_once(':').map_or(rest, |(host, _)| host),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_ends_before_the_port() {
        for (url, expected) in [
            ("tcp://engine.example:2376", "engine.example"),
            ("https://10.0.0.1:2376/", "10.0.0.1"),
            ("tcp://[::1]:2376", "::1"),
            ("tcp://engine", "engine"),
        ] {
            assert_eq!(parse_host(url), expected, "{url}");
        }
    }

    #[test]
    fn tls_error_within_io_error_is_found() {
        let io = |inner: rustls::Error| {
            std::io::Error::other(std::io::Error::new(std::io::ErrorKind::InvalidData, inner))
        };
        let files = TlsFiles::in_folder(Path::new("/certs"));
        let explain = |error| files.explain(&io(error), "tcp://engine.example:2376");
        let unknown = rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer);
        let error = explain(unknown).unwrap();
        assert_eq!(
            error.to_string(),
            "its certificate is not from the authority in `/certs/ca.pem`"
        );
        let other = rustls::Error::InvalidCertificate(CertificateError::NotValidForName);
        let error = explain(other).unwrap();
        assert_eq!(
            error.to_string(),
            "its certificate is not for `engine.example`"
        );
        let alert = || rustls::Error::AlertReceived(AlertDescription::UnknownCA);
        assert!(matches!(explain(alert()), Some(TlsError::Refused { .. })));
        let without = TlsFiles {
            client: None,
            ..files.clone()
        };
        let error = without.explain(&io(alert()), "tcp://engine:1");
        assert!(matches!(error, Some(TlsError::Wanted { .. })));
        assert!(explain(rustls::Error::EncryptError).is_none());
        assert!(
            files
                .explain(&std::io::Error::other("x"), "tcp://a:1")
                .is_none()
        );
    }

    #[test]
    fn unusable_files_are_distinguished() {
        let folder = std::env::temp_dir().join(format!("refit-tls-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let files = TlsFiles::in_folder(&folder);
        let error = files.check().unwrap_err();
        assert!(matches!(error, TlsError::Unreadable { .. }), "{error}");
        std::fs::write(folder.join("ca.pem"), "no certificate").unwrap();
        let error = files.check().unwrap_err().to_string();
        assert!(error.starts_with("there is no certificate in"), "{error}");
        // A context without a client certificate, and one with only half of it.
        assert_eq!(TlsFiles::from_context(&folder).client, None);
        std::fs::write(folder.join("key.pem"), "").unwrap();
        assert!(TlsFiles::from_context(&folder).client.is_some());
        std::fs::remove_dir_all(folder).unwrap();
    }
}
