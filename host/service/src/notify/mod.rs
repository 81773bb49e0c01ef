//! Notifications about the results of refreshes. An observer of the refreshes puts notifications into a queue for each sink; a
//! task for each sink collects those of some seconds, and delivers one message. Nothing here delays a refresh.
//!
//! [`delivered`] avoids repetition, [`notification`] creates notifications, [`message`] writes their text, and [`sink`]
//! delivers it.

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

/// The capacity of a sink's queue. The largest refresh produces some hundred notifications; more arrive while a sink hangs.
const WAITING_MAX: usize = 1000;
/// The maximum number of notifications in a message. The next message contains the rest.
const BATCH_MAX: usize = 200;

/// Sends notifications to all sinks.
pub struct Notifier {
    queues: Vec<SinkQueue>,
    work: TaskTracker,
    closing: CancellationToken,
}

/// The queue of a sink.
struct SinkQueue {
    sink: Arc<Sink>,
    queue: mpsc::Sender<Delivery>,
    dropped: Arc<AtomicU64>,
}

enum Delivery {
    Found(Box<Notification>),
    /// These no longer apply.
    Settled(Arc<[String]>),
}

/// The task that delivers the messages of one sink.
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
    /// Creates a notifier without sinks.
    pub fn silent() -> Arc<Self> {
        Arc::new(Self {
            queues: vec![],
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
        let queues = sinks.into_iter().map(|sink| {
            let sink = Arc::new(sink);
            let (queue, waiting) = mpsc::channel(WAITING_MAX);
            let dropped = Arc::<AtomicU64>::default();
            let worker = NotificationWorker {
                sink: sink.clone(),
                queue: waiting,
                dropped: dropped.clone(),
                memory: memory.clone(),
                client: client.clone(),
                host: host(),
                closing: closing.clone(),
            };
            work.spawn(worker.run());
            SinkQueue {
                sink,
                queue,
                dropped,
            }
        });
        let queues = queues.collect();
        Ok(Arc::new(Self {
            queues,
            work,
            closing,
        }))
    }

    /// Queues a notification for each sink that wants its kind. It never waits: if a queue is full, Refit counts the
    /// notification as dropped, and the next message contains the count.
    pub fn notify(&self, notification: Notification) {
        for sink_queue in &self.queues {
            if !sink_queue.sink.on.contains(&notification.kind) {
                continue;
            }
            if sink_queue
                .queue
                .try_send(Delivery::Found(Box::new(notification.clone())))
                .is_err()
                && sink_queue.dropped.fetch_add(1, Ordering::Relaxed) == 0
            {
                tracing::warn!(
                    sink = sink_queue.sink.name,
                    "notification queue full, dropping notifications"
                );
            }
        }
    }

    /// Marks subjects as settled: Refit sends a notification again if they recur.
    pub fn settle(&self, settled: Vec<String>) {
        if settled.is_empty() {
            return;
        }
        let settled: Arc<[String]> = settled.into();
        for sink_queue in &self.queues {
            // If the queue is full, the sink misses a repeated notification.
            let _ = sink_queue
                .queue
                .try_send(Delivery::Settled(settled.clone()));
        }
    }

    /// Sends the notifications of a result. It settles subjects first, since a subject that failed and then succeeded appears
    /// as both.
    pub fn notify_all(&self, outcome: Outcome) {
        self.settle(outcome.settled);
        for notification in outcome.findings {
            self.notify(notification);
        }
    }

    pub fn is_silent(&self) -> bool {
        self.queues.is_empty()
    }

    /// Delivers the queued notifications with one attempt, within this limit.
    pub async fn close(&self, limit: Duration) {
        self.closing.cancel();
        self.work.close();
        if tokio::time::timeout(limit, self.work.wait()).await.is_err() {
            tracing::warn!("gave up delivering the last notifications");
        }
    }
}

impl Observer for Notifier {
    fn observe(&self, run: &RefreshHandle, event: &RunEvent<'_>) {
        let RunEvent::Ended(answer) = event else {
            return;
        };
        if !self.is_silent() {
            let by = run.by.as_deref();
            self.notify_all(Outcome::from_refresh(run.id, &run.request, by, answer));
        }
    }
}

impl NotificationWorker {
    async fn run(mut self) {
        while let Some(first) = self.next().await {
            let mut batch = Batch::default();
            self.add(first, &mut batch).await;
            if batch.is_empty() {
                continue;
            }
            let until = Instant::now() + self.sink.batch;
            while batch.found.len() < BATCH_MAX {
                let delivery = tokio::select! {
                    delivery = self.next() => delivery,
                    () = tokio::time::sleep_until(until) => break,
                };
                match delivery {
                    Some(delivery) => self.add(delivery, &mut batch).await,
                    None => break,
                }
            }
            self.deliver(batch).await;
        }
    }

    /// Returns the next item; while closing, only items that are in the queue already.
    async fn next(&mut self) -> Option<Delivery> {
        tokio::select! {
            biased;
            delivery = self.queue.recv() => delivery,
            () = self.closing.cancelled() => None,
        }
    }

    async fn add(&self, delivery: Delivery, batch: &mut Batch) {
        match delivery {
            Delivery::Found(notification) => {
                let is_delivered =
                    |dedup_key| self.memory.has_delivered(&self.sink.name, dedup_key);
                if !notification.dedup_key.as_ref().is_some_and(is_delivered) {
                    batch.add(*notification);
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
                tracing::debug!(sink = sink.name, %status, title = message.title, "notification delivered");
                self.memory.remember(&sink.name, message.dedup_keys());
                self.write().await;
            }
            // The delivery is not recorded, so Refit sends the notifications again if they recur.
            Err(error) => {
                let diagnostic = Diagnostic::of(&error);
                tracing::error!(title = message.title, hints = ?diagnostic.hints, "notification failed: {}", diagnostic.sentence());
                self.dropped.fetch_add(dropped, Ordering::Relaxed);
            }
        }
    }

    /// Writes some kilobytes, once per message. A disk that hangs delays only this sink.
    async fn write(&self) {
        let memory = self.memory.clone();
        let _ = tokio::task::spawn_blocking(move || memory.write()).await;
    }
}

/// The notifications of one message. A repeated subject appears once, with its latest text.
#[derive(Default)]
struct Batch {
    found: BTreeMap<String, Notification>,
}

impl Batch {
    fn add(&mut self, notification: Notification) {
        let key = match &notification.dedup_key {
            Some(dedup_key) => dedup_key.about.clone(),
            None => format!("{:06}", self.found.len()),
        };
        self.found.insert(key, notification);
    }

    fn is_empty(&self) -> bool {
        self.found.is_empty()
    }
}

/// Returns the name of this machine or container.
pub fn host() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").ok();
    let name = name.or_else(|| std::env::var("HOSTNAME").ok());
    let name = name.map(|name| name.trim().to_owned());
    name.filter(|name| !name.is_empty())
        .unwrap_or_else(|| "this machine".into())
}

#[cfg(test)]
mod tests;
