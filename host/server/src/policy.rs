//! `/v1/policy`: the active policy, swapping it, and rolling back to the one before it.
//!
//! With `If-Match: "4"` a change happens only if generation 4 is active. A swap continues if its client disconnects.

use std::time::Duration;

use axum::Json;
use axum::body::{Body, Bytes, to_bytes};
use axum::extract::{Query, State, rejection::QueryRejection};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use refit_model::diagnostic::Diagnostic;
use refit_revisions::artifact::signature::{SIGNATURE_BYTES_MAX, Signer};
use refit_revisions::artifact::{self, ArtifactError};
use refit_revisions::load::{Refusal, Source, Stage};
use refit_revisions::permissions::{Difference, Permissions};
use refit_revisions::store::{ActivationReason, CONFIG_BYTES_MAX, Record};
use refit_revisions::swap::{Candidate, SwapError, Swapped};
use refit_revisions::{Generation, Generations, Refused};
use refit_sandbox::{PolicyError, limits};
use serde::{Deserialize, Serialize};
use tokio::sync::Semaphore;

use super::AppState;
use super::object::JsonObject;
use super::problem::{Document, Problem};
use super::requested_by::RequestedBy;

/// The largest JSON body: base64 needs four bytes for three, and the body also has the configuration.
const JSON_BYTES_MAX: usize = limits::COMPONENT_BYTES_MAX / 3 * 4 + CONFIG_BYTES_MAX + 64 * 1024;

/// The time for a component to arrive: the largest at 400 kB/s.
const ARRIVAL: Duration = Duration::from_secs(120);

/// The concurrent uploads of components, since each is held in memory.
static ARRIVALS: Semaphore = Semaphore::const_new(2);

/// What is said of the active generation.
#[derive(Serialize, utoipa::ToSchema)]
#[schema(as = Policy)]
pub(super) struct View {
    /// Its number, which is not used again.
    generation: u64,
    name: String,
    version: String,
    /// What the policy says of itself.
    summary: String,
    /// `sha256:…` of the component.
    digest: String,
    /// Where it came from.
    origin: String,
    /// Who vouches for it; nobody where nobody needs to.
    #[serde(skip_serializing_if = "Option::is_none")]
    signer: Option<Signer>,
    activated: jiff::Timestamp,
    how: ActivationReason,
    /// Who asked, as they say of themselves.
    by: String,
    /// The configuration that it accepted.
    config: serde_json::Value,
    /// What the component can ask for at all.
    asks: Permissions,
    /// What of it the grants allow, and the signer's key.
    granted: Permissions,
    /// What a rollback would bring back.
    previous: Option<Record>,
    /// Why this is not the one that should be active.
    #[serde(skip_serializing_if = "Option::is_none")]
    problem: Option<Diagnostic>,
    /// The last swap that failed since the daemon started.
    #[serde(skip_serializing_if = "Option::is_none")]
    last_refused: Option<Refused>,
}

impl View {
    fn from_generation(generation: &Generation, generations: &Generations) -> Self {
        let (policy, record) = (generation.policy(), generation.record());
        Self {
            generation: generation.number,
            name: policy.name.clone(),
            version: policy.version.clone(),
            summary: policy.summary.clone(),
            digest: policy.digest.clone(),
            origin: generation.content.origin.clone(),
            signer: generation.content.signer.clone(),
            activated: generation.activated,
            how: record.how,
            by: record.by.clone(),
            config: record.config.clone(),
            granted: generation.content.granted(),
            asks: generation.content.permissions.clone(),
            previous: generation.history.previous().cloned(),
            problem: generation.fallback.clone(),
            last_refused: generations.last_refused().map(|it| (*it).clone()),
        }
    }
}

/// The answer to a change.
#[derive(Serialize, utoipa::ToSchema)]
#[schema(as = PolicyChange)]
pub(super) struct Change {
    /// `false`: this was in use already.
    changed: bool,
    /// What the new policy may do that the old one could not, and the other way round.
    #[serde(flatten)]
    difference: Difference,
    policy: View,
}

/// The policy that decides
///
/// The active generation.
#[utoipa::path(
    get,
    path = "/v1/policy",
    operation_id = "show_policy",
    tag = "policy",
    responses((status = 200, description = "The active generation.", body = View, headers(("ETag" = String, description = "The number of the active generation, in quotes.")))),
)]
pub(super) async fn show(State(state): State<AppState>) -> Response {
    let generations = state.refresher.generations();
    let active = generations.active();
    with_etag(&active, Json(View::from_generation(&active, generations)))
}

#[derive(Serialize, utoipa::ToSchema)]
#[schema(as = Generations)]
pub(super) struct History {
    /// The newest first; it is the active one.
    generations: Vec<Record>,
}

/// The policies that were
///
/// The last 50 generations, the newest first; the first is the active one.
#[utoipa::path(
    get,
    path = "/v1/policy/history",
    operation_id = "list_generations",
    tag = "policy",
    responses((status = 200, description = "The generations.", body = History, headers(("ETag" = String, description = "The number of the active generation, in quotes.")))),
)]
pub(super) async fn history(State(state): State<AppState>) -> Response {
    let active = state.refresher.active();
    let generations = active.history.records().cloned().collect();
    with_etag(&active, Json(History { generations }))
}

#[derive(Debug, Default, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct Parameters {
    /// What the sender calls the component: the name of its file. Default: `an upload`.
    origin: Option<String>,
    /// Who asks, as they say of themselves. Default: `X-Refit-By`, otherwise `the HTTP interface`.
    by: Option<String>,
    /// Not a swap, but a trial: how often the candidate must agree in a row to take over. `0`: it never does by itself.
    shadow: Option<u32>,
    /// Also a signed policy of which a newer version was active before. Default: false.
    allow_older: Option<bool>,
}

/// The other form of a swap, for whoever has more to say than a component.
#[derive(Debug, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = PolicyWanted)]
pub(super) struct Wanted {
    /// In base64.
    component: Option<String>,
    /// Instead: one that was in use before and is still kept.
    digest: Option<String>,
    /// Instead: one in a registry, `oci://…`, which the daemon fetches with its own logins.
    reference: Option<String>,
    /// Of a component, or anew of one that is kept: the content of its `.minisig`. One in a registry has its own.
    signature: Option<String>,
    /// Without it, the configuration in force stays. Without a component, only it changes.
    #[schema(value_type = Option<Object>)]
    config: Option<serde_json::Map<String, serde_json::Value>>,
}

/// Another policy, another configuration, or both
///
/// [policies.md](policies.md#stages) has the stages that a candidate passes; one that fails at any of them changes nothing. The swap goes
/// on when the client hangs up. The body is a component of at most 48 MiB, and the configuration in force stays; or an object with at most
/// one of `component`, `digest` and `reference`, and with `config` where none of them is there.
#[utoipa::path(
    put,
    path = "/v1/policy",
    operation_id = "swap_policy",
    tag = "policy",
    params(
        Parameters,
        ("If-Match" = Option<String>, Header, pattern = r#"^(\*|"*[0-9]{1,18}"*)$"#, description = "A generation, `\"4\"`: only if it is the active one. `*` or left out: whichever is."),
        ("X-Refit-By" = Option<String>, Header, description = "Who asks, as they say of themselves."),
    ),
    request_body(content(
        (Wanted = "application/json"),
        ("application/wasm"),
        ("application/octet-stream"),
    )),
    responses(
        (status = 200, description = "It is in use.", body = Change, headers(("ETag" = String, description = "The number of the active generation, in quotes."))),
        (status = 202, description = "With `shadow`: it is on trial.", body = super::shadow::View),
        (status = 400, description = "`bad-query`, `bad-body`, `bad-if-match`.", body = Document, content_type = "application/problem+json"),
        (status = 408, description = "`body-too-slow`.", body = Document, content_type = "application/problem+json"),
        (status = 409, description = "`generation-conflict`, `withdrawn`.", body = Document, content_type = "application/problem+json"),
        (status = 413, description = "`body-refused`, `policy-refused`.", body = Document, content_type = "application/problem+json"),
        (status = 415, description = "`unsupported-media-type`.", body = Document, content_type = "application/problem+json"),
        (status = 422, description = "`policy-refused`, `policy-untrusted`, `policy-older`.", body = Document, content_type = "application/problem+json"),
        (status = 500, description = "`not-durable`, `internal`.", body = Document, content_type = "application/problem+json"),
        (status = 502, description = "`registry-failed`.", body = Document, content_type = "application/problem+json"),
        (status = 503, description = "`swap-under-way`, `stopping`.", body = Document, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn swap(
    State(state): State<AppState>,
    RequestedBy(named): RequestedBy,
    parameters: Result<Query<Parameters>, QueryRejection>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    let parameters = parse_query(parameters)?;
    let expected = expected_generation(&headers)?;
    let kind = headers
        .get(header::CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .and_then(|value| value.split(';').next())
        .map_or("", str::trim);
    let origin = parameters.origin.unwrap_or_else(|| "an upload".to_owned());
    let (source, config) = match kind {
        "application/wasm" | "application/octet-stream" => {
            let bytes = read_component(body, limits::COMPONENT_BYTES_MAX).await?;
            let signature = None;
            (
                Source::Bytes {
                    bytes,
                    origin,
                    signature,
                },
                None,
            )
        }
        "application/json" => parse_body(&read_component(body, JSON_BYTES_MAX).await?, origin)?,
        _ => {
            let problem = Problem::new(
                StatusCode::UNSUPPORTED_MEDIA_TYPE,
                "unsupported-media-type",
                "the body is neither a component nor JSON",
            );
            return Err(problem.hint(
                "send the component as `Content-Type: application/wasm`, or an object with `component`, `digest`, `reference` or `config` as \
                 `application/json`",
            ));
        }
    };
    let by = parameters
        .by
        .or(named)
        .unwrap_or_else(|| "the HTTP interface".to_owned());
    let candidate = Candidate {
        source,
        config,
        expected,
        allow_older: parameters.allow_older.unwrap_or_default(),
        by,
    };
    let generations = state.refresher.generations().clone();
    if let Some(after) = parameters.shadow {
        let after = (after > 0).then_some(after);
        let trying = async move { generations.start_shadow(candidate, after).await };
        let shadow = spawn_detached(&state, trying).await?;
        return Ok(super::shadow::view(&shadow, StatusCode::ACCEPTED));
    }
    change(state, async move { generations.swap(candidate).await }).await
}

/// The policy before it, again
///
/// The content of the generation before, configuration included, as a new generation.
#[utoipa::path(
    post,
    path = "/v1/policy/rollback",
    operation_id = "roll_back_policy",
    tag = "policy",
    params(
        ("by" = Option<String>, Query, description = "As of a swap."),
        ("If-Match" = Option<String>, Header, pattern = r#"^(\*|"*[0-9]{1,18}"*)$"#, description = "A generation, `\"4\"`: only if it is the active one. `*` or left out: whichever is."),
        ("X-Refit-By" = Option<String>, Header, description = "Who asks, as they say of themselves."),
    ),
    responses(
        (status = 200, description = "It is in use.", body = Change, headers(("ETag" = String, description = "The number of the active generation, in quotes."))),
        (status = 400, description = "`bad-query`, `bad-if-match`.", body = Document, content_type = "application/problem+json"),
        (status = 409, description = "`nothing-before`, `generation-conflict`.", body = Document, content_type = "application/problem+json"),
        (status = 422, description = "`policy-refused`, `policy-untrusted`.", body = Document, content_type = "application/problem+json"),
        (status = 500, description = "`not-durable`, `internal`.", body = Document, content_type = "application/problem+json"),
        (status = 503, description = "`swap-under-way`, `stopping`.", body = Document, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn roll_back(
    State(state): State<AppState>,
    RequestedBy(named): RequestedBy,
    parameters: Result<Query<Parameters>, QueryRejection>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let parameters = parse_query(parameters)?;
    let expected = expected_generation(&headers)?;
    let by = parameters
        .by
        .or(named)
        .unwrap_or_else(|| "the HTTP interface".to_owned());
    let generations = state.refresher.generations().clone();
    change(
        state,
        async move { generations.roll_back(expected, &by).await },
    )
    .await
}

async fn change(
    state: AppState,
    swap: impl Future<Output = Result<Swapped, SwapError>> + Send + 'static,
) -> Result<Response, Problem> {
    let Swapped {
        generation,
        changed,
        difference,
    } = spawn_detached(&state, swap).await?;
    let policy = View::from_generation(&generation, state.refresher.generations());
    let change = Change {
        changed,
        difference,
        policy,
    };
    Ok(with_etag(&generation, Json(change)))
}

/// Run the work in a separate task, so that it continues if the client disconnects.
async fn spawn_detached<T: Send + 'static>(
    state: &AppState,
    work: impl Future<Output = Result<T, SwapError>> + Send + 'static,
) -> Result<T, Problem> {
    if state.stopping.is_cancelled() {
        return Err(Problem::stopping());
    }
    match state.work.spawn(work).await {
        Ok(answer) => answer.map_err(|error| to_problem(&error)),
        Err(panicked) => {
            tracing::error!("a swap panicked, please report it: {panicked}");
            Err(Problem::internal())
        }
    }
}

fn to_problem(error: &SwapError) -> Problem {
    let (status, code) = match error.source.as_ref() {
        Refusal::Busy => (StatusCode::SERVICE_UNAVAILABLE, "swap-under-way"),
        Refusal::Overtaken { .. } => (StatusCode::CONFLICT, "generation-conflict"),
        Refusal::Withdrawn => (StatusCode::CONFLICT, "withdrawn"),
        // A registry failed that Refit queried for the client, and may respond the next time.
        Refusal::Artifact(ArtifactError::Registry { .. } | ArtifactError::TimedOut { .. }) => {
            (StatusCode::BAD_GATEWAY, "registry-failed")
        }
        Refusal::NothingBefore => (StatusCode::CONFLICT, "nothing-before"),
        Refusal::Policy(PolicyError::TooLarge { .. })
        | Refusal::Artifact(ArtifactError::TooLarge { .. })
        | Refusal::ConfigTooLarge { .. } => (StatusCode::PAYLOAD_TOO_LARGE, "policy-refused"),
        Refusal::Store(_) if error.stage == Stage::Durable => {
            (StatusCode::INTERNAL_SERVER_ERROR, "not-durable")
        }
        Refusal::Untrusted { .. } => (StatusCode::UNPROCESSABLE_ENTITY, "policy-untrusted"),
        Refusal::Older { .. } => (StatusCode::UNPROCESSABLE_ENTITY, "policy-older"),
        Refusal::NoObject | Refusal::Policy(_) | Refusal::Artifact(_) | Refusal::Store(_) => {
            (StatusCode::UNPROCESSABLE_ENTITY, "policy-refused")
        }
    };
    Problem::from_diagnostic(status, code, Diagnostic::of(error)).at(error.stage)
}

fn with_etag(generation: &Generation, body: impl IntoResponse) -> Response {
    let mut response = body.into_response();
    if let Ok(tag) = HeaderValue::from_str(&format!("\"{}\"", generation.number)) {
        response.headers_mut().insert(header::ETAG, tag);
    }
    response
}

/// The generation in `If-Match`, if there is one, in quotes or not. `*` matches any.
fn expected_generation(headers: &HeaderMap) -> Result<Option<u64>, Problem> {
    let Some(value) = headers.get(header::IF_MATCH) else {
        return Ok(None);
    };
    let text = value.to_str().unwrap_or_default().trim();
    if text == "*" {
        return Ok(None);
    }
    text.trim_matches('"').parse().map(Some).map_err(|_| {
        Problem::new(
            StatusCode::BAD_REQUEST,
            "bad-if-match",
            "`If-Match` names no generation",
        )
        .hint("send the number of the generation that you believe is active: `If-Match: \"4\"`")
    })
}

fn parse_query(
    parameters: Result<Query<Parameters>, QueryRejection>,
) -> Result<Parameters, Problem> {
    match parameters {
        Ok(Query(parameters)) => Ok(parameters),
        Err(rejection) => Err(Problem::new(
            StatusCode::BAD_REQUEST,
            "bad-query",
            "the query cannot be read",
        )
        .hint(rejection.body_text())),
    }
}

async fn read_component(body: Body, bytes_max: usize) -> Result<Bytes, Problem> {
    let Ok(_arriving) = ARRIVALS.try_acquire() else {
        return Err(Problem::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "swap-under-way",
            "other policies are on their way in",
        )
        .hint("try again when they have arrived"));
    };
    match tokio::time::timeout(ARRIVAL, to_bytes(body, bytes_max)).await {
        Ok(Ok(bytes)) => Ok(bytes),
        // axum has the same error for a body that is too long and for one that was cut off.
        Ok(Err(error)) => Err(Problem::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            "body-refused",
            format!("the body did not arrive whole, or is larger than {bytes_max} bytes"),
        )
        .hint(error.to_string())
        .at(Stage::Size)),
        Err(_) => Err(Problem::new(
            StatusCode::REQUEST_TIMEOUT,
            "body-too-slow",
            format!("the body did not arrive within {} s", ARRIVAL.as_secs()),
        )),
    }
}

fn parse_body(body: &[u8], origin: String) -> Result<(Source, Option<String>), Problem> {
    let bad = |hint: String| {
        Problem::new(
            StatusCode::BAD_REQUEST,
            "bad-body",
            "the body cannot be read",
        )
        .hint(hint)
    };
    let JsonObject(wanted): JsonObject<Wanted> =
        serde_json::from_slice(body).map_err(|error| bad(error.to_string()))?;
    let config = wanted
        .config
        .map(|config| serde_json::Value::Object(config).to_string());
    let signature = wanted.signature;
    if signature
        .as_ref()
        .is_some_and(|it| it.len() > SIGNATURE_BYTES_MAX)
    {
        return Err(bad(format!(
            "`signature` has more than {SIGNATURE_BYTES_MAX} bytes"
        )));
    }
    let source = match (wanted.component, wanted.digest, wanted.reference) {
        (Some(component), None, None) => {
            let bytes = base64::engine::general_purpose::STANDARD
                .decode(component)
                .map_err(|error| bad(format!("`component` is no base64: {error}")))?;
            Source::Bytes {
                bytes: bytes.into(),
                origin,
                signature,
            }
        }
        (None, Some(digest), None) => Source::Kept { digest, signature },
        (None, None, _) if signature.is_some() => {
            return Err(bad(
                "send `signature` with the `component` or the `digest` that it is of".into(),
            ));
        }
        (None, None, Some(reference)) => match artifact::parse_reference(&reference) {
            Ok(reference) => Source::Registry(reference),
            Err(error) => return Err(bad(error.to_string())),
        },
        (None, None, None) if config.is_some() => Source::Active,
        (None, None, None) => {
            return Err(bad(
                "send `component`, `digest`, `reference` or `config`".into()
            ));
        }
        _ => {
            return Err(bad(
                "send one of `component`, `digest` and `reference`".into()
            ));
        }
    };
    Ok((source, config))
}
