//! Web pages are not the local user, and a daemon always has a token.

use std::os::unix::fs::PermissionsExt as _;

use refit_tests::http;
use refit_tests::refit::Daemon;
use serde_json::json;

use super::without_engine;

/// What a page may try to have done.
const CHANGES: [(&str, &str); 8] = [
    ("POST", "/v1/refreshes"),
    ("POST", "/v1/plan"),
    ("POST", "/v1/watch/pause"),
    ("POST", "/v1/approvals"),
    ("POST", "/v1/approvals/1/approve"),
    ("POST", "/v1/policy/rollback"),
    ("PUT", "/v1/policy"),
    ("POST", "/admin/workspace-images/refresh"),
];

async fn code(
    daemon: &Daemon,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &str,
) -> anyhow::Result<(u16, String)> {
    let answer = daemon.send(method, path, headers, body.to_owned()).await?;
    let code = answer
        .json()
        .ok()
        .and_then(|it| it["code"].as_str().map(str::to_owned));
    Ok((answer.status, code.unwrap_or_default()))
}

/// A daemon without a token, and one with.
async fn daemons() -> anyhow::Result<[Daemon; 2]> {
    let open = without_engine()?.set("serve.allow_no_token", true);
    Ok([
        open.serve().await?,
        without_engine()?
            .env("ADMIN_TOKEN", "t0ken")
            .serve()
            .await?,
    ])
}

#[tokio::test]
async fn page_of_another_site_changes_nothing() -> anyhow::Result<()> {
    for daemon in daemons().await? {
        let own = format!("http://{}", daemon.address);
        let foreign: [&[(&str, &str)]; 5] = [
            &[("origin", "http://evil.example")],
            &[("origin", "null")],
            &[("origin", "http://localhost:1")],
            &[("sec-fetch-site", "cross-site")],
            &[("sec-fetch-site", "same-site"), ("origin", own.as_str())],
        ];
        for (method, path) in CHANGES {
            for headers in foreign {
                let told = code(&daemon, method, path, headers, "").await?;
                assert_eq!(
                    told,
                    (403, "foreign-origin".to_owned()),
                    "{method} {path} {headers:?}"
                );
            }
        }
        let headers = [
            ("origin", own.as_str()),
            ("sec-fetch-site", "same-origin"),
            ("content-type", "application/json"),
        ];
        let (status, _) = code(
            &daemon,
            "POST",
            "/v1/approvals/999999999/reject",
            &headers,
            "{}",
        )
        .await?;
        assert_eq!(
            status, 404,
            "its own page may ask, and there is no such approval"
        );
    }
    Ok(())
}

#[tokio::test]
async fn rebound_name_is_refused() -> anyhow::Result<()> {
    for daemon in daemons().await? {
        let port = daemon.address.port();
        for host in [
            "evil.example".to_owned(),
            format!("evil.example:{port}"),
            "127.0.0.1:1".into(),
            "localhost".into(),
        ] {
            let headers = [("host", host.as_str())];
            for (method, path) in CHANGES
                .into_iter()
                .chain([("GET", "/v1/policy"), ("GET", "/v1/refreshes")])
            {
                let told = code(&daemon, method, path, &headers, "").await?;
                assert_eq!(
                    told,
                    (421, "unknown-host".to_owned()),
                    "{method} {path} at {host}"
                );
            }
            let (status, _) = code(&daemon, "GET", "/healthz", &headers, "").await?;
            assert_eq!(
                status, 200,
                "whoever looks after processes may use any name"
            );
        }
        for host in [
            format!("localhost:{port}"),
            format!("127.0.0.1:{port}"),
            format!("[::1]:{port}"),
        ] {
            let (status, _) = code(&daemon, "GET", "/v1/policy", &[("host", &host)], "").await?;
            assert_eq!(status, 200, "{host}");
        }
    }
    Ok(())
}

#[tokio::test]
async fn configured_host_is_known() -> anyhow::Result<()> {
    let refit = without_engine()?.set(
        "serve.hosts",
        json!(["refit.example", "other.example:9000"]),
    );
    let daemon = refit.serve().await?;
    for (host, expected) in [
        ("refit.example", 200),
        ("REFIT.example:443", 200),
        ("other.example:9000", 200),
        ("other.example", 421),
    ] {
        let (status, _) = code(&daemon, "GET", "/v1/policy", &[("host", host)], "").await?;
        assert_eq!(status, expected, "{host}");
    }
    drop(daemon);
    let refit = refit.set("serve.hosts", json!(["http://refit.example/"]));
    let output = refit
        .run(&["serve", "--listen", "127.0.0.1:0"])
        .await?
        .expect(2);
    output.says(
        "`serve.hosts` in the configuration is `http://refit.example/`, which is no host name",
    );
    Ok(())
}

#[tokio::test]
async fn body_that_is_not_json_is_refused() -> anyhow::Result<()> {
    for daemon in daemons().await? {
        for kind in [
            "text/plain",
            "application/x-www-form-urlencoded",
            "multipart/form-data; boundary=x",
        ] {
            for (method, path) in CHANGES {
                let headers = [("content-type", kind)];
                let (status, _) = code(&daemon, method, path, &headers, "{}").await?;
                assert_eq!(status, 415, "{method} {path} as {kind}");
            }
        }
        let (status, _) =
            code(&daemon, "POST", "/v1/approvals/999999999/reject", &[], "{}").await?;
        assert_eq!(status, 415, "a body of no type");
    }
    Ok(())
}

#[tokio::test]
async fn daemon_makes_a_token_that_commands_read() -> anyhow::Result<()> {
    let refit = without_engine()?.set("state_dir", "state");
    let daemon = refit.serve().await?;
    let file = refit.state_folder().join("token");
    assert_eq!(
        std::fs::metadata(&file)?.permissions().mode() & 0o777,
        0o600
    );
    let token = std::fs::read_to_string(&file)?;
    assert_eq!(token.len(), 64, "256 bits");
    let stranger = http::request(daemon.address, "GET", "/v1/policy", None).await?;
    assert_eq!(stranger.status, 401);
    let server = format!("http://{}", daemon.address);
    refit
        .run(&["policy", "history", "--server", &server])
        .await?
        .expect(0);
    // It is for this machine's daemon alone.
    let elsewhere = server.replace("127.0.0.1", "127.0.0.1.nip.invalid");
    let output = refit
        .run(&["policy", "history", "--server", &elsewhere])
        .await?
        .expect(2);
    assert!(!output.stderr.contains(&token), "{output}");
    drop(daemon);
    let again = refit.serve().await?;
    assert_eq!(std::fs::read_to_string(&file)?, token, "made once");
    assert!(!again.log().contains(&token));
    Ok(())
}

#[tokio::test]
async fn daemon_without_token_says_so() -> anyhow::Result<()> {
    let refit = without_engine()?.set("serve.allow_no_token", true);
    let daemon = refit.serve().await?;
    assert!(
        daemon.log().contains("there is no admin token"),
        "{}",
        daemon.log()
    );
    let answer = http::request(daemon.address, "GET", "/v1/policy", None).await?;
    assert_eq!(answer.status, 200);
    Ok(())
}
