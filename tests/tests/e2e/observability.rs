//! What a daemon shows of its refreshes: events as they happen, numbers, health, and a log that can be searched.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use refit_tests::events::{Events, Told};
use refit_tests::refit::Daemon;
use refit_tests::{ContainerSpec, ImageSpec, Proxy, http, registry, with_world};
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;

use crate::guests::traps_in_refresh;
use crate::{behind, refit, replaced, until, untouched, without_engine};

const JSON: (&str, &str) = ("Content-Type", "application/json");

/// As in host/server/src/events.rs.
const STREAMS_MAX: usize = 64;

async fn begin(daemon: &Daemon, headers: &[(&str, &str)], body: &Value) -> anyhow::Result<i64> {
    let headers = [&[JSON], headers].concat();
    let answer = daemon
        .send("POST", "/v1/refreshes", &headers, body.to_string())
        .await?;
    ensure!(answer.status == 202, "{}", answer.text);
    let answer = answer.json()?;
    let id = answer["id"].as_i64().context("it has a number")?;
    assert_eq!(answer["events"], format!("/v1/refreshes/{id}/events"));
    Ok(id)
}

async fn shown(daemon: &Daemon, id: i64) -> anyhow::Result<Value> {
    let answer = daemon
        .request("GET", &format!("/v1/refreshes/{id}"))
        .await?;
    ensure!(answer.status == 200, "{}", answer.text);
    answer.json()
}

async fn open(daemon: &Daemon, path: &str, headers: &[(&str, &str)]) -> anyhow::Result<Events> {
    let bearer = daemon.token().map(|token| format!("Bearer {token}"));
    let bearer = bearer.as_deref().map(|bearer| ("Authorization", bearer));
    let headers: Vec<_> = headers.iter().copied().chain(bearer).collect();
    Events::open(daemon.address, path, &headers).await
}

async fn watch(daemon: &Daemon, id: i64, headers: &[(&str, &str)]) -> anyhow::Result<Events> {
    let path = format!("/v1/refreshes/{id}/events");
    let events = open(daemon, &path, headers).await?;
    ensure!(
        (events.status, events.content_type.as_str()) == (200, "text/event-stream"),
        "{}",
        events.status
    );
    Ok(events)
}

/// `began`, `pull-started`, `step stop`, …; progress, of which there is more or less, left out.
fn names(told: &[Told]) -> Vec<String> {
    let told = told.iter().filter(|it| it.name != "pull-progress");
    told.map(|it| match it.data["step"].as_str() {
        Some(step) => format!("{} {step}", it.name),
        None => it.name.clone(),
    })
    .collect()
}

/// Reads up to and with the first event of this name.
async fn read_to(events: &mut Events, name: &str) -> anyhow::Result<Vec<Told>> {
    let mut all = Vec::new();
    loop {
        let told = events.next().await?;
        let told = told.with_context(|| format!("it ended before `{name}`: {all:?}"))?;
        all.push(told);
        if names(&all).last().is_some_and(|last| last == name) {
            return Ok(all);
        }
    }
}

#[tokio::test]
async fn a_refresh_is_watched_from_its_beginning_to_its_end() -> anyhow::Result<()> {
    with_world("watched", |w| async move {
        let registry = registry::open().await?;
        let v1 = w.publish(registry, "hermes", ImageSpec::new("v1")).await?;
        let hermes = w.run(ContainerSpec::new("hermes", &v1.reference)).await?;
        let large = ImageSpec::new("v2").filling(8 << 20);
        let v2 = w.publish(registry, "hermes", large).await?;
        let proxy = Proxy::before(&w).await?;
        let stop = proxy.hold("POST", "/stop");
        let refit = refit(&w, registry, &["hermes"])?
            .set("state_dir", "state")
            .env("DOCKER_HOST", &proxy.docker_host());
        let daemon = refit.serve().await?;

        let asked = json!({ "targets": ["hermes"] });
        let by = ("X-Refit-By", "publish.yml\t run 42");
        let key = ("Idempotency-Key", "\"run-42\"");
        let id = begin(&daemon, &[by, key], &asked).await?;
        assert_eq!(begin(&daemon, &[key], &asked).await?, id, "asked again");
        let other = daemon
            .send("POST", "/v1/refreshes", &[JSON, key], "{}")
            .await?;
        assert_eq!(
            (other.status, other.json()?["code"].clone()),
            (422, "key-reused".into())
        );

        // One that never reads, one that is cut off, and one that reads to the end.
        let mut deaf = TcpStream::connect(daemon.address).await?;
        let head = daemon.head_lines();
        let request = format!("GET /v1/refreshes/{id}/events HTTP/1.1\r\n{head}\r\n");
        deaf.write_all(request.as_bytes()).await?;
        let mut cut = watch(&daemon, id, &[]).await?;
        let first = read_to(&mut cut, "step stop").await?;
        drop(cut);
        let whole = watch(&daemon, id, &[]).await?;
        let now = shown(&daemon, id).await?;
        assert_eq!(
            (&now["outcome"], &now["by"]),
            (&json!("running"), &json!("publish.yml run 42"))
        );
        assert_eq!(now["events"], format!("/v1/refreshes/{id}/events"));
        stop.until_waiting(1).await?;
        stop.release();

        let last = first.last().map(|it| it.id.clone()).unwrap_or_default();
        let resumed = watch(&daemon, id, &[("Last-Event-ID", &last)]).await?;
        let (whole, resumed) = tokio::try_join!(whole.rest(), resumed.rest())?;
        let order = [
            "began",
            "pull-started",
            "pull-ended",
            "recreate-started",
            "step inspect",
            "step create",
            "step verify",
            "step stop",
        ];
        assert_eq!(
            names(&first)
                .iter()
                .filter(|name| *name != "step connect")
                .collect::<Vec<_>>(),
            order
        );
        let pieces = [first.as_slice(), &resumed].concat();
        assert_eq!(names(&pieces), names(&whole), "nothing twice, nothing lost");
        let ids: Vec<u64> = pieces
            .iter()
            .map(|it| it.id.parse())
            .collect::<Result<_, _>>()?;
        assert!(ids.is_sorted_by(|a, b| a < b), "{ids:?}");
        let progress = pieces.iter().filter(|it| it.name == "pull-progress");
        assert!(
            progress
                .clone()
                .all(|it| it.data["layer"]["id"].is_string() && it.data["layers"].is_u64()),
            "{pieces:#?}"
        );
        let ended = whole.last().context("it ended")?;
        assert_eq!(
            (ended.name.as_str(), &ended.data["outcome"]),
            ("ended", &json!("done"))
        );
        assert_eq!(ended.data["summary"]["recreated"], 1);
        replaced(&w, &hermes, &v2).await?;

        // Afterwards it can be watched once more, from wherever somebody likes; who has seen all need not come back.
        let again = watch(&daemon, id, &[]).await?.rest().await?;
        assert_eq!(names(&again), names(&whole));
        let path = format!("/v1/refreshes/{id}/events");
        let after = format!("{path}?after={}", ended.id);
        assert_eq!(daemon.request("GET", &after).await?.status, 204);
        for (path, status, code) in [
            (format!("{path}?after=x"), 400, "bad-query"),
            (
                format!("/v1/refreshes/{}/events", id + 1),
                404,
                "no-refresh",
            ),
        ] {
            let answer = daemon.request("GET", &path).await?;
            assert_eq!(answer.status, status, "{path}");
            assert_eq!(answer.json()?["code"], code, "{path}");
        }
        let path = format!("/v1/refreshes/{id}");
        let answer = daemon.request("DELETE", &path).await?;
        assert_eq!(
            (answer.status, answer.json()?["code"].clone()),
            (409, "already-ended".into())
        );
        let now = shown(&daemon, id).await?;
        assert_eq!(
            (&now["outcome"], &now["events"]),
            (&json!("done"), &Value::Null)
        );
        assert_eq!(now["report"]["summary"]["recreated"], 1);
        drop(deaf);

        in_the_log(&daemon, id).await
    })
    .await
}

/// Every line about the refresh carries its number.
async fn in_the_log(daemon: &Daemon, id: i64) -> anyhow::Result<()> {
    daemon.until_logged("a refresh has ended").await?;
    let log = daemon.log();
    let lines: Vec<Value> = log
        .lines()
        .filter_map(|line| serde_json::from_str(line).ok())
        .collect();
    for (message, field) in [
        ("a refresh begins", "policy"),
        ("an image was pulled", "image"),
        ("a container was worked on", "container"),
        ("a refresh has ended", "outcome"),
    ] {
        let line = lines
            .iter()
            .find(|line| line["fields"]["message"] == message);
        let line = line.unwrap_or_else(|| panic!("no `{message}` in\n{log}"));
        assert_eq!(
            (&line["span"]["id"], &line["span"]["trigger"]),
            (&json!(id), &json!("api")),
            "{line}"
        );
        assert!(line["fields"][field].is_string(), "{line}");
    }
    Ok(())
}

#[tokio::test]
async fn a_refresh_that_is_ended_early_finishes_what_it_has_begun() -> anyhow::Result<()> {
    with_world("ended early", |w| async move {
        let registry = registry::open().await?;
        let v1 = w.publish(registry, "hermes", ImageSpec::new("v1")).await?;
        let a = w.run(ContainerSpec::new("a", &v1.reference)).await?;
        let b = w.run(ContainerSpec::new("b", &v1.reference)).await?;
        let v2 = w.publish(registry, "hermes", ImageSpec::new("v2")).await?;
        let proxy = Proxy::before(&w).await?;
        let stop = proxy.hold("POST", "/stop");
        let daemon = refit(&w, registry, &["hermes"])?
            .set("state_dir", "state")
            .set("limits.recreate_concurrency", 1)
            .env("DOCKER_HOST", &proxy.docker_host())
            .serve()
            .await?;
        let id = begin(&daemon, &[], &json!({})).await?;
        stop.until_waiting(1).await?;
        let path = format!("/v1/refreshes/{id}");
        let answer = daemon.request("DELETE", &path).await?;
        assert_eq!(answer.status, 202, "{}", answer.text);
        assert_eq!(answer.json()?["ending"], true);
        stop.release();
        let told = watch(&daemon, id, &[]).await?.rest().await?;
        assert_eq!(
            told.last().map(|it| it.data["outcome"].clone()),
            Some(json!("cancelled"))
        );
        assert_eq!(shown(&daemon, id).await?["outcome"], "cancelled");
        // Which of the two was first, the policy says.
        if w.container_exists(&a.id).await? {
            replaced(&w, &b, &v2).await?;
            untouched(&w, &a).await
        } else {
            replaced(&w, &a, &v2).await?;
            untouched(&w, &b).await
        }
    })
    .await
}

#[tokio::test]
async fn one_that_is_not_written_down_is_seen_all_the_same() -> anyhow::Result<()> {
    let refit = without_engine()?
        .set("state_dir", "state")
        // A file where its folder should be: also for root there is no way to write below it.
        .file("state/history", "")?;
    let daemon = refit.serve().await?;
    let asked = json!({ "targets": ["nope"] });
    let id = begin(&daemon, &[("X-Refit-By", "ana")], &asked).await?;
    assert_eq!(id, -1);
    let told = watch(&daemon, id, &[]).await?.rest().await?;
    assert_eq!(names(&told), ["began", "ended"]);
    assert_eq!(told[1].data["failure"]["error"], "unknown target: nope");
    let now = shown(&daemon, id).await?;
    assert_eq!(
        (&now["outcome"], &now["by"], &now["policy"]["name"]),
        (&json!("failed"), &json!("ana"), &json!("workspace"))
    );
    let listed = daemon.request("GET", "/v1/refreshes").await?.json()?;
    assert_eq!(
        (&listed["refreshes"], &listed["unwritten"][0]["id"]),
        (&json!([]), &json!(-1))
    );
    assert!(listed["problem"]["error"].is_string(), "{listed:#}");
    let none = daemon.request("GET", "/v1/refreshes?outcome=done").await?;
    assert_eq!(none.status, 503, "{}", none.text);
    Ok(())
}

#[tokio::test]
async fn watchers_are_bounded_and_one_that_leaves_makes_room() -> anyhow::Result<()> {
    with_world("many watchers", |w| async move {
        let registry = registry::open().await?;
        behind(&w, registry, "hermes").await?;
        let proxy = Proxy::before(&w).await?;
        let stop = proxy.hold("POST", "/stop");
        let daemon = refit(&w, registry, &["hermes"])?
            .env("DOCKER_HOST", &proxy.docker_host())
            .serve()
            .await?;
        let id = begin(&daemon, &[], &json!({})).await?;
        stop.until_waiting(1).await?;
        let mut watchers = Vec::new();
        for _ in 0..STREAMS_MAX {
            watchers.push(watch(&daemon, id, &[]).await?);
        }
        let path = format!("/v1/refreshes/{id}/events");
        let answer = daemon.request("GET", &path).await?;
        assert_eq!(
            (answer.status, answer.json()?["code"].clone()),
            (503, "too-many-watchers".into())
        );
        watchers.pop();
        until("room for another watcher", || async {
            let watcher = open(&daemon, &path, &[]).await?;
            Ok(watcher.status == 200)
        })
        .await?;
        stop.release();
        let last = watchers.pop().context("there are some")?;
        let told = last.rest().await?;
        assert_eq!(told.last().map(|it| it.name.as_str()), Some("ended"));
        Ok(())
    })
    .await
}

/// The value of a series.
#[track_caller]
fn value(text: &str, series: &str) -> f64 {
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
    let line = line.unwrap_or_else(|| panic!("no `{series}` in\n{text}"));
    line.parse()
        .unwrap_or_else(|error| panic!("{series} {line}: {error}"))
}

#[tokio::test]
async fn a_refresh_moves_the_numbers_that_it_should() -> anyhow::Result<()> {
    with_world("metrics", |w| async move {
        let registry = registry::open().await?;
        let (hermes, v2) = behind(&w, registry, "hermes").await?;
        let daemon = refit(&w, registry, &["hermes", "openclaw"])?
            .set("state_dir", "state")
            .env("ADMIN_TOKEN", "admin-token-of-this-test")
            .file("metrics-token", "metrics-token-of-this-test\n")?
            .set("metrics.token_file", "metrics-token")
            .serve()
            .await?;
        daemon.until_ready().await?;
        let look = async |token| http::request(daemon.address, "GET", "/metrics", token).await;
        for token in [None, Some("wrong")] {
            assert_eq!(look(token).await?.status, 401);
        }
        let metrics_token = Some("metrics-token-of-this-test");
        let stranger = http::request(daemon.address, "GET", "/v1/refreshes", metrics_token).await?;
        assert_eq!(stranger.status, 401, "it is good for nothing else");
        assert_eq!(look(Some("admin-token-of-this-test")).await?.status, 200);

        let before = look(metrics_token).await?.text;
        assert_eq!(value(&before, "refit_engine_up"), 1.0);
        assert_eq!(value(&before, "refit_history_writable"), 1.0);
        assert_eq!(value(&before, "refit_policy_generation"), 1.0);
        assert!(value(&before, "process_resident_memory_bytes") > 1e6);
        daemon.refresh("").await?;
        replaced(&w, &hermes, &v2).await?;
        let after = look(metrics_token).await?;
        assert_eq!(
            after.content_type,
            "text/plain; version=0.0.4; charset=utf-8"
        );
        let after = after.text;
        // `openclaw` is not published.
        for (series, moved) in [
            (
                r#"refit_refreshes_total{trigger="api",outcome="some-failed"}"#,
                1.0,
            ),
            (
                r#"refit_refreshes_total{trigger="api",outcome="done"}"#,
                0.0,
            ),
            ("refit_refresh_duration_seconds_count", 1.0),
            (r#"refit_containers_total{outcome="recreated"}"#, 1.0),
            (r#"refit_containers_total{outcome="rolled-back"}"#, 0.0),
            ("refit_gap_seconds_count", 1.0),
            (r#"refit_gap_seconds_bucket{le="+Inf"}"#, 1.0),
            (r#"refit_pulls_total{outcome="pulled"}"#, 1.0),
            (r#"refit_pulls_total{outcome="failed"}"#, 1.0),
            ("refit_pull_duration_seconds_count", 2.0),
            (r#"refit_policy_traps_total{kind="trapped"}"#, 0.0),
            ("refit_refreshes_under_way", 0.0),
        ] {
            let moves = value(&after, series) - value(&before, series);
            assert_eq!(moves, moved, "{series}\n{after}");
        }
        let gap = value(&after, "refit_gap_seconds_sum");
        assert!(gap > 0.0 && gap < 60.0, "{gap}");

        let wasm = ("Content-Type", "application/wasm");
        let swapped = daemon
            .send("PUT", "/v1/policy", &[wasm], traps_in_refresh()?)
            .await?;
        assert_eq!(swapped.status, 200, "{}", swapped.text);
        daemon.refresh("").await?;
        let accept = ("Accept", "application/openmetrics-text; version=1.0.0");
        let open = daemon
            .send("GET", "/metrics", &[accept], Vec::new())
            .await?;
        assert!(
            open.content_type
                .starts_with("application/openmetrics-text"),
            "{}",
            open.content_type
        );
        assert!(open.text.ends_with("# EOF\n"), "{}", open.text);
        assert_eq!(value(&open.text, "refit_policy_generation"), 2.0);
        assert_eq!(
            value(&open.text, r#"refit_policy_traps_total{kind="trapped"}"#),
            1.0
        );
        let failed = r#"refit_refreshes_total{trigger="api",outcome="failed"}"#;
        assert_eq!(value(&open.text, failed), 1.0);
        Ok(())
    })
    .await
}

#[tokio::test]
async fn an_engine_that_hangs_makes_it_unready_and_is_asked_once() -> anyhow::Result<()> {
    with_world("hanging engine", |w| async move {
        let registry = registry::open().await?;
        let proxy = Proxy::before(&w).await?;
        let daemon = refit(&w, registry, &["hermes"])?
            .env("DOCKER_HOST", &proxy.docker_host())
            .serve()
            .await?;
        daemon.until_ready().await?;
        let pings = || {
            let asked = proxy.asked();
            asked.iter().filter(|it| it.path == "/_ping").count()
        };
        let hang = proxy.hold("GET", "/_ping");
        // An answer of a moment ago still holds.
        until("that the engine hangs", || async {
            Ok(daemon.request("GET", "/readyz").await?.status == 503)
        })
        .await?;
        let (before, began) = (pings(), Instant::now());
        let probes = (0..200).map(|_| daemon.request("GET", "/readyz"));
        let answers = futures_util::future::try_join_all(probes).await?;
        for answer in &answers {
            assert_eq!(answer.status, 503);
            assert_eq!(answer.json()?["code"], "engine-unavailable");
        }
        // Two seconds a ping, and its answer holds for another one.
        let (asked, took) = (pings() - before, began.elapsed());
        assert!(took < Duration::from_secs(20), "{took:?}");
        let most = 1 + took.as_secs() as usize;
        assert!(
            asked <= most,
            "the engine was asked {asked} times in {took:?}"
        );
        assert_eq!(daemon.request("GET", "/healthz").await?.status, 200);
        let told = daemon.log().matches("does not answer").count();
        assert_eq!(told, 1, "{}", daemon.log());
        hang.release();
        until("the engine answer again", || async {
            Ok(daemon.request("GET", "/readyz").await?.status == 200)
        })
        .await?;
        daemon.until_logged("answers again").await
    })
    .await
}
