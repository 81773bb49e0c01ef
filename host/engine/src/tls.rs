//! TLS to an engine: the files that it takes, and what can be wrong with them or with what answers.
//!
//! Read before anything is contacted, since a client that finds no key connects without one, and the engine then hangs up
//! without a word. Knows no engine client.

use std::error::Error;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use refit_model::diagnostic::Hints;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use rustls::{AlertDescription, CertificateError};

/// The authority that the engine's certificate must come from, and who we are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsFiles {
    pub ca: PathBuf,
    /// A context of the Docker CLI may do without.
    pub client: Option<ClientFiles>,
}

/// A client certificate and its key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientFiles {
    pub cert: PathBuf,
    pub key: PathBuf,
}

/// Why there is no TLS to an engine.
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

    /// Of a context, which has a client certificate or none.
    pub fn of_context(folder: &Path) -> Self {
        let files = Self::in_folder(folder);
        let client = files
            .client
            .filter(|client| client.cert.exists() || client.key.exists());
        Self {
            ca: files.ca,
            client,
        }
    }

    /// All that can be known before the engine is asked.
    pub fn check(&self) -> Result<(), TlsError> {
        certificates("the authority's certificate", &self.ca)?;
        let Some(client) = &self.client else {
            return Ok(());
        };
        let chain = certificates("the client certificate", &client.cert)?;
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
            // What cannot be compared, the engine finds out.
            Ok(()) | Err(_) => Ok(()),
        }
    }

    /// What an error of a connection means, if it is about TLS.
    pub fn explain(&self, error: &(dyn Error + 'static), url: &str) -> Option<TlsError> {
        let source = within(error)?;
        let (ca, client) = (self.ca.clone(), self.client.as_ref());
        Some(match &source {
            rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer) => {
                TlsError::Authority { ca, source }
            }
            // An authority of the same name and another key.
            rustls::Error::InvalidCertificate(CertificateError::BadSignature) => {
                TlsError::Authority { ca, source }
            }
            rustls::Error::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            ) => {
                let host = host(url).to_owned();
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

/// What Go's servers answer to whoever speaks HTTP to a port of TLS.
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

fn certificates(what: &'static str, path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
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

/// An I/O error keeps what it wraps from whoever walks the chain of causes.
fn within(error: &(dyn Error + 'static)) -> Option<rustls::Error> {
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
        if let Some(found) = inner.and_then(|inner| within(inner)) {
            return Some(found);
        }
        next = error.source();
    }
    None
}

fn host(url: &str) -> &str {
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
    fn the_host_is_what_stands_before_the_port() {
        for (url, expected) in [
            ("tcp://engine.example:2376", "engine.example"),
            ("https://10.0.0.1:2376/", "10.0.0.1"),
            ("tcp://[::1]:2376", "::1"),
            ("tcp://engine", "engine"),
        ] {
            assert_eq!(host(url), expected, "{url}");
        }
    }

    #[test]
    fn what_is_deep_within_an_error_of_io_is_found() {
        let io = |inner: rustls::Error| {
            std::io::Error::other(std::io::Error::new(std::io::ErrorKind::InvalidData, inner))
        };
        let files = TlsFiles::in_folder(Path::new("/certs"));
        let explain = |error| files.explain(&io(error), "tcp://engine.example:2376");
        let unknown = rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer);
        let told = explain(unknown).unwrap();
        assert_eq!(
            told.to_string(),
            "its certificate is not from the authority in `/certs/ca.pem`"
        );
        let other = rustls::Error::InvalidCertificate(CertificateError::NotValidForName);
        let told = explain(other).unwrap();
        assert_eq!(
            told.to_string(),
            "its certificate is not for `engine.example`"
        );
        let alert = || rustls::Error::AlertReceived(AlertDescription::UnknownCA);
        assert!(matches!(explain(alert()), Some(TlsError::Refused { .. })));
        let without = TlsFiles {
            client: None,
            ..files.clone()
        };
        let told = without.explain(&io(alert()), "tcp://engine:1");
        assert!(matches!(told, Some(TlsError::Wanted { .. })));
        assert!(explain(rustls::Error::EncryptError).is_none());
        assert!(
            files
                .explain(&std::io::Error::other("x"), "tcp://a:1")
                .is_none()
        );
    }

    #[test]
    fn files_that_are_of_no_use_are_told_apart() {
        let folder = std::env::temp_dir().join(format!("refit-tls-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let files = TlsFiles::in_folder(&folder);
        let told = files.check().unwrap_err();
        assert!(matches!(told, TlsError::Unreadable { .. }), "{told}");
        std::fs::write(folder.join("ca.pem"), "no certificate").unwrap();
        let told = files.check().unwrap_err().to_string();
        assert!(told.starts_with("there is no certificate in"), "{told}");
        // A context without a client's certificate, and half of one.
        assert_eq!(TlsFiles::of_context(&folder).client, None);
        std::fs::write(folder.join("key.pem"), "").unwrap();
        assert!(TlsFiles::of_context(&folder).client.is_some());
        std::fs::remove_dir_all(folder).unwrap();
    }
}
