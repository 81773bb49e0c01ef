//! No call without an end: a time limit and a sentence round every conversation with an engine or a registry.

use std::future::Future;
use std::time::Duration;

use anyhow::{Context, anyhow};

/// One request that the engine answers from memory or with one container operation. A stop waits 10 s for a program that
/// ignores SIGTERM and a loaded two-core machine took 3 s for a start; anything near this is a hang.
pub(crate) const CALL: Duration = Duration::from_secs(60);

/// Awaits `call`, at most for `limit`. `what` completes the sentence "cannot …".
pub(crate) async fn within<T, E>(
    limit: Duration,
    what: &str,
    call: impl Future<Output = Result<T, E>>,
) -> anyhow::Result<T>
where
    E: Into<anyhow::Error>,
{
    match tokio::time::timeout(limit, call).await {
        Ok(answer) => answer
            .map_err(Into::into)
            .with_context(|| format!("cannot {what}")),
        Err(_) => Err(anyhow!("cannot {what}: no end after {limit:?}")),
    }
}

/// Is this the engine saying that the thing is not there?
pub(crate) fn is_absent(error: &bollard::errors::Error) -> bool {
    status(error) == Some(404)
}

/// The HTTP status of an engine's refusal.
pub(crate) fn status(error: &bollard::errors::Error) -> Option<u16> {
    match error {
        bollard::errors::Error::DockerResponseServerError { status_code, .. } => Some(*status_code),
        _ => None,
    }
}
