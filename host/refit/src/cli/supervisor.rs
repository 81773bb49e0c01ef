//! What a daemon tells whoever started it, in systemd's way (sd_notify(3)): that it serves, that it lives, that it stops. Where
//! nobody asked to be told, nothing is said.

use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::time::Duration;

use sd_notify::NotifyState;

/// Of the time after which a service is taken for dead, the part after which it says that it lives: systemd advises half.
const PART: u32 = 2;
/// Nobody is served by more.
const OFTEN: Duration = Duration::from_millis(100);
/// What may wait to be told. More wait only where nobody listens.
const WAITING_MAX: usize = 8;

/// A way to the service manager. Telling it may take as long as it likes, so that is done in a thread of its own.
#[derive(Clone)]
pub(super) struct Supervisor(SyncSender<NotifyState<'static>>);

impl Supervisor {
    pub(super) fn find() -> Self {
        let (told, telling) = sync_channel(WAITING_MAX);
        let begun = std::thread::Builder::new()
            .name("supervisor".into())
            .spawn(move || tell(&telling));
        if let Err(error) = begun {
            tracing::warn!("cannot tell the service manager anything: {error}");
        }
        Self(told)
    }

    /// It answers from now on.
    pub(super) fn serving(&self) {
        self.say(NotifyState::Ready);
    }

    /// It was told to stop, and finishes what was begun.
    pub(super) fn stopping(&self) {
        self.say(NotifyState::Stopping);
    }

    /// Says again and again that it lives, until the process ends: what is finished after a stop is watched too. A runtime whose
    /// threads all hang runs no task, and then says nothing.
    pub(super) async fn lives(self) {
        let Some(watched) = sd_notify::watchdog_enabled() else {
            return;
        };
        let mut times = tokio::time::interval((watched / PART).max(OFTEN));
        times.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            times.tick().await;
            self.say(NotifyState::Watchdog);
        }
    }

    fn say(&self, state: NotifyState<'static>) {
        if let Err(TrySendError::Full(state)) = self.0.try_send(state) {
            tracing::debug!("the service manager does not listen, and is not told `{state}`");
        }
    }
}

fn tell(telling: &Receiver<NotifyState<'static>>) {
    // It is told several times a second that the daemon lives; that it cannot be is worth a line.
    let mut works = true;
    for state in telling {
        let told = sd_notify::notify(std::slice::from_ref(&state));
        if let (true, Err(error)) = (works, &told) {
            tracing::warn!("cannot tell the service manager `{state}`: {error}");
        }
        works = told.is_ok();
    }
}
