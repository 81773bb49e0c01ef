//! The description of the HTTP interface: it keeps to the rules of OpenAPI, a daemon's answers keep to it, and docs/http.md is made
//! of it. The rules and JSON Schema are checked by others' programs, in Python, which are got once.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use refit_tests::events::Events;
use refit_tests::refit::Daemon;
use refit_tests::{http, progress, python, registry, with_world};
use serde_json::{Value, json};
use tokio::process::Command;

use crate::guests::traps_in_refresh;
use crate::{PROGRAM, behind, refit, without_engine};

const JSON: (&str, &str) = ("Content-Type", "application/json");

/// A checker that reads some megabytes.
const CHECK_TIMEOUT: Duration = Duration::from_secs(5 * 60);

fn folder(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

async fn run(program: &Path, arguments: &[&Path]) -> anyhow::Result<String> {
    python::output_within(Command::new(program).args(arguments), CHECK_TIMEOUT).await
}

/// What a daemon has answered, for `check.py`.
struct Answers<'a> {
    daemon: &'a Daemon,
    all: Vec<Value>,
}

impl Answers<'_> {
    /// `path` is the template, `asked` what is sent where that differs.
    async fn ask(
        &mut self,
        method: &str,
        path: &str,
        asked: &str,
        headers: &[(&str, &str)],
        body: impl Into<bytes::Bytes>,
    ) -> anyhow::Result<Value> {
        let answer = self.daemon.send(method, asked, headers, body).await?;
        self.take(method, path, answer)
    }

    async fn get(&mut self, path: &str, asked: &str) -> anyhow::Result<Value> {
        self.ask("GET", path, asked, &[], "").await
    }

    fn take(&mut self, method: &str, path: &str, answer: http::Answer) -> anyhow::Result<Value> {
        let body = match answer.content_type.contains("json") {
            true => answer.json()?,
            false if answer.text.is_empty() => Value::Null,
            false => json!(answer.text),
        };
        self.all.push(json!({
            "method": method,
            "path": path,
            "status": answer.status,
            "type": answer.content_type,
            "body": body,
        }));
        Ok(body)
    }
}

#[tokio::test]
async fn the_description_is_valid_and_answers_keep_to_it() -> anyhow::Result<()> {
    with_world("openapi", |w| async move {
        let programs = python::environment(&folder("openapi/requirements.txt")).await?;
        let registry = registry::open().await?;
        behind(&w, registry, "hermes").await?;
        let token = "token-of-this-test";
        let refit = refit(&w, registry, &["hermes", "openclaw"])?
            .set("state_dir", "state")
            .env("ADMIN_TOKEN", token);
        let daemon = refit.serve().await?;
        daemon.until_ready().await?;
        let mut answers = Answers {
            daemon: &daemon,
            all: vec![],
        };
        let document = answers.get("/v1/openapi.json", "/v1/openapi.json").await?;
        let printed = refit.run(&["openapi"]).await?.expect(0).json();
        assert_eq!(document, printed);

        for path in ["/healthz", "/readyz", "/metrics", "/v1/policy", "/v1/policy/history"] {
            answers.get(path, path).await?;
        }
        answers.ask("POST", "/v1/plan", "/v1/plan", &[JSON], "{}").await?;
        for wrong in [r#"{"targets":["nope"]}"#, r#"{"colour":1}"#, "{"] {
            answers.ask("POST", "/v1/plan", "/v1/plan", &[JSON], wrong).await?;
        }
        let list = daemon.send("POST", "/v1/refreshes", &[JSON], "[]").await?;
        assert_eq!(list.status, 422, "a list began a refresh: {}", list.text);
        let pause = daemon.send("POST", "/v1/watch/pause", &[JSON], "null").await?;
        let problem = pause.json()?;
        assert_eq!(problem["code"], "watch-off", "`null` is no body: {problem}");
        let (one, events) = ("/v1/refreshes/{id}", "/v1/refreshes/{id}/events");
        let key = ("Idempotency-Key", "k");
        let refreshes = "/v1/refreshes";
        let begun = answers.ask("POST", refreshes, refreshes, &[JSON, key], "{}").await?;
        let place = begun["events"].as_str().context("it can be watched")?.to_owned();
        answers.get(one, &format!("/v1/refreshes/{}", begun["id"])).await?;
        let admin = format!("Bearer {token}");
        let stream = Events::open(daemon.address, &place, &[("Authorization", &admin)]).await?;
        let (status, kind) = (stream.status, stream.content_type.clone());
        let told = stream.rest().await?;
        let names: Vec<_> = told.iter().map(|it| it.name.as_str()).collect();
        for name in ["began", "pull-started", "pull-progress", "pull-ended", "step", "recreate-ended", "ended"] {
            assert!(names.contains(&name), "{name} is not in {names:?}");
        }
        let last = told.last().context("it told something")?.id.clone();
        let data: Vec<_> = told.into_iter().map(|it| it.data).collect();
        answers.all.push(json!({ "method": "GET", "path": events, "status": status, "type": kind, "body": data }));
        answers.get(events, &format!("{place}?after={last}")).await?;
        answers.get(events, &format!("{place}?after=x")).await?;
        answers.ask("POST", refreshes, refreshes, &[JSON, key], r#"{"force":true}"#).await?;
        answers.get(one, &format!("/v1/refreshes/{}", begun["id"])).await?;
        answers.ask("DELETE", one, &format!("/v1/refreshes/{}", begun["id"]), &[], "").await?;
        answers.get(one, "/v1/refreshes/77").await?;
        answers.get(refreshes, "/v1/refreshes?limit=1&container=ws").await?;
        answers.get(refreshes, "/v1/refreshes").await?;
        answers.get(refreshes, "/v1/refreshes?limit=0").await?;

        let endpoint = "/admin/workspace-images/refresh";
        for query in ["", "?runtime=nope"] {
            answers.ask("POST", endpoint, &format!("{endpoint}{query}"), &[], "").await?;
        }
        let wasm = ("Content-Type", "application/wasm");
        let policy = "/v1/policy";
        let shadow = "/v1/policy/shadow";
        answers.get(shadow, shadow).await?;
        answers.ask("PUT", policy, "/v1/policy?shadow=3", &[wasm], traps_in_refresh()?).await?;
        answers.ask("POST", endpoint, endpoint, &[], "").await?;
        answers.get(shadow, shadow).await?;
        answers.ask("DELETE", shadow, shadow, &[], "").await?;
        answers.ask("PUT", policy, policy, &[wasm], "no component").await?;
        answers.ask("PUT", policy, policy, &[wasm, ("If-Match", "\"9\"")], "").await?;
        answers.ask("PUT", policy, policy, &[wasm], traps_in_refresh()?).await?;
        answers.ask("POST", endpoint, endpoint, &[], "").await?;
        answers.get(refreshes, "/v1/refreshes").await?;
        answers.get("/v1/policy", "/v1/policy").await?;
        let rollback = "/v1/policy/rollback";
        answers.ask("POST", rollback, rollback, &[], "").await?;
        let stranger = http::request(daemon.address, "GET", refreshes, None).await?;
        answers.take("GET", refreshes, stranger)?;

        let statuses: Vec<_> = answers.all.iter().map(|it| it["status"].as_u64()).collect();
        assert!(!statuses.contains(&Some(500)) || statuses.len() > 30, "{statuses:?}");
        let written = tempfile::tempdir()?;
        let (described, answered) = (written.path().join("document"), written.path().join("answers"));
        fs::write(&described, document.to_string())?;
        fs::write(&answered, Value::from(answers.all).to_string())?;
        let check = folder("openapi/check.py");
        let told = run(&programs.join("python"), &[&check, &described, &answered]).await?;
        assert!(told.contains("are as described"), "{told}");
        Ok(())
    })
    .await
}

/// Requests that schemathesis makes of the description, valid ones and others, are answered as the description says.
#[tokio::test]
async fn schemathesis_finds_no_answer_that_is_not_described() -> anyhow::Result<()> {
    /// It ends by itself before that.
    const BUDGET_SECONDS: u32 = 60;
    const TIMEOUT: Duration = Duration::from_secs(5 * 60);
    with_world("schemathesis", |w| async move {
        let programs = python::environment(&folder("schemathesis/requirements.txt")).await?;
        let registry = registry::open().await?;
        behind(&w, registry, "hermes").await?;
        let token = "token-of-this-test";
        let secret = "secret-of-a-webhook-of-this-test";
        let daemon = refit(&w, registry, &["hermes"])?
            .set("state_dir", "state")
            .set("watch", json!({ "enabled": true }))
            .env("ADMIN_TOKEN", token)
            .env("GITHUB_WEBHOOK_SECRET", secret)
            .env("REGISTRY_WEBHOOK_SECRET", &format!("{secret}-2"))
            .serve()
            .await?;
        daemon.until_ready().await?;
        let written = tempfile::tempdir()?;
        let document = written.path().join("openapi.json");
        let answer = daemon.send("GET", "/v1/openapi.json", &[], "").await?;
        fs::write(&document, answer.text)?;
        let mut run = Command::new(programs.join("schemathesis"));
        run.arg("--config-file")
            .arg(folder("schemathesis/schemathesis.toml"))
            .arg("run")
            .arg(&document)
            .args(["--url", &format!("http://{}", daemon.address)])
            .args(["--header", &format!("Authorization: Bearer {token}")])
            .args(["--max-time", &BUDGET_SECONDS.to_string(), "--no-color"])
            .args(["--checks", "all", "--mode", "all"])
            // It writes what it remembers beside itself.
            .current_dir(written.path());
        let told = python::output_within(&mut run, TIMEOUT).await?;
        // What it says when it has asked nothing is no success.
        let tested = "Tested: 28";
        anyhow::ensure!(told.contains(tested), "not `{tested}`:\n{told}");
        progress(
            told.lines()
                .rev()
                .find(|line| line.contains(" in "))
                .unwrap_or_default(),
        );
        Ok(())
    })
    .await
}

#[tokio::test]
async fn the_page_of_routes_is_made_of_the_description() -> anyhow::Result<()> {
    let page = folder("../docs/http.md");
    let script = folder("../docs/.vitepress/scripts/http.mjs");
    let described = without_engine()?.run(&["openapi"]).await?.expect(0).stdout;
    let written = tempfile::NamedTempFile::new()?;
    fs::write(written.path(), described)?;
    let told = run(
        Path::new("node"),
        &[&script, Path::new("--check"), written.path()],
    )
    .await;
    told.with_context(|| format!("{} is out of date (made by {PROGRAM})", page.display()))
        .map(drop)
}
