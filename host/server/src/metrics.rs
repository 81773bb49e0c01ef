//! `GET /metrics`: all metrics, in the format that the collector prefers.

use axum::extract::State;
use axum::http::{HeaderMap, header};
use axum::response::{IntoResponse, Response};
use refit_service::metrics::Format;

use super::AppState;

/// Numbers for a monitoring system
///
/// In the text format of Prometheus (0.0.4), or as OpenMetrics 1.0.0 where `Accept` prefers it.
/// [observing.md](observing.md#metrics) has every name.
#[utoipa::path(
    get,
    path = "/metrics",
    operation_id = "metrics",
    tag = "observing",
    params(("Accept" = Option<String>, Header, description = "`application/openmetrics-text; version=1.0.0`, or `text/plain`.")),
    responses((status = 200, description = "All of them, as they are now.", content(
        (String = "text/plain; version=0.0.4; charset=utf-8"),
        (String = "application/openmetrics-text; version=1.0.0; charset=utf-8"),
    ))),
)]
pub(super) async fn show(State(state): State<AppState>, headers: HeaderMap) -> Response {
    // Probe the engine now, so that the metric has a value before any other request.
    state.probe.is_up().await;
    let accepted = headers.get_all(header::ACCEPT).into_iter();
    let accepted: Vec<_> = accepted.filter_map(|value| value.to_str().ok()).collect();
    let format = format(&accepted.join(","));
    let text = state.metrics.text(format);
    ([(header::CONTENT_TYPE, format.content_type())], text).into_response()
}

/// Choose OpenMetrics for clients that prefer it. Clients that accept neither format get plain text, like browsers and curl.
fn format(accepted: &str) -> Format {
    let mut best = (Format::Prometheus, 0.0);
    for range in accepted.split(',') {
        let mut parts = range.split(';').map(str::trim);
        let kind = parts.next().unwrap_or_default();
        let (mut quality, mut version) = (1.0, None);
        for parameter in parts {
            match parameter.split_once('=') {
                Some(("q", value)) => quality = value.parse().unwrap_or(0.0),
                Some(("version", value)) => version = Some(value),
                _ => {}
            }
        }
        let format = match kind {
            "application/openmetrics-text" if version.is_none_or(|version| version == "1.0.0") => {
                Format::OpenMetrics
            }
            "text/plain" if version.is_none_or(|version| version == "0.0.4") => Format::Prometheus,
            _ => continue,
        };
        if quality > best.1 {
            best = (format, quality);
        }
    }
    best.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn format_is_the_preferred_one() {
        // Prometheus 2.53 and 3 send these headers.
        let old = "application/openmetrics-text;version=1.0.0;q=0.5,application/openmetrics-text;version=0.0.1;q=0.4,text/plain;version=0.0.4;q=0.3,*/*;q=0.2";
        let new = "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,application/openmetrics-text;version=0.0.1;q=0.5,text/plain;version=1.0.0;escaping=allow-utf-8;q=0.4,text/plain;version=0.0.4;q=0.3,*/*;q=0.2";
        for (accepted, expected) in [
            (old, Format::OpenMetrics),
            (new, Format::OpenMetrics),
            ("application/openmetrics-text", Format::OpenMetrics),
            (
                "text/plain, application/openmetrics-text;q=0.9",
                Format::Prometheus,
            ),
            (
                "application/openmetrics-text;version=2.0.0",
                Format::Prometheus,
            ),
            ("*/*", Format::Prometheus),
            ("", Format::Prometheus),
            ("text/html", Format::Prometheus),
        ] {
            assert_eq!(format(accepted), expected, "{accepted}");
        }
    }
}
