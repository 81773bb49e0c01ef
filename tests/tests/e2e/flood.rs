//! Bad input and load: slow, oversized and misdirected requests, floods, and a refresh that goes on meanwhile. Bounded, answered,
//! logged once. All on loopback; what was held is printed.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use bytes::Bytes;
use futures_util::future::join_all;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use refit_tests::refit::Daemon;
use refit_tests::{ContainerSpec, ImageSpec, Refit, http as client, registry, with_world};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::Notify;

use crate::hooks::{package, sign};
use crate::{refit, replaced, until, without_engine};

const TOKEN: &str = "correct-horse-battery-staple";
const SECRET: &str = "webhook-secret-not-to-be-seen";

/// The longest that a slow client is borne with, and some for a loaded machine.
const CUT_OFF: Duration = Duration::from_secs(45);

/// Clients at once, four times as many as there are connections.
const CLIENTS: usize = 2000;
/// Requests of each.
const EACH: usize = 5;
/// What a daemon that is flooded may hold more than before: connections' buffers, bodies of 64 deliveries, and the allocator's
/// own ideas.
const GROWTH_BYTES_MAX: u64 = 192 << 20;

fn guarded() -> anyhow::Result<Refit> {
    Ok(without_engine()?
        .env("ADMIN_TOKEN", TOKEN)
        .secret(TOKEN)
        // What is written by hand names this host.
        .set("serve.hosts", json!(["x"]))
        .env("GITHUB_WEBHOOK_SECRET", SECRET)
        .secret(SECRET))
}

/// Sends this text, and reads until the other side closes.
async fn raw(address: SocketAddr, text: impl AsRef<[u8]>) -> anyhow::Result<String> {
    let mut stream = TcpStream::connect(address).await?;
    stream.write_all(text.as_ref()).await?;
    rest(stream).await
}

async fn rest(mut stream: TcpStream) -> anyhow::Result<String> {
    let mut answer = Vec::new();
    // A reset after the answer is an end too.
    let reading = async {
        let mut chunk = [0; 4096];
        while let Ok(read) = stream.read(&mut chunk).await {
            if read == 0 {
                break;
            }
            answer.extend_from_slice(&chunk[..read]);
        }
    };
    tokio::time::timeout(CUT_OFF, reading)
        .await
        .context("it was not cut off")?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

#[tokio::test]
async fn a_client_that_dribbles_is_cut_off() -> anyhow::Result<()> {
    let daemon = guarded()?.serve().await?;
    let address = daemon.address;
    // A byte of the head now and then, and never the last one.
    let head = async {
        let mut stream = TcpStream::connect(address).await?;
        let began = Instant::now();
        stream
            .write_all(b"GET /healthz HTTP/1.1\r\nHost: x\r\nX-")
            .await?;
        while stream.write_all(b"a").await.is_ok() {
            ensure!(began.elapsed() < CUT_OFF, "its head was waited for");
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        anyhow::Ok(began.elapsed())
    };
    // A body that never ends, where it is read.
    let body = async |path: &str, more: String| {
        let mut stream = TcpStream::connect(address).await?;
        let began = Instant::now();
        let head = format!("POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 5000\r\n{more}\r\n");
        stream.write_all(head.as_bytes()).await?;
        let (mut reading, mut writing) = stream.into_split();
        let dribble = tokio::spawn(async move {
            while writing.write_all(b" ").await.is_ok() {
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        });
        let mut answer = [0; 1024];
        let read = tokio::time::timeout(CUT_OFF, reading.read(&mut answer))
            .await
            .context("its body was waited for")??;
        dribble.abort();
        let answer = String::from_utf8_lossy(&answer[..read]).into_owned();
        ensure!(answer.starts_with("HTTP/1.1 408 "), "{path}: {answer}");
        ensure!(answer.contains("body-too-slow"), "{path}: {answer}");
        anyhow::Ok(began.elapsed())
    };
    let json = "Content-Type: application/json\r\n";
    let signature = format!("X-Hub-Signature-256: {}\r\n", sign(SECRET, b""));
    let plan = body(
        "/v1/plan",
        format!("{json}Authorization: Bearer {TOKEN}\r\n"),
    );
    let hook = body("/v1/hooks/github", format!("{json}{signature}"));
    // One that says nothing at all, and one that has asked once.
    let silent = raw(address, "");
    let idle = raw(address, "GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n");
    let (head, plan, hook, silent, idle) = tokio::try_join!(head, plan, hook, silent, idle)?;
    assert_eq!(silent, "");
    assert!(idle.starts_with("HTTP/1.1 200 "), "{idle}");
    progress(&format!(
        "cut off: a head after {head:.1?}, a plan's body after {plan:.1?}, a delivery's after {hook:.1?}"
    ));
    assert_eq!(daemon.request("GET", "/healthz").await?.status, 200);
    Ok(())
}

#[tokio::test]
async fn what_is_not_http_as_it_should_be_is_answered_or_cut_off() -> anyhow::Result<()> {
    let daemon = guarded()?.serve().await?;
    let address = daemon.address;
    for (sent, wanted) in [
        ("\0\u{1}nonsense\r\n\r\n".to_owned(), "HTTP/1.1 400 "),
        ("GET /healthz HTTP/3.7\r\n\r\n".to_owned(), "HTTP/1.1 400 "),
        (format!("GET /healthz HTTP/1.1\r\nHost: x\r\nX-Long: {}\r\n\r\n", "a".repeat(100_000)), "HTTP/1.1 431 "),
        (format!("GET /{} HTTP/1.1\r\nHost: x\r\n\r\n", "a".repeat(100_000)), "HTTP/1.1 4"),
        // The stranger's body is not waited for.
        ("POST /v1/plan HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999\r\nConnection: close\r\n\r\n".to_owned(), "HTTP/1.1 401 "),
        ("POST /v1/plan HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 10\r\n\r\n".to_owned(), "HTTP/1.1 401 "),
        (format!("POST /v1/plan HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: application/json\r\nAuthorization: Bearer {TOKEN}\r\nContent-Length: 70000\r\n\r\n{}", " ".repeat(70_000)), "HTTP/1.1 413 "),
        ("GET /healthz HTTP/1.0\r\n\r\n".to_owned(), "HTTP/1.0 200 "),
        ("HEAD /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".to_owned(), "HTTP/1.1 200 "),
        ("OPTIONS /v1/plan HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".to_owned(), "HTTP/1.1 405 "),
        ("DELETE /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".to_owned(), "HTTP/1.1 405 "),
        ("GET /nothing HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".to_owned(), "HTTP/1.1 404 "),
    ] {
        let shown: String = sent.chars().take(60).collect();
        let answer = raw(address, &sent).await?;
        ensure!(answer.starts_with(wanted), "{shown:?} was answered with {answer:?}, and not {wanted:?}");
        ensure!(!answer.contains("100 Continue"), "{shown:?}: {answer}");
    }
    // Who speaks HTTP/2 without having been asked.
    let answer = raw(address, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await?;
    ensure!(!answer.contains(" 200 "), "{answer}");

    // Whoever may, is told to go on, and then answered.
    let head = format!(
        "POST /v1/plan HTTP/1.1\r\nHost: x\r\nConnection: close\r\nExpect: 100-continue\r\nContent-Type: application/json\r\nAuthorization: Bearer {TOKEN}\r\nContent-Length: 1\r\n\r\n"
    );
    let mut stream = TcpStream::connect(address).await?;
    stream.write_all(head.as_bytes()).await?;
    let mut told = [0; 25];
    stream.read_exact(&mut told).await?;
    assert_eq!(&told, b"HTTP/1.1 100 Continue\r\n\r\n");
    stream.write_all(b"7").await?;
    let answer = rest(stream).await?;
    ensure!(
        answer.starts_with("HTTP/1.1 4"),
        "a number is no request: {answer}"
    );

    // Several at once on one connection are answered in order.
    let one = |path: &str, more: &str| format!("GET {path} HTTP/1.1\r\nHost: x\r\n{more}\r\n");
    let pipelined = [
        one("/healthz", ""),
        one("/nothing", ""),
        one("/healthz", "Connection: close\r\n"),
    ]
    .concat();
    let answers = raw(address, pipelined).await?;
    let statuses: Vec<&str> = answers
        .match_indices("HTTP/1.1 ")
        .map(|(at, _)| &answers[at + 9..at + 12])
        .collect();
    assert_eq!(statuses, ["200", "404", "200"], "{answers}");
    assert_eq!(daemon.request("GET", "/healthz").await?.status, 200);
    Ok(())
}

#[tokio::test]
async fn a_token_in_the_wrong_place_is_refused_with_a_hint_and_never_logged() -> anyhow::Result<()>
{
    let daemon = guarded()?.serve().await?;
    let ask = async |path: &str, headers: &[(&str, &str)]| {
        let body = Bytes::new();
        refit_tests::http::send(daemon.address, "GET", path, None, headers, body).await
    };
    let basic = format!("Basic {TOKEN}");
    for (path, headers, hint) in [
        (
            format!("/v1/refreshes?token={TOKEN}"),
            vec![],
            "in an address",
        ),
        (
            format!("/v1/refreshes?Access_Token={TOKEN}"),
            vec![],
            "in an address",
        ),
        (
            "/v1/refreshes".to_owned(),
            vec![("X-Api-Key", TOKEN)],
            "`x-api-key` is not looked at",
        ),
        (
            "/v1/refreshes".to_owned(),
            vec![("Authorization", TOKEN)],
            "begin with `Bearer `",
        ),
        (
            "/v1/refreshes".to_owned(),
            vec![("Authorization", basic.as_str())],
            "begin with `Bearer `",
        ),
    ] {
        let answer = ask(&path, &headers).await?;
        assert_eq!(answer.status, 401, "{path} {headers:?}");
        let hints = answer.json()?["hints"].to_string();
        assert!(hints.contains(hint), "{hints}");
        assert!(!answer.text.contains(TOKEN), "{answer:?}");
    }
    for _ in 0..200 {
        assert_eq!(
            ask("/v1/refreshes", &[("Authorization", "Bearer wrong")])
                .await?
                .status,
            401
        );
    }
    let log = daemon.log();
    let lines = log.matches("token was refused").count();
    assert_eq!(
        lines, 1,
        "205 refusals are one line, and a count when the minute is over:\n{log}"
    );
    // What must not be printed is looked for when the daemon is dropped.
    Ok(())
}

/// What a flood came to.
#[derive(Default)]
struct Flood {
    statuses: BTreeMap<u16, usize>,
    without_wait: usize,
    broken: usize,
    latencies: Vec<Duration>,
    took: Duration,
}

impl Flood {
    fn of(&self, status: u16) -> usize {
        self.statuses.get(&status).copied().unwrap_or_default()
    }

    fn summary(&mut self, what: &str) -> String {
        self.latencies.sort();
        let at = |percent: usize| {
            let index =
                (self.latencies.len() * percent / 100).min(self.latencies.len().saturating_sub(1));
            self.latencies.get(index).copied().unwrap_or_default()
        };
        let rate = self.latencies.len() as f64 / self.took.as_secs_f64();
        format!(
            "{what}: {} answers ({:?}), {} broken, {rate:.0} a second, p50 {:.1?}, p99 {:.1?}",
            self.latencies.len(),
            self.statuses,
            self.broken,
            at(50),
            at(99)
        )
    }
}

type Make = Arc<dyn Fn(usize) -> http::Request<Full<Bytes>> + Send + Sync>;

/// So many clients at once, each with a connection of its own on which it asks one thing after the other.
async fn flood(address: SocketAddr, clients: usize, each: usize, make: Make) -> Flood {
    let began = Instant::now();
    let client = |client: usize| {
        let make = make.clone();
        tokio::spawn(async move {
            let mut seen: Vec<Option<(u16, bool, Duration)>> = Vec::with_capacity(each);
            let mut connected = None;
            for number in 0..each {
                let began = Instant::now();
                let asked = tokio::time::timeout(Duration::from_secs(90), async {
                    // It is closed after an answer where others wait for a connection.
                    let usable = match &mut connected {
                        Some(sender) => http1::SendRequest::ready(sender).await.is_ok(),
                        None => false,
                    };
                    if !usable {
                        let stream = TcpStream::connect(address).await?;
                        let (sender, connection) =
                            http1::handshake::<_, Full<Bytes>>(TokioIo::new(stream)).await?;
                        tokio::spawn(connection);
                        connected = Some(sender);
                    }
                    let sender = connected.as_mut().context("it was connected")?;
                    sender.ready().await?;
                    let answer = sender.send_request(make(client * each + number)).await?;
                    let (parts, body) = answer.into_parts();
                    body.collect().await?;
                    anyhow::Ok((
                        parts.status.as_u16(),
                        parts.headers.contains_key("retry-after"),
                    ))
                });
                match asked.await {
                    Ok(Ok((status, wait))) => seen.push(Some((status, wait, began.elapsed()))),
                    Ok(Err(_)) | Err(_) => {
                        connected = None;
                        seen.push(None);
                    }
                }
            }
            seen
        })
    };
    let mut flood = Flood::default();
    for seen in join_all((0..clients).map(client)).await {
        for one in seen.unwrap_or_default() {
            let Some((status, wait, latency)) = one else {
                flood.broken += 1;
                continue;
            };
            *flood.statuses.entry(status).or_default() += 1;
            flood.latencies.push(latency);
            flood.without_wait += usize::from(matches!(status, 429 | 503) && !wait);
        }
    }
    flood.took = began.elapsed();
    flood
}

fn get(daemon: &Daemon, path: &'static str, token: &'static str) -> Make {
    let host = daemon.address.to_string();
    Arc::new(move |_| {
        let request = http::Request::get(path).header("Host", &host);
        let request = request.header("Authorization", format!("Bearer {token}"));
        request.body(Full::default()).unwrap()
    })
}

fn deliveries(daemon: &Daemon, secret: &'static str, owner: String) -> Make {
    let host = daemon.address.to_string();
    Arc::new(move |number| {
        let body = package(&owner, &format!("image-{}", number % 500), "latest").to_string();
        let request = http::Request::post("/v1/hooks/github")
            .header("Host", &host)
            .header("Content-Type", "application/json")
            .header("X-GitHub-Event", "package")
            .header("X-Hub-Signature-256", sign(secret, body.as_bytes()));
        request.body(Full::from(body)).unwrap()
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refresh_goes_on_while_the_daemon_is_flooded() -> anyhow::Result<()> {
    with_world("floods", |w| async move {
        let registry = registry::open().await?;
        let v1 = w.publish(registry, "hermes", ImageSpec::new("v1")).await?;
        let hermes = w.run(ContainerSpec::new("hermes", &v1.reference)).await?;
        let state = tempfile::tempdir()?;
        let daemon = refit(&w, registry, &["hermes"])?
            .set("state_dir", state.path().display().to_string())
            .env("ADMIN_TOKEN", TOKEN)
            .secret(TOKEN)
            .env("GITHUB_WEBHOOK_SECRET", SECRET)
            .secret(SECRET)
            .serve()
            .await?;
        // The watcher, which is there for the webhooks, looks once at the start; what is published after that is left to this test.
        until("the first look", || async {
            let status = client::request(daemon.address, "GET", "/v1/watch", Some(TOKEN)).await?;
            Ok(status.json()?["looks"] == 1)
        })
        .await?;
        let v2 = w.publish(registry, "hermes", ImageSpec::new("v2")).await?;
        for _ in 0..5 {
            assert_eq!(daemon.refresh("?recreate=false").await?.status, 200);
        }
        let before = daemon.resident_bytes()?;

        // Half of the clients have asked.
        let there = Arc::new(Notify::new());
        let reads: Make = {
            let (there, asked) = (there.clone(), AtomicUsize::new(0));
            let read = get(&daemon, "/v1/refreshes", TOKEN);
            Arc::new(move |number| {
                if asked.fetch_add(1, Ordering::Relaxed) == CLIENTS / 2 {
                    there.notify_one();
                }
                read(number)
            })
        };
        let refresh = async {
            there.notified().await;
            let began = Instant::now();
            let answer = loop {
                let answer = daemon.refresh("").await?;
                if answer.status != 503 || began.elapsed() > Duration::from_secs(60) {
                    break answer;
                }
            };
            anyhow::Ok((answer, began.elapsed()))
        };
        let address = daemon.address;
        let floods = async {
            let mut all = Vec::new();
            let reads = flood(address, CLIENTS, EACH, reads);
            let health = flood(address, 50, 40, get(&daemon, "/healthz", TOKEN));
            let (reads, health) = tokio::join!(reads, health);
            all.push(("2000 clients read /v1/refreshes", reads));
            all.push(("50 clients ask /healthz meanwhile", health));
            let forged = flood(
                address,
                200,
                20,
                deliveries(&daemon, "somebody else's secret", "acme".into()),
            );
            all.push(("200 clients with wrong signatures", forged.await));
            let wrong = flood(address, 200, 20, get(&daemon, "/v1/refreshes", "wrong"));
            all.push(("200 clients with a wrong token", wrong.await));
            let signed = flood(address, 100, 60, deliveries(&daemon, SECRET, "acme".into()));
            all.push(("100 clients with GitHub's secret", signed.await));
            let large: Make = {
                let host = address.to_string();
                let body = Bytes::from(vec![b' '; 1 << 20]);
                Arc::new(move |_| {
                    let request = http::Request::post("/v1/hooks/github").header("Host", &host);
                    let request = request.header("X-Hub-Signature-256", sign(SECRET, b"not this"));
                    request.body(Full::from(body.clone())).unwrap()
                })
            };
            all.push((
                "100 clients with a MiB each",
                flood(address, 100, 5, large).await,
            ));
            all
        };
        let (refresh, floods) = tokio::join!(refresh, floods);
        let (answer, took) = refresh?;
        let after = daemon.resident_bytes()?;
        let mut floods: BTreeMap<&str, Flood> = floods.into_iter().collect();
        for (what, flood) in &mut floods {
            progress(&flood.summary(what));
        }
        progress(&format!(
            "a refresh meanwhile took {took:.1?}; the daemon held {} MiB before and {} MiB after",
            before >> 20,
            after >> 20
        ));

        assert_eq!(answer.status, 200, "{answer:?}");
        assert_eq!(answer.json()?["recreated"], json!([hermes.name]));
        replaced(&w, &hermes, &v2).await?;
        for (what, flood) in &floods {
            assert_eq!(flood.broken, 0, "{what}: everybody was answered");
            assert_eq!(
                flood.without_wait, 0,
                "{what}: who is sent away is told when to come again"
            );
        }
        let reads = &floods["2000 clients read /v1/refreshes"];
        assert_eq!(
            reads.of(200) + reads.of(503),
            CLIENTS * EACH,
            "{:?}",
            reads.statuses
        );
        assert!(reads.of(200) > CLIENTS, "{:?}", reads.statuses);
        assert_eq!(
            floods["50 clients ask /healthz meanwhile"].of(200),
            2000,
            "health is always told"
        );
        let forged = &floods["200 clients with wrong signatures"];
        assert_eq!(
            forged.of(401) + forged.of(503),
            4000,
            "{:?}",
            forged.statuses
        );
        let wrong = &floods["200 clients with a wrong token"];
        assert_eq!(wrong.of(401), 4000, "{:?}", wrong.statuses);
        let signed = &floods["100 clients with GitHub's secret"];
        assert!(
            signed.of(202) >= 1000 && signed.of(429) > 0,
            "{:?}",
            signed.statuses
        );
        assert!(
            after < before + GROWTH_BYTES_MAX,
            "{} MiB grown",
            (after - before) >> 20
        );

        // Thousands of refusals, and a handful of lines.
        let log = daemon.log();
        let warnings: Vec<&str> = log
            .lines()
            .filter(|line| line.contains("\"WARN\""))
            .collect();
        assert!(
            warnings.len() < 30,
            "{} warnings:\n{}",
            warnings.len(),
            warnings.join("\n")
        );
        assert_eq!(daemon.request("GET", "/readyz").await?.status, 200);
        let answer = daemon
            .request("GET", "/v1/refreshes?limit=1")
            .await?
            .json()?;
        assert!(
            answer.to_string().contains(&hermes.name) || answer.to_string().contains("\"done\""),
            "{answer}"
        );
        daemon.terminate()?;
        daemon.ended().await?.expect(0);
        Ok(())
    })
    .await
}

fn progress(text: &str) {
    refit_tests::progress(text);
}

/// Somebody opens sockets and says nothing, or begins deliveries and does not go on. Neither keeps health, the command line or a real
/// delivery waiting.
#[tokio::test(flavor = "multi_thread")]
async fn sockets_that_say_nothing_keep_nobody_out() -> anyhow::Result<()> {
    let daemon = guarded()?.serve().await?;
    let address = daemon.address;
    let open = |text: String| async move {
        let mut stream = TcpStream::connect(address).await?;
        stream.write_all(text.as_bytes()).await?;
        anyhow::Ok(stream)
    };
    // Heads that never end, more than there are places.
    let mut held = Vec::new();
    for _ in 0..700 {
        held.push(open("GET /healthz HTTP/1.1\r\nHost: x\r\nX-".to_owned()).await?);
    }
    let soon = |what: &'static str, began: Instant| {
        let took = began.elapsed();
        progress(&format!(
            "among 700 silent sockets and 70 slow deliveries, {what} took {took:.1?}"
        ));
        ensure!(took < Duration::from_secs(5), "{what} took {took:.1?}");
        Ok(())
    };
    for path in ["/healthz", "/v1/policy"] {
        let began = Instant::now();
        assert_eq!(daemon.request("GET", path).await?.status, 200, "{path}");
        soon(path, began)?;
    }
    // Deliveries whose bodies do not come, more than are read at once.
    let head = "POST /v1/hooks/github HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n";
    for _ in 0..70 {
        let signature = sign(SECRET, b"");
        held.push(
            open(format!(
                "{head}X-Hub-Signature-256: {signature}\r\nContent-Length: 5000\r\n\r\n{{"
            ))
            .await?,
        );
    }
    let body = package("acme", "app", "latest");
    let body = body.to_string();
    let signature = sign(SECRET, body.as_bytes());
    let headers = [
        ("Content-Type", "application/json"),
        ("X-GitHub-Event", "package"),
        ("X-Hub-Signature-256", signature.as_str()),
    ];
    let began = Instant::now();
    let answer = daemon
        .send("POST", "/v1/hooks/github", &headers, body)
        .await?;
    assert_ne!(answer.status, 503, "{}", answer.text);
    assert_ne!(answer.status, 408, "{}", answer.text);
    soon("a delivery", began)?;
    let began = Instant::now();
    assert_eq!(daemon.request("GET", "/healthz").await?.status, 200);
    soon("health", began)?;
    drop(held);
    Ok(())
}
