//! Authentication: clients need the admin token.

use std::path::Path;
use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::{StatusCode, header};
use axum::middleware::Next;
use axum::response::Response;
use refit_model::diagnostic::Diagnostic;
use refit_model::secret::{ExposeSecret as _, SecretString};
use refit_storage::secret_file;
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;

use super::AppState;
use super::problem::Problem;
use super::rate_limited_log::RateLimitedLog;
use crate::admin_token;

/// A token, stored as its hash: comparing hashes takes the same time for every input, also of another length.
#[derive(Debug)]
pub struct AdminToken {
    hash: [u8; 32],
    refused: Arc<RateLimitedLog>,
}

/// Headers that carry tokens of other programs. Refit reads only their names.
const OTHER_HEADERS: [&str; 6] = [
    "x-admin-token",
    "x-auth-token",
    "x-api-key",
    "private-token",
    "token",
    "proxy-authorization",
];

/// Query parameters that carry tokens of other programs.
const OTHER_PARAMETERS: [&str; 4] = ["token", "access_token", "admin_token", "api_key"];

impl AdminToken {
    /// Find the admin token: `ADMIN_TOKEN` or the file that `ADMIN_TOKEN_FILE` names, otherwise the configured file, otherwise the
    /// generated token in the state folder. Surrounding white space is ignored. Returns `None` only if none is configured and none
    /// is required.
    pub fn load(
        configured: Option<&Path>,
        state_folder: &Path,
        none_is_allowed: bool,
    ) -> Result<Option<Self>, Diagnostic> {
        let found = match admin_token::load_configured(configured)? {
            Some(found) => found,
            None if none_is_allowed => return Ok(None),
            None => admin_token::load_or_generate(state_folder)?,
        };
        Self::new(&found.text, "admin token", &found.origin).map(Some)
    }

    /// The token for `/metrics` only, so that a metrics collector does not need the admin token.
    pub fn load_metrics_token(file: Option<&Path>) -> Result<Option<Self>, Diagnostic> {
        let Some(path) = file else { return Ok(None) };
        let found = secret_file::at("the metrics token", path)?;
        Self::new(&found.text, "metrics token", &found.origin).map(Some)
    }

    fn new(token: &SecretString, what: &str, origin: &str) -> Result<Self, Diagnostic> {
        let token = token.expose_secret().trim();
        if token.is_empty() {
            return Err(Diagnostic::new(format!("{origin} holds no token")));
        }
        if !token.chars().all(|c| c.is_ascii_graphic()) {
            let error = Diagnostic::new(format!(
                "the {what} from {origin} contains white space or characters that are not ASCII"
            ));
            return Err(
                error.hint("it must fit into an HTTP header: one line of visible ASCII characters")
            );
        }
        Ok(Self {
            hash: Sha256::digest(token.as_bytes()).into(),
            refused: RateLimitedLog::new("requests without the admin token were refused", 1),
        })
    }

    fn matches(&self, sent: &str) -> bool {
        let sent: [u8; 32] = Sha256::digest(sent.as_bytes()).into();
        self.hash.ct_eq(&sent).into()
    }
}

pub(super) async fn require_token(
    State(state): State<AppState>,
    request: Request,
    next: Next,
) -> Result<Response, Problem> {
    let Some(token) = &state.token else {
        return Ok(next.run(request).await);
    };
    match sent_token(&request) {
        Some(sent) if token.matches(sent) => Ok(next.run(request).await),
        _ => Err(refused(
            token,
            &request,
            "the admin token is missing or wrong",
        )),
    }
}

/// Require the metrics token or the admin token.
pub(super) async fn require_metrics_token(
    State(state): State<AppState>,
    request: Request,
    next: Next,
) -> Result<Response, Problem> {
    let tokens = [&state.metrics_token, &state.token];
    let tokens: Vec<_> = tokens.into_iter().flatten().collect();
    let Some(first) = tokens.first() else {
        return Ok(next.run(request).await);
    };
    match sent_token(&request) {
        // Compare with every token, even after a match.
        Some(sent) if tokens.iter().filter(|token| token.matches(sent)).count() > 0 => {
            Ok(next.run(request).await)
        }
        _ => Err(refused(first, &request, "the token is missing or wrong")),
    }
}

fn sent_token(request: &Request) -> Option<&str> {
    let header = request.headers().get(header::AUTHORIZATION)?;
    let (scheme, token) = header.to_str().ok()?.split_once(' ')?;
    scheme
        .eq_ignore_ascii_case("bearer")
        .then_some(token.trim())
}

fn refused(token: &AdminToken, request: &Request, why: &str) -> Problem {
    // Log neither the token nor the query, which may hold a token too.
    if token.refused.count_occurrence() {
        let what = match sent_token(request) {
            Some(_) => "with a wrong",
            None => "without a",
        };
        let path = request.uri().path();
        tracing::warn!(path, "a request {what} token was refused");
    }
    let problem = Problem::new(StatusCode::UNAUTHORIZED, "unauthorized", why)
        .hint("send it as `Authorization: Bearer TOKEN`");
    match misplaced(request) {
        Some(hint) => problem.hint(hint),
        None => problem,
    }
}

/// The place of a token that the client seems to have sent in a wrong place.
fn misplaced(request: &Request) -> Option<String> {
    let query = request.uri().query().unwrap_or_default();
    let mut names = form_urlencoded::parse(query.as_bytes()).map(|(name, _)| name);
    if names.any(|name| OTHER_PARAMETERS.contains(&&*name.to_lowercase())) {
        let hint = "a token in an address is in the logs of all that it passes: change it if it was the right one";
        return Some(hint.into());
    }
    let headers = request.headers();
    if let Some(name) = OTHER_HEADERS
        .iter()
        .find(|name| headers.contains_key(**name))
    {
        return Some(format!("the header `{name}` is not looked at"));
    }
    let given = headers.contains_key(header::AUTHORIZATION);
    (given && !is_bearer(request)).then(|| "`Authorization` must begin with `Bearer `".into())
}

fn is_bearer(request: &Request) -> bool {
    let value = request.headers().get(header::AUTHORIZATION);
    let scheme = value.and_then(|value| value.as_bytes().get(..7));
    scheme.is_some_and(|scheme| scheme.eq_ignore_ascii_case(b"bearer "))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(text: &str) -> Result<AdminToken, Diagnostic> {
        AdminToken::new(&SecretString::from(text), "admin token", "`ADMIN_TOKEN`")
    }

    #[test]
    fn token_is_trimmed_and_compared_whole() {
        let token = token(" secret\n").unwrap();
        assert!(token.matches("secret"));
        for other in ["", "secre", "secrets", "Secret"] {
            assert!(!token.matches(other));
        }
    }

    #[test]
    fn empty_token_is_refused() {
        assert!(token("  ").is_err());
    }

    #[test]
    fn token_in_two_lines_is_refused_and_not_shown() {
        let error = token("sec\nret").unwrap_err();
        assert!(!error.to_string().contains("sec\n"), "{error}");
    }
}
