//! The tables of routes. Both the router and its description are built from them, so every served route is described and vice
//! versa.
//!
//! The `#[utoipa::path]` of a handler has the route's method, path, parameters and responses. `openapi` makes a document of them.

use std::time::Duration;

use axum::Router;
use axum::handler::Handler;
use axum::middleware::from_fn_with_state;
use axum::routing::{MethodFilter, MethodRouter, on};
use utoipa::__dev::{SchemaReferences, Tags};
use utoipa::Path;
use utoipa::openapi::path::{HttpMethod, Operation, Parameter, Paths};
use utoipa::openapi::schema::{Schema, SchemaType, Type};
use utoipa::openapi::security::SecurityRequirement;
use utoipa::openapi::{ContentBuilder, Ref, RefOr, ResponseBuilder};

use super::bounds::{self, ConcurrencyLimit};
use super::{
    AppState, approvals, events, health, history, hooks, metrics, openapi, plan, policy, refreshes,
    shadow, watch, workspace_images,
};

/// Routes with the same kind of token.
pub(super) struct Routes {
    /// The name of the security scheme in the document.
    security: Option<&'static str>,
    pub(super) router: Router<AppState>,
    pub(super) paths: Paths,
    pub(super) schemas: Vec<(String, RefOr<Schema>)>,
}

/// The time for a body to arrive. All are small, except one that brings a policy.
const BODY_TIME: Duration = Duration::from_secs(20);

/// The concurrent queries of the history: each takes a thread and opens the file. A further request waits, and then gets an error.
const READS: usize = 32;
const READ_PATIENCE: Duration = Duration::from_secs(5);
/// The time limit of a query. It takes milliseconds; the limit is for a disk that hangs.
const READ_TIME: Duration = Duration::from_secs(30);

/// The concurrent plans: each inspects every container on the engine, and runs the policy.
const PLANS: usize = 8;
const PLAN_PATIENCE: Duration = Duration::from_secs(10);

/// The concurrent probes of the engine, and their time limit. They require no token.
const PROBES: usize = 8;
const PROBE_TIME: Duration = Duration::from_secs(10);

/// The routes for process supervisors, which have no token.
pub(super) fn without_token() -> Routes {
    let limit = ConcurrencyLimit::new(PROBES, PROBE_TIME, "questions for `/readyz` were sent away");
    let ready = Routes::without_token()
        .with(health::__path_ready, health::ready)
        .with_layers(|router| {
            router
                .layer(from_fn_with_state(PROBE_TIME, bounds::request_timeout))
                .layer(from_fn_with_state(limit, bounds::limit_concurrency))
        });
    Routes::without_token()
        .with(health::__path_alive, health::alive)
        .merge(ready)
}

/// The routes for webhooks, whose senders have separate secrets.
pub(super) fn for_webhooks() -> Routes {
    hooks::routes()
}

pub(super) fn for_metrics() -> Routes {
    Routes::new(Some("metrics")).with(metrics::__path_show, metrics::show)
}

/// All other routes.
pub(super) fn for_admin() -> Routes {
    let admin = || Routes::new(Some("admin"));
    admin()
        .with(workspace_images::__path_refresh, workspace_images::refresh)
        .merge(add_plan_routes(admin()))
        .with(refreshes::__path_begin, refreshes::begin)
        .merge(add_history_routes(admin()))
        .with(refreshes::__path_cancel, refreshes::cancel)
        .with(events::__path_watch, events::watch)
        .with(watch::__path_show, watch::show)
        .with(watch::__path_pause, watch::pause)
        .with(watch::__path_resume, watch::resume)
        .with(watch::__path_check, watch::check)
        .with(approvals::__path_list, approvals::list)
        .with(approvals::__path_request, approvals::request)
        .with(approvals::__path_show, approvals::show)
        .with(approvals::__path_approve, approvals::approve)
        .with(approvals::__path_reject, approvals::reject)
        .with(policy::__path_show, policy::show)
        .with(policy::__path_history, policy::history)
        .with(policy::__path_roll_back, policy::roll_back)
        .with(shadow::__path_show, shadow::show)
        .with(shadow::__path_end, shadow::end)
        .with(openapi::__path_show, openapi::show)
        .with_layers(|router| router.layer(from_fn_with_state(BODY_TIME, bounds::body_timeout)))
        // A component is larger, so this handler limits its body itself.
        .with(policy::__path_swap, policy::swap)
}

/// The routes that the history answers quickly. Long or streaming responses do not belong here.
fn add_history_routes(routes: Routes) -> Routes {
    let limit = ConcurrencyLimit::new(READS, READ_PATIENCE, "looks at the history were sent away");
    routes
        .with(history::__path_list, history::list)
        .with(history::__path_show, history::show)
        .with_layers(|router| {
            router
                .layer(from_fn_with_state(READ_TIME, bounds::request_timeout))
                .layer(from_fn_with_state(limit, bounds::limit_concurrency))
        })
}

fn add_plan_routes(routes: Routes) -> Routes {
    let limit = ConcurrencyLimit::new(PLANS, PLAN_PATIENCE, "plans were sent away");
    routes
        .with(plan::__path_plan, plan::plan)
        .with_layers(|router| router.layer(from_fn_with_state(limit, bounds::limit_concurrency)))
}

impl Routes {
    fn new(security: Option<&'static str>) -> Self {
        Self {
            security,
            router: Router::new(),
            paths: Paths::new(),
            schemas: Vec::new(),
        }
    }

    /// Routes without a token, or with one that each route checks itself.
    pub(super) fn without_token() -> Self {
        Self::new(None)
    }

    pub(super) fn merge(mut self, other: Self) -> Self {
        self.router = self.router.merge(other.router);
        self.paths.merge(other.paths);
        self.schemas.extend(other.schemas);
        self
    }

    /// Add layers to all routes so far.
    pub(super) fn with_layers(
        mut self,
        layer: impl FnOnce(Router<AppState>) -> Router<AppState>,
    ) -> Self {
        self.router = layer(self.router);
        self
    }

    /// Add a route. `path` is the type that `#[utoipa::path]` has generated for the handler.
    pub(super) fn with<P, H, T>(mut self, path: P, handler: H) -> Self
    where
        P: Path + SchemaReferences + Tags<'static>,
        H: Handler<T, AppState>,
        T: 'static,
    {
        drop(path);
        P::schemas(&mut self.schemas);
        let mut operation = P::operation();
        for parameter in operation.parameters.iter_mut().flatten() {
            if let RefOr::T(Parameter {
                schema: Some(schema),
                ..
            }) = parameter
            {
                remove_null(schema);
            }
        }
        operation.tags = Some(P::tags().into_iter().map(Into::into).collect());
        if let Some(security) = self.security {
            let methods = P::methods();
            let changes = methods
                .iter()
                .any(|it| !matches!(it, HttpMethod::Get | HttpMethod::Head));
            needs_token(&mut operation, security, changes);
        }
        let methods = P::methods();
        let filter = methods.iter().map(filter).reduce(MethodFilter::or);
        let filter = filter.unwrap_or(MethodFilter::GET);
        let route: MethodRouter<AppState> = on(filter, handler);
        self.router = self.router.route(&P::path(), route);
        self.paths.add_path_operation(P::path(), methods, operation);
        self
    }
}

fn needs_token(operation: &mut Operation, security: &str, changes: bool) {
    let scopes: [&str; 0] = [];
    operation.security = Some(vec![SecurityRequirement::new(security, scopes)]);
    let mut refused = |status: &str, description: &str| {
        let problem = ContentBuilder::new()
            .schema(Some(Ref::from_schema_name("Problem")))
            .build();
        let response = ResponseBuilder::new()
            .description(description)
            .content("application/problem+json", problem)
            .build();
        let responses = &mut operation.responses.responses;
        responses
            .entry(status.to_owned())
            .or_insert_with(|| response.into());
    };
    refused("401", "`unauthorized`: the token is missing or wrong.");
    if security == "admin" {
        refused(
            "421",
            "`unknown-host`: the request names a host that is not this daemon's.",
        );
    }
    if changes {
        refused(
            "403",
            "`foreign-origin`: the request comes from a web page of another site.",
        );
        refused(
            "415",
            "`bad-body`: the body is not sent as `application/json`.",
        );
    }
}

/// Remove `null` from the schema of a query or header parameter, which cannot be `null`: an optional one is only not required.
fn remove_null(schema: &mut RefOr<Schema>) {
    if let RefOr::T(Schema::Object(object)) = schema
        && let SchemaType::Array(types) = &mut object.schema_type
    {
        types.retain(|kind| *kind != Type::Null);
        if let [kind] = &types[..] {
            object.schema_type = SchemaType::Type(kind.clone());
        }
    }
}

fn filter(method: &HttpMethod) -> MethodFilter {
    match method {
        HttpMethod::Get => MethodFilter::GET,
        HttpMethod::Post => MethodFilter::POST,
        HttpMethod::Put => MethodFilter::PUT,
        HttpMethod::Delete => MethodFilter::DELETE,
        HttpMethod::Options => MethodFilter::OPTIONS,
        HttpMethod::Head => MethodFilter::HEAD,
        HttpMethod::Patch => MethodFilter::PATCH,
        HttpMethod::Trace => MethodFilter::TRACE,
    }
}
