//! Converts the error of a digest request into the error of a pull: a plan queries registries itself and reports what a pull would
//! report.

use std::time::Duration;

use refit_engine::PullError;
use refit_registry::digests::{DigestError, Reason};

pub fn pull_error(error: DigestError) -> PullError {
    let DigestError {
        registry,
        image,
        reason,
    } = error;
    let source = Box::new(reason.clone());
    match reason {
        Reason::Unauthorized { credentials_sent } => PullError::Unauthorized {
            registry,
            image,
            credentials_sent,
            source,
        },
        Reason::NotFound => PullError::NotFound {
            registry,
            image,
            source,
        },
        Reason::RateLimited { until } | Reason::Budget { until } => PullError::RateLimited {
            registry,
            image,
            retry_after: Duration::try_from(until.duration_since(jiff::Timestamp::now())).ok(),
            source,
        },
        Reason::Unavailable { .. } => PullError::RegistryUnavailable {
            registry,
            image,
            source,
        },
        Reason::Nonsense { .. } | Reason::NotAManifest { .. } => PullError::Other { image, source },
        Reason::Credentials(_) => PullError::Credentials {
            registry,
            image,
            source,
        },
    }
}
