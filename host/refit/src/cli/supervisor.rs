//! Reports the daemon's state to the service manager with systemd's protocol (sd_notify(3)): ready, alive, stopping. Without a
//! service manager it reports nothing.

use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::time::Duration;

use sd_notify::NotifyState;

/// The watchdog interval as a fraction of the manager's timeout: systemd recommends half.
const WATCHDOG_DIVISOR: u32 = 2;
/// The shortest interval; more messages help nobody.
const INTERVAL_MIN: Duration = Duration::from_millis(100);
/// The queue of messages. It fills up only if the manager reads none.
const QUEUE_MAX: usize = 8;

/// A connection to the service manager. Sending may block, so a separate thread does it.
#[derive(Clone)]
pub(super) struct Supervisor(SyncSender<NotifyState<'static>>);

impl Supervisor {
    pub(super) fn connect() -> Self {
        let (sender, receiver) = sync_channel(QUEUE_MAX);
        let thread = std::thread::Builder::new()
            .name("supervisor".into())
            .spawn(move || send_messages(&receiver));
        if let Err(error) = thread {
            tracing::warn!("cannot tell the service manager anything: {error}");
        }
        Self(sender)
    }

    /// Report that the daemon is ready.
    pub(super) fn report_ready(&self) {
        self.queue(NotifyState::Ready);
    }

    /// Report that the daemon stops, and finishes its started work.
    pub(super) fn report_stopping(&self) {
        self.queue(NotifyState::Stopping);
    }

    /// Report regularly that the daemon is alive, until the process ends: the work after a stop is watched too. If all threads of
    /// the runtime hang, this task does not run, and the reports stop.
    pub(super) async fn report_alive(self) {
        let Some(watched) = sd_notify::watchdog_enabled() else {
            return;
        };
        let mut times = tokio::time::interval((watched / WATCHDOG_DIVISOR).max(INTERVAL_MIN));
        times.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            times.tick().await;
            self.queue(NotifyState::Watchdog);
        }
    }

    fn queue(&self, state: NotifyState<'static>) {
        if let Err(TrySendError::Full(state)) = self.0.try_send(state) {
            tracing::debug!("the service manager does not listen, and is not told `{state}`");
        }
    }
}

fn send_messages(receiver: &Receiver<NotifyState<'static>>) {
    // Messages are sent several times a second, so a failure is logged once.
    let mut is_reachable = true;
    for state in receiver {
        let result = sd_notify::notify(std::slice::from_ref(&state));
        if let (true, Err(error)) = (is_reachable, &result) {
            tracing::warn!("cannot tell the service manager `{state}`: {error}");
        }
        is_reachable = result.is_ok();
    }
}
