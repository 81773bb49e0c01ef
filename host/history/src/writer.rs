//! The thread that writes, so that no refresh waits for a disk longer than it chooses to.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use refit_model::diagnostic::Diagnostic;
use tokio::sync::{mpsc, oneshot};

use super::file::{self, File, Location};
use super::{HistoryError, Id, RefreshEnd, RefreshStart, Retention, Trouble};

/// Refreshes of one process that are under way at once and written down. Each holds containers; far fewer make sense.
const UNDER_WAY_MAX: usize = 1000;

/// Ends that could not be written and are tried again: enough for a disk that is full for a while, in 256 MiB of reports at most.
const UNWRITTEN_MAX: usize = 16;

pub(super) enum Message {
    Begin {
        key: u64,
        row: Box<Row>,
        /// Told its place in the file, where it has one.
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

/// One refresh, as far as it is known.
pub(super) struct Row {
    /// Where it is in the file, once it is there.
    pub(super) id: Option<Id>,
    pub(super) started: jiff::Timestamp,
    pub(super) by: Option<String>,
    pub(super) begun: RefreshStart,
    pub(super) ended: Option<(RefreshEnd, Duration)>,
}

impl Row {
    pub(super) fn new(begun: RefreshStart) -> Self {
        Self {
            id: None,
            started: jiff::Timestamp::now(),
            by: begun.by.clone(),
            begun,
            ended: None,
        }
    }
}

/// It ends when it is told to, or when nobody can give it anything any more.
pub(super) fn start(
    place: Location,
    keep: Retention,
    mut messages: mpsc::Receiver<Message>,
    trouble: Trouble,
) -> std::io::Result<()> {
    let mut writer = Writer {
        place,
        keep,
        trouble,
        file: None,
        under_way: HashMap::new(),
        unwritten: VecDeque::new(),
    };
    let work = move || {
        // At once, so that a daemon tells of a history that it cannot write before it is asked for anything.
        if let Err(error) = writer.file() {
            writer.trouble.set(Some(Diagnostic::of(&error)));
        }
        while let Some(message) = messages.blocking_recv() {
            if let Message::Close { written } = message {
                messages.close();
                writer.catch_up();
                drop(writer);
                let _ = written.send(());
                return;
            }
            writer.take(message);
        }
    };
    let thread = std::thread::Builder::new().name("refit-history".into());
    thread.spawn(work).map(drop)
}

struct Writer {
    place: Location,
    keep: Retention,
    trouble: Trouble,
    file: Option<File>,
    under_way: HashMap<u64, Row>,
    unwritten: VecDeque<Row>,
}

impl Writer {
    fn take(&mut self, message: Message) {
        self.catch_up();
        match message {
            Message::Begin {
                key,
                mut row,
                written,
            } => {
                if self.under_way.len() >= UNDER_WAY_MAX {
                    tracing::warn!(
                        "{UNDER_WAY_MAX} refreshes are under way: another one is not written down"
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

    /// What could not be written when its time was.
    fn catch_up(&mut self) {
        while let Some(mut row) = self.unwritten.pop_front() {
            if !self.put(&mut row) {
                self.unwritten.push_front(row);
                return;
            }
        }
    }

    /// Whether it is in the file now. Where it is not, that has been told.
    fn put(&mut self, row: &mut Row) -> bool {
        let began = Instant::now();
        let put = self.try_put(row);
        tracing::trace!(id = ?row.id, took = ?began.elapsed(), "wrote to the history");
        match put {
            Ok(()) => {
                self.trouble.set(None);
                true
            }
            Err(error) => {
                // Opened anew next time: a connection that failed may be to a file that is no more.
                self.file = None;
                self.trouble.set(Some(Diagnostic::of(&error)));
                false
            }
        }
    }

    fn try_put(&mut self, row: &mut Row) -> Result<(), HistoryError> {
        let keep = self.keep;
        match self.file().and_then(|file| file.put(row, keep)) {
            Err(HistoryError::Damaged { .. }) => {
                if let Some(damaged) = self.file.take() {
                    damaged.move_aside(&self.place)?;
                }
                self.file()?.put(row, keep)
            }
            done => done,
        }
    }

    fn file(&mut self) -> Result<&mut File, HistoryError> {
        // Another process has moved it aside, or a person has removed it.
        if self.file.as_ref().is_some_and(|file| !file.is_in_place()) {
            self.file = None;
        }
        match &mut self.file {
            Some(file) => Ok(file),
            none => Ok(none.insert(file::open(&self.place, self.keep)?)),
        }
    }
}
