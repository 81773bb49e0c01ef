//! What is remembered of one registry: how it wants to be asked, the tokens it gave, and when it may be asked again.

use std::collections::BTreeSet;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use refit_model::secret::{ExposeSecret as _, Login};
use reqwest::Url;

use super::Reason;
use crate::budget::{Budget, Rate};
use crate::challenge::Challenge;
use crate::token::Token;

/// Tokens that are kept. One covers a hundred repositories; only where a registry gives one for each are there many.
const TOKENS_MAX: usize = 1024;

/// Repositories that are remembered to need a token of their own.
const APART_MAX: usize = 4096;

/// A registry that does not answer HEAD is asked by GET for so long. Then a HEAD is tried again: it transfers less, and Docker Hub
/// counts it less.
const GET_FOR: Duration = Duration::from_secs(6 * 60 * 60);

#[derive(Debug)]
pub(super) struct Registry {
    pub(super) name: String,
    /// Ends in `/v2/`.
    pub(super) root: Url,
    budget: Mutex<Budget>,
    head: Mutex<Head>,
    /// Held while a token is fetched, so that many who need one wait for the same.
    pub(super) access: tokio::sync::Mutex<Access>,
}

/// What is known of a registry's answers to HEAD.
#[derive(Debug, Default)]
struct Head {
    /// It has answered one.
    works: bool,
    /// Until when it is asked by GET.
    get_until: Option<Instant>,
}

#[derive(Debug, Default)]
pub(super) struct Access {
    /// `None`: not asked yet.
    pub(super) challenge: Option<Option<Challenge>>,
    /// Those that tokens were got with.
    login: Option<Login>,
    tokens: Vec<Token>,
    /// Repositories that a token of many did not cover.
    apart: BTreeSet<String>,
    /// The batch in which each repository is asked for by itself: a token of many was refused.
    split: Option<u64>,
    /// What one of a batch has run into is not tried by the others.
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

    /// Whether a HEAD is tried first.
    pub(super) fn is_asked_by_head(&self, now: Instant) -> bool {
        self.head().get_until.is_none_or(|until| until <= now)
    }

    pub(super) fn has_answered_head(&self) {
        *self.head() = Head {
            works: true,
            get_until: None,
        };
    }

    /// A GET was answered after a HEAD was not. One that answers HEAD otherwise may have got the image in between.
    pub(super) fn has_answered_get_only(&self, now: Instant) {
        let mut head = self.head();
        head.get_until = (!head.works).then_some(now + GET_FOR);
    }

    fn head(&self) -> MutexGuard<'_, Head> {
        self.head.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Why it is left alone now, where it is.
    pub(super) fn closed(&self) -> Option<Reason> {
        self.budget().closed(Instant::now()).map(super::closed)
    }
}

impl Access {
    /// Tokens of another login are another person's.
    pub(super) fn is_of(&mut self, login: Option<&Login>) {
        if !same(self.login.as_ref(), login) {
            self.tokens.clear();
            self.apart.clear();
            self.login = login.cloned();
        }
    }

    pub(super) fn failed_in(&self, batch: u64) -> Option<Reason> {
        let (failed, reason) = self.failed.as_ref()?;
        (*failed == batch).then(|| reason.clone())
    }

    pub(super) fn fails(&mut self, batch: u64, reason: &Reason) {
        self.failed = Some((batch, reason.clone()));
    }

    pub(super) fn splits(&mut self, batch: u64) {
        self.split = Some(batch);
    }

    /// Whether a repository is asked for by itself.
    pub(super) fn is_apart(&self, repository: &str, batch: u64) -> bool {
        self.split == Some(batch) || self.apart.contains(repository)
    }

    pub(super) fn set_apart(&mut self, repository: &str) {
        if self.apart.len() >= APART_MAX {
            self.apart.clear();
        }
        self.apart.insert(repository.to_owned());
    }

    pub(super) fn token(&mut self, repository: &str, batch: u64) -> Option<&Token> {
        let now = Instant::now();
        self.tokens.retain(|token| !token.is_over(batch, now));
        let alone = self.is_apart(repository, batch);
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

fn same(one: Option<&Login>, other: Option<&Login>) -> bool {
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
