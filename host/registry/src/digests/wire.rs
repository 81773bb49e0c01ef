//! Sends requests: each within the budget and counted, and without a login to servers that it does not belong to.

use std::time::{Duration, Instant};

use http::header::{ACCEPT, ACCEPT_ENCODING, AUTHORIZATION, LOCATION};
use http::{HeaderMap, HeaderValue, Method, StatusCode};
use refit_model::image::ImageRef;
use reqwest::{RequestBuilder, Response, Url};

use super::conversation::{Authorization, Conversation};
use super::{REQUEST, Reason, closed};
use crate::address::is_same_server;
use crate::{budget, manifest};

/// To a registry's own mirror and back.
const REDIRECTS_MAX: usize = 4;

impl Conversation<'_> {
    /// Fetches a manifest and follows redirects. The login and its tokens go to the registry alone; for another server Refit
    /// may use a token that the server gives to anybody.
    pub(super) async fn manifest(
        &self,
        method: &Method,
        image: &ImageRef,
        by: &Authorization,
    ) -> Result<Response, Reason> {
        let version = image.digest().or(image.tag()).unwrap_or("latest");
        let path = format!("{}/manifests/{version}", image.path());
        self.ask(method, &path, by, REQUEST).await
    }

    /// Requests a path below the registry's root, within its repository. The time limit includes the body.
    pub(super) async fn ask(
        &self,
        method: &Method,
        path: &str,
        by: &Authorization,
        limit: Duration,
    ) -> Result<Response, Reason> {
        let nonsense = |problem: &str| Reason::Nonsense {
            problem: problem.to_owned(),
        };
        let mut url = self
            .registry
            .root
            .join(path)
            .map_err(|_| nonsense("its address cannot be made"))?;
        // For a server to which the registry redirects, and for that one only.
        let mut anonymous: Option<(Url, HeaderValue)> = None;
        for _ in 0..=REDIRECTS_MAX + 1 {
            let mut request = self
                .client
                .request(method.clone(), url.clone())
                .timeout(limit)
                .header(ACCEPT, manifest::ACCEPT)
                // Without this header a server may use any encoding.
                .header(ACCEPT_ENCODING, "identity");
            let is_registry = is_same_server(&url, &self.registry.root);
            let value = match &anonymous {
                _ if is_registry => by.header(),
                Some((server, value)) if is_same_server(&url, server) => Some(value),
                Some(_) | None => None,
            };
            if let Some(value) = value {
                request = request.header(AUTHORIZATION, value.clone());
            }
            let answer = self.send(request).await?;
            if answer.status() == StatusCode::UNAUTHORIZED
                && !is_registry
                && anonymous.is_none()
                && let Some(token) = self.anonymous_token(&url, answer.headers()).await
            {
                anonymous = Some((url.clone(), token));
                continue;
            }
            if !answer.status().is_redirection() {
                return Ok(answer);
            }
            url = resolve_redirect(&url, answer.headers())
                .ok_or_else(|| nonsense("it redirects to where nobody may be sent"))?;
        }
        Err(nonsense("it redirects for ever"))
    }

    /// Sends a request within the budget, and counts it. Every request goes through here.
    pub(super) async fn send(&self, request: RequestBuilder) -> Result<Response, Reason> {
        let taken = self.registry.budget().take(Instant::now());
        taken.map_err(closed)?;
        let answer = match request.send().await {
            Ok(answer) => answer,
            Err(error) => {
                self.counts.add(&self.registry.name, None);
                self.registry.budget().silent(Instant::now());
                return Err(unreachable(error));
            }
        };
        let status = answer.status().as_u16();
        self.counts.add(&self.registry.name, Some(status));
        let mut registry_budget = self.registry.budget();
        let now = Instant::now();
        registry_budget.answered(status, answer.headers(), now, jiff::Timestamp::now());
        match (status, registry_budget.closed(now)) {
            (429 | 503, Some(why)) => Err(closed(why)),
            (403, Some(why)) if why.why == budget::Why::Asked => Err(closed(why)),
            _ => Ok(answer),
        }
    }

    pub(super) async fn body(&self, answer: Response, bytes_max: usize) -> Result<Vec<u8>, Reason> {
        let body = self.body_within(answer, bytes_max).await?;
        body.ok_or_else(|| Reason::Nonsense {
            problem: format!("it is longer than {bytes_max} bytes"),
        })
    }

    /// Reads a body; `None` if it is longer than the limit: then the rest is not read.
    pub(super) async fn body_within(
        &self,
        mut answer: Response,
        bytes_max: usize,
    ) -> Result<Option<Vec<u8>>, Reason> {
        let mut body = Vec::new();
        while let Some(chunk) = answer.chunk().await.map_err(unreachable)? {
            if body.len() + chunk.len() > bytes_max {
                return Ok(None);
            }
            body.extend_from_slice(&chunk);
        }
        Ok(Some(body))
    }
}

/// Converts an error. It omits the URL, which may be long, and adds nothing.
fn unreachable(error: reqwest::Error) -> Reason {
    let error = error.without_url();
    let mut problem = error.to_string();
    if let Some(cause) = refit_model::diagnostic::causes(&error).last() {
        problem = cause.clone();
    }
    Reason::Unavailable { problem }
}

/// Resolves a redirect. It never leads from TLS to plain HTTP.
pub(super) fn resolve_redirect(from: &Url, headers: &HeaderMap) -> Option<Url> {
    let to = from.join(headers.get(LOCATION)?.to_str().ok()?).ok()?;
    let is_allowed = to.scheme() == "https" || (to.scheme() == "http" && from.scheme() == "http");
    is_allowed.then_some(to)
}
