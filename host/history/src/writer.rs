//! The thread that writes, so that a refresh never waits long for a disk.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use refit_model::diagnostic::Diagnostic;
use tokio::sync::{mpsc, oneshot};

use super::file::{self, File, Location};
use super::{HistoryError, Id, LastError, RefreshEnd, RefreshStart, Retention};

/// The maximum number of open rows of one process. Each refresh works on containers; far fewer are useful.
const UNDER_WAY_MAX: usize = 1000;

/// The number of ended refreshes that are kept for another attempt: enough for a disk that is full for a while, with 256 MiB of
/// reports at most.
const UNWRITTEN_MAX: usize = 16;

pub(super) enum Message {
    Begin {
        key: u64,
        row: Box<Row>,
        /// Receives the number of the row, if it has one.
        written: oneshot::Sender<Option<Id>>,
    },
    End {
        key: u64,
        duration: Duration,
        ended: Box<RefreshEnd>,
        written: oneshot::Sender<()>,
    },
    Close {
        written: oneshot::Sender<()>,
    },
}

/// The row of one refresh, as far as it is known.
pub(super) struct Row {
    /// Its number in the file, once it is there.
    pub(super) id: Option<Id>,
    pub(super) started: jiff::Timestamp,
    pub(super) by: Option<String>,
    pub(super) begun: RefreshStart,
    pub(super) ended: Option<(RefreshEnd, Duration)>,
}

impl Row {
    pub(super) fn new(refresh_start: RefreshStart) -> Self {
        Self {
            id: None,
            started: jiff::Timestamp::now(),
            by: refresh_start.by.clone(),
            begun: refresh_start,
            ended: None,
        }
    }
}

/// Starts the thread. It ends on [`Message::Close`], or when no sender is left.
pub(super) fn start(
    location: Location,
    retention: Retention,
    mut messages: mpsc::Receiver<Message>,
    last_error: LastError,
) -> std::io::Result<()> {
    let mut writer = Writer {
        location,
        retention,
        last_error,
        file: None,
        under_way: HashMap::new(),
        unwritten: VecDeque::new(),
    };
    let run = move || {
        // Open the file at once, so that a daemon reports a history that it cannot write before the first refresh.
        if let Err(error) = writer.file() {
            writer.last_error.set(Some(Diagnostic::of(&error)));
        }
        while let Some(message) = messages.blocking_recv() {
            if let Message::Close { written } = message {
                messages.close();
                writer.retry_unwritten();
                drop(writer);
                let _ = written.send(());
                return;
            }
            writer.handle(message);
        }
    };
    let thread = std::thread::Builder::new().name("refit-history".into());
    thread.spawn(run).map(drop)
}

struct Writer {
    location: Location,
    retention: Retention,
    last_error: LastError,
    file: Option<File>,
    under_way: HashMap<u64, Row>,
    unwritten: VecDeque<Row>,
}

impl Writer {
    fn handle(&mut self, message: Message) {
        self.retry_unwritten();
        match message {
            Message::Begin {
                key,
                mut row,
                written,
            } => {
                if self.under_way.len() >= UNDER_WAY_MAX {
                    tracing::warn!(
                        "more than {UNDER_WAY_MAX} refreshes are under way, one is missing from the history"
                    );
                    return;
                }
                self.put(&mut row);
                let _ = written.send(row.id);
                self.under_way.insert(key, *row);
            }
            Message::End {
                key,
                duration,
                ended,
                written,
            } => {
                let Some(mut row) = self.under_way.remove(&key) else {
                    return;
                };
                row.ended = Some((*ended, duration));
                if !self.put(&mut row) {
                    self.unwritten.push_back(row);
                    if self.unwritten.len() > UNWRITTEN_MAX {
                        self.unwritten.pop_front();
                    }
                }
                let _ = written.send(());
            }
            Message::Close { .. } => {}
        }
    }

    /// Writes the rows that could not be written earlier.
    fn retry_unwritten(&mut self) {
        while let Some(mut row) = self.unwritten.pop_front() {
            if !self.put(&mut row) {
                self.unwritten.push_front(row);
                return;
            }
        }
    }

    /// Writes a row, and returns whether it is in the file. A failure is reported.
    fn put(&mut self, row: &mut Row) -> bool {
        let began = Instant::now();
        let result = self.try_put(row);
        tracing::trace!(id = ?row.id, took = ?began.elapsed(), "history row written");
        match result {
            Ok(()) => {
                self.last_error.set(None);
                true
            }
            Err(error) => {
                // Open it again next time: the connection may belong to a file that no longer exists.
                self.file = None;
                self.last_error.set(Some(Diagnostic::of(&error)));
                false
            }
        }
    }

    fn try_put(&mut self, row: &mut Row) -> Result<(), HistoryError> {
        let retention = self.retention;
        match self.file().and_then(|file| file.put(row, retention)) {
            Err(HistoryError::Damaged { .. }) => {
                if let Some(damaged) = self.file.take() {
                    damaged.rename_damaged(&self.location)?;
                }
                self.file()?.put(row, retention)
            }
            result => result,
        }
    }

    fn file(&mut self) -> Result<&mut File, HistoryError> {
        // Another process has renamed it, or a person has removed it.
        if self.file.as_ref().is_some_and(|file| !file.is_in_place()) {
            self.file = None;
        }
        match &mut self.file {
            Some(file) => Ok(file),
            none => Ok(none.insert(file::open(&self.location, self.retention)?)),
        }
    }
}
