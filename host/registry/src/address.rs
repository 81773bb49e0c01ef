//! Resolves registry addresses: the name in a reference is not always the host, and not every host uses TLS.

use reqwest::Url;

/// The registry host of `docker.io`, which itself serves a web page.
const DOCKER_HUB: (&str, &str) = ("docker.io", "registry-1.docker.io");

/// Reports whether the registry listens on this machine alone: Refit trusts it without TLS, as the engine does.
pub fn is_loopback(registry: &str) -> bool {
    // The colons of an IPv6 address in brackets do not separate a port.
    let port = registry
        .rsplit_once(':')
        .filter(|(_, port)| !port.ends_with(']'));
    let host = port.map_or(registry, |(host, _)| host);
    let host = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost"
        || host
            .parse::<std::net::IpAddr>()
            .is_ok_and(|address| address.is_loopback())
}

/// Reports whether Refit contacts a registry, as `host` or `host:port`, without TLS: it is listed, or on this machine.
pub fn is_plain(registry: &str, listed: &[String]) -> bool {
    is_loopback(registry) || listed.iter().any(|it| it == registry)
}

/// Returns the registry's root URL, which ends in `/v2/`. `None` if the name is not a valid address.
pub fn root(registry: &str, plain: bool) -> Option<Url> {
    let (name, host) = DOCKER_HUB;
    let host = if registry == name { host } else { registry };
    let scheme = if plain { "http" } else { "https" };
    let root: Url = format!("{scheme}://{host}/v2/").parse().ok()?;
    // A name with an `@` or a `?` would not be a host.
    (root.username().is_empty() && root.path() == "/v2/" && root.query().is_none()).then_some(root)
}

/// Reports whether two URLs point to the same server, by scheme, host and port.
pub fn is_same_server(one: &Url, other: &Url) -> bool {
    let server = |url: &Url| {
        (
            url.scheme().to_owned(),
            url.host_str().map(str::to_owned),
            url.port_or_known_default(),
        )
    };
    server(one) == server(other)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn is(registry: &str, expected: &str) {
        let plain = is_plain(registry, &["registry.lan:5000".to_owned()]);
        let root = root(registry, plain).expect("it is an address");
        assert_eq!(root.as_str(), expected);
    }

    #[test]
    fn each_registry_has_its_address() {
        is("ghcr.io", "https://ghcr.io/v2/");
        is("docker.io", "https://registry-1.docker.io/v2/");
        is("127.0.0.1:5000", "http://127.0.0.1:5000/v2/");
        is("localhost:5000", "http://localhost:5000/v2/");
        is("[::1]:5000", "http://[::1]:5000/v2/");
        is("[::1]", "http://[::1]/v2/");
        is("[2001:db8::1]", "https://[2001:db8::1]/v2/");
        is("registry.lan:5000", "http://registry.lan:5000/v2/");
        is("registry.lan:5001", "https://registry.lan:5001/v2/");
    }

    #[test]
    fn what_is_more_than_a_host_is_none() {
        for name in ["user@ghcr.io", "ghcr.io/x?", "ghcr.io?x", "a b"] {
            assert_eq!(root(name, false), None, "{name}");
        }
    }

    #[test]
    fn another_port_is_another_server() {
        let [a, b, c] = [
            "https://ghcr.io/v2/",
            "https://ghcr.io:443/x",
            "https://ghcr.io:444/x",
        ]
        .map(|it| it.parse::<Url>().unwrap());
        assert!(is_same_server(&a, &b));
        assert!(!is_same_server(&a, &c));
    }
}
