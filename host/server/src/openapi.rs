//! The OpenAPI 3.1 document of the HTTP interface: `GET /v1/openapi.json`, and `refit openapi` without a daemon.
//!
//! It is generated from the tables in `routes`, and docs/http.md is generated from it.

use axum::Json;
use utoipa::openapi::security::{ApiKey, ApiKeyValue, Http, HttpAuthScheme, SecurityScheme};
use utoipa::openapi::tag::TagBuilder;
use utoipa::openapi::{Components, InfoBuilder, LicenseBuilder, OpenApi, OpenApiBuilder, Paths};

use super::problem::Problem;
use super::routes::{self, Routes};

/// The introduction, which applies to all routes.
const ABOUT: &str = include_str!("openapi.md");

/// The tags, in the order of the page.
const TAGS: [(&str, &str); 8] = [
    (
        "refreshes",
        "Giving containers a new image: at once, watched, ended early, and looked back at.",
    ),
    ("watch", "Looking for new images by itself."),
    (
        "approvals",
        "Refreshes that are held until a person says yes.",
    ),
    (
        "hooks",
        "Others say that something was published. What they say is a reason to look, and never one to do.",
    ),
    (
        "policy",
        "Which policy decides, another one in its place, and one on trial beside it.",
    ),
    (
        "observing",
        "Numbers and health, for machines that look after this one.",
    ),
    ("platform", "The platform's original endpoint."),
    ("description", "This description."),
];

/// Build the whole document.
pub fn document() -> OpenApi {
    let mut paths = Paths::new();
    let mut components = Components::new();
    for Routes {
        paths: some,
        schemas,
        ..
    } in [
        routes::for_admin(),
        routes::for_webhooks(),
        routes::for_metrics(),
        routes::without_token(),
    ] {
        paths.merge(some);
        components.schemas.extend(schemas);
    }
    let mut problem = Vec::new();
    Problem::describe(&mut problem);
    components.schemas.extend(problem);
    for (name, description) in [
        (
            "admin",
            "The token of `ADMIN_TOKEN` or `[serve] token_file`, or the one in the file `token` of the state folder.",
        ),
        (
            "metrics",
            "The token of `[metrics] token_file`, or the admin's.",
        ),
        (
            "registry",
            "The secret of one of `[[hooks.registry]]`. In `X-Refit-Secret` too.",
        ),
    ] {
        let mut scheme = Http::new(HttpAuthScheme::Bearer);
        scheme.description = Some(description.to_owned());
        components.add_security_scheme(name, SecurityScheme::Http(scheme));
    }
    let signature = ApiKeyValue::with_description(
        "X-Hub-Signature-256",
        "The HMAC of the body, made with the secret of `[hooks.github]`.",
    );
    components.add_security_scheme("github", SecurityScheme::ApiKey(ApiKey::Header(signature)));
    let tags = TAGS.map(|(name, about)| {
        TagBuilder::new()
            .name(name)
            .description(Some(about))
            .build()
    });
    let licence = LicenseBuilder::new().name("MIT OR Apache-2.0").build();
    let info = InfoBuilder::new()
        .title("Refit")
        .version(env!("CARGO_PKG_VERSION"))
        .description(Some(ABOUT.trim()))
        .license(Some(licence))
        .build();
    OpenApiBuilder::new()
        .info(info)
        .paths(paths)
        .components(Some(components))
        .tags(Some(tags))
        .build()
}

/// This description
///
/// OpenAPI 3.1, as `refit openapi` prints it.
#[utoipa::path(
    get,
    path = "/v1/openapi.json",
    tag = "description",
    responses((status = 200, description = "The document.", body = Object)),
)]
pub(super) async fn show() -> Json<OpenApi> {
    Json(document())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The table lists every `Problem` of the source by its status and code.
    #[test]
    fn every_code_is_told_of() {
        let table = ABOUT;
        let mut seen = 0;
        for entry in std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/src")).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_none_or(|extension| extension != "rs") {
                continue;
            }
            let text = std::fs::read_to_string(&path).unwrap();
            let code = text.split("#[cfg(test)]").next().unwrap_or_default();
            // The pattern is `StatusCode::NOT_FOUND, "no-refresh"`, on one line or several.
            for after in code.split("StatusCode::").skip(1) {
                let Some((status, rest)) = after.split_once(',') else {
                    continue;
                };
                let Some((code, _)) = rest
                    .trim_start()
                    .strip_prefix('"')
                    .and_then(|rest| rest.split_once('"'))
                else {
                    continue;
                };
                seen += 1;
                assert!(
                    table.contains(&format!("`{code}`")),
                    "{}: `{code}` ({status}) is not in openapi.md",
                    path.display()
                );
            }
        }
        assert!(seen > 25, "only {seen} codes were found");
    }

    #[test]
    fn every_operation_says_what_it_does_and_how_it_answers() {
        let document = serde_json::to_value(document()).unwrap();
        assert_eq!(document["openapi"], "3.1.0");
        let tags: Vec<_> = TAGS.iter().map(|(name, _)| *name).collect();
        let mut seen = std::collections::BTreeSet::new();
        for (path, item) in document["paths"].as_object().unwrap() {
            for (method, operation) in item.as_object().unwrap() {
                let it = format!("{method} {path}");
                assert!(operation["summary"].is_string(), "{it}");
                let id = operation["operationId"].as_str().unwrap();
                assert!(seen.insert(id.to_owned()), "{it}: `{id}` is another's");
                let tag = operation["tags"][0].as_str().unwrap_or_default();
                assert!(tags.contains(&tag), "{it}: {tag}");
                let responses = operation["responses"].as_object().unwrap();
                assert!(
                    responses.keys().any(|status| status.starts_with('2')),
                    "{it}"
                );
                let open = operation.get("security").is_none();
                assert_eq!(open, ["/healthz", "/readyz"].contains(&&**path), "{it}");
            }
        }
    }

    /// Every reference of the document has a schema.
    #[test]
    fn every_schema_that_is_named_is_there() {
        let document = serde_json::to_value(document()).unwrap();
        let schemas = document["components"]["schemas"].as_object().unwrap();
        let text = document.to_string();
        for after in text.split("\"#/components/schemas/").skip(1) {
            let (name, _) = after.split_once('"').unwrap();
            assert!(schemas.contains_key(name), "{name}");
        }
    }
}
