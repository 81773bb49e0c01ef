//! `POST /v1/hooks/github` and `/v1/hooks/registry`: a secret authenticates the sender, who gets a response before any check of a
//! registry.
//!
//! Neither takes the admin token. A delivery only makes the watcher query the registry.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::body::Body;
use axum::extract::{Extension, Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware::from_fn_with_state;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use refit_model::diagnostic::Diagnostic;
use refit_model::request::Trigger;
use refit_service::hooks::github::{Delivery, Form, Github};
use refit_service::hooks::registry::RegistryHook;
use refit_service::hooks::{Ignored, Scoped, Unreadable, Unverified};
use serde::Serialize;

use super::AppState;
use super::bounds::{Rate, Readers, limit_reads, read_body};
use super::problem::{Document, Problem};
use super::rate_limited_log::RateLimitedLog;
use super::routes::Routes;

/// GitHub's delivery of a package has some 25 KiB, and a registry's envelope some KiB. This is many times that, and with
/// [`AT_ONCE`] limits the memory.
const BODY_BYTES_MAX: usize = 1 << 20;

/// GitHub gives up after 10 s in all.
const BODY_TIME: Duration = Duration::from_secs(8);

/// The concurrent reads of deliveries. Each takes milliseconds.
const AT_ONCE: usize = 64;
const PATIENCE: Duration = Duration::from_secs(2);

/// The limits on authenticated senders. A push of an image makes a registry send an event for each layer: this allows 20 images of
/// 40 layers at once, and then a push each second. A registry retries a refused delivery.
const BURST: u32 = 1000;
const PER_SECOND: u32 = 50;

/// The number of deliveries per minute with a separate log line.
const LOGGED: u32 = 20;

/// The counters of one route.
struct RouteCounters {
    rate: Rate,
    taken: Arc<RateLimitedLog>,
    refused: Arc<RateLimitedLog>,
    flooded: Arc<RateLimitedLog>,
}

/// What somebody who knocked is told.
#[derive(Serialize, utoipa::ToSchema)]
#[schema(as = HookAnswer)]
pub(super) struct Answer {
    /// Of GitHub, by which a delivery is found again.
    #[serde(skip_serializing_if = "Option::is_none")]
    delivery: Option<String>,
    #[serde(flatten)]
    scoped: Scoped,
    /// Events that publish nothing: layers, pulls, deletions.
    #[serde(skip_serializing_if = "Option::is_none")]
    others: Option<usize>,
}

pub(super) fn routes() -> Routes {
    let limit = |full| from_fn_with_state(Readers::new(AT_ONCE, PATIENCE, full), limit_reads);
    let github = RouteCounters {
        rate: Rate::new(BURST, PER_SECOND),
        taken: RateLimitedLog::new("GitHub's webhook was delivered", LOGGED),
        refused: RateLimitedLog::new("a delivery to `/v1/hooks/github` was refused", 1),
        flooded: RateLimitedLog::new(
            "more deliveries came to `/v1/hooks/github` than are taken",
            1,
        ),
    };
    let registry = RouteCounters {
        rate: Rate::new(BURST, PER_SECOND),
        taken: RateLimitedLog::new("a registry's notification was delivered", LOGGED),
        refused: RateLimitedLog::new("a notification to `/v1/hooks/registry` was refused", 1),
        flooded: RateLimitedLog::new(
            "more notifications came to `/v1/hooks/registry` than are taken",
            1,
        ),
    };
    let github = Routes::without_token()
        .with(__path_from_github, from_github)
        .with_layers(|routes| {
            routes
                .layer(limit(
                    "all places for deliveries to `/v1/hooks/github` were taken",
                ))
                .layer(Extension(Arc::new(github)))
        });
    let registry = Routes::without_token()
        .with(__path_from_registry, from_registry)
        .with_layers(|routes| {
            routes
                .layer(limit(
                    "all places for notifications to `/v1/hooks/registry` were taken",
                ))
                .layer(Extension(Arc::new(registry)))
        });
    github.merge(registry)
}

/// GitHub says that something was published
///
/// The webhook of a repository or an organisation, for the events `package` and `registry_package`, signed with the secret of
/// `[hooks.github]`. Answered before anything is looked at; a flood of deliveries is one look.
#[utoipa::path(
    post,
    path = "/v1/hooks/github",
    operation_id = "hook_github",
    tag = "hooks",
    request_body(content(("application/json"), ("application/x-www-form-urlencoded"))),
    params(
        ("X-Hub-Signature-256" = String, Header, description = "`sha256=…`, the HMAC of the body."),
        ("X-GitHub-Event" = String, Header, description = "`package`, `registry_package` or `ping`; others are ignored."),
        ("X-GitHub-Delivery" = Option<String>, Header, description = "For the log."),
    ),
    security(("github" = [])),
    responses(
        (status = 200, description = "A ping.", body = Answer),
        (status = 202, description = "What is looked at, and what is not.", body = Answer),
        (status = 400, description = "`bad-body`, `body-broken`.", body = Document, content_type = "application/problem+json"),
        (status = 401, description = "`unsigned`, `wrong-signature`.", body = Document, content_type = "application/problem+json"),
        (status = 404, description = "`hook-disabled`.", body = Document, content_type = "application/problem+json"),
        (status = 408, description = "`body-too-slow`.", body = Document, content_type = "application/problem+json"),
        (status = 413, description = "`body-too-large`.", body = Document, content_type = "application/problem+json"),
        (status = 415, description = "`bad-content-type`.", body = Document, content_type = "application/problem+json"),
        (status = 429, description = "`too-many-deliveries`, with `Retry-After`.", body = Document, content_type = "application/problem+json"),
        (status = 503, description = "`busy`, `too-slow`.", body = Document, content_type = "application/problem+json"),
    ),
)]
async fn from_github(
    State(state): State<AppState>,
    Extension(counters): Extension<Arc<RouteCounters>>,
    request: Request,
) -> Result<Response, Problem> {
    let hook = state.hooks.github.as_ref().ok_or_else(|| {
        disabled("GitHub").hint("set `[hooks.github] secret_file`, or `GITHUB_WEBHOOK_SECRET`")
    })?;
    let (parts, body) = request.into_parts();
    let signature = text(&parts.headers, "x-hub-signature-256")
        .ok_or_else(|| counters.refuse(Unverified::Missing).hint(SIGN))?;
    let body = read_body(body, BODY_BYTES_MAX, BODY_TIME).await?;
    let delivery = text(&parts.headers, "x-github-delivery").filter(|id| id.len() <= 64);
    let delivery = delivery.map(str::to_owned);
    let said = read_github(hook, &counters, &parts, signature, &body)?;
    let (status, scoped) = match said {
        Delivery::Ping => (StatusCode::OK, Scoped::default()),
        Delivery::Other(why) => (StatusCode::ACCEPTED, Scoped::ignoring("the delivery", why)),
        Delivery::Published(published) => {
            let grants = state.refresher.active().content.grants.clone();
            (StatusCode::ACCEPTED, Scoped::new(vec![published], &grants))
        }
    };
    if counters.taken.count_occurrence() {
        tracing::info!(delivery, accepted = ?scoped.accepted, ignored = scoped.ignored.len(), "received a webhook of GitHub");
    }
    enqueue_checks(&state, &scoped);
    let answer = Answer {
        delivery,
        scoped,
        others: None,
    };
    Ok((status, Json(answer)).into_response())
}

const SIGN: &str =
    "the webhook must have the secret of `[hooks.github]`, which signs each delivery";

fn read_github(
    hook: &Github,
    counters: &RouteCounters,
    parts: &Parts,
    signature: &str,
    body: &Bytes,
) -> Result<Delivery, Problem> {
    let verified = hook.keys.verify(signature, body);
    let verified = verified.map_err(|why| counters.refuse(why).hint(SIGN))?;
    counters.check_rate()?;
    let form = match media_type(&parts.headers) {
        "application/json" => Form::Json,
        "application/x-www-form-urlencoded" => Form::Encoded,
        _ => return Err(unsupported("application/json")),
    };
    let event = text(&parts.headers, "x-github-event").unwrap_or_default();
    hook.read(event, form, verified)
        .map_err(|error| unreadable(&error))
}

/// A registry says that something was published
///
/// Notifications as the distribution registry sends them. Answered before anything is looked at; a flood of them is one look.
#[utoipa::path(
    post,
    path = "/v1/hooks/registry",
    operation_id = "hook_registry",
    tag = "hooks",
    request_body(content(("application/vnd.docker.distribution.events.v2+json"), ("application/json"))),
    security(("registry" = [])),
    responses(
        (status = 202, description = "What is looked at, and what is not.", body = Answer),
        (status = 400, description = "`bad-body`, `body-broken`.", body = Document, content_type = "application/problem+json"),
        (status = 401, description = "`unsigned`, `wrong-signature`.", body = Document, content_type = "application/problem+json"),
        (status = 404, description = "`hook-disabled`.", body = Document, content_type = "application/problem+json"),
        (status = 408, description = "`body-too-slow`.", body = Document, content_type = "application/problem+json"),
        (status = 413, description = "`body-too-large`.", body = Document, content_type = "application/problem+json"),
        (status = 415, description = "`bad-content-type`.", body = Document, content_type = "application/problem+json"),
        (status = 429, description = "`too-many-deliveries`, with `Retry-After`.", body = Document, content_type = "application/problem+json"),
        (status = 503, description = "`busy`, `too-slow`.", body = Document, content_type = "application/problem+json"),
    ),
)]
async fn from_registry(
    State(state): State<AppState>,
    Extension(counters): Extension<Arc<RouteCounters>>,
    request: Request,
) -> Result<Response, Problem> {
    if state.hooks.registries.is_empty() {
        return Err(disabled("registries")
            .hint("list one in `[[hooks.registry]]`, or set `REGISTRY_WEBHOOK_SECRET`"));
    }
    let (parts, body) = request.into_parts();
    let secret = shared_secret(&parts.headers)
        .ok_or_else(|| counters.refuse(Unverified::Missing).hint(SEND))?;
    // Check the secret before reading the body, so that an untrusted client's body is not read.
    let hook = state
        .hooks
        .registries
        .iter()
        .find(|hook| hook.secrets.contains(secret));
    let hook = hook.ok_or_else(|| counters.refuse(Unverified::Wrong).hint(SEND))?;
    counters.check_rate()?;
    let (scoped, others) = read_registry(&state, hook, secret, &parts, body).await?;
    // A registry sends an event for each layer; do not log those without an image.
    if !(scoped.accepted.is_empty() && scoped.ignored.is_empty())
        && counters.taken.count_occurrence()
    {
        tracing::info!(registry = hook.name, accepted = ?scoped.accepted, ignored = scoped.ignored.len(), "a registry's notification was delivered");
    }
    enqueue_checks(&state, &scoped);
    let answer = Answer {
        delivery: None,
        scoped,
        others: Some(others),
    };
    Ok((StatusCode::ACCEPTED, Json(answer)).into_response())
}

const SEND: &str = "the registry must send the secret of its `[[hooks.registry]]` as `Authorization: Bearer SECRET`";

async fn read_registry(
    state: &AppState,
    hook: &RegistryHook,
    secret: &str,
    parts: &Parts,
    body: Body,
) -> Result<(Scoped, usize), Problem> {
    let kind = media_type(&parts.headers);
    let events =
        kind.starts_with("application/vnd.docker.distribution.events.") && kind.ends_with("+json");
    if !events && kind != "application/json" {
        return Err(unsupported(
            "application/vnd.docker.distribution.events.v2+json",
        ));
    }
    let body = read_body(body, BODY_BYTES_MAX, BODY_TIME).await?;
    let verified = hook.secrets.verify(secret, &body);
    let verified = verified.map_err(|why| {
        Problem::from_diagnostic(
            StatusCode::UNAUTHORIZED,
            "unauthorized",
            Diagnostic::of(&why),
        )
    })?;
    let notified = hook.read(verified).map_err(|error| unreadable(&error))?;
    let grants = state.refresher.active().content.grants.clone();
    let mut scoped = Scoped::new(notified.published, &grants);
    scoped
        .ignored
        .extend(notified.wrong.into_iter().map(|why| Ignored {
            what: "an event".into(),
            why,
        }));
    Ok((scoped, notified.others))
}

fn enqueue_checks(state: &AppState, scoped: &Scoped) {
    // An empty list would trigger a check of all images.
    if !scoped.repositories.is_empty() {
        state.bell.announce(scoped.announced.clone());
        state
            .bell
            .enqueue(Trigger::Webhook, scoped.repositories.iter().cloned());
    }
}

impl RouteCounters {
    /// Logged once a minute, without the content.
    fn refuse(&self, why: Unverified) -> Problem {
        if self.refused.count_occurrence() {
            tracing::warn!("a delivery of a webhook was refused: {why}");
        }
        let code = match why {
            Unverified::Missing => "unsigned",
            Unverified::Wrong => "wrong-signature",
        };
        Problem::from_diagnostic(StatusCode::UNAUTHORIZED, code, Diagnostic::of(&why))
    }

    fn check_rate(&self) -> Result<(), Problem> {
        self.rate.take().map_err(|wait| {
            if self.flooded.count_occurrence() {
                tracing::warn!("refusing deliveries of a webhook: more than {PER_SECOND} a second");
            }
            let many = format!("more than {PER_SECOND} deliveries a second come");
            Problem::new(StatusCode::TOO_MANY_REQUESTS, "too-many-deliveries", many).again_in(wait)
        })
    }
}

fn disabled(what: &str) -> Problem {
    Problem::new(
        StatusCode::NOT_FOUND,
        "hook-disabled",
        format!("no webhook of {what} is configured"),
    )
}

fn unsupported(wanted: &str) -> Problem {
    Problem::new(
        StatusCode::UNSUPPORTED_MEDIA_TYPE,
        "bad-content-type",
        "this type of body is not read here",
    )
    .hint(format!("send `{wanted}`"))
}

fn unreadable(error: &Unreadable) -> Problem {
    Problem::from_diagnostic(StatusCode::BAD_REQUEST, "bad-body", Diagnostic::of(error))
}

fn text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}

/// The media type without its parameters.
fn media_type(headers: &HeaderMap) -> &str {
    let kind = headers
        .get(header::CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .unwrap_or_default();
    kind.split(';').next().unwrap_or_default().trim()
}

/// The secret, from the headers in which a registry can send it.
fn shared_secret(headers: &HeaderMap) -> Option<&str> {
    let bearer = text(headers, "authorization")
        .and_then(|value| value.split_once(' '))
        .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"))
        .map(|(_, secret)| secret);
    bearer
        .or_else(|| text(headers, "x-refit-secret"))
        .map(str::trim)
}
