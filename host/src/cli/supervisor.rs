//! What a daemon tells whoever started it, in systemd's way (sd_notify(3)): that it serves, that it lives, that it stops. Where
//! nobody asked to be told, nothing is said.

use std::time::Duration;

use sd_notify::NotifyState;

/// Of the time after which a service is taken for dead, the part after which it says that it lives: systemd advises half.
const PART: u32 = 2;
/// Nobody is served by more.
const OFTEN: Duration = Duration::from_millis(100);

/// It answers from now on.
pub(super) fn serving() {
    tell(&NotifyState::Ready);
}

/// It was told to stop, and finishes what was begun.
pub(super) fn stopping() {
    tell(&NotifyState::Stopping);
}

/// Says again and again that it lives, until the process ends: what is finished after a stop is watched too. A runtime whose
/// threads all hang runs no task, and then says nothing.
pub(super) async fn lives() {
    let Some(watched) = sd_notify::watchdog_enabled() else {
        return;
    };
    let mut times = tokio::time::interval((watched / PART).max(OFTEN));
    times.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        times.tick().await;
        tell(&NotifyState::Watchdog);
    }
}

fn tell(state: &NotifyState<'_>) {
    if let Err(error) = sd_notify::notify(std::slice::from_ref(state)) {
        tracing::warn!("cannot tell the service manager `{state}`: {error}");
    }
}
