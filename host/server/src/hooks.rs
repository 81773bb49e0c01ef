//! `POST /v1/hooks/github` and `/v1/hooks/registry`: who knocks is let in by a secret, and is answered before anything is looked at.
//!
//! Neither takes the admin token. What is said rings the bell of the watcher, who asks the registry.

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
use super::bounds::{Rate, Readers, read_in_turn, whole};
use super::problem::{Document, Problem};
use super::rate_limited_log::RateLimitedLog;
use super::routes::Routes;

/// What GitHub sends of a package is some 25 KiB, and a registry's envelope some KiB. Many times that, and with [`AT_ONCE`] a
/// bound on memory.
const BODY_BYTES_MAX: usize = 1 << 20;

/// GitHub gives up after 10 s in all.
const BODY_TIME: Duration = Duration::from_secs(8);

/// Deliveries that are read at once. Each takes milliseconds.
const AT_ONCE: usize = 64;
const PATIENCE: Duration = Duration::from_secs(2);

/// Of those who have the secret. A push of an image makes a registry tell of each layer: 20 images of 40 layers at once, and a
/// push each second for ever. A registry that is sent away comes again.
const BURST: u32 = 1000;
const PER_SECOND: u32 = 50;

/// Deliveries of a minute that are logged one by one.
const LOGGED: u32 = 20;

/// What is counted for one route.
struct Counted {
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
    let gate = |full| from_fn_with_state(Readers::new(AT_ONCE, PATIENCE, full), read_in_turn);
    let github = Counted {
        rate: Rate::new(BURST, PER_SECOND),
        taken: RateLimitedLog::new("GitHub's webhook was delivered", LOGGED),
        refused: RateLimitedLog::new("a delivery to `/v1/hooks/github` was refused", 1),
        flooded: RateLimitedLog::new(
            "more deliveries came to `/v1/hooks/github` than are taken",
            1,
        ),
    };
    let registry = Counted {
        rate: Rate::new(BURST, PER_SECOND),
        taken: RateLimitedLog::new("a registry's notification was delivered", LOGGED),
        refused: RateLimitedLog::new("a notification to `/v1/hooks/registry` was refused", 1),
        flooded: RateLimitedLog::new(
            "more notifications came to `/v1/hooks/registry` than are taken",
            1,
        ),
    };
    let github = Routes::open()
        .with(__path_from_github, from_github)
        .layered(|routes| {
            routes
                .layer(gate(
                    "all places for deliveries to `/v1/hooks/github` were taken",
                ))
                .layer(Extension(Arc::new(github)))
        });
    let registry = Routes::open()
        .with(__path_from_registry, from_registry)
        .layered(|routes| {
            routes
                .layer(gate(
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
    State(served): State<AppState>,
    Extension(counted): Extension<Arc<Counted>>,
    request: Request,
) -> Result<Response, Problem> {
    let hook = served.hooks.github.as_ref().ok_or_else(|| {
        disabled("GitHub").hint("set `[hooks.github] secret_file`, or `GITHUB_WEBHOOK_SECRET`")
    })?;
    let (parts, body) = request.into_parts();
    let signature = text(&parts.headers, "x-hub-signature-256")
        .ok_or_else(|| counted.refuse(Unverified::Missing).hint(SIGN))?;
    let body = whole(body, BODY_BYTES_MAX, BODY_TIME).await?;
    let delivery = text(&parts.headers, "x-github-delivery").filter(|id| id.len() <= 64);
    let delivery = delivery.map(str::to_owned);
    let said = read_github(hook, &counted, &parts, signature, &body)?;
    let (status, scoped) = match said {
        Delivery::Ping => (StatusCode::OK, Scoped::default()),
        Delivery::Other(why) => (StatusCode::ACCEPTED, Scoped::ignoring("the delivery", why)),
        Delivery::Published(published) => {
            let grants = served.refresher.active().content.grants.clone();
            (StatusCode::ACCEPTED, Scoped::new(vec![published], &grants))
        }
    };
    if counted.taken.happened() {
        tracing::info!(delivery, accepted = ?scoped.accepted, ignored = scoped.ignored.len(), "GitHub's webhook was delivered");
    }
    ring(&served, &scoped);
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
    counted: &Counted,
    parts: &Parts,
    signature: &str,
    body: &Bytes,
) -> Result<Delivery, Problem> {
    let verified = hook.keys.verify(signature, body);
    let verified = verified.map_err(|why| counted.refuse(why).hint(SIGN))?;
    counted.in_time()?;
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
    State(served): State<AppState>,
    Extension(counted): Extension<Arc<Counted>>,
    request: Request,
) -> Result<Response, Problem> {
    if served.hooks.registries.is_empty() {
        return Err(disabled("registries")
            .hint("list one in `[[hooks.registry]]`, or set `REGISTRY_WEBHOOK_SECRET`"));
    }
    let (parts, body) = request.into_parts();
    let secret = shared_secret(&parts.headers)
        .ok_or_else(|| counted.refuse(Unverified::Missing).hint(SEND))?;
    // Before its body: a stranger's is not even read.
    let hook = served
        .hooks
        .registries
        .iter()
        .find(|hook| hook.secrets.contains(secret));
    let hook = hook.ok_or_else(|| counted.refuse(Unverified::Wrong).hint(SEND))?;
    counted.in_time()?;
    let (scoped, others) = read_registry(&served, hook, secret, &parts, body).await?;
    // A registry tells of each layer, which nobody wants to read.
    if !(scoped.accepted.is_empty() && scoped.ignored.is_empty()) && counted.taken.happened() {
        tracing::info!(registry = hook.name, accepted = ?scoped.accepted, ignored = scoped.ignored.len(), "a registry's notification was delivered");
    }
    ring(&served, &scoped);
    let answer = Answer {
        delivery: None,
        scoped,
        others: Some(others),
    };
    Ok((StatusCode::ACCEPTED, Json(answer)).into_response())
}

const SEND: &str = "the registry must send the secret of its `[[hooks.registry]]` as `Authorization: Bearer SECRET`";

async fn read_registry(
    served: &AppState,
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
    let body = whole(body, BODY_BYTES_MAX, BODY_TIME).await?;
    let verified = hook.secrets.verify(secret, &body);
    let verified = verified.map_err(|why| {
        Problem::of(
            StatusCode::UNAUTHORIZED,
            "unauthorized",
            Diagnostic::of(&why),
        )
    })?;
    let notified = hook.read(verified).map_err(|error| unreadable(&error))?;
    let grants = served.refresher.active().content.grants.clone();
    let mut scoped = Scoped::new(notified.published, &grants);
    scoped
        .ignored
        .extend(notified.wrong.into_iter().map(|why| Ignored {
            what: "an event".into(),
            why,
        }));
    Ok((scoped, notified.others))
}

fn ring(served: &AppState, scoped: &Scoped) {
    // To ring for none would be to ring for all.
    if !scoped.repositories.is_empty() {
        served.bell.announce(scoped.announced.clone());
        served
            .bell
            .enqueue(Trigger::Webhook, scoped.repositories.iter().cloned());
    }
}

impl Counted {
    /// Logged once a minute. What was sent is not.
    fn refuse(&self, why: Unverified) -> Problem {
        if self.refused.happened() {
            tracing::warn!("a delivery of a webhook was refused: {why}");
        }
        let code = match why {
            Unverified::Missing => "unsigned",
            Unverified::Wrong => "wrong-signature",
        };
        Problem::of(StatusCode::UNAUTHORIZED, code, Diagnostic::of(&why))
    }

    fn in_time(&self) -> Result<(), Problem> {
        self.rate.take().map_err(|wait| {
            if self.flooded.happened() {
                tracing::warn!(
                    "deliveries of a webhook are sent away: more than {PER_SECOND} a second come"
                );
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
    Problem::of(StatusCode::BAD_REQUEST, "bad-body", Diagnostic::of(error))
}

fn text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}

/// Without its parameters.
fn media_type(headers: &HeaderMap) -> &str {
    let kind = headers
        .get(header::CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .unwrap_or_default();
    kind.split(';').next().unwrap_or_default().trim()
}

/// Where a registry can be told to send it.
fn shared_secret(headers: &HeaderMap) -> Option<&str> {
    let bearer = text(headers, "authorization")
        .and_then(|value| value.split_once(' '))
        .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"))
        .map(|(_, secret)| secret);
    bearer
        .or_else(|| text(headers, "x-refit-secret"))
        .map(str::trim)
}
