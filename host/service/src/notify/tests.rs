//! Tests over a real socket: notifications are collected, sent once, and sent again after a change.

use std::sync::Mutex;

use refit_model::secret::SecretString;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

use super::notification::{Context, DedupKey, Kind};
use super::sink::PayloadFormat;
use super::*;

/// A server that answers each request with the next answer, and repeats the last one. `posted` has the bodies in order.
struct Server {
    url: String,
    posted: Arc<Mutex<Vec<String>>>,
    arrived: mpsc::Receiver<()>,
}

async fn server(answers: &'static [&'static str]) -> Server {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/secret-path", listener.local_addr().unwrap());
    let posted = Arc::<Mutex<Vec<String>>>::default();
    let (arrive, arrived) = mpsc::channel(100);
    let server_posted = posted.clone();
    tokio::spawn(async move {
        let mut served = 0;
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = Vec::new();
            let body = loop {
                let mut chunk = [0; 4096];
                let read = stream.read(&mut chunk).await.unwrap();
                request.extend_from_slice(&chunk[..read]);
                let text = String::from_utf8_lossy(&request).into_owned();
                let Some((head, body)) = text.split_once("\r\n\r\n") else {
                    continue;
                };
                let head = head.to_lowercase();
                let length = head
                    .split("content-length: ")
                    .nth(1)
                    .and_then(|rest| rest.lines().next());
                if body.len() >= length.unwrap().parse::<usize>().unwrap() {
                    break body.to_owned();
                }
            };
            server_posted.lock().unwrap().push(body);
            let answer = answers[served.min(answers.len() - 1)];
            served += 1;
            let answer = format!("HTTP/1.1 {answer}Content-Length: 0\r\nConnection: close\r\n\r\n");
            stream.write_all(answer.as_bytes()).await.unwrap();
            arrive.send(()).await.unwrap();
        }
    });
    Server {
        url,
        posted,
        arrived,
    }
}

impl Server {
    async fn posts(&mut self, count: usize) -> Vec<serde_json::Value> {
        let arrived = async {
            for _ in 0..count {
                self.arrived.recv().await.unwrap();
            }
        };
        tokio::time::timeout(Duration::from_secs(30), arrived)
            .await
            .expect("they did not arrive");
        let posted = self.posted.lock().unwrap();
        posted
            .iter()
            .map(|body| serde_json::from_str(body).unwrap())
            .collect()
    }
}

fn notifier(server: &Server, batch: Duration, memory: Memory) -> Arc<Notifier> {
    let url = SecretString::from(server.url.clone());
    let sink = Sink::new("ops", PayloadFormat::Webhook, url, None).unwrap();
    let sink = sink.with_kinds(vec![Kind::Failed, Kind::Behind], batch);
    Notifier::start(vec![sink], memory).unwrap()
}

fn failed(name: &str, cause: &str) -> Notification {
    Notification {
        dedup_key: Some(DedupKey {
            about: format!("failed container {name}"),
            cause: cause.into(),
        }),
        ..Notification::new(Kind::Failed, name, cause, "it runs", &Context::default())
    }
}

fn subjects(message: &serde_json::Value) -> Vec<&str> {
    let findings = message["findings"].as_array().unwrap();
    findings
        .iter()
        .map(|finding| finding["subject"].as_str().unwrap())
        .collect()
}

const SOON: Duration = Duration::from_millis(50);

#[tokio::test]
async fn notifications_are_batched_and_not_repeated_until_settled() {
    let mut server = server(&["200 OK\r\n"]).await;
    let folder = tempfile::tempdir().unwrap();
    let sender = notifier(&server, SOON, Memory::load(folder.path()));
    for name in ["a", "b", "a"] {
        sender.notify(failed(name, "port is taken"));
    }
    sender.notify(Notification::new(
        Kind::Recreated,
        "c",
        "it was",
        "it is",
        &Context::default(),
    ));
    let posts = server.posts(1).await;
    assert_eq!(
        subjects(&posts[0]),
        ["a", "b"],
        "each once, and no kind that nobody asked for"
    );
    sender.close(Duration::from_secs(5)).await;

    // A restarted daemon finds the same.
    let sender = notifier(&server, SOON, Memory::load(folder.path()));
    sender.notify(failed("a", "port is taken"));
    sender.notify(failed("b", "no space left"));
    let posts = server.posts(1).await;
    assert_eq!(subjects(&posts[1]), ["b"], "only what changed");
    sender.settle(vec!["failed container a".into()]);
    sender.notify(failed("a", "port is taken"));
    let posts = server.posts(1).await;
    assert_eq!(subjects(&posts[2]), ["a"], "it was settled, and came again");
    sender.close(Duration::from_secs(5)).await;
}

#[tokio::test]
async fn transient_failure_is_retried_and_permanent_is_not() {
    let mut server = server(&[
        "429 Too Many\r\nRetry-After: 0\r\n",
        "503 No\r\nRetry-After: 0\r\n",
        "200 OK\r\n",
        "404 Not Found\r\n",
    ])
    .await;
    let sender = notifier(&server, SOON, Memory::in_memory());
    sender.notify(failed("a", "port is taken"));
    let posts = server.posts(3).await;
    assert!(posts.iter().all(|post| subjects(post) == ["a"]));
    sender.notify(failed("b", "port is taken"));
    server.posts(1).await;
    sender.notify(failed("b", "port is taken"));
    let posts = server.posts(1).await;
    assert_eq!(
        posts.len(),
        5,
        "a 404 is not tried again, and what did not arrive is told again"
    );
    sender.close(Duration::from_secs(5)).await;
}

#[tokio::test]
async fn closing_delivers_queue_within_limit() {
    let mut server = server(&["200 OK\r\n"]).await;
    let sender = notifier(&server, Duration::from_secs(3600), Memory::in_memory());
    sender.notify(failed("a", "port is taken"));
    sender.close(Duration::from_secs(5)).await;
    assert_eq!(subjects(&server.posts(1).await[0]), ["a"]);

    // A server that accepts the connection and never answers.
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    server.url = format!("http://{}/", listener.local_addr().unwrap());
    let sender = notifier(&server, SOON, Memory::in_memory());
    sender.notify(failed("a", "port is taken"));
    let began = Instant::now();
    sender.close(Duration::from_millis(300)).await;
    assert!(began.elapsed() < Duration::from_secs(5));
}

#[tokio::test]
async fn dropped_notifications_are_counted() {
    let mut server = server(&["200 OK\r\n"]).await;
    let sender = notifier(&server, SOON, Memory::in_memory());
    // The worker cannot run while this loop does not await.
    for n in 0..WAITING_MAX + 7 {
        sender.notify(failed(&format!("c{n:04}"), "port is taken"));
    }
    let posts = server.posts(WAITING_MAX.div_ceil(BATCH_MAX)).await;
    assert!(posts.iter().all(|post| subjects(post).len() == BATCH_MAX));
    assert_eq!(posts[0]["dropped"], 7);
    assert!(
        posts[0]["text"]
            .as_str()
            .unwrap()
            .contains("7 more were not told")
    );
    sender.close(Duration::from_secs(5)).await;
}
