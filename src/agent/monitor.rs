//! How the agent is: health and what speaks against it, put together from the figures as they are now; and what it
//! remembers of itself, the alerts that are raised and the last hour.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

use parking_lot::{Mutex, MutexGuard};

use super::Handles;
use crate::{
    config::Config,
    gate::{faults::OfAnEnd, lease::BootTime, writing::Against},
    observe::{
        alerts::{Notice, RaisedAlerts},
        health::{Condition, Health, KnownFault, Vitals, is_alive, judge},
        marks::{Facts, Kind},
        progress::{Activity, Share},
        runbook::Runbook,
        status::{Counted, Phase, Status, Unshowable},
        trend::{History, Sample, Totals},
        verdict::{Moment, Verdict, verdict},
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
    /// The code of the verdict, and since when it is that one.
    told: Mutex<Option<(&'static str, u64)>>,
    /// How far was read when more was last known to be missing in Atlas than what waits, by the times of the changes
    /// that wait. Milliseconds since 1970.
    gap_ms: AtomicU64,
    /// When the last run ended whose differences are in `gap_ms`: one may begin and end between two looks.
    run_ms: AtomicU64,
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

    /// Since when the verdict has this code: an outage that outlived the agent began before it.
    fn since(&self, code: &'static str, now_ms: u64) -> u64 {
        let noted = {
            let mut told = self.told.lock();
            let noted = told.filter(|(before, _)| *before == code).map_or(now_ms, |(_, at)| at);
            *told = Some((code, noted));
            noted
        };
        let kind = match code {
            "atlas_away" | "atlas_denied" | "both_away" => Kind::AtlasAway,
            "local_away" | "local_denied" => Kind::LocalAway,
            "paused" => Kind::Pause,
            _ => return noted,
        };
        let history = self.history();
        let open = history.marks().find(|mark| mark.kind == kind && mark.until_ms.is_none());
        open.map_or(noted, |mark| mark.from_ms.min(noted))
    }
}

/// The figures that health follows from, as they are now. Reads the queue, so call it off the async
/// threads.
pub fn vitals(handles: &Handles) -> Vitals {
    let Handles { status, queue, local, atlas, reading, writing, .. } = handles;
    let oldest = queue.oldest().unwrap_or_default();
    let lag = behind(status, oldest.ms);
    let lag_of_flow = behind(status, oldest.but_for_retries_ms);
    let (queue_size, _) = queue.pending();
    let recent_writes = status.recent_writes();
    let dead_letters = queue.dead_letters_len();
    let (now, against) = (now_ms(), writing.against());
    let unshowable = status.state().unshowable.clone();
    let unshowable = unshowable.filter(|found| still_holds(found, queue, now));
    let state = status.state();
    let denied = |end: &OfAnEnd| end.get().filter(|fault| fault.is_denied).map(|fault| fault.error);
    Vitals {
        phase: state.phase,
        lag,
        lag_of_retries: lag.saturating_sub(lag_of_flow),
        queue_size,
        recent_writes,
        // A server that is asked and answers that it works on the question (a long look through its oplog) is not
        // silent, however long its answer takes; `lag` shows how long that is.
        local_silence: match local.peer.at_work_since() {
            Some(_) => Duration::ZERO,
            None => since(status.metrics.local_heard_ms.get(), now),
        },
        atlas_silence: since(atlas.peer.heard_ms(), now),
        backlog: state.waiting.known().map_or(0, |backlog| backlog.rows),
        is_backlog_unknown: state.waiting.is_unknown(),
        uncommitted: state.majority.uncommitted(),
        local_delay: state.majority.delay(),
        is_paused: against.is_paused,
        breaker_open: against.breaker != Stage::Closed,
        reading_stopped: reading.stopped(),
        oplog_window: state.oplog_window_s.map(Duration::from_secs),
        unshowable,
        is_put_back: matches!(SyncState::is_put_back(queue), Ok(true)),
        local_denied: denied(&status.faults.local),
        atlas_denied: denied(&status.faults.atlas),
        is_fenced: against.is_fenced,
        has_lost_source: writing.lease().has_lost_source(BootTime::now()),
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

/// The same with the cause of it.
pub fn judgement(handles: &Handles) -> (Vitals, Health, Vec<Condition>, Verdict) {
    let (vitals, health, conditions) = judged(handles);
    let Handles { status, writing, monitor, .. } = handles;
    let against = Against { is_fenced: vitals.is_fenced, ..writing.against() };
    let flow = status.flow(against);
    let said = |end: &OfAnEnd| end.get().map(|fault| fault.error);
    let (local_error, atlas_error) = (said(&status.faults.local), said(&status.faults.atlas));
    let moment = Moment {
        vitals: &vitals,
        health,
        conditions: &conditions,
        flow,
        local_error: local_error.as_deref(),
        atlas_error: atlas_error.as_deref(),
    };
    let mut verdict = verdict(&moment);
    verdict.since_ms = monitor.since(verdict.code, now_ms());
    (vitals, health, conditions, verdict)
}

/// True when nothing is missing in Atlas but what waits, and that by the times of its changes: a difference that a
/// comparison found has been there for longer than its entry. So both sides must have been equal once since.
pub fn is_gapless(handles: &Handles) -> bool {
    let gap_ms = handles.monitor.gap_ms.load(Ordering::Relaxed);
    let equal = handles.status.state().consistent_as_of;
    !has_gap(handles) && (gap_ms == 0 || equal.is_some_and(|equal| equal.millis() > gap_ms))
}

fn has_gap(handles: &Handles) -> bool {
    differs(handles)
        || !handles.writing.leaves_nothing()
        || !matches!(SyncState::is_owed(&handles.queue), Ok(false))
}

/// True while the two sides are known to differ in more than what waits: a comparison has found something, which
/// one that only reports leaves as it is, or the documents were counted.
fn differs(handles: &Handles) -> bool {
    let state = handles.status.state();
    let is_found = state.sync.as_ref().is_some_and(|sync| {
        (sync.finished_ms.is_none() || sync.activity == Activity::DryRun)
            && sync.shares.values().any(Share::differs)
    });
    let is_counted = |counted: Counted| matches!(counted, Counted::All | Counted::Staying);
    is_found || state.divergences.iter().any(|found| is_counted(found.counted))
}

/// True when a moment of equality that was named says nothing of this Atlas, or was none: the sides differ, or the target
/// or what is replicated is another one now. A history that was lost since leaves it as it was.
pub(super) fn disproves_equality(handles: &Handles) -> bool {
    differs(handles)
        || SyncState::open(&handles.queue)
            .map_or(true, |open| open.is_some_and(|open| open.is_of_another()))
}

/// What waits when the agent starts may be what a comparison has found: its times are those of the comparison then.
pub(super) fn distrust_what_waits(handles: &Handles) {
    if handles.queue.pending().0 > 0 {
        let checkpoint = handles.queue.checkpoint().ok().flatten();
        let read_ms = checkpoint.map_or(0, |checkpoint| checkpoint.cluster_time.millis());
        handles.monitor.gap_ms.store(read_ms.max(1), Ordering::Relaxed);
    }
}

/// True once for each run that has ended with differences.
fn has_found_in_between(handles: &Handles) -> bool {
    let ended = {
        let state = handles.status.state();
        let sync = state.sync.as_ref().filter(|sync| sync.shares.values().any(Share::differs));
        sync.and_then(|sync| sync.finished_ms)
    };
    let Some(ended) = ended else { return false };
    handles.monitor.run_ms.swap(ended, Ordering::Relaxed) != ended
}

/// Brings the alerts, and the marks in the charts, up to date; returns what is to be told.
pub(super) fn update_alerts(handles: &Handles) -> Vec<Notice> {
    if has_found_in_between(handles) || has_gap(handles) {
        let read_ms = handles.reading.position().whole().millis();
        handles.monitor.gap_ms.store(read_ms.max(1), Ordering::Relaxed);
    }
    let facts = facts(handles);
    handles.monitor.history().look(&facts, now_ms());
    let (_, _, conditions, _) = judgement(handles);
    handles.monitor.alerts().update(&conditions, now_ms())
}

fn facts(handles: &Handles) -> Facts {
    let Handles { status, writing, .. } = handles;
    let against = writing.against();
    let faults = &status.faults;
    let (is_local_away, has_fault) = (faults.local.is_any(), faults.atlas.is_any());
    let state = status.state();
    // An agent that has just started has not asked Atlas yet.
    let is_known = state.phase != Phase::Starting || has_fault;
    let is_away = has_fault || against.breaker != Stage::Closed;
    let schema_writes = status.metrics.writes_by_kind.all().find(|(kind, _)| *kind == "schema");
    Facts {
        is_atlas_away: is_known.then_some(is_away),
        is_local_away,
        is_paused: against.is_paused,
        sync: state
            .sync
            .as_ref()
            .map(|sync| (sync.started_ms, sync.finished_ms, sync.reason.clone())),
        schema_writes: schema_writes.map_or(0, |(_, n)| n),
    }
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
    // While it stands by, it asks nothing of Atlas.
    let is_standby = state.phase == Phase::Standby;
    let known = |is_known| if is_known { KnownFault::Yes } else { KnownFault::No };
    // While reading stands still the stream is not asked; while the lease cannot be renewed, that is known.
    let local = known(status.faults.local.is_any() || handles.reading.is_stopped());
    let atlas =
        known(is_standby || status.faults.atlas.is_any() || breaker != Stage::Closed || is_fenced);
    is_alive(
        (since(status.metrics.local_heard_ms.get().max(local_end.peer.heard_ms()), now), local),
        (since(atlas_end.peer.heard_ms(), now), atlas),
        patience,
    )
}

/// How far Atlas is behind the local database: the age of the oldest change that is not there yet.
/// Changes that were not read yet are counted through the stream's silence, and through what the server tells of
/// writes that no majority has or that are not read yet, or a source of what waits in it.
pub fn lag(status: &Status, queue: &Queue) -> Duration {
    behind(status, queue.oldest_ms().ok().flatten())
}

/// The same, where `oldest` of all that is queued counts.
fn behind(status: &Status, oldest: Option<u64>) -> Duration {
    let now = now_ms();
    let (there_ms, unread) = {
        let state = status.state();
        let unread = state.majority.behind().max(state.unread.behind());
        let unread = unread.max(state.waiting.oldest(Instant::now()));
        (state.waiting.there_ms(now), unread)
    };
    let unapplied = oldest.map_or(0, |oldest| there_ms.saturating_sub(oldest));
    let heard = status.metrics.local_heard_ms.get();
    // The stream answers at least every second, so what goes beyond two is time of which nothing is known.
    let silence = if heard == 0 { 0 } else { now.saturating_sub(heard).saturating_sub(2_000) };
    Duration::from_millis(unapplied.max(silence)).max(unread)
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;

    use super::*;
    use crate::{model::checkpoint::ClusterTime, policy::majority::Writes, queue::QueueOptions};

    #[test]
    fn what_is_not_read_yet_is_behind_although_nothing_waits_and_the_stream_has_just_answered() {
        let dir = TempDir::new().unwrap();
        let queue = Queue::open(&QueueOptions::new(dir.path())).unwrap();
        let (status, start) = (Status::default(), Instant::now());
        let look = |written, read, after| {
            let (written, committed) = (ClusterTime(written), ClusterTime(read));
            let writes = Writes { written, committed, ..Writes::default() };
            status.state().unread.look(writes, start + Duration::from_secs(after));
            status.metrics.local_heard_ms.set(now_ms());
            lag(&status, &queue)
        };

        assert_eq!(look(100, 50, 0), Duration::ZERO, "it is as old as it was seen to be");
        assert_eq!(look(200, 99, 15), Duration::from_secs(15));
        assert_eq!(look(300, 100, 20), Duration::from_secs(5), "what came behind the first look");
        assert_eq!(look(300, 300, 21), Duration::ZERO);
    }
}
