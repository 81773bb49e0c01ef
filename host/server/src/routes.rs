//! The table of routes, from which both the router and the document that describes it are made: what is served is described, and
//! the other way round.
//!
//! A route's method, path, parameters and answers stand at its handler, in `#[utoipa::path]`. `openapi` makes a document of them.

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

/// Routes that take the same token.
pub(super) struct Routes {
    /// The name of a security scheme of the document.
    security: Option<&'static str>,
    pub(super) router: Router<AppState>,
    pub(super) paths: Paths,
    pub(super) schemas: Vec<(String, RefOr<Schema>)>,
}

/// But for one that brings a policy no request has a body to speak of, so none takes long to come.
const BODY_TIME: Duration = Duration::from_secs(20);

/// Looks at the history at once: each has a thread and the file. Who finds no place waits, and is sent away after that.
const READS: usize = 32;
const READ_PATIENCE: Duration = Duration::from_secs(5);
/// A look takes milliseconds; this one waits for a disk that hangs.
const READ_TIME: Duration = Duration::from_secs(30);

/// Plans at once: each asks the engine of every container, and runs the policy.
const PLANS: usize = 8;
const PLAN_PATIENCE: Duration = Duration::from_secs(10);

/// Questions to the engine whether it is there, at once, and how long it may take to say so. Nobody needs a token to ask.
const PROBES: usize = 8;
const PROBE_TIME: Duration = Duration::from_secs(10);

/// Whoever looks after processes has no token.
pub(super) fn open() -> Routes {
    let gate = ConcurrencyLimit::new(PROBES, PROBE_TIME, "questions for `/readyz` were sent away");
    let ready = Routes::open()
        .with(health::__path_ready, health::ready)
        .layered(|router| {
            router
                .layer(from_fn_with_state(PROBE_TIME, bounds::answered_within))
                .layer(from_fn_with_state(gate, bounds::through))
        });
    Routes::open()
        .with(health::__path_alive, health::alive)
        .merge(ready)
}

/// Those who send have secrets of their own.
pub(super) fn for_senders() -> Routes {
    hooks::routes()
}

pub(super) fn for_metrics() -> Routes {
    Routes::new(Some("metrics")).with(metrics::__path_show, metrics::show)
}

/// All others.
pub(super) fn for_admin() -> Routes {
    let admin = || Routes::new(Some("admin"));
    admin()
        .with(workspace_images::__path_refresh, workspace_images::refresh)
        .merge(plans(admin()))
        .with(refreshes::__path_begin, refreshes::begin)
        .merge(reads(admin()))
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
        .layered(|router| router.layer(from_fn_with_state(BODY_TIME, bounds::sent_within)))
        // A component is larger, and bounds its way in itself.
        .with(policy::__path_swap, policy::swap)
}

/// What is answered from the history, soon. What takes long, or streams, is not for here.
fn reads(routes: Routes) -> Routes {
    let gate = ConcurrencyLimit::new(READS, READ_PATIENCE, "looks at the history were sent away");
    routes
        .with(history::__path_list, history::list)
        .with(history::__path_show, history::show)
        .layered(|router| {
            router
                .layer(from_fn_with_state(READ_TIME, bounds::answered_within))
                .layer(from_fn_with_state(gate, bounds::through))
        })
}

fn plans(routes: Routes) -> Routes {
    let gate = ConcurrencyLimit::new(PLANS, PLAN_PATIENCE, "plans were sent away");
    routes
        .with(plan::__path_plan, plan::plan)
        .layered(|router| router.layer(from_fn_with_state(gate, bounds::through)))
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

    /// Those that take no token, or one of which they say themselves.
    pub(super) fn open() -> Self {
        Self::new(None)
    }

    pub(super) fn merge(mut self, other: Self) -> Self {
        self.router = self.router.merge(other.router);
        self.paths.merge(other.paths);
        self.schemas.extend(other.schemas);
        self
    }

    /// What stands before those that are there.
    pub(super) fn layered(
        mut self,
        layer: impl FnOnce(Router<AppState>) -> Router<AppState>,
    ) -> Self {
        self.router = layer(self.router);
        self
    }

    /// `path` is what `#[utoipa::path]` has made beside the handler.
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

/// A query and a header have no `null`; a parameter that may be left out is not required, and that is all.
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
