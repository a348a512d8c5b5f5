//! Figures that follow from others, kept up to date: consistency, alerts, the summary of each minute.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use super::{
    Handles,
    alert_delivery::{AlertDelivery, letter},
    monitor::{disproves_equality, distrust_what_waits, lag, sample, update_alerts},
    pause::resume_in_time,
};
use crate::{
    gate::faults::Fault,
    model::checkpoint::ClusterTime,
    observe::{alerts::Notice, status::Status},
    policy::majority::Writes,
    queue::{Queue, note},
    runtime::{clock::now_ms, shutdown::blocking},
    sync::state::SyncState,
};

/// How often the figures are brought up to date, alerts are looked at, a sample is taken, and the summary is
/// logged.
const TICK: Duration = Duration::from_millis(250);
const ALERT_TICKS: u64 = 4;
const SAMPLE_TICKS: u64 = 20;
const SUMMARY_TICKS: u64 = 240;

/// How often the oplog is looked at.
const WINDOW_EVERY: Duration = Duration::from_secs(10);

/// How often the server's last write is compared with the last one that a majority has.
const MAJORITY_EVERY: Duration = Duration::from_secs(1);

/// How often it is looked at what waits in the source, and how long its answer is waited for: a look takes at most such a
/// share of the time.
const BACKLOG_EVERY: Duration = Duration::from_secs(1);
const BACKLOG_PATIENCE: Duration = Duration::from_secs(5);
const BACKLOG_SHARE_MAX: u32 = 20;

/// How often a fault that lasts is repeated in the log.
const SLOW_BEAT: Duration = Duration::from_secs(600);

/// Keeps up to date what follows from other figures, and says once a minute how it goes.
pub(super) async fn tick(handles: Handles, alert_delivery: Arc<AlertDelivery>) {
    let Handles { status, queue, .. } = handles.clone();
    let mut ticks = tokio::time::interval(TICK);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut before = (0, 0, 0);
    let asked = handles.clone();
    let mut kept = blocking(move || {
        distrust_what_waits(&asked);
        remembered_consistency(&asked.queue)
    })
    .await;
    status.state().consistent_as_of = kept;
    let mut faults = [LastingFault::of("local"), LastingFault::of("atlas")];
    for n in 0_u64.. {
        ticks.tick().await;
        let of_now = handles.clone();
        blocking(move || note_consistency(&of_now)).await;
        if n % ALERT_TICKS == 0 {
            resume_in_time(&handles).await;
            let of_now = handles.clone();
            let notices = blocking(move || update_alerts(&of_now)).await;
            for notice in notices {
                say(&notice);
                if handles.config.alerts.webhook.is_some() {
                    alert_delivery.push(letter(&notice, &status));
                }
            }
            let now = [status.faults.local.get(), status.faults.atlas.get()];
            for (lasting, now) in faults.iter_mut().zip(now) {
                if let Some((elapsed, error)) = lasting.look(now, Instant::now()) {
                    let elapsed_ms = elapsed.as_millis() as u64;
                    tracing::warn!(end = lasting.end, elapsed_ms, error, "this still lasts");
                }
            }
        }
        if n % SAMPLE_TICKS == 0 {
            keep_consistency(&status, &queue, &mut kept).await;
            status.sample();
            let handles = handles.clone();
            blocking(move || sample(&handles)).await;
        }
        if n % SUMMARY_TICKS == 0 {
            let (pending, bytes) = queue.pending();
            let metrics = &status.metrics;
            let now = (
                metrics.events_read.get(),
                metrics.ops_coalesced.get(),
                metrics.writes_applied.get(),
            );
            if n > 0 {
                let (told, asked) = (status.clone(), queue.clone());
                let lag_s = blocking(move || lag(&told, &asked).as_secs()).await;
                let breaker = handles.writing.against().breaker.name();
                tracing::info!(
                    events = now.0 - before.0,
                    coalesced = now.1 - before.1,
                    applied = now.2 - before.2,
                    pending,
                    bytes,
                    breaker,
                    lag_s,
                    "the last minute"
                );
            }
            before = now;
        }
    }
}

/// Keeps up to date how far the oplog reaches back. A local database that hangs holds up nothing else.
pub(super) async fn look_at_oplog(handles: Handles) {
    let Handles { status, journal, reading, .. } = handles;
    loop {
        let position = reading.position();
        if position.is_unknown() {
            tokio::time::sleep(TICK).await;
            continue;
        }
        if let Ok(Some(start)) = journal.begin().await {
            let window =
                u64::from(position.seen().seconds()).saturating_sub(u64::from(start.seconds()));
            status.state().oplog_window_s = Some(window);
        }
        tokio::time::sleep(WINDOW_EVERY).await;
    }
}

/// Keeps up to date what the local server has written and no majority has, and what a majority has and is not read yet.
pub(super) async fn look_at_majority(handles: Handles) {
    let Handles { status, journal, reading, .. } = handles;
    loop {
        if let Ok(writes) = journal.last_write().await {
            let (position, now) = (reading.position(), Instant::now());
            let mut state = status.state();
            state.majority.look(writes, now);
            // A first copy may begin long before anything is read of the stream.
            if !position.is_unknown() {
                let (written, committed) = (writes.committed, position.whole());
                state.unread.look(Writes { written, committed, ..Writes::default() }, now);
            }
        }
        tokio::time::sleep(MAJORITY_EVERY).await;
    }
}

/// Keeps up to date what waits in a source that keeps what nobody has read. Who does not answer tells nothing, and that is
/// told as well.
pub(super) async fn look_at_backlog(handles: Handles) {
    let Handles { status, journal, .. } = handles;
    loop {
        let began = Instant::now();
        let looked = tokio::time::timeout(BACKLOG_PATIENCE, journal.backlog()).await;
        let now = Instant::now();
        if let Ok(Ok(backlog)) = looked {
            status.state().waiting.look(backlog, now);
            // It answers, whether it has been asked for rows meanwhile or not: that none are read shows in how old they grow.
            status.metrics.local_heard_ms.set(now_ms());
            let rest = now.duration_since(began) * BACKLOG_SHARE_MAX;
            tokio::time::sleep(BACKLOG_EVERY.max(rest)).await;
        } else {
            status.state().waiting.unanswered();
            tokio::time::sleep(BACKLOG_EVERY).await;
        }
    }
}

fn say(notice: &Notice) {
    match notice {
        Notice::Raised(alert) => {
            let ns = alert.ns.as_deref().unwrap_or_default();
            let runbook = &alert.runbook;
            tracing::warn!(alert = alert.name, ns, error = alert.message, runbook, "alert raised");
        }
        Notice::Cleared(alert, at_ms) => {
            let ns = alert.ns.as_deref().unwrap_or_default();
            let elapsed_ms = at_ms.saturating_sub(alert.since_ms);
            tracing::info!(alert = alert.name, ns, elapsed_ms, "alert cleared");
        }
    }
}

/// A fault of one end. Its begin and its end are logged by who meets it; that it lasts, here.
struct LastingFault {
    end: &'static str,
    since: Option<Instant>,
    told: Option<Instant>,
}

impl LastingFault {
    fn of(end: &'static str) -> Self {
        Self { end, since: None, told: None }
    }

    /// How long it has lasted, and what it is, when that is to be told again.
    fn look(&mut self, fault: Option<Fault>, now: Instant) -> Option<(Duration, String)> {
        let Some(fault) = fault else {
            (self.since, self.told) = (None, None);
            return None;
        };
        let since = *self.since.get_or_insert(now);
        let told = *self.told.get_or_insert(now);
        let is_due = now.duration_since(told) >= SLOW_BEAT;
        is_due.then(|| {
            self.told = Some(now);
            (now.duration_since(since), fault.error)
        })
    }
}

/// Counts for as long as neither the runtime nor the queue is stuck; see [`Status::ticks`].
pub(super) async fn count_ticks(status: Arc<Status>, queue: Arc<Queue>) {
    let mut before = None;
    loop {
        let progress = queue.progress();
        if progress.is_none() || progress != before {
            status.ticks.add(1);
        }
        before = progress;
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

/// An empty queue proves that Atlas has everything up to the position that was read before it was
/// looked at, unless something is known to be missing: a first copy or comparison that is not done, or
/// dead letters.
fn note_consistency(handles: &Handles) {
    let Handles { status, queue, reading, writing, .. } = handles;
    if disproves_equality(handles) {
        status.state().consistent_as_of = None;
        return;
    }
    let position = reading.position();
    let whole = position.whole();
    let is_complete = writing.leaves_nothing()
        && !position.is_within_reply()
        && queue.pending().0 == 0
        && queue.dead_letters_len() == 0
        && matches!(SyncState::is_owed(queue), Ok(false));
    if is_complete && whole > ClusterTime::default() {
        status.state().consistent_as_of = Some(whole);
    }
}

/// The moment of equality that an earlier run has kept; never one that is ahead of what the queue has durably
/// read: after a crash that lost the latest of both, the stream is read again from there.
fn remembered_consistency(queue: &Queue) -> Option<ClusterTime> {
    let stored = queue.meta(note::EQUAL).ok()??;
    let kept = ClusterTime(u64::from_be_bytes(stored.as_slice().try_into().ok()?));
    let checkpoint = queue.checkpoint().ok()??;
    Some(kept.min(checkpoint.cluster_time)).filter(|time| *time > ClusterTime::default())
}

/// Keeps the moment, where it is another one, or none any more. It is written behind the checkpoint that it rests on; a queue that
/// fails is told by whoever needs it.
pub(super) async fn keep_consistency(
    status: &Status,
    queue: &Arc<Queue>,
    kept: &mut Option<ClusterTime>,
) {
    let now = status.state().consistent_as_of;
    if now == *kept {
        return;
    }
    let queue = queue.clone();
    let written = blocking(move || {
        let time = now.map(|time| time.0.to_be_bytes());
        queue.set_meta(note::EQUAL, time.as_ref().map(|bytes| &bytes[..]))
    })
    .await;
    if written.is_ok() {
        *kept = now;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_that_lasts_is_told_every_ten_minutes_with_how_long() {
        let fault = || Some(Fault { error: "away".to_owned(), is_denied: false });
        let start = Instant::now();
        let mut lasting = LastingFault::of("atlas");
        let mut told = Vec::new();

        for second in 0..3_000 {
            let found = lasting.look(fault(), start + Duration::from_secs(second));
            told.extend(found.map(|(elapsed, _)| elapsed.as_secs()));
        }

        assert_eq!(told, [600, 1_200, 1_800, 2_400]);
        assert!(lasting.look(None, start + Duration::from_secs(3_000)).is_none());
        assert!(lasting.look(fault(), start + Duration::from_secs(3_700)).is_none(), "another one");
    }
}
