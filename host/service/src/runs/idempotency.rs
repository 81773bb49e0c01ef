//! Idempotency keys: a client that repeats a request because it lost the answer gets the same refresh, not a second one.
//!
//! The client chooses the key (`Idempotency-Key` in HTTP). Refit keeps keys in memory: a key that a client sends again after a
//! restart starts another refresh, which finds the work of the first one done.

use std::collections::VecDeque;
use std::sync::Arc;

use refit_model::diagnostic::Hints;
use refit_model::request::Request;
use tokio::sync::Mutex;

use super::{Id, RefreshManager, StartError, StartedRefresh};

/// The number of keys that Refit remembers. A client repeats a request within minutes, and this is days of refreshes.
const KEYS_MAX: usize = 256;

/// The maximum length of a key, enough for all common kinds: a UUID has 36 bytes.
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

/// The result of a request with a key.
#[derive(Debug)]
pub enum IdempotencyKeys {
    Begun(StartedRefresh),
    /// An earlier request with this key started the refresh with this number.
    Before(Id),
    /// An earlier request with this key was different.
    Different,
}

/// The known keys with their requests, the newest last.
#[derive(Debug, Default)]
pub(super) struct Keys(Mutex<VecDeque<(Key, Request, Id)>>);

impl RefreshManager {
    /// Starts a refresh as [`Self::begin`] does, but only once for each key.
    pub async fn begin_with_key(
        self: &Arc<Self>,
        key: Key,
        request: Request,
        by: Option<String>,
    ) -> Result<IdempotencyKeys, StartError> {
        let manager = self.clone();
        // A separate task: a client that disconnects now will repeat its request.
        let task = self.work.spawn(async move {
            let mut keys = manager.keys.0.lock().await;
            if let Some((_, before, id)) = keys.iter().find(|(known, ..)| *known == key) {
                let is_same = *before == request;
                return Ok(if is_same {
                    IdempotencyKeys::Before(*id)
                } else {
                    IdempotencyKeys::Different
                });
            }
            let started_refresh = manager.begin(request.clone(), by).await?;
            keys.push_back((key, request, started_refresh.run.id));
            if keys.len() > KEYS_MAX {
                keys.pop_front();
            }
            Ok(IdempotencyKeys::Begun(started_refresh))
        });
        task.await.unwrap_or(Err(StartError::Stopping))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn key_is_short_and_visible_ascii() {
        for good in ["1", "3f0c8c1e-7d5b-4f0e-9a39-3c1f2b1d7b8a"] {
            assert!(good.parse::<Key>().is_ok(), "{good}");
        }
        let long = "x".repeat(BYTES_MAX + 1);
        for bad in ["", "a b", "a\n", "ä", long.as_str()] {
            assert!(bad.parse::<Key>().is_err(), "{bad:?}");
        }
    }
}
