//! Telling systemd: READY, one line of status, and the watchdog, all from the same truth as health.
//!
//! READY goes out when the local change stream has answered: Atlas may be away for days, and that is no
//! failed start. The watchdog is fed for as long as [`lives`] says so. Without systemd nothing happens.

use std::time::{Duration, Instant};

use sd_notify::NotifyState;

use crate::{
    agent::{Handles, judged, lives},
    config::units::show_duration,
    observe::metrics::Counter,
    runtime::shutdown::blocking,
};

const TICK: Duration = Duration::from_secs(1);

/// How long the runtime and the queue may stand still.
const STILL_MAX: Duration = Duration::from_secs(60);

/// While the agent prepares itself: everything there has a timeout of its own.
pub async fn feed_while_starting() {
    loop {
        tell(&[NotifyState::Watchdog]);
        tokio::time::sleep(TICK).await;
    }
}

/// For as long as the agent runs.
pub async fn follow(handles: Handles) {
    let mut is_ready = false;
    let mut ticks = Ticks::new(&handles.status.ticks);
    let mut status = String::new();
    loop {
        let of_now = handles.clone();
        let (vitals, health, conditions) = blocking(move || judged(&of_now)).await;
        {
            let reading = &handles.reading;
            let has_read = !reading.position().is_unknown();
            if !is_ready && (has_read || reading.is_stopped()) {
                is_ready = true;
                ready();
            }
        }
        if lives(&handles) && ticks.go_on(&handles.status.ticks) {
            tell(&[NotifyState::Watchdog]);
        }
        let now = conditions.first().map_or_else(
            || {
                let lag = show_duration(Duration::from_secs(vitals.lag.as_secs()));
                format!("{health:?}: {}, {lag} behind", vitals.phase.name())
            },
            |first| format!("{health:?}: {}", first.message),
        );
        if now != status {
            tell(&[NotifyState::Status(&now)]);
            status = now;
        }
        tokio::time::sleep(TICK).await;
    }
}

/// The start is done.
pub fn ready() {
    tell(&[NotifyState::Ready]);
}

/// The agent stops, and may take `shutdown.drain_for` for it.
pub fn stopping() {
    tell(&[NotifyState::Stopping]);
}

/// Whether a service manager listens.
pub fn is_there() -> bool {
    std::env::var_os("NOTIFY_SOCKET").is_some()
}

fn tell(state: &[NotifyState]) {
    // Without the socket of systemd this is no error; with one that fails there is nobody to tell.
    let _ = sd_notify::notify(state);
}

/// Whether [`Status::ticks`](crate::observe::status::Status::ticks) still grow.
struct Ticks {
    seen: u64,
    at: Instant,
}

impl Ticks {
    fn new(ticks: &Counter) -> Self {
        Self { seen: ticks.get(), at: Instant::now() }
    }

    fn go_on(&mut self, ticks: &Counter) -> bool {
        if ticks.get() != self.seen {
            *self = Self::new(ticks);
        }
        self.at.elapsed() < STILL_MAX
    }
}
