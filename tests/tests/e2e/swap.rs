//! Another policy for a daemon that runs: over HTTP, from the command line, by signal and by file. None of it needs an engine.

use anyhow::Context;
use base64::Engine as _;
use refit_tests::Refit;
use refit_tests::refit::Daemon;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::watch;

use crate::guests::{self, Guest};
use crate::snapshot::snapshot;
use crate::{until, without_engine};

/// A daemon with a state of its own.
pub(crate) fn alone() -> anyhow::Result<Refit> {
    Ok(without_engine()?.set("state_dir", "state"))
}

pub(crate) fn guest(name: &str) -> anyhow::Result<Vec<u8>> {
    let guest = Guest {
        name,
        ..Guest::default()
    };
    guest.component()
}

const WASM: (&str, &str) = ("Content-Type", "application/wasm");
const JSON: (&str, &str) = ("Content-Type", "application/json");

pub(crate) async fn put(daemon: &Daemon, component: Vec<u8>) -> anyhow::Result<Value> {
    let answer = daemon.send(
        "PUT",
        "/v1/policy?origin=new.wasm&by=me",
        &[WASM],
        component,
    );
    let answer = answer.await?;
    anyhow::ensure!(answer.status == 200, "{}", answer.text);
    answer.json()
}

pub(crate) async fn active(daemon: &Daemon) -> anyhow::Result<Value> {
    let answer = daemon.request("GET", "/v1/policy").await?;
    anyhow::ensure!(answer.status == 200, "{}", answer.text);
    answer.json()
}

/// Its name and its number.
pub(crate) async fn in_use(daemon: &Daemon) -> anyhow::Result<(String, u64)> {
    let active = active(daemon).await?;
    let name = active["name"].as_str().context("no name")?.to_owned();
    Ok((name, active["generation"].as_u64().context("no number")?))
}

fn is(name: &str, number: u64) -> (String, u64) {
    (name.to_owned(), number)
}

#[tokio::test]
async fn a_swap_over_http_takes_effect_and_a_rollback_brings_the_old_one_back() -> anyhow::Result<()>
{
    let refit = alone()?.set("policy.config.runtimes", json!(["hermes"]));
    let daemon = refit.serve().await?;
    let before = active(&daemon).await?;
    assert_eq!(
        (&before["name"], &before["generation"]),
        (&json!("workspace"), &json!(1))
    );
    assert_eq!(before["how"], "configured");
    assert_eq!(before["previous"], Value::Null);

    let change = put(&daemon, guest("newcomer")?).await?;
    assert_eq!(change["changed"], true);
    assert_eq!(change["policy"]["name"], "newcomer");
    assert_eq!(change["policy"]["origin"], "new.wasm");
    assert_eq!(change["policy"]["by"], "me");
    assert_eq!(change["gained"], json!([]));
    assert!(change["lost"].to_string().contains("recreate"), "{change}");
    assert_eq!(in_use(&daemon).await?, is("newcomer", 2));

    let answer = daemon.request("POST", "/v1/policy/rollback").await?;
    assert_eq!(answer.status, 200, "{}", answer.text);
    assert!(answer.json()?["gained"].to_string().contains("recreate"));
    let after = active(&daemon).await?;
    assert_eq!(
        (&after["name"], &after["generation"]),
        (&json!("workspace"), &json!(3))
    );
    assert_eq!(after["config"], before["config"], "rolled back with it");
    assert_eq!(after["how"], "rolled-back");

    let history = daemon.request("GET", "/v1/policy/history").await?.json()?;
    let hows: Vec<_> = history["generations"]
        .as_array()
        .context("no list")?
        .iter()
        .map(|it| it["how"].as_str().unwrap_or_default())
        .collect();
    assert_eq!(hows, ["rolled-back", "swapped", "configured"]);
    Ok(())
}

#[tokio::test]
async fn a_configuration_can_be_swapped_alone_or_with_its_policy_and_is_rolled_back()
-> anyhow::Result<()> {
    let refit = alone()?;
    let daemon = refit.serve().await?;
    let send = async |body: Value| {
        daemon
            .send("PUT", "/v1/policy", &[JSON], body.to_string())
            .await
    };
    let answer = send(json!({ "config": { "runtimes": ["hermes"] } })).await?;
    assert_eq!(answer.status, 200, "{}", answer.text);
    assert_eq!(
        active(&daemon).await?["config"],
        json!({ "runtimes": ["hermes"] })
    );

    let component = base64::engine::general_purpose::STANDARD.encode(guest("other")?);
    let answer = send(json!({ "component": component, "config": { "a": 1 } })).await?;
    assert_eq!(answer.status, 200, "{}", answer.text);
    assert_eq!(active(&daemon).await?["config"], json!({ "a": 1 }));

    // By its digest, since it is still kept.
    let digest = refit::sandbox::digest(refit::sandbox::DEFAULT_POLICY);
    let answer = send(json!({ "digest": digest, "config": {} })).await?;
    assert_eq!(answer.status, 200, "{}", answer.text);
    assert_eq!(in_use(&daemon).await?, is("workspace", 4));
    daemon.request("POST", "/v1/policy/rollback").await?;
    assert_eq!(active(&daemon).await?["config"], json!({ "a": 1 }));
    assert_eq!(in_use(&daemon).await?, is("other", 5));

    // The same once more is no generation of its own, or a rollback would lead nowhere.
    let again = put(&daemon, guest("other")?).await?;
    assert_eq!(again["changed"], false);
    assert_eq!(in_use(&daemon).await?, is("other", 5));

    for wrong in [
        json!({}),
        json!({ "component": component, "digest": digest }),
        json!({ "wasm": "" }),
        json!({ "component": "?" }),
    ] {
        let answer = send(wrong).await?;
        assert_eq!(answer.status, 400, "{}", answer.text);
    }
    let answer = daemon.send("PUT", "/v1/policy", &[], "x").await?;
    assert_eq!(answer.status, 415, "{}", answer.text);
    Ok(())
}

#[tokio::test]
async fn of_two_who_expect_the_same_generation_one_is_too_late() -> anyhow::Result<()> {
    let refit = alone()?;
    let daemon = refit.serve().await?;
    let swap = async |name: &str| {
        let headers = [WASM, ("If-Match", "\"1\"")];
        daemon
            .send("PUT", "/v1/policy", &headers, guest(name)?)
            .await
    };
    let (one, two) = tokio::try_join!(swap("one"), swap("two"))?;
    let mut statuses = [one.status, two.status];
    statuses.sort_unstable();
    assert_eq!(statuses, [200, 409], "{} {}", one.text, two.text);
    let late = if one.status == 409 { one } else { two };
    assert_eq!(late.content_type, "application/problem+json");
    let problem = late.json()?;
    assert_eq!(problem["stage"], "expectation");
    assert_eq!(problem["code"], "generation-conflict");
    assert!(
        problem["title"]
            .as_str()
            .unwrap_or_default()
            .contains("generation 2"),
        "{problem}"
    );

    let headers = [("If-Match", "\"7\"")];
    let answer = daemon
        .send("POST", "/v1/policy/rollback", &headers, "")
        .await?;
    assert_eq!(answer.status, 409);
    let answer = daemon
        .send("POST", "/v1/policy/rollback", &[("If-Match", "x")], "")
        .await?;
    assert_eq!(answer.status, 400);
    Ok(())
}

#[tokio::test]
async fn a_newcomer_that_fails_at_any_stage_leaves_the_old_one_in_use() -> anyhow::Result<()> {
    let token = "s3cret-of-this-test";
    let refit = alone()?.env("ADMIN_TOKEN", token).secret(token);
    // What the daemon starts with is compiled before, since a busy machine may take more than this test's limit for it. There is no
    // engine, and doctor says so.
    refit.run(&["doctor"]).await?.expect(1);
    let refit = refit.set("limits.compile_seconds", 1);
    let daemon = refit.serve().await?;
    let described = |describe| {
        Guest {
            describe,
            ..Guest::default()
        }
        .component()
    };
    let stages: Vec<(&str, Vec<u8>)> = vec![
        ("parse", b"images = 1".to_vec()),
        ("parse", vec![]),
        ("parse", wat::parse_str("(module)")?),
        ("parse", guest("cut")?[..400].to_vec()),
        ("parse", b"\x7fELF\x02\x01\x01\x00precompiled".to_vec()),
        ("imports", wat::parse_str("(component)")?),
        (
            "imports",
            wat::parse_str(r#"(component (import "acme:vault/vault@1.0.0" (instance)))"#)?,
        ),
        (
            "imports",
            wat::parse_str(
                r#"(component (import "refit:policy/host@0.1.0" (instance (export "open" (func)))))"#,
            )?,
        ),
        ("compile", guests::slow_to_compile()?),
        (
            "link",
            // The right name, and another type.
            wat::parse_str(
                r#"(component (import "refit:policy/host@0.1.0" (instance (export "now" (func (result string))))) (instance $i) (export "refit:policy/policy@0.1.0" (instance $i)))"#,
            )?,
        ),
        ("describe", described("unreachable")?),
        ("describe", described("(loop (br 0)) i32.const 2048")?),
        (
            "describe",
            Guest {
                name: "../../etc",
                ..Guest::default()
            }
            .component()?,
        ),
        (
            "config",
            Guest {
                validate: guests::ACCEPTS_NO_CONFIG,
                ..Guest::default()
            }
            .component()?,
        ),
        (
            "config",
            Guest {
                validate: "unreachable",
                ..Guest::default()
            }
            .component()?,
        ),
    ];
    for (number, (stage, component)) in stages.into_iter().enumerate() {
        let answer = daemon
            .send("PUT", "/v1/policy?origin=bad.wasm", &[WASM], component)
            .await?;
        let problem = answer.json()?;
        assert_eq!(
            (answer.status, &problem["stage"]),
            (422, &json!(stage)),
            "number {number}: {problem}"
        );
        let title = format!(
            "cannot swap in `bad.wasm`: it failed at `{stage}`; generation 1 (workspace 0.1.0) is still in use"
        );
        assert_eq!(problem["title"], json!(title));
        assert_eq!(
            in_use(&daemon).await?,
            is("workspace", 1),
            "number {number}"
        );
        assert!(
            active(&daemon).await?["last_refused"]["error"]
                .to_string()
                .contains(stage)
        );
    }
    let log = daemon.log();
    assert!(
        log.contains("took more than 1 s of computing time"),
        "{log}"
    );

    let answer = daemon.request("POST", "/v1/policy/rollback").await?;
    assert_eq!(answer.status, 409, "{}", answer.text);
    assert_eq!(answer.json()?["code"], "nothing-before");
    let too_large = vec![0; refit::sandbox::limits::COMPONENT_BYTES_MAX + 1];
    let answer = daemon.send("PUT", "/v1/policy", &[WASM], too_large).await?;
    assert_eq!(
        (answer.status, &answer.json()?["stage"]),
        (413, &json!("size"))
    );
    // Nothing of it was kept, and the way is still free.
    put(&daemon, guest("good")?).await?;
    assert_eq!(in_use(&daemon).await?, is("good", 2));
    Ok(())
}

#[tokio::test]
async fn a_swap_goes_on_when_its_client_has_hung_up() -> anyhow::Result<()> {
    let refit = alone()?;
    let daemon = refit.serve().await?;
    // It takes longer to compile than a connection to close.
    let component = guests::slow_to_compile()?;
    let mut client = tokio::net::TcpStream::connect(daemon.address).await?;
    let head = format!(
        "PUT /v1/policy HTTP/1.1\r\n{}Content-Type: application/wasm\r\nContent-Length: {}\r\n\r\n",
        daemon.head_lines(),
        component.len()
    );
    client.write_all(head.as_bytes()).await?;
    client.write_all(&component).await?;
    daemon.until_logged("beginning to swap in").await?;
    drop(client);
    until("the newcomer", async || {
        Ok(in_use(&daemon).await? == is("traps", 2))
    })
    .await
}

#[tokio::test]
async fn a_swap_under_way_is_waited_for_and_holds_nobody_else_up() -> anyhow::Result<()> {
    let refit = alone()?;
    let daemon = refit.serve().await?;
    // It computes until it is stopped, ten seconds later.
    let loops = Guest {
        describe: "(loop (br 0)) i32.const 2048",
        ..Guest::default()
    };
    let slow = daemon.send("PUT", "/v1/policy", &[WASM], loops.component()?);
    let meanwhile = async {
        // Of those who come after it, some may be before it: that is as good.
        for _ in 0..20 {
            in_use(&daemon).await?;
        }
        put(&daemon, guest("newcomer")?).await
    };
    let (slow, _) = tokio::try_join!(slow, meanwhile)?;
    assert_eq!(slow.status, 422, "{}", slow.text);
    assert_eq!(in_use(&daemon).await?, is("newcomer", 2));
    Ok(())
}

#[tokio::test]
async fn without_the_token_nobody_sees_or_swaps_anything() -> anyhow::Result<()> {
    let refit = alone()?.env("ADMIN_TOKEN", "t0ken");
    let daemon = refit.serve().await?;
    for (method, path) in [
        ("GET", "/v1/policy"),
        ("PUT", "/v1/policy"),
        ("GET", "/v1/policy/history"),
        ("POST", "/v1/policy/rollback"),
    ] {
        let answer = refit_tests::http::request(daemon.address, method, path, None).await?;
        assert_eq!(answer.status, 401, "{method} {path}");
    }
    Ok(())
}

#[tokio::test]
async fn the_command_line_swaps_rolls_back_and_shows() -> anyhow::Result<()> {
    let refit = alone()?
        .env("ADMIN_TOKEN", "t0ken")
        .env("USER", "ana")
        .file("new.wasm", guest("newcomer")?)?
        .file("bad.wasm", "no component")?
        .file("new.json", r#"{ "a": 1 }"#)?;
    let daemon = refit.serve().await?;
    let server = format!("http://{}", daemon.address);
    let run = async |arguments: &[&str]| {
        let arguments = [&["policy"], arguments, &["--server", &server]].concat();
        refit.run(&arguments).await
    };
    let output = run(&[
        "swap",
        "new.wasm",
        "--policy-config",
        "new.json",
        "--expect",
        "1",
    ])
    .await?
    .expect(0);
    snapshot!(output.stdout, @"
    in use            newcomer 0.1.0, generation 2
    no longer may     log, time, read-state, write-state, list, inspect, pull, recreate
    ");
    let output = run(&["swap", "new.wasm"]).await?.expect(0);
    snapshot!(output.stdout, @"unchanged         newcomer 0.1.0, generation 2: it is in use already");
    let output = run(&["swap", "bad.wasm"]).await?.expect(1);
    snapshot!(output.stderr, @r"
    error: cannot swap in `bad.wasm`: it failed at `parse`; generation 2 (newcomer 0.1.0) is still in use
      caused by: `bad.wasm` is no WebAssembly component: it is something else

    hint: build it for `wasm32-wasip2`, which makes components: `cargo build --target wasm32-wasip2 --release`
    ");
    let output = run(&["rollback", "--expect", "1"]).await?.expect(1);
    output.says("generation 2 is active, not 1: somebody was faster");
    let output = run(&["inspect", "--json"]).await?.expect(0);
    assert_eq!(output.json()["config"], json!({ "a": 1 }));
    assert_eq!(output.json()["by"], "ana");
    run(&["rollback"]).await?.expect(0);
    let output = run(&["history", "--json"]).await?.expect(0);
    assert_eq!(output.json()["generations"][0]["how"], "rolled-back");
    assert_eq!(run(&["history"]).await?.expect(0).stdout.lines().count(), 3);
    let output = run(&["inspect"]).await?.expect(0);
    assert!(
        output.stdout.contains("generation  3, rolled-back by ana"),
        "{output}"
    );
    assert_eq!(in_use(&daemon).await?, is("workspace", 3));

    let wrong = refit.env("ADMIN_TOKEN", "another");
    let output = wrong
        .run(&["policy", "history", "--server", &server])
        .await?
        .expect(2);
    output.says("the admin token is missing or wrong");
    let output = wrong
        .run(&["policy", "history", "--server", "http://127.0.0.1:1"])
        .await?
        .expect(2);
    output.says("cannot ask the daemon at `http://127.0.0.1:1`");
    let output = wrong
        .run(&["policy", "history", "--server", "https://127.0.0.1:1"])
        .await?
        .expect(2);
    output.says("only `http://` is spoken");
    Ok(())
}

#[tokio::test]
async fn a_component_can_be_looked_at_without_a_daemon() -> anyhow::Result<()> {
    let refit = alone()?
        .file("default.wasm", refit::sandbox::DEFAULT_POLICY)?
        .file("bad.wasm", "")?;
    let output = refit
        .run(&["policy", "inspect", "default.wasm"])
        .await?
        .expect(0);
    for part in [
        "policy      workspace 0.1.0",
        "recreate",
        "refit:policy/docker@0.1.0: ",
        "exports     refit:policy/policy@0.1.0",
    ] {
        assert!(output.stdout.contains(part), "`{part}`: {output}");
    }
    let output = refit
        .run(&["policy", "inspect", "bad.wasm"])
        .await?
        .expect(2);
    output.says("`bad.wasm` is no WebAssembly component: it is empty");
    Ok(())
}

#[tokio::test]
async fn a_hang_up_swaps_what_the_configuration_asks_for_now() -> anyhow::Result<()> {
    let refit = alone()?
        .file("one.wasm", guest("one")?)?
        .file("two.wasm", guest("two")?)?
        .file("bad.wasm", "no component")?
        .set("policy.component", "one.wasm");
    let daemon = refit.serve().await?;
    daemon.hang_up()?;
    daemon
        .until_logged("asks for the same policy as before")
        .await?;
    let refit = refit
        .set("policy.component", "two.wasm")
        .set("policy.config.a", 1);
    refit.write_config()?;
    daemon.hang_up()?;
    until("the second one", async || {
        Ok(in_use(&daemon).await? == is("two", 2))
    })
    .await?;
    let now = active(&daemon).await?;
    assert_eq!(
        (&now["how"], &now["config"]),
        (&json!("reloaded"), &json!({ "a": 1 }))
    );
    // One that is no good is told of, and nothing else.
    let refit = refit.set("policy.component", "bad.wasm");
    refit.write_config()?;
    daemon.hang_up()?;
    daemon
        .until_logged("it failed at `parse`; generation 2 (two 0.1.0) is still in use")
        .await?;
    let refit = refit.set("polcy", 1);
    refit.write_config()?;
    daemon.hang_up()?;
    daemon.until_logged("unknown key `polcy`").await?;
    assert_eq!(in_use(&daemon).await?, is("two", 2));
    Ok(())
}

#[tokio::test]
async fn a_watched_file_is_swapped_in_when_it_is_whole() -> anyhow::Result<()> {
    let refit = alone()?
        .file("mine.wasm", guest("one")?)?
        .set("policy.component", "mine.wasm")
        .set("policy.watch", true);
    let daemon = refit.serve().await?;
    let two = guest("two")?;
    let refit = refit.file("mine.wasm", &two[..two.len() / 2])?;
    daemon
        .until_logged("it failed at `parse`; generation 1 (one 0.1.0) is still in use")
        .await?;
    let refit = refit.file("mine.wasm", &two)?;
    until("the second one", async || {
        Ok(in_use(&daemon).await? == is("two", 2))
    })
    .await?;
    // As most tools replace a file: another one in its place.
    let refit = refit.file("beside.wasm", guest("three")?)?;
    std::fs::rename(
        refit.home().join("beside.wasm"),
        refit.home().join("mine.wasm"),
    )?;
    until("the third one", async || {
        Ok(in_use(&daemon).await? == is("three", 3))
    })
    .await?;
    Ok(())
}

/// An engine without a container and an image, that answers a list of containers only when it is told to.
struct Slow {
    host: String,
    /// Whether lists are answered.
    open: watch::Sender<bool>,
    /// Lists that were asked for.
    asked: watch::Receiver<usize>,
}

async fn slow() -> anyhow::Result<Slow> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let host = format!("tcp://{}", listener.local_addr()?);
    let (open, opened) = watch::channel(true);
    let (asking, asked) = watch::channel(0);
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let (mut opened, asking) = (opened.clone(), asking.clone());
            tokio::spawn(async move {
                let mut head = Vec::new();
                while !head.windows(4).any(|it| it == b"\r\n\r\n") {
                    let mut some = [0; 1024];
                    match stream.read(&mut some).await {
                        Ok(0) | Err(_) => return,
                        Ok(length) => head.extend_from_slice(&some[..length]),
                    }
                }
                let head = String::from_utf8_lossy(&head);
                let path = head.split_whitespace().nth(1).unwrap_or_default();
                let (status, body) = if path.contains("/containers/json") {
                    asking.send_modify(|count| *count += 1);
                    let _ = opened.wait_for(|open| *open).await;
                    ("200 OK", "[]")
                } else if path.contains("/version") {
                    (
                        "200 OK",
                        r#"{"Version":"20.10.24","ApiVersion":"1.41","MinAPIVersion":"1.12","Os":"linux","Arch":"amd64"}"#,
                    )
                } else {
                    ("404 Not Found", r#"{"message":"there is none"}"#)
                };
                let answer = format!(
                    "HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
                    body.len()
                );
                let _ = stream.write_all(answer.as_bytes()).await;
            });
        }
    });
    Ok(Slow { host, open, asked })
}

#[tokio::test]
async fn a_refresh_ends_on_the_generation_that_it_began_with() -> anyhow::Result<()> {
    let mut engine = slow().await?;
    let refit = alone()?.env("DOCKER_HOST", &engine.host);
    let daemon = refit.serve().await?;
    engine.open.send_replace(false);
    let before = *engine.asked.borrow();
    let first = daemon.refresh("?runtime=hermes");
    let swaps = async {
        engine.asked.wait_for(|asked| *asked > before).await?;
        let config = json!({ "config": { "runtimes": ["hermes"] } }).to_string();
        let answer = daemon.send("PUT", "/v1/policy", &[JSON], config).await?;
        assert_eq!(answer.status, 200, "{}", answer.text);
        assert_eq!(in_use(&daemon).await?, is("workspace", 2));
        assert!(
            !daemon.log().contains("no refresh uses it any more"),
            "one does"
        );
        let asked = *engine.asked.borrow();
        let second = daemon.refresh("?runtime=hermes");
        let release = async {
            engine.asked.wait_for(|now| *now > asked).await?;
            engine.open.send_replace(true);
            anyhow::Ok(())
        };
        tokio::try_join!(second, release)
    };
    let (first, (second, ())) = tokio::try_join!(first, swaps)?;
    assert_eq!(
        first.json()?["report"]["policy"]["generation"],
        1,
        "{}",
        first.text
    );
    assert_eq!(
        second.json()?["report"]["policy"]["generation"],
        2,
        "{}",
        second.text
    );
    daemon.until_logged("no refresh uses it any more").await
}
