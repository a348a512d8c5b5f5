//! How the agent is: health and what speaks against it, put together from the figures as they are now; and what it
//! remembers of itself, the alerts that are raised and the last hour.

use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};

use super::Handles;
use crate::{
    config::Config,
    gate::{faults::OfAnEnd, writing::Against},
    observe::{
        alerts::{Notice, RaisedAlerts},
        health::{Condition, Health, KnownFault, Vitals, is_alive, judge},
        runbook::Runbook,
        status::{Phase, Status, Unshowable},
        trend::{History, Sample, Totals},
    },
    policy::breaker::Stage,
    queue::Queue,
    runtime::clock::now_ms,
    sync::state::SyncState,
};

/// How long something that is over at once is told of: longer than it takes to look at the conditions.
const TOLD_FOR: Duration = Duration::from_secs(60);

/// Shared by those who ask.
#[derive(Debug, Default)]
pub struct Monitor {
    alerts: Mutex<RaisedAlerts>,
    history: Mutex<History>,
}

impl Monitor {
    pub(super) fn new(config: &Config) -> Self {
        Self { alerts: Mutex::new(RaisedAlerts::of(Runbook::of(config))), ..Self::default() }
    }

    pub fn alerts(&self) -> MutexGuard<'_, RaisedAlerts> {
        self.alerts.lock()
    }

    pub fn history(&self) -> MutexGuard<'_, History> {
        self.history.lock()
    }
}

/// The figures that health follows from, as they are now. Reads the queue, so call it off the async
/// threads.
pub fn vitals(handles: &Handles) -> Vitals {
    let Handles { status, queue, local, atlas, reading, writing, .. } = handles;
    let lag = lag(status, queue);
    let (queue_size, _) = queue.pending();
    let error_rate = status.error_rate();
    let dead_letters = queue.dead_letters_len();
    let (now, against) = (now_ms(), writing.against());
    let unshowable = status.state().unshowable.clone();
    let unshowable = unshowable.filter(|found| still_holds(found, queue, now));
    let state = status.state();
    let denied = |end: &OfAnEnd| end.get().filter(|fault| fault.is_denied).map(|fault| fault.error);
    Vitals {
        phase: state.phase,
        lag,
        queue_size,
        error_rate,
        // A server that is asked and answers that it works on the question (a long look through its oplog) is not
        // silent, however long its answer takes; `lag` shows how long that is.
        local_silence: match local.at_work_since() {
            Some(_) => Duration::ZERO,
            None => since(status.metrics.local_heard_ms.get(), now),
        },
        atlas_silence: since(atlas.heard_ms(), now),
        uncommitted: state.majority.uncommitted(),
        local_delay: state.majority.delay(),
        is_paused: against.is_paused,
        breaker_open: against.breaker != Stage::Closed,
        reading_stopped: reading.stopped(),
        oplog_window: state.oplog_window_s.map(Duration::from_secs),
        unshowable,
        local_denied: denied(&status.faults.local),
        atlas_denied: denied(&status.faults.atlas),
        is_fenced: against.is_fenced,
        refused_deletes: writing.refused_deletes(),
        not_ours: writing.not_ours().into_iter().map(|(ns, why)| (ns.to_string(), why)).collect(),
        divergences: state.divergences.clone(),
        dead_letters,
    }
}

/// What was passed over is told of until everything is compared, and for as long as it takes to be noticed.
fn still_holds(unshowable: &Unshowable, queue: &Queue, now_ms: u64) -> bool {
    match unshowable {
        Unshowable::Failing(_) => true,
        Unshowable::PassedOver { at_ms } => {
            now_ms.saturating_sub(*at_ms) < TOLD_FOR.as_millis() as u64
                || matches!(SyncState::is_unshowable(queue), Ok(true))
        }
    }
}

fn since(heard_ms: u64, now_ms: u64) -> Duration {
    // 0: the agent does not run yet.
    Duration::from_millis(if heard_ms == 0 { 0 } else { now_ms.saturating_sub(heard_ms) })
}

/// Health as it is now, and every condition that holds.
pub fn judged(handles: &Handles) -> (Vitals, Health, Vec<Condition>) {
    let vitals = vitals(handles);
    let (health, conditions) = judge(&vitals, &handles.config.alerts);
    (vitals, health, conditions)
}

/// Brings the alerts up to date; returns what is to be told.
pub(super) fn update_alerts(handles: &Handles) -> Vec<Notice> {
    let (_, _, conditions) = judged(handles);
    handles.monitor.alerts().update(&conditions, now_ms())
}

/// Adds a sample to the last hour.
pub(super) fn sample(handles: &Handles) {
    let Handles { status, queue, monitor, .. } = handles;
    let (pending, pending_bytes) = queue.pending();
    let metrics = &status.metrics;
    let totals = Totals {
        events: metrics.events_read.get(),
        writes: metrics.writes_applied.get() + metrics.documents_copied.get(),
    };
    let lag_ms = lag(status, queue).as_millis() as u64;
    let sample = Sample { at_ms: now_ms(), lag_ms, pending, pending_bytes, ..Sample::default() };
    monitor.history().add(sample, totals);
}

/// See [`is_alive`]: what the watchdog of systemd is told.
pub fn lives(handles: &Handles) -> bool {
    let Handles { status, config, local: local_end, atlas: atlas_end, .. } = handles;
    let Against { breaker, is_fenced, .. } = handles.writing.against();
    let now = now_ms();
    let patience = 3 * config.local.timeout.max(config.atlas.timeout);
    let state = status.state();
    // Reading has ended then, and what is left may take `shutdown.drain_for`.
    if state.phase == Phase::Stopping {
        return true;
    }
    let known = |is_known| if is_known { KnownFault::Yes } else { KnownFault::No };
    // While reading stands still the stream is not asked; while the lease cannot be renewed, that is known.
    let local = known(status.faults.local.is_any() || handles.reading.is_stopped());
    let atlas = known(status.faults.atlas.is_any() || breaker != Stage::Closed || is_fenced);
    is_alive(
        (since(status.metrics.local_heard_ms.get().max(local_end.heard_ms()), now), local),
        (since(atlas_end.heard_ms(), now), atlas),
        patience,
    )
}

/// How far Atlas is behind the local database: the age of the oldest change that is not there yet.
/// Changes that were not read yet are counted through the stream's silence, and through what the server tells of
/// writes that no majority has.
pub fn lag(status: &Status, queue: &Queue) -> Duration {
    let now = now_ms();
    let oldest = queue.oldest_ms().ok().flatten();
    let unapplied = oldest.map_or(0, |oldest| now.saturating_sub(oldest));
    let heard = status.metrics.local_heard_ms.get();
    // The stream answers at least every second, so what goes beyond two is time of which nothing is known.
    let silence = if heard == 0 { 0 } else { now.saturating_sub(heard).saturating_sub(2_000) };
    let unread = status.state().majority.behind();
    Duration::from_millis(unapplied.max(silence)).max(unread)
}
