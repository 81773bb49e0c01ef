//! The contract's errors for a person: sentence fragments, lower case, no full stop.
//!
//! They are for [`Decision::reason`](crate::Decision). A policy *handles* an error by its variant, never by these words.

use crate::facts::{EngineError, PullError, RecreateError};

/// The reason why this image is not here.
pub fn pull_error(image: &str, error: &PullError) -> String {
    match error {
        PullError::Denied(why) => format!("`{image}` may not be pulled: {why}"),
        PullError::InvalidReference(why) => format!("`{image}` is no image reference: {why}"),
        PullError::NotFound => format!("the registry has no `{image}`, as far as it tells"),
        PullError::Unauthorized(refusal) if refusal.credentials_sent => {
            format!(
                "the registry refused the login it was given for `{image}`: {}",
                refusal.message
            )
        }
        PullError::Unauthorized(refusal) => format!(
            "the registry wants a login for `{image}`, and the host has none: {}",
            refusal.message
        ),
        PullError::RateLimited(Some(seconds)) => {
            format!("the registry limits the rate for `{image}`, and asks to wait {seconds} s")
        }
        PullError::RateLimited(None) => format!("the registry limits the rate for `{image}`"),
        PullError::NoSpace(why) => format!("this machine has no room for `{image}`: {why}"),
        PullError::Unavailable(why) => format!("`{image}` could not be reached: {why}"),
        PullError::QuotaExceeded(why) => format!("`{image}` was one pull too many: {why}"),
        PullError::Cancelled => format!("the refresh ended before `{image}` was pulled"),
        PullError::Other(why) => format!("`{image}` could not be pulled: {why}"),
    }
}

/// The reason why a query about containers failed.
pub fn engine_error(error: &EngineError) -> String {
    match error {
        EngineError::Denied(why) | EngineError::Other(why) => why.clone(),
        EngineError::NotFound => "it is gone".to_owned(),
        EngineError::Unavailable(why) => format!("the engine did not answer: {why}"),
        EngineError::QuotaExceeded(why) => format!("one question too many: {why}"),
        EngineError::Cancelled => "the refresh is being ended".to_owned(),
    }
}

/// The reason why a container was not recreated.
pub fn recreate_error(error: &RecreateError) -> String {
    match error {
        RecreateError::Denied(why)
        | RecreateError::Unsupported(why)
        | RecreateError::Other(why) => why.clone(),
        RecreateError::Current => "it already runs this image".to_owned(),
        RecreateError::Gone => "it is gone".to_owned(),
        RecreateError::ReplacedByOther(_) => "somebody else replaced it".to_owned(),
        RecreateError::Busy => "another refresh is at work on it".to_owned(),
        RecreateError::Aborted(failed) => {
            format!(
                "its replacement could not be made: {}: {}",
                failed.step, failed.cause
            )
        }
        RecreateError::RolledBack(failed) => {
            format!(
                "its replacement did not come up: {}: {}",
                failed.step, failed.cause
            )
        }
        RecreateError::Stranded(failed) => {
            format!(
                "neither it nor its replacement is as it should be: {}: {}",
                failed.step, failed.cause
            )
        }
        RecreateError::QuotaExceeded(why) => format!("one recreation too many: {why}"),
        RecreateError::Cancelled => "the refresh is being ended".to_owned(),
    }
}
