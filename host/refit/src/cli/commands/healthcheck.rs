//! `refit healthcheck`: query a daemon's health, since an image without a shell has no other program for it.

use std::time::Duration;

use refit_model::diagnostic::Diagnostic;

use super::super::arguments::HealthcheckArguments;
use super::super::remote::Daemon;
use super::super::{Status, tell};
use super::Common;
use crate::config::Flags;

/// The time limit. A live daemon responds in milliseconds, and a ready one as soon as its engine does. Docker's default for a check
/// is 30 s.
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
        // Docker defines 0 and 1, and reserves 2.
        Err(error) => {
            tell(&error);
            Ok(Status::SomeFailed)
        }
    }
}
