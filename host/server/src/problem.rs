//! The error responses: `application/problem+json` (RFC 9457), in the words of the command line.

use std::time::Duration;

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use refit_model::diagnostic::Diagnostic;
use refit_revisions::load::Stage;
use refit_service::approvals;
use refit_service::runs::StartError;
use serde::Serialize;
use utoipa::openapi::RefOr;
use utoipa::openapi::schema::Schema;
use utoipa::{PartialSchema as _, ToSchema as _};

use super::bounds;

#[derive(Debug)]
pub(super) struct Problem {
    status: StatusCode,
    code: &'static str,
    /// The stage at which a swap failed.
    stage: Option<Stage>,
    /// The time after which a retry is useful.
    again: Option<Duration>,
    /// Whether to close the connection, because the rest of the request is not read.
    closing: bool,
    /// The pending approval that replaces this one.
    superseded_by: Option<approvals::Id>,
    diagnostic: Box<Diagnostic>,
}

/// How a request is refused.
#[derive(Serialize, utoipa::ToSchema)]
#[schema(as = Problem)]
pub(super) struct Written<'a> {
    /// What could not be done.
    title: &'a str,
    /// The same, for clients of the platform's original interface.
    error: &'a str,
    /// For programs; stable.
    code: &'static str,
    /// How far a swap came.
    #[serde(skip_serializing_if = "Option::is_none")]
    stage: Option<Stage>,
    /// The refresh that waits for approval in place of this one.
    #[serde(skip_serializing_if = "Option::is_none")]
    superseded_by: Option<approvals::Id>,
    /// Why, from the nearest to the root.
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    #[schema(value_type = Option<Vec<String>>)]
    causes: &'a [String],
    /// What a person can do.
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    #[schema(value_type = Option<Vec<String>>)]
    hints: &'a [String],
}

/// The schema name in the API description.
pub(super) type Document = Written<'static>;

impl Problem {
    pub(super) fn new(status: StatusCode, code: &'static str, title: impl Into<String>) -> Self {
        Self::from_diagnostic(status, code, Diagnostic::new(title))
    }

    pub(super) fn from_diagnostic(
        status: StatusCode,
        code: &'static str,
        diagnostic: Diagnostic,
    ) -> Self {
        Self {
            status,
            code,
            stage: None,
            again: None,
            closing: false,
            superseded_by: None,
            diagnostic: Box::new(diagnostic),
        }
    }

    pub(super) fn stopping() -> Self {
        Self::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "stopping",
            "the daemon is stopping",
        )
    }

    pub(super) fn not_begun(why: &StartError) -> Self {
        match why {
            StartError::Stopping => Self::stopping(),
            StartError::TooMany => Self::from_diagnostic(
                StatusCode::SERVICE_UNAVAILABLE,
                "too-many-refreshes",
                Diagnostic::of(why),
            ),
            StartError::NotHeld(diagnostic) => Self::from_diagnostic(
                StatusCode::SERVICE_UNAVAILABLE,
                "approvals-unavailable",
                diagnostic.clone(),
            ),
        }
    }

    pub(super) fn internal() -> Self {
        Self::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "internal",
            "Refit itself failed; see its log",
        )
    }

    /// Add the schema of a problem, and the schemas that it refers to.
    pub(super) fn describe(schemas: &mut Vec<(String, RefOr<Schema>)>) {
        schemas.push((Document::name().into_owned(), Document::schema()));
        Document::schemas(schemas);
    }

    pub(super) fn at(mut self, stage: Stage) -> Self {
        self.stage = Some(stage);
        self
    }

    pub(super) fn again_in(mut self, wait: Duration) -> Self {
        self.again = Some(wait);
        self
    }

    pub(super) fn closing(mut self) -> Self {
        self.closing = true;
        self
    }

    pub(super) fn superseded_by(mut self, id: Option<approvals::Id>) -> Self {
        self.superseded_by = id;
        self
    }

    pub(super) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.diagnostic.hints.push(hint.into());
        self
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let document = Written {
            title: &self.diagnostic.error,
            error: &self.diagnostic.error,
            code: self.code,
            stage: self.stage,
            superseded_by: self.superseded_by,
            causes: &self.diagnostic.causes,
            hints: &self.diagnostic.hints,
        };
        let mut response = (self.status, axum::Json(document)).into_response();
        response.headers_mut().insert(
            header::CONTENT_TYPE,
            HeaderValue::from_static("application/problem+json"),
        );
        if self.status == StatusCode::UNAUTHORIZED {
            response
                .headers_mut()
                .insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        if let Some(wait) = self.again {
            let seconds = bounds::retry_after(wait);
            response.headers_mut().insert(header::RETRY_AFTER, seconds);
        }
        if self.closing {
            bounds::close_connection(&mut response);
        }
        response
    }
}
