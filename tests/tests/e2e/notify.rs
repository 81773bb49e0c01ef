//! Notifications: what came of real refreshes arrives at a sink, once and in words; and who is told can be tried.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::Context;
use refit_tests::{ImageSpec, registry, with_world};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::mpsc;

use crate::{behind, refit, replaced, without_engine};

/// In its address, so that it is looked for wherever the program prints something.
const SECRET_PATH: &str = "services-T0-B0-not-to-be-seen";
const TOKEN: &str = "sink-token-not-to-be-seen";

/// Takes all that is posted.
struct Sink {
    url: String,
    heads: Arc<Mutex<Vec<String>>>,
    posted: mpsc::Receiver<String>,
}

async fn sink(answer: &'static str) -> anyhow::Result<Sink> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let url = format!("http://{}/{SECRET_PATH}", listener.local_addr()?);
    let (post, posted) = mpsc::channel(100);
    let heads = Arc::<Mutex<Vec<String>>>::default();
    let into = heads.clone();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut request = Vec::new();
            let mut chunk = [0; 4096];
            while let Ok(read) = stream.read(&mut chunk).await {
                request.extend_from_slice(&chunk[..read]);
                let text = String::from_utf8_lossy(&request).into_owned();
                let whole = text.split_once("\r\n\r\n").filter(|(head, body)| {
                    let head = head.to_lowercase();
                    let length = head.split("content-length: ").nth(1);
                    let length = length.and_then(|rest| rest.lines().next()?.parse::<usize>().ok());
                    read == 0 || length.is_some_and(|length| body.len() >= length)
                });
                if let Some((head, body)) = whole {
                    into.lock().unwrap().push(head.to_owned());
                    let _ = post.send(body.to_owned()).await;
                    break;
                }
            }
            let answer =
                format!("HTTP/1.1 {answer}\r\nContent-Length: 2\r\nConnection: close\r\n\r\nno");
            let _ = stream.write_all(answer.as_bytes()).await;
        }
    });
    Ok(Sink { url, heads, posted })
}

impl Sink {
    async fn next(&mut self) -> anyhow::Result<Value> {
        let posted = tokio::time::timeout(Duration::from_secs(60), self.posted.recv()).await;
        let body = posted
            .context("nobody was told")?
            .context("the sink ended")?;
        Ok(serde_json::from_str(&body)?)
    }
}

fn told(message: &Value) -> Vec<(&str, &str)> {
    let findings = message["findings"]
        .as_array()
        .map(Vec::as_slice)
        .unwrap_or_default();
    findings
        .iter()
        .map(|it| {
            (
                it["kind"].as_str().unwrap_or_default(),
                it["subject"].as_str().unwrap_or_default(),
            )
        })
        .collect()
}

#[tokio::test]
async fn what_was_done_and_what_failed_is_told_once_and_in_words() -> anyhow::Result<()> {
    with_world("notifications", |w| async move {
        let registry = registry::open().await?;
        let (hermes, v2) = behind(&w, registry, "hermes").await?;
        let mut sink = sink("204 No Content").await?;
        let state = tempfile::tempdir()?;
        let refit = refit(&w, registry, &["hermes", "openclaw"])?
            .secret(SECRET_PATH)
            .secret(TOKEN)
            .file("token", format!("{TOKEN}\n"))?
            .file("url", format!("{}\n", sink.url))?
            .set("state_dir", state.path().display().to_string())
            .set("notify", json!([{ "name": "ops", "kind": "webhook", "url_file": "url", "token_file": "token", "batch_seconds": 0 }]));
        let daemon = refit.serve().await?;
        assert_eq!(daemon.refresh("").await?.status, 200);
        // The policy's order decides which one is first, and the batch whether they are one message.
        let (mut all, mut text) = (Vec::new(), String::new());
        while all.len() < 2 {
            let message = sink.next().await?;
            assert_eq!((&message["format"], &message["dropped"]), (&json!(1), &json!(0)));
            all.extend(told(&message).iter().map(|(kind, subject)| format!("{kind} {subject}")));
            text.push_str(message["text"].as_str().unwrap_or_default());
        }
        all.sort();
        let openclaw = w.reference(registry, "openclaw");
        assert_eq!(all, [format!("failed {openclaw}"), format!("recreated {}", hermes.name)]);
        for words in [
            &format!("`{}` runs image {} now", hermes.name, &v2.id[7..19]),
            "has no image",
            "is the image published yet?\n",
            "asked by the API",
            "policy workspace",
            "`refit history show 1`",
        ] {
            assert!(text.contains(words), "it does not say `{words}`:\n{text}");
        }
        let head = sink.heads.lock().unwrap()[0].to_lowercase();
        assert!(head.contains(&format!("authorization: bearer {TOKEN}")), "{head}");
        replaced(&w, &hermes, &v2).await?;

        // The same failure is not told again, by this daemon or the next one; what is new is.
        assert_eq!(daemon.refresh("").await?.status, 200);
        daemon.terminate()?;
        daemon.ended().await?.expect(0);
        let daemon = refit.serve().await?;
        w.publish(registry, "hermes", ImageSpec::new("v3")).await?;
        assert_eq!(daemon.refresh("").await?.status, 200);
        assert_eq!(told(&sink.next().await?), [("recreated", hermes.name.as_str())]);
        Ok(())
    })
    .await
}

#[tokio::test]
async fn a_sink_can_be_tried_and_is_called_by_its_name() -> anyhow::Result<()> {
    let mut works = sink("200 OK").await?;
    let refuses = sink("302 Found").await?;
    let entry =
        |name: &str, kind: &str, url: &str| json!({ "name": name, "kind": kind, "url": url });
    let dead = format!("http://127.0.0.1:1/{SECRET_PATH}");
    let refit = without_engine()?.secret(SECRET_PATH).set(
        "notify",
        json!([
            entry("ops", "slack", &works.url),
            entry("bot", "webhook", &refuses.url),
            entry("pager", "ntfy", &dead)
        ]),
    );
    let output = refit.run(&["notify", "test"]).await?.expect(1);
    assert!(
        output.stdout.contains("ops: answered 200 OK after "),
        "{output}"
    );
    assert!(
        output
            .stdout
            .contains("bot: `bot` answered 302 Found: no\n  hint: redirects are not followed"),
        "{output}"
    );
    assert!(
        output
            .stdout
            .contains("pager: `pager` could not be reached: "),
        "{output}"
    );
    assert!(
        works.next().await?["text"]
            .as_str()
            .is_some_and(|text| text.contains("a test"))
    );
    refit.run(&["notify", "test", "ops"]).await?.expect(0);

    refit
        .run(&["notify", "test", "nobody"])
        .await?
        .expect(2)
        .says("there is no sink `nobody`");
    let shown = refit.run(&["config", "show"]).await?.expect(0);
    assert!(shown.stdout.contains("(hidden)"), "{shown}");
    let none = without_engine()?.run(&["notify", "test"]).await?.expect(2);
    none.says("nobody is to be told anything");
    let wrong = without_engine()?.secret(SECRET_PATH).set(
        "notify",
        json!([entry(
            "ops",
            "slack",
            &format!("hooks.example/{SECRET_PATH}")
        )]),
    );
    wrong
        .run(&["serve", "--listen", "127.0.0.1:0"])
        .await?
        .expect(2)
        .says("the address of the sink `ops` is no URL");
    Ok(())
}
