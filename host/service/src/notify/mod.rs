//! Who is told what came of refreshes. An observer of them puts findings into a queue for each sink; a task for each takes them
//! out, gathers what comes within some seconds, and delivers one message. Nothing here holds up a refresh.
//!
//! Nobody is told the same twice: [`memory`]. What is worth telling, [`finding`] says; in which words, [`message`]; on which
//! way, [`sink`].

pub mod delivered;
pub mod message;
pub mod notification;
pub mod sink;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use refit_model::diagnostic::Diagnostic;
use reqwest::Client;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use self::delivered::Memory;
use self::message::Message;
use self::notification::{Notification, Outcome};
use self::sink::Sink;
use crate::runs::{Observer, RefreshHandle, RunEvent};

/// What waits for one sink. The largest refresh is some hundred findings; while a sink hangs, some come on top.
const WAITING_MAX: usize = 1000;
/// Findings of one message. The rest of a batch is the next one.
const BATCH_MAX: usize = 200;

/// Tells. Clones of the `Arc` tell the same sinks.
pub struct Notifier {
    outlets: Vec<SinkQueue>,
    work: TaskTracker,
    closing: CancellationToken,
}

/// The way to one sink.
struct SinkQueue {
    sink: Arc<Sink>,
    queue: mpsc::Sender<Delivery>,
    dropped: Arc<AtomicU64>,
}

enum Delivery {
    Found(Box<Notification>),
    /// No longer so.
    Settled(Arc<[String]>),
}

/// The task of one sink.
struct NotificationWorker {
    sink: Arc<Sink>,
    queue: mpsc::Receiver<Delivery>,
    dropped: Arc<AtomicU64>,
    memory: Arc<Memory>,
    client: Client,
    host: String,
    closing: CancellationToken,
}

impl Notifier {
    /// Nobody is told anything.
    pub fn silent() -> Arc<Self> {
        Arc::new(Self {
            outlets: vec![],
            work: TaskTracker::new(),
            closing: CancellationToken::new(),
        })
    }

    pub fn start(sinks: Vec<Sink>, memory: Memory) -> Result<Arc<Self>, Diagnostic> {
        if sinks.is_empty() {
            return Ok(Self::silent());
        }
        let client = sink::client()?;
        let memory = Arc::new(memory);
        let work = TaskTracker::new();
        let closing = CancellationToken::new();
        let outlets = sinks.into_iter().map(|sink| {
            let sink = Arc::new(sink);
            let (queue, waiting) = mpsc::channel(WAITING_MAX);
            let dropped = Arc::<AtomicU64>::default();
            let carrier = NotificationWorker {
                sink: sink.clone(),
                queue: waiting,
                dropped: dropped.clone(),
                memory: memory.clone(),
                client: client.clone(),
                host: host(),
                closing: closing.clone(),
            };
            work.spawn(carrier.carry());
            SinkQueue {
                sink,
                queue,
                dropped,
            }
        });
        let outlets = outlets.collect();
        Ok(Arc::new(Self {
            outlets,
            work,
            closing,
        }))
    }

    /// Never waits. Where too much waits already, it is counted, and the count is told.
    pub fn tell(&self, finding: Notification) {
        for outlet in &self.outlets {
            if !outlet.sink.on.contains(&finding.kind) {
                continue;
            }
            if outlet
                .queue
                .try_send(Delivery::Found(Box::new(finding.clone())))
                .is_err()
                && outlet.dropped.fetch_add(1, Ordering::Relaxed) == 0
            {
                tracing::warn!(
                    sink = outlet.sink.name,
                    "more is found than can be told, and some of it is not"
                );
            }
        }
    }

    /// These are no longer so: when they come again, they are told again.
    pub fn settle(&self, settled: Vec<String>) {
        if settled.is_empty() {
            return;
        }
        let settled: Arc<[String]> = settled.into();
        for outlet in &self.outlets {
            // A full queue costs somebody that something is not told a second time.
            let _ = outlet.queue.try_send(Delivery::Settled(settled.clone()));
        }
    }

    /// What came of something: first what is no longer so, since what failed and was then done is told as both.
    pub fn tell_all(&self, outcome: Outcome) {
        self.settle(outcome.settled);
        for finding in outcome.findings {
            self.tell(finding);
        }
    }

    pub fn is_silent(&self) -> bool {
        self.outlets.is_empty()
    }

    /// Delivers what waits, once, and no longer than this.
    pub async fn close(&self, limit: Duration) {
        self.closing.cancel();
        self.work.close();
        if tokio::time::timeout(limit, self.work.wait()).await.is_err() {
            tracing::warn!("gave up telling what came of the last refreshes");
        }
    }
}

impl Observer for Notifier {
    fn observe(&self, run: &RefreshHandle, happening: &RunEvent<'_>) {
        let RunEvent::Ended(answer) = happening else {
            return;
        };
        if !self.is_silent() {
            let by = run.by.as_deref();
            self.tell_all(Outcome::of(run.id, &run.request, by, answer));
        }
    }
}

impl NotificationWorker {
    async fn carry(mut self) {
        while let Some(first) = self.next().await {
            let mut batch = Batch::default();
            self.take(first, &mut batch).await;
            if batch.is_empty() {
                continue;
            }
            let until = Instant::now() + self.sink.batch;
            while batch.found.len() < BATCH_MAX {
                let told = tokio::select! {
                    told = self.next() => told,
                    () = tokio::time::sleep_until(until) => break,
                };
                match told {
                    Some(told) => self.take(told, &mut batch).await,
                    None => break,
                }
            }
            self.deliver(batch).await;
        }
    }

    /// The next one; once it is closing, only what waits already.
    async fn next(&mut self) -> Option<Delivery> {
        tokio::select! {
            biased;
            told = self.queue.recv() => told,
            () = self.closing.cancelled() => None,
        }
    }

    async fn take(&self, told: Delivery, batch: &mut Batch) {
        match told {
            Delivery::Found(finding) => {
                let known = |same| self.memory.knows(&self.sink.name, same);
                if !finding.same.as_ref().is_some_and(known) {
                    batch.add(*finding);
                }
            }
            Delivery::Settled(settled) => {
                if self.memory.forget(&self.sink.name, &settled) {
                    self.write().await;
                }
            }
        }
    }

    async fn deliver(&self, batch: Batch) {
        let dropped = self.dropped.swap(0, Ordering::Relaxed);
        let message = Message::new(&self.host, batch.found.into_values().collect(), dropped);
        let (client, sink) = (&self.client, &self.sink);
        match sink.deliver(client, &message, &self.closing).await {
            Ok(status) => {
                tracing::debug!(sink = sink.name, %status, "told: {}", message.title);
                self.memory.remember(&sink.name, message.sameness());
                self.write().await;
            }
            // It is not remembered, so it is told when it is found again.
            Err(error) => {
                let told = Diagnostic::of(&error);
                tracing::error!(hints = ?told.hints, "cannot tell `{}`: {}", message.title, told.sentence());
                self.dropped.fetch_add(dropped, Ordering::Relaxed);
            }
        }
    }

    /// Some kilobytes, once a message. A disk that hangs holds up this sink alone.
    async fn write(&self) {
        let memory = self.memory.clone();
        let _ = tokio::task::spawn_blocking(move || memory.write()).await;
    }
}

/// What is told together, each thing once, in the words of its last time.
#[derive(Default)]
struct Batch {
    found: BTreeMap<String, Notification>,
}

impl Batch {
    fn add(&mut self, finding: Notification) {
        let key = match &finding.same {
            Some(same) => same.about.clone(),
            None => format!("{:06}", self.found.len()),
        };
        self.found.insert(key, finding);
    }

    fn is_empty(&self) -> bool {
        self.found.is_empty()
    }
}

/// What this machine, or container, calls itself.
pub fn host() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").ok();
    let name = name.or_else(|| std::env::var("HOSTNAME").ok());
    let name = name.map(|name| name.trim().to_owned());
    name.filter(|name| !name.is_empty())
        .unwrap_or_else(|| "this machine".into())
}

#[cfg(test)]
mod tests;
