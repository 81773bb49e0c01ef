//! The access state of one registry: its authentication, its tokens, and when Refit may contact it again.

use std::collections::BTreeSet;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use refit_model::secret::{ExposeSecret as _, Login};
use reqwest::Url;

use super::Reason;
use crate::budget::{Budget, Rate};
use crate::challenge::Challenge;
use crate::token::Token;

/// The number of kept tokens. One covers a hundred repositories; there are many only if a registry issues one for each.
const TOKENS_MAX: usize = 1024;

/// The number of remembered repositories that need their own token.
const APART_MAX: usize = 4096;

/// How long Refit uses GET for a registry that does not respond to HEAD. Then it tries HEAD again: HEAD transfers less, and
/// Docker Hub counts it less.
const GET_FOR: Duration = Duration::from_secs(6 * 60 * 60);

#[derive(Debug)]
pub(super) struct Registry {
    pub(super) name: String,
    /// The root URL, which ends in `/v2/`.
    pub(super) root: Url,
    budget: Mutex<Budget>,
    head: Mutex<Head>,
    /// Locked while Refit fetches a token, so that concurrent requests wait for the same one.
    pub(super) access: tokio::sync::Mutex<Access>,
}

/// The known behavior of a registry for HEAD.
#[derive(Debug, Default)]
struct Head {
    /// It has responded to a HEAD.
    works: bool,
    /// Refit uses GET until this time.
    get_until: Option<Instant>,
}

#[derive(Debug, Default)]
pub(super) struct Access {
    /// `None`: not yet known.
    pub(super) challenge: Option<Option<Challenge>>,
    /// The login that the tokens were issued for.
    login: Option<Login>,
    tokens: Vec<Token>,
    /// Repositories that a shared token did not cover.
    apart: BTreeSet<String>,
    /// The batch that uses a token for each repository, since the registry refused a shared one.
    split: Option<u64>,
    /// A failure that the other requests of the batch do not repeat.
    failed: Option<(u64, Reason)>,
    numbers: u64,
}

impl Registry {
    pub(super) fn new(name: String, root: Url, rate: Rate) -> Self {
        Self {
            name,
            root,
            budget: Mutex::new(Budget::new(rate)),
            head: Mutex::default(),
            access: tokio::sync::Mutex::default(),
        }
    }

    pub(super) fn is_plain(&self) -> bool {
        self.root.scheme() == "http"
    }

    pub(super) fn budget(&self) -> MutexGuard<'_, Budget> {
        self.budget.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reports whether Refit tries a HEAD first.
    pub(super) fn is_asked_by_head(&self, now: Instant) -> bool {
        self.head().get_until.is_none_or(|until| until <= now)
    }

    pub(super) fn has_answered_head(&self) {
        *self.head() = Head {
            works: true,
            get_until: None,
        };
    }

    /// Records a GET that succeeded after a HEAD failed. If the registry otherwise responds to HEAD, it may have received the
    /// image in between.
    pub(super) fn has_answered_get_only(&self, now: Instant) {
        let mut head = self.head();
        head.get_until = (!head.works).then_some(now + GET_FOR);
    }

    fn head(&self) -> MutexGuard<'_, Head> {
        self.head.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns why requests are paused now, if they are.
    pub(super) fn closed(&self) -> Option<Reason> {
        self.budget().closed(Instant::now()).map(super::closed)
    }
}

impl Access {
    /// Sets the login. Tokens of another login belong to another user, and are dropped.
    pub(super) fn set_login(&mut self, login: Option<&Login>) {
        if !is_same_login(self.login.as_ref(), login) {
            self.tokens.clear();
            self.apart.clear();
            self.login = login.cloned();
        }
    }

    pub(super) fn failed_in(&self, batch: u64) -> Option<Reason> {
        let (failed, reason) = self.failed.as_ref()?;
        (*failed == batch).then(|| reason.clone())
    }

    pub(super) fn record_failure(&mut self, batch: u64, reason: &Reason) {
        self.failed = Some((batch, reason.clone()));
    }

    pub(super) fn record_split(&mut self, batch: u64) {
        self.split = Some(batch);
    }

    /// Reports whether a repository uses its own token.
    pub(super) fn needs_own_token(&self, repository: &str, batch: u64) -> bool {
        self.split == Some(batch) || self.apart.contains(repository)
    }

    pub(super) fn require_own_token(&mut self, repository: &str) {
        if self.apart.len() >= APART_MAX {
            self.apart.clear();
        }
        self.apart.insert(repository.to_owned());
    }

    pub(super) fn token(&mut self, repository: &str, batch: u64) -> Option<&Token> {
        let now = Instant::now();
        self.tokens.retain(|token| !token.is_over(batch, now));
        let alone = self.needs_own_token(repository, batch);
        self.tokens.iter().find(|token| {
            token.is_good_for(repository, batch, now) && (!alone || token.repositories.len() == 1)
        })
    }

    pub(super) fn number(&mut self) -> u64 {
        self.numbers += 1;
        self.numbers
    }

    pub(super) fn keep(&mut self, token: Token) -> &Token {
        if self.tokens.len() >= TOKENS_MAX {
            self.tokens.remove(0);
        }
        self.tokens.push(token);
        &self.tokens[self.tokens.len() - 1]
    }

    pub(super) fn forget(&mut self, number: u64) {
        self.tokens.retain(|token| token.number != number);
    }
}

fn is_same_login(one: Option<&Login>, other: Option<&Login>) -> bool {
    match (one, other) {
        (None, None) => true,
        (
            Some(Login::Password { username, password }),
            Some(Login::Password {
                username: name,
                password: word,
            }),
        ) => username == name && password.expose_secret() == word.expose_secret(),
        (Some(Login::IdentityToken(one)), Some(Login::IdentityToken(other))) => {
            one.expose_secret() == other.expose_secret()
        }
        _ => false,
    }
}
