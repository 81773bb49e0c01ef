//! Refreshes that wait for a person: nothing begins before somebody says yes, and then what was approved and no more, also when a
//! tag moves, a container comes, or the daemon is killed at the worst moment.

use std::fs;
use std::path::PathBuf;

use refit_tests::http::Answer;
use refit_tests::refit::Daemon;
use refit_tests::registry::{self, Registry};
use refit_tests::world::{Published, Running};
use refit_tests::{ContainerSpec, ImageSpec, Proxy, Refit, World, with_world};
use serde_json::{Value, json};

use crate::{behind, refit, replaced, until, untouched};

const AS_JSON: (&str, &str) = ("Content-Type", "application/json");

/// A daemon with a state of its own, a workspace that is behind, and what it is behind of.
async fn set_up(
    w: &World,
    registry: &Registry,
) -> anyhow::Result<(Refit, Daemon, Running, Published)> {
    let (hermes, v2) = behind(w, registry, "hermes").await?;
    let refit = refit(w, registry, &["hermes"])?
        .set("state_dir", "state")
        .env("USER", "bo");
    let daemon = refit.serve().await?;
    Ok((refit, daemon, hermes, v2))
}

async fn ask(daemon: &Daemon, body: Value) -> anyhow::Result<Answer> {
    let headers = [AS_JSON, ("X-Refit-By", "ana")];
    daemon
        .send("POST", "/v1/approvals", &headers, body.to_string())
        .await
}

async fn decide(daemon: &Daemon, id: u64, what: &str) -> anyhow::Result<Answer> {
    let path = format!("/v1/approvals/{id}/{what}");
    daemon.request("POST", &path).await
}

async fn show(daemon: &Daemon, id: u64) -> anyhow::Result<Value> {
    let path = format!("/v1/approvals/{id}");
    daemon.request("GET", &path).await?.json()
}

/// The refusal's code.
fn code(answer: &Answer) -> anyhow::Result<(u16, String)> {
    let code = answer.json()?["code"].as_str().map(str::to_owned);
    Ok((answer.status, code.unwrap_or_default()))
}

/// `refit` talks to this daemon.
async fn typed(
    refit: &Refit,
    daemon: &Daemon,
    arguments: &[&str],
) -> anyhow::Result<refit_tests::refit::Output> {
    let server = format!("http://{}", daemon.address);
    let arguments = [&["approvals"], arguments, &["--server", &server]].concat();
    refit.run(&arguments).await
}

fn file(refit: &Refit, id: u64) -> PathBuf {
    refit.home().join(format!("state/approvals/{id}.json"))
}

/// Awaits the end of a refresh, and answers with its row.
async fn ended(daemon: &Daemon, id: u64) -> anyhow::Result<Value> {
    let path = format!("/v1/refreshes/{id}");
    until("the end of the refresh", || async {
        let row = daemon.request("GET", &path).await?.json()?;
        Ok(row["outcome"].is_string() && row["outcome"] != "running")
    })
    .await?;
    daemon.request("GET", &path).await?.json()
}

#[tokio::test]
async fn nothing_begins_before_somebody_approves_and_the_history_says_who() -> anyhow::Result<()> {
    with_world("held and approved", |w| async move {
        let registry = registry::open().await?;
        let (refit, daemon, hermes, v2) = set_up(&w, registry).await?;
        let answer = ask(&daemon, json!({ "targets": ["hermes"] })).await?;
        assert_eq!(answer.status, 201, "{}", answer.text);
        let held = answer.json()?;
        assert_eq!(held["state"], "waiting");
        assert_eq!(held["by"], "ana");
        assert_eq!(held["findings"], json!([{ "image": v2.reference, "digest": v2.digest }]));
        assert_eq!(held["plan"]["containers"][0]["name"], hermes.name);
        assert_eq!(held["plan"]["containers"][0]["image"], v2.reference);
        let again = ask(&daemon, json!({ "targets": ["hermes"] })).await?;
        assert_eq!((again.status, again.json()?["id"].clone()), (200, json!(1)), "it is held once");
        untouched(&w, &hermes).await?;

        let output = typed(&refit, &daemon, &["list"]).await?.expect(0);
        assert!(output.stdout.starts_with("1 "), "{output}");
        for told in ["WAITING", "api ana", "1 to pull, 1 to recreate", &v2.reference] {
            assert!(output.stdout.contains(told), "`{told}` is not in {output}");
        }
        let output = typed(&refit, &daemon, &["show", "1"]).await?.expect(0);
        for told in ["approval  1, WAITING", "asked by  api ana, for hermes", &v2.digest, &hermes.name] {
            assert!(output.stdout.contains(told), "`{told}` is not in {output}");
        }
        let output = typed(&refit, &daemon, &["list", "--state", "rejected"]).await?.expect(0);
        assert_eq!(output.stdout, "no refresh is held that is like this\n");

        let output = typed(&refit, &daemon, &["approve", "1"]).await?.expect(0);
        assert_eq!(
            output.stdout,
            "approved          approval 1: refresh 1 has begun; `refit history show 1` tells of it\n"
        );
        let row = ended(&daemon, 1).await?;
        replaced(&w, &hermes, &v2).await?;
        assert_eq!((&row["outcome"], &row["by"]), (&json!("done"), &json!("bo (approval 1)")));
        assert_eq!(row["request"]["targets"], json!(["hermes"]));
        let approved = show(&daemon, 1).await?;
        assert_eq!(
            (&approved["state"], &approved["decided_by"], &approved["refresh"]),
            (&json!("approved"), &json!("bo"), &json!(1))
        );

        let output = typed(&refit, &daemon, &["approve", "1", "--by", "eve"]).await?.expect(1);
        output.says("approval 1 was approved at").says("by bo").says("refit history show 1");
        assert_eq!(code(&decide(&daemon, 1, "reject").await?)?, (409, "already-approved".into()));
        let output = typed(&refit, &daemon, &["request", "--runtime", "hermes"]).await?.expect(0);
        assert_eq!(output.stdout, "nothing to do, and nothing is held\n");
        let answer = ask(&daemon, json!({})).await?;
        assert_eq!((answer.status, &answer.json()?["state"]), (200, &json!("nothing-to-do")));
        let list = daemon.request("GET", "/v1/approvals").await?.json()?;
        assert_eq!(list["approvals"].as_array().map(Vec::len), Some(1), "{list}");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn what_cannot_be_is_refused_and_changes_nothing() -> anyhow::Result<()> {
    with_world("wrong approvals", |w| async move {
        let registry = registry::open().await?;
        let (refit, daemon, hermes, _) = set_up(&w, registry).await?;
        ask(&daemon, json!({})).await?;
        for (method, path, expected) in [
            ("GET", "/v1/approvals?state=good", (400, "bad-query")),
            ("GET", "/v1/approvals?colour=red", (400, "bad-query")),
            ("GET", "/v1/approvals/2", (404, "no-approval")),
            ("GET", "/v1/approvals/-1", (404, "no-approval")),
            (
                "GET",
                "/v1/approvals/99999999999999999999",
                (404, "no-approval"),
            ),
            ("POST", "/v1/approvals/2/approve", (404, "no-approval")),
            ("POST", "/v1/approvals/x/reject", (404, "no-approval")),
            ("DELETE", "/v1/approvals/1", (405, "method-not-allowed")),
            ("POST", "/v1/approvals", (415, "bad-body")),
        ] {
            let answer = daemon.request(method, path).await?;
            let (status, code) = code(&answer)?;
            assert_eq!(
                (status, code.as_str()),
                expected,
                "{method} {path}: {}",
                answer.text
            );
        }
        let long = format!("{{\"targets\":[\"{}\"]}}", "x".repeat(70_000));
        for (path, body, expected) in [
            ("/v1/approvals", "{", (400, "bad-body")),
            ("/v1/approvals", "{\"colour\":1}", (422, "bad-body")),
            (
                "/v1/approvals",
                "{\"targets\":[\"nope\"]}",
                (400, "unknown-targets"),
            ),
            ("/v1/approvals", &long, (413, "bad-body")),
            ("/v1/approvals/1/reject", "{", (400, "bad-body")),
            (
                "/v1/approvals/1/reject",
                "{\"colour\":1}",
                (400, "bad-body"),
            ),
            ("/v1/approvals/1/reject", &long, (413, "bad-body")),
        ] {
            let answer = daemon
                .send("POST", path, &[AS_JSON], body.to_owned())
                .await?;
            let (status, code) = code(&answer)?;
            assert_eq!(
                (status, code.as_str()),
                expected,
                "{path} {body:.20}: {}",
                answer.text
            );
        }
        assert_eq!(show(&daemon, 1).await?["state"], "waiting");
        typed(&refit, &daemon, &["show", "2"])
            .await?
            .expect(2)
            .says("there is no approval 2");
        typed(&refit, &daemon, &["approve", "2"]).await?.expect(1);
        typed(&refit, &daemon, &["approve"]).await?.expect(2);
        typed(&refit, &daemon, &["list", "--state", "good"])
            .await?
            .expect(2);
        typed(&refit, &daemon, &["request", "--runtime", "nope"])
            .await?
            .expect(1)
            .says("unknown target: nope");
        refit
            .run(&["approvals", "list", "--server", "http://127.0.0.1:1"])
            .await?
            .expect(2);

        // Who says who they are may say anything.
        let headers = [("X-Refit-By", "  eve\u{202e} the first "), AS_JSON];
        let body = json!({ "reason": "not on a\nFriday" }).to_string();
        let answer = daemon
            .send("POST", "/v1/approvals/1/reject", &headers, body)
            .await?;
        assert_eq!(answer.status, 200, "{}", answer.text);
        let rejected = show(&daemon, 1).await?;
        assert_eq!(
            (
                &rejected["state"],
                &rejected["decided_by"],
                &rejected["reason"]
            ),
            (
                &json!("rejected"),
                &json!("eve the first"),
                &json!("not on a Friday")
            )
        );
        assert_eq!(
            code(&decide(&daemon, 1, "approve").await?)?,
            (409, "already-rejected".into())
        );
        // A person may ask again for what was rejected.
        assert_eq!(ask(&daemon, json!({})).await?.json()?["id"], 2);
        untouched(&w, &hermes).await?;

        let guarded = refit
            .env("ADMIN_TOKEN", "s3cret")
            .set("state_dir", "other")
            .serve()
            .await?;
        for (method, path) in [
            ("GET", "/v1/approvals"),
            ("POST", "/v1/approvals"),
            ("POST", "/v1/approvals/1/approve"),
        ] {
            let answer = refit_tests::http::request(guarded.address, method, path, None).await?;
            assert_eq!(answer.status, 401, "{method} {path}");
        }
        Ok(())
    })
    .await
}

#[tokio::test]
async fn who_comes_too_late_is_told_so() -> anyhow::Result<()> {
    with_world("expired", |w| async move {
        let registry = registry::open().await?;
        let (hermes, _) = behind(&w, registry, "hermes").await?;
        let refit = refit(&w, registry, &["hermes"])?
            .set("state_dir", "state")
            .set("approval.expires_seconds", 1);
        let daemon = refit.serve().await?;
        ask(&daemon, json!({})).await?;
        until("that it has expired", || async {
            Ok(show(&daemon, 1).await?["state"] == "expired")
        })
        .await?;
        for what in ["approve", "reject"] {
            assert_eq!(
                code(&decide(&daemon, 1, what).await?)?,
                (409, "expired".into())
            );
        }
        typed(&refit, &daemon, &["approve", "1"])
            .await?
            .expect(1)
            .says("has expired at");
        assert_eq!(ask(&daemon, json!({})).await?.json()?["id"], 2);
        untouched(&w, &hermes).await
    })
    .await
}

#[tokio::test]
async fn where_a_digest_has_moved_another_approval_takes_its_place() -> anyhow::Result<()> {
    with_world("moved digest", |w| async move {
        let registry = registry::open().await?;
        let (refit, daemon, hermes, v2) = set_up(&w, registry).await?;
        ask(&daemon, json!({})).await?;
        let v3 = w.publish(registry, "hermes", ImageSpec::new("v3")).await?;
        let answer = decide(&daemon, 1, "approve").await?;
        assert_eq!(code(&answer)?, (409, "superseded".into()));
        let problem = answer.json()?;
        assert_eq!(problem["superseded_by"], 2);
        let moved = problem["causes"][0].as_str().unwrap_or_default();
        assert!(
            moved.contains(&v2.digest) && moved.contains(&v3.digest),
            "{problem}"
        );
        untouched(&w, &hermes).await?;
        let superseded = show(&daemon, 1).await?;
        assert_eq!(
            (&superseded["state"], &superseded["superseded_by"]),
            (&json!("superseded"), &json!(2))
        );
        let new = show(&daemon, 2).await?;
        assert_eq!(
            (&new["by"], &new["findings"][0]["digest"]),
            (&json!("ana"), &json!(v3.digest))
        );
        typed(&refit, &daemon, &["approve", "1"])
            .await?
            .expect(1)
            .says("approval 2 is held in its place");
        typed(&refit, &daemon, &["approve", "2"]).await?.expect(0);
        assert_eq!(ended(&daemon, 1).await?["outcome"], "done");
        replaced(&w, &hermes, &v3).await
    })
    .await
}

#[tokio::test]
async fn a_tag_that_moves_after_it_was_looked_at_brings_in_nothing() -> anyhow::Result<()> {
    with_world("moved while it is pulled", |w| async move {
        let registry = registry::open().await?;
        let (hermes, _) = behind(&w, registry, "hermes").await?;
        let proxy = Proxy::before(&w).await?;
        let pull = proxy.hold("POST", "/images/create");
        let refit = refit(&w, registry, &["hermes"])?
            .set("state_dir", "state")
            .env("DOCKER_HOST", &proxy.docker_host());
        let daemon = refit.serve().await?;
        ask(&daemon, json!({})).await?;
        assert_eq!(decide(&daemon, 1, "approve").await?.status, 202);
        pull.until_waiting(1).await?;
        w.publish(registry, "hermes", ImageSpec::new("v3")).await?;
        pull.release();
        let row = ended(&daemon, 1).await?;
        assert_eq!(row["outcome"], "some-failed", "{row:#}");
        let told = row["report"]["images"][0].to_string();
        assert!(told.contains("approval 1 is for"), "{told}");
        untouched(&w, &hermes).await
    })
    .await
}

#[tokio::test]
async fn a_container_that_came_since_is_left_alone() -> anyhow::Result<()> {
    with_world("one more container", |w| async move {
        let registry = registry::open().await?;
        let (_refit, daemon, hermes, v2) = set_up(&w, registry).await?;
        ask(&daemon, json!({})).await?;
        let new = w
            .run(ContainerSpec::new("hermes-new", &v2.reference))
            .await?;
        assert_eq!(new.image_id, hermes.image_id, "it is behind, too");
        assert_eq!(decide(&daemon, 1, "approve").await?.status, 202);
        assert_eq!(ended(&daemon, 1).await?["outcome"], "done");
        replaced(&w, &hermes, &v2).await?;
        untouched(&w, &new).await?;
        let next = ask(&daemon, json!({})).await?.json()?;
        assert_eq!(next["plan"]["containers"][0]["name"], new.name);
        Ok(())
    })
    .await
}

#[tokio::test]
async fn what_waits_outlives_the_daemon_however_it_ends() -> anyhow::Result<()> {
    with_world("restart and kill", |w| async move {
        let registry = registry::open().await?;
        let (refit, daemon, hermes, v2) = set_up(&w, registry).await?;
        ask(&daemon, json!({})).await?;
        daemon.terminate()?;
        daemon.ended().await?.expect(0);
        let daemon = refit.serve().await?;
        let before = show(&daemon, 1).await?;
        assert_eq!(before["state"], "waiting");
        daemon.kill().await?;
        // A write that the kill has cut off, and a file that somebody else has cut off.
        fs::write(file(&refit, 1).with_extension("new"), "{\"id\":")?;
        fs::write(file(&refit, 2), "{\"format\":1,\"id\":")?;
        let daemon = refit.serve().await?;
        assert_eq!(show(&daemon, 1).await?, before);
        let list = daemon.request("GET", "/v1/approvals").await?.json()?;
        assert_eq!(
            list["approvals"].as_array().map(Vec::len),
            Some(1),
            "{list}"
        );
        assert_eq!(
            list["problem"]["error"],
            "an approval was damaged, and is not known any more"
        );
        let output = refit.run(&["doctor"]).await?.expect(0);
        assert!(
            output.stdout.contains("a damaged one was kept as"),
            "{output}"
        );
        assert_eq!(decide(&daemon, 1, "approve").await?.status, 202);
        assert_eq!(ended(&daemon, 1).await?["outcome"], "done");
        replaced(&w, &hermes, &v2).await
    })
    .await
}

#[tokio::test]
async fn a_daemon_killed_between_approval_and_refresh_has_its_successor_begin_it()
-> anyhow::Result<()> {
    with_world("killed after approval", |w| async move {
        let registry = registry::open().await?;
        let (refit, daemon, hermes, v2) = set_up(&w, registry).await?;
        ask(&daemon, json!({})).await?;
        daemon.kill().await?;
        // A refresh begins when it is written down, or could not be for seconds: somebody holds the history.
        fs::create_dir_all(refit.home().join("state/history"))?;
        let turn = fs::File::create(refit.home().join("state/history/turn"))?;
        turn.lock()?;
        let daemon = refit.serve().await?;
        let approving = async {
            let answer = decide(&daemon, 1, "approve").await;
            panic!("it was not to be answered yet: {answer:?}");
        };
        let seen = until("that it is approved and not begun", || async {
            let kept: Value =
                serde_json::from_slice(&fs::read(file(&refit, 1))?).unwrap_or_default();
            assert_eq!(kept["refresh"], Value::Null);
            Ok(kept["state"] == "approved")
        });
        tokio::select! {
            seen = seen => seen?,
            () = approving => {}
        }
        daemon.kill().await?;
        untouched(&w, &hermes).await?;
        drop(turn);
        let daemon = refit.serve().await?;
        until("that it has begun", || async {
            Ok(show(&daemon, 1).await?["refresh"].is_number())
        })
        .await?;
        let id = show(&daemon, 1).await?["refresh"]
            .as_u64()
            .unwrap_or_default();
        let row = ended(&daemon, id).await?;
        assert_eq!(
            (&row["outcome"], &row["by"]),
            (&json!("done"), &json!("somebody (approval 1)"))
        );
        replaced(&w, &hermes, &v2).await
    })
    .await
}

#[tokio::test]
async fn of_many_who_approve_at_once_one_wins() -> anyhow::Result<()> {
    with_world("approved at once", |w| async move {
        let registry = registry::open().await?;
        let (_refit, daemon, hermes, v2) = set_up(&w, registry).await?;
        ask(&daemon, json!({})).await?;
        let asking = (0..8).map(|_| decide(&daemon, 1, "approve"));
        let answers = futures_util::future::join_all(asking).await;
        let mut statuses = Vec::new();
        for answer in answers {
            let answer = answer?;
            statuses.push(answer.status);
            if answer.status != 202 {
                let (status, code) = code(&answer)?;
                assert_eq!(status, 409);
                assert!(
                    ["being-decided", "already-approved"].contains(&code.as_str()),
                    "{code}"
                );
            }
        }
        statuses.sort_unstable();
        assert_eq!(statuses[..2], [202, 409], "{statuses:?}");
        ended(&daemon, 1).await?;
        replaced(&w, &hermes, &v2).await?;
        let rows = daemon.request("GET", "/v1/refreshes").await?.json()?;
        assert_eq!(rows["refreshes"].as_array().map(Vec::len), Some(1));
        Ok(())
    })
    .await
}

/// All that there are, the oldest first, each with its state.
async fn states(daemon: &Daemon) -> anyhow::Result<Vec<String>> {
    let list = daemon.request("GET", "/v1/approvals").await?.json()?;
    let all = list["approvals"].as_array().into_iter().flatten().rev();
    Ok(all
        .map(|it| format!("{} {}", it["id"], it["state"].as_str().unwrap_or_default()))
        .collect())
}

async fn until_states(daemon: &Daemon, wanted: &[&str]) -> anyhow::Result<()> {
    let what = format!("approvals {wanted:?}");
    until(&what, || async { Ok(states(daemon).await? == wanted) }).await
}

/// So many looks of the watcher more, and what it says then.
async fn looks(daemon: &Daemon, number: u64) -> anyhow::Result<Value> {
    let status = || async { daemon.request("GET", "/v1/watch").await?.json() };
    let seen = |status: &Value| status["looks"].as_u64().unwrap_or_default();
    let wanted = seen(&status().await?) + number;
    until("more looks", || async {
        Ok(seen(&status().await?) >= wanted)
    })
    .await?;
    status().await
}

fn watching(w: &World, registry: &Registry) -> anyhow::Result<Refit> {
    Ok(refit(w, registry, &["hermes"])?
        .set("state_dir", "state")
        .set("watch.enabled", true)
        .set("watch.interval_seconds", 1)
        .set("watch.jitter_seconds", 0)
        .set("approval.required_for", json!(["schedule"])))
}

#[tokio::test]
async fn what_the_watcher_finds_waits_once_for_each_digest_until_somebody_decides()
-> anyhow::Result<()> {
    with_world("watched and held", |w| async move {
        let registry = registry::open().await?;
        let (hermes, v2) = behind(&w, registry, "hermes").await?;
        let refit = watching(&w, registry)?.env("USER", "bo");
        let daemon = refit.serve().await?;
        until_states(&daemon, &["1 waiting"]).await?;
        let held = show(&daemon, 1).await?;
        assert_eq!(held["request"]["trigger"], "schedule");
        assert_eq!(
            held["findings"],
            json!([{ "image": v2.reference, "digest": v2.digest }])
        );
        assert_eq!(held["plan"]["containers"][0]["name"], hermes.name);
        let status = looks(&daemon, 3).await?;
        assert_eq!(status["images"][0]["held"]["by"], "approval", "{status:#}");
        assert_eq!(states(&daemon).await?, ["1 waiting"], "it is held once");

        w.publish(registry, "hermes", ImageSpec::new("v3")).await?;
        until_states(&daemon, &["1 superseded", "2 waiting"]).await?;
        typed(&refit, &daemon, &["reject", "2", "--reason", "broken"])
            .await?
            .expect(0);
        let status = looks(&daemon, 3).await?;
        assert_eq!(status["images"][0]["held"]["by"], "rejected", "{status:#}");
        assert_eq!(states(&daemon).await?, ["1 superseded", "2 rejected"]);
        // Also for the next daemon.
        daemon.kill().await?;
        let daemon = refit.serve().await?;
        looks(&daemon, 2).await?;
        assert_eq!(states(&daemon).await?, ["1 superseded", "2 rejected"]);
        untouched(&w, &hermes).await?;

        let v4 = w.publish(registry, "hermes", ImageSpec::new("v4")).await?;
        until_states(&daemon, &["1 superseded", "2 rejected", "3 waiting"]).await?;
        typed(&refit, &daemon, &["approve", "3"]).await?.expect(0);
        let row = ended(&daemon, 1).await?;
        assert_eq!(
            (&row["outcome"], &row["by"]),
            (&json!("done"), &json!("bo (approval 3)"))
        );
        assert_eq!(row["request"]["trigger"], "schedule");
        replaced(&w, &hermes, &v4).await?;
        looks(&daemon, 2).await?;
        assert_eq!(
            states(&daemon).await?,
            ["1 superseded", "2 rejected", "3 approved"]
        );
        Ok(())
    })
    .await
}

/// A push that changes only an attestation is pulled when it is approved, and no container is stopped for it: what it runs is what
/// it would run.
#[tokio::test]
async fn push_of_an_attestation_is_approved_once_and_stops_nothing() -> anyhow::Result<()> {
    with_world("watched and attested", |w| async move {
        let registry = registry::open().await?;
        let v1 = w.publish(registry, "hermes", ImageSpec::new("v1")).await?;
        let mut digest = w.publish_attested(registry, &v1, "0").await?.digest;
        w.pull(&v1.reference).await?;
        let hermes = w.run(ContainerSpec::new("hermes", &v1.reference)).await?;
        let refit = watching(&w, registry)?.env("USER", "bo");
        let daemon = refit.serve().await?;
        looks(&daemon, 1).await?;
        let (mut expected, mut up, mut down) = (Vec::new(), 0, 0);
        // Until the new one has sorted behind the old one and before it.
        for number in 1.. {
            let id = number.to_string();
            let new = w.publish_attested(registry, &v1, &id).await?.digest;
            match new > digest {
                true => up += 1,
                false => down += 1,
            }
            digest = new;
            let waiting = [expected.as_slice(), &[format!("{number} waiting")]].concat();
            let waiting: Vec<&str> = waiting.iter().map(String::as_str).collect();
            until_states(&daemon, &waiting).await?;
            typed(&refit, &daemon, &["approve", &id]).await?.expect(0);
            let row = ended(&daemon, number).await?;
            assert_eq!(row["outcome"], "done", "{row:#}");
            expected.push(format!("{number} approved"));
            let status = looks(&daemon, 2).await?;
            assert_eq!(status["images"][0]["verdict"], "current", "{status:#}");
            assert_eq!(states(&daemon).await?, expected);
            if up > 0 && down > 0 {
                break;
            }
        }
        untouched(&w, &hermes).await
    })
    .await
}

#[tokio::test]
async fn what_nobody_decides_about_expires_and_is_proposed_anew() -> anyhow::Result<()> {
    with_world("watched and expired", |w| async move {
        let registry = registry::open().await?;
        let (hermes, _) = behind(&w, registry, "hermes").await?;
        let refit = watching(&w, registry)?.set("approval.expires_seconds", 2);
        let daemon = refit.serve().await?;
        until_states(&daemon, &["1 expired", "2 waiting"]).await?;
        untouched(&w, &hermes).await
    })
    .await
}

/// Somebody made the container again, from the same image and under the same name: nobody has approved anything about that one.
#[tokio::test]
async fn container_that_was_made_again_is_not_what_was_approved() -> anyhow::Result<()> {
    with_world("made again after the plan", |w| async move {
        let registry = registry::open().await?;
        let (refit, daemon, hermes, v2) = set_up(&w, registry).await?;
        let v1 = w.inspect(&hermes.id).await?.image.unwrap_or_default();
        ask(&daemon, json!({ "targets": ["hermes"] })).await?;
        w.remove_container(&hermes.id).await?;
        let spec = ContainerSpec::named(&hermes.name, &v2.reference);
        w.tag(&v1, &v2.reference).await?;
        let again = w.run(spec).await?;
        let output = typed(&refit, &daemon, &["approve", "1"]).await?.expect(1);
        output.says(&format!("`{}` is another container now", hermes.name));
        untouched(&w, &again).await?;
        assert_eq!(show(&daemon, 1).await?["state"], "superseded");
        // What is so now is held, and can be approved.
        typed(&refit, &daemon, &["approve", "2"]).await?.expect(0);
        ended(&daemon, 1).await?;
        replaced(&w, &again, &v2).await?;
        Ok(())
    })
    .await
}
