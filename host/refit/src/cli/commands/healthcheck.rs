//! `refit healthcheck`: asks a daemon how it is. An image without a shell has nothing else that could.

use std::time::Duration;

use refit_model::diagnostic::Diagnostic;

use super::super::arguments::HealthcheckArguments;
use super::super::remote::Daemon;
use super::super::{Status, tell};
use super::Common;
use crate::config::Flags;

/// A daemon that is alive answers in milliseconds, and one that is ready within the time of an answer of its engine. Docker gives
/// a check 30 s of its own accord.
const LIMIT: Duration = Duration::from_secs(10);

pub(in super::super) async fn healthcheck(
    common: Common,
    arguments: HealthcheckArguments,
) -> Result<Status, Diagnostic> {
    let path = match arguments.ready {
        true => "/readyz",
        false => "/healthz",
    };
    let daemon = match &arguments.server {
        Some(url) => Daemon::at(url, None)?,
        None => Daemon::listening_on(common.load(Flags::default())?.config.serve.listen, None),
    };
    match daemon.is_well(path, LIMIT).await {
        Ok(()) => Ok(Status::Done),
        // Docker knows 0 and 1, and keeps 2 for itself.
        Err(error) => {
            tell(&error);
            Ok(Status::SomeFailed)
        }
    }
}
