//! Refuses requests that a browser sends on behalf of another site's page: a web page is not the local user.
//!
//! There are three checks, none of which depends on a token. [`require_known_host`] stops DNS rebinding: a page of `evil.example`,
//! whose name resolves to this machine, still sends `Host: evil.example`. [`refuse_other_sites`] stops cross-site request forgery:
//! browsers name the requesting site in `Origin` and `Sec-Fetch-Site`. [`require_json`] stops forms, which a page may send to any
//! site without a preflight request.

use std::net::{IpAddr, SocketAddr};

use axum::extract::{Request, State};
use axum::http::uri::Authority;
use axum::http::{HeaderMap, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::Response;

use super::AppState;
use super::problem::Problem;

const SEC_FETCH_SITE: &str = "sec-fetch-site";

/// The host names of the daemon.
#[derive(Clone, Debug)]
pub struct KnownHosts {
    /// The names of `[serve] hosts`, in lower case. A name without a port matches each port.
    names: Vec<(String, Option<u16>)>,
    listens: SocketAddr,
}

impl KnownHosts {
    /// `listens` is the address of the socket. Each of `names` is a host with or without a port.
    pub fn new(listens: SocketAddr, names: &[String]) -> Self {
        let names = names.iter().filter_map(|name| {
            let authority: Authority = name.parse().ok()?;
            Some((host(&authority), authority.port_u16()))
        });
        Self {
            names: names.collect(),
            listens,
        }
    }

    fn knows(&self, authority: &Authority) -> bool {
        if authority.as_str().contains('@') {
            return false;
        }
        let host = host(authority);
        let port = authority.port_u16().unwrap_or(80);
        let named = self
            .names
            .iter()
            .any(|(name, only)| *name == host && only.is_none_or(|only| only == port));
        if named {
            return true;
        }
        // Beyond loopback the outside port may differ, for example that of a container.
        let is_remote = !self.listens.ip().is_loopback();
        let right_port = port == self.listens.port() || is_remote;
        let Ok(address) = host.parse::<IpAddr>() else {
            return host == "localhost" && right_port;
        };
        let address = address.to_canonical();
        // An address cannot be rebound like a name.
        let ours =
            self.listens.ip().is_unspecified() || address == self.listens.ip().to_canonical();
        right_port && (address.is_loopback() || (is_remote && ours))
    }
}

/// The host without brackets and the root's dot, in lower case.
fn host(authority: &Authority) -> String {
    let host = authority.host().trim_matches(['[', ']']);
    host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase()
}

/// The middleware for all routes that take the admin token.
pub(super) async fn require_known_host(
    State(state): State<AppState>,
    request: Request,
    next: Next,
) -> Result<Response, Problem> {
    let known = authorities(&request).is_some_and(|authorities| {
        !authorities.is_empty() && authorities.iter().all(|it| state.hosts.knows(it))
    });
    if known {
        return Ok(next.run(request).await);
    }
    tracing::warn!(
        path = request.uri().path(),
        "refused a request for an unknown host"
    );
    let problem = Problem::new(
        StatusCode::MISDIRECTED_REQUEST,
        "unknown-host",
        "the request names a host that is not this daemon's",
    );
    Err(problem.hint("a name under which the daemon is reached, for example through a proxy, belongs into `[serve] hosts`"))
}

/// The authorities in `Host` and in the request's target. `None` if one is unreadable.
fn authorities(request: &Request) -> Option<Vec<Authority>> {
    let mut found: Vec<Authority> = request.uri().authority().cloned().into_iter().collect();
    for value in request.headers().get_all(header::HOST) {
        found.push(value.to_str().ok()?.parse().ok()?);
    }
    Some(found)
}

/// The middleware for all requests that change something.
pub(super) async fn refuse_other_sites(request: Request, next: Next) -> Result<Response, Problem> {
    let safe = matches!(
        *request.method(),
        Method::GET | Method::HEAD | Method::OPTIONS
    );
    if safe || is_same_site(&request) {
        return Ok(next.run(request).await);
    }
    tracing::warn!(
        path = request.uri().path(),
        "refused a request of a web page"
    );
    let problem = Problem::new(
        StatusCode::FORBIDDEN,
        "foreign-origin",
        "the request comes from a web page of another site",
    );
    Err(problem.hint("browsers say so in `Origin` and `Sec-Fetch-Site`; programs send neither"))
}

fn is_same_site(request: &Request) -> bool {
    let headers = request.headers();
    let mut sites = headers.get_all(SEC_FETCH_SITE).iter();
    // Same-site is another origin: any other port of this machine is same-site.
    if !sites.all(|site| matches!(site.as_bytes(), b"same-origin" | b"none")) {
        return false;
    }
    let mut origins = headers.get_all(header::ORIGIN).iter().peekable();
    if origins.peek().is_none() {
        return true;
    }
    let Some(authorities) = authorities(request) else {
        return false;
    };
    origins.all(|origin| {
        let origin = origin
            .to_str()
            .ok()
            .and_then(|origin| origin.parse::<http::Uri>().ok());
        origin.is_some_and(|origin| {
            !authorities.is_empty() && authorities.iter().all(|ours| is_origin(&origin, ours))
        })
    })
}

/// Whether a page of this origin would send this `Host` to its own site.
fn is_origin(origin: &http::Uri, ours: &Authority) -> bool {
    let Some(theirs) = origin.authority() else {
        return false;
    };
    // A proxy that terminates TLS keeps the name, and the port is the scheme's.
    let usual = match origin.scheme_str() {
        Some("http") => 80,
        Some("https") => 443,
        _ => return false,
    };
    let port = |authority: &Authority| authority.port_u16().unwrap_or(usual);
    host(theirs) == host(ours) && port(theirs) == port(ours)
}

/// The middleware for all routes that take the admin token: a body must be JSON. A swap may have a component as its body, and
/// checks the type itself.
pub(super) async fn require_json(request: Request, next: Next) -> Result<Response, Problem> {
    let is_swap = request.method() == Method::PUT;
    if is_swap || !has_body(request.headers()) || is_json(request.headers()) {
        return Ok(next.run(request).await);
    }
    let problem = Problem::new(
        StatusCode::UNSUPPORTED_MEDIA_TYPE,
        "bad-body",
        "the request cannot be read",
    );
    Err(problem.hint("send the body as `Content-Type: application/json`, or none"))
}

fn has_body(headers: &HeaderMap) -> bool {
    let length = headers.get(header::CONTENT_LENGTH);
    let empty = length.is_none_or(|length| length.as_bytes() == b"0");
    headers.contains_key(header::TRANSFER_ENCODING) || !empty
}

fn is_json(headers: &HeaderMap) -> bool {
    let kind = headers
        .get(header::CONTENT_TYPE)
        .and_then(|it| it.to_str().ok());
    let kind = kind
        .and_then(|kind| kind.split(';').next())
        .unwrap_or_default();
    let kind = kind.trim().to_ascii_lowercase();
    kind == "application/json" || (kind.starts_with("application/") && kind.ends_with("+json"))
}

#[cfg(test)]
mod tests {
    use axum::body::Body;

    use super::*;

    fn known(listens: &str, names: &[&str], host: &str) -> bool {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let hosts = KnownHosts::new(listens.parse().unwrap(), &names);
        host.parse().is_ok_and(|authority| hosts.knows(&authority))
    }

    #[test]
    fn loopback_is_known_with_its_port() {
        for host in [
            "127.0.0.1:8787",
            "localhost:8787",
            "LOCALHOST.:8787",
            "[::1]:8787",
            "127.0.0.2:8787",
        ] {
            assert!(known("127.0.0.1:8787", &[], host), "{host}");
        }
        for host in [
            "127.0.0.1",
            "127.0.0.1:80",
            "localhost:1",
            "evil.example",
            "evil.example:8787",
            "localhost.evil.example:8787",
            "127.0.0.1.nip.io:8787",
            "x.localhost:8787",
            "192.168.1.4:8787",
            "a@127.0.0.1:8787",
            "0.0.0.0:8787",
        ] {
            assert!(!known("127.0.0.1:8787", &[], host), "{host}");
        }
    }

    #[test]
    fn configured_names_are_known() {
        let names = ["Refit.example", "other.example:9000"];
        assert!(known("127.0.0.1:8787", &names, "refit.example"));
        assert!(known("127.0.0.1:8787", &names, "refit.example:443"));
        assert!(known("127.0.0.1:8787", &names, "other.example:9000"));
        assert!(!known("127.0.0.1:8787", &names, "other.example"));
    }

    #[test]
    fn addresses_are_known_beyond_loopback() {
        assert!(known("0.0.0.0:8787", &[], "192.168.1.4:8787"));
        assert!(
            known("0.0.0.0:8787", &[], "127.0.0.1:9000"),
            "a published port"
        );
        assert!(known("192.168.1.4:8787", &[], "192.168.1.4:8787"));
        assert!(!known("192.168.1.4:8787", &[], "192.168.1.5:8787"));
        assert!(!known("0.0.0.0:8787", &[], "evil.example:8787"));
    }

    fn same_site(headers: &[(&str, &str)]) -> bool {
        let mut request = axum::http::Request::post("/").header("host", "127.0.0.1:8787");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        is_same_site(&request.body(Body::empty()).unwrap())
    }

    #[test]
    fn pages_of_others_are_refused() {
        assert!(same_site(&[]));
        assert!(same_site(&[("origin", "http://127.0.0.1:8787")]));
        assert!(same_site(&[
            ("sec-fetch-site", "same-origin"),
            ("origin", "http://127.0.0.1:8787")
        ]));
        assert!(same_site(&[("sec-fetch-site", "none")]));
        for headers in [
            &[("origin", "null")] as &[_],
            &[("origin", "http://evil.example")],
            &[("origin", "http://127.0.0.1")],
            &[("origin", "http://127.0.0.1:8788")],
            &[("origin", "https://127.0.0.1:8787.evil.example")],
            &[("origin", "file://")],
            &[("origin", "chrome-extension://127.0.0.1:8787")],
            &[("origin", "")],
            &[("sec-fetch-site", "cross-site")],
            &[("sec-fetch-site", "same-site")],
            &[("sec-fetch-site", "")],
            &[
                ("origin", "http://127.0.0.1:8787"),
                ("origin", "http://evil.example"),
            ],
        ] {
            assert!(!same_site(headers), "{headers:?}");
        }
    }

    #[test]
    fn forms_are_no_json() {
        let headers = |length: &str, kind: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::CONTENT_LENGTH, length.parse().unwrap());
            headers.insert(header::CONTENT_TYPE, kind.parse().unwrap());
            headers
        };
        for kind in [
            "text/plain",
            "application/x-www-form-urlencoded",
            "multipart/form-data; boundary=x",
            "text/plain; application/json",
            "",
        ] {
            let headers = headers("2", kind);
            assert!(has_body(&headers) && !is_json(&headers), "{kind}");
        }
        for kind in [
            "application/json",
            "Application/JSON; charset=utf-8",
            "application/merge-patch+json",
        ] {
            assert!(is_json(&headers("2", kind)), "{kind}");
        }
        assert!(!has_body(&headers("0", "text/plain")));
    }
}
