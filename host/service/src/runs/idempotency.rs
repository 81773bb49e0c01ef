//! Who asks again because an answer was lost gets the refresh that was begun, and not a second one.
//!
//! By a key that the client chooses (`Idempotency-Key` of HTTP). Keys are kept in memory: one that is sent again after a restart
//! begins a refresh, which finds nothing to do where the first has done it.

use std::collections::VecDeque;
use std::sync::Arc;

use refit_model::diagnostic::Hints;
use refit_model::request::Request;
use tokio::sync::Mutex;

use super::{Id, RefreshManager, StartError, StartedRefresh};

/// Keys that are remembered. A client asks again within minutes, and this is days of refreshes.
const KEYS_MAX: usize = 256;

/// As long as anything that people make keys with: a UUID has 36.
const BYTES_MAX: usize = 128;

/// A key that a client chose.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Key(String);

#[derive(Debug, thiserror::Error)]
#[error("a key has 1 to {BYTES_MAX} visible ASCII characters")]
pub struct KeyError;

impl Hints for KeyError {}

impl std::str::FromStr for Key {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<Self, KeyError> {
        let fits = (1..=BYTES_MAX).contains(&text.len());
        let visible = text.bytes().all(|byte| byte.is_ascii_graphic());
        (fits && visible)
            .then(|| Self(text.to_owned()))
            .ok_or(KeyError)
    }
}

/// What becomes of somebody who asks with a key.
#[derive(Debug)]
pub enum IdempotencyKeys {
    Begun(StartedRefresh),
    /// It was begun before, under this number.
    Before(Id),
    /// The key was sent before, with another request.
    Different,
}

/// Those that were begun with a key, the newest last.
#[derive(Debug, Default)]
pub(super) struct Keys(Mutex<VecDeque<(Key, Request, Id)>>);

impl RefreshManager {
    /// As [`Self::begin`], and once for each key.
    pub async fn begin_once(
        self: &Arc<Self>,
        key: Key,
        request: Request,
        by: Option<String>,
    ) -> Result<IdempotencyKeys, StartError> {
        let runs = self.clone();
        // A task of its own: a client that hangs up just now is one that will ask again.
        let beginning = self.work.spawn(async move {
            let mut keys = runs.keys.0.lock().await;
            if let Some((_, before, id)) = keys.iter().find(|(known, ..)| *known == key) {
                let same = *before == request;
                return Ok(if same {
                    IdempotencyKeys::Before(*id)
                } else {
                    IdempotencyKeys::Different
                });
            }
            let begun = runs.begin(request.clone(), by).await?;
            keys.push_back((key, request, begun.run.id));
            if keys.len() > KEYS_MAX {
                keys.pop_front();
            }
            Ok(IdempotencyKeys::Begun(begun))
        });
        beginning.await.unwrap_or(Err(StartError::Stopping))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_short_and_visible() {
        for good in ["1", "3f0c8c1e-7d5b-4f0e-9a39-3c1f2b1d7b8a"] {
            assert!(good.parse::<Key>().is_ok(), "{good}");
        }
        let long = "x".repeat(BYTES_MAX + 1);
        for bad in ["", "a b", "a\n", "ä", long.as_str()] {
            assert!(bad.parse::<Key>().is_err(), "{bad:?}");
        }
    }
}
