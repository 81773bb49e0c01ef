//! Who may ask for work: whoever has the admin token.

use std::path::Path;

use axum::extract::{Request, State};
use axum::http::{StatusCode, header};
use axum::middleware::Next;
use axum::response::Response;
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;

use super::Served;
use super::problem::Problem;
use crate::diagnostic::Diagnostic;
use crate::secret::{ExposeSecret as _, SecretString};

/// Kept as its hash: comparing hashes takes the same time whatever is sent, also for another length.
#[derive(Debug)]
pub struct AdminToken([u8; 32]);

impl AdminToken {
    /// `ADMIN_TOKEN` where it is set, otherwise the file; surrounding white space does not count. `None` where neither is.
    pub fn find(
        variable: Option<SecretString>,
        file: Option<&Path>,
    ) -> Result<Option<Self>, Diagnostic> {
        if let Some(token) = variable.filter(|token| !token.expose_secret().trim().is_empty()) {
            return Self::new(&token, "admin token", "`ADMIN_TOKEN`").map(Some);
        }
        file.map(|path| Self::read(path, "admin token")).transpose()
    }

    /// The token for `/metrics` alone, so that whoever collects them need not hold the admin's.
    pub fn of_metrics(file: Option<&Path>) -> Result<Option<Self>, Diagnostic> {
        file.map(|path| Self::read(path, "metrics token"))
            .transpose()
    }

    fn read(path: &Path, what: &str) -> Result<Self, Diagnostic> {
        let text = std::fs::read_to_string(path).map_err(|error| {
            Diagnostic::new(format!("cannot read the {what} from `{}`", path.display()))
                .because(error.to_string())
        })?;
        let origin = format!("`{}`", path.display());
        Self::new(&SecretString::from(text), what, &origin)
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
        Ok(Self(Sha256::digest(token.as_bytes()).into()))
    }

    fn is(&self, sent: &str) -> bool {
        let sent: [u8; 32] = Sha256::digest(sent.as_bytes()).into();
        self.0.ct_eq(&sent).into()
    }
}

pub(super) async fn require_token(
    State(served): State<Served>,
    request: Request,
    next: Next,
) -> Result<Response, Problem> {
    let Some(token) = &served.token else {
        return Ok(next.run(request).await);
    };
    match sent(&request) {
        Some(sent) if token.is(sent) => Ok(next.run(request).await),
        _ => Err(unauthorized("the admin token is missing or wrong")),
    }
}

/// The admin may look at the metrics too.
pub(super) async fn require_metrics_token(
    State(served): State<Served>,
    request: Request,
    next: Next,
) -> Result<Response, Problem> {
    let tokens = [&served.metrics_token, &served.token];
    let mut tokens = tokens.into_iter().flatten().peekable();
    if tokens.peek().is_none() {
        return Ok(next.run(request).await);
    }
    match sent(&request) {
        // Each is compared, whichever it is.
        Some(sent) if tokens.filter(|token| token.is(sent)).count() > 0 => {
            Ok(next.run(request).await)
        }
        _ => Err(unauthorized("the token is missing or wrong")),
    }
}

fn sent(request: &Request) -> Option<&str> {
    let header = request.headers().get(header::AUTHORIZATION)?;
    let (scheme, token) = header.to_str().ok()?.split_once(' ')?;
    scheme
        .eq_ignore_ascii_case("bearer")
        .then_some(token.trim())
}

fn unauthorized(why: &str) -> Problem {
    Problem::new(StatusCode::UNAUTHORIZED, "unauthorized", why)
        .hint("send it as `Authorization: Bearer TOKEN`")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn variable(text: &str) -> Option<SecretString> {
        Some(SecretString::from(text.to_owned()))
    }

    #[test]
    fn a_token_is_trimmed_and_compared_whole() {
        let token = AdminToken::find(variable(" secret\n"), None)
            .unwrap()
            .unwrap();
        assert!(token.is("secret"));
        for other in ["", "secre", "secrets", "Secret"] {
            assert!(!token.is(other));
        }
    }

    #[test]
    fn none_is_not_the_empty_one() {
        assert!(AdminToken::find(None, None).unwrap().is_none());
        assert!(AdminToken::find(variable("  "), None).unwrap().is_none());
    }

    #[test]
    fn a_token_in_two_lines_is_refused_without_being_shown() {
        let error = AdminToken::find(variable("sec\nret"), None).unwrap_err();
        assert!(!error.to_string().contains("sec\n"), "{error}");
    }
}
