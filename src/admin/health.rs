//! Health, figures and both connections.

use std::time::{Duration, Instant};

use axum::{Json, extract::State, http::StatusCode};
use serde::Serialize;

use super::{Api, queue::Paused};
use crate::{
    agent::{Handles, is_gapless, judgement},
    gate::writing::Against,
    model::{checkpoint::ClusterTime, namespace::Namespace},
    mongo::MongoError,
    observe::{
        alerts::Alert,
        health::Health,
        progress::ProgressReport,
        status::{Flow, Phase},
        trend::Sample,
        verdict::Verdict,
    },
    policy::{
        breaker::Stage,
        majority,
        outlook::{Outlook, Point, Reached, Room, outlook, recovery_point},
    },
    queue::{QueueStats, free_disk},
    runtime::{
        clock::{now_ms, rfc3339},
        shutdown::blocking,
    },
    schema::watch::Build,
    side::Peer,
};

/// `GET /api/sync/health`.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct HealthReport {
    pub status: Health,
    pub sync_lag: String,
    pub sync_lag_ms: u64,
    pub queue_size: u64,
    pub error_rate: String,
    /// When Atlas last took a change, RFC 3339.
    pub last_sync: Option<String>,
    pub phase: Phase,
    pub breaker: &'static str,
    /// Whether changes reach Atlas right now.
    pub flow: Flow,
    /// False while nothing says how far Atlas is behind; the lag is what is known at least.
    pub lag_known: bool,
    /// The latest source time at which the copy equalled the local database, RFC 3339.
    pub consistent_as_of: Option<String>,
    /// What holds right now, a sentence each.
    pub alerts: Vec<String>,
    /// The alerts that were raised and are not cleared, with names that stay.
    pub raised: Vec<Alert>,
    /// A person has stopped the writing to Atlas.
    pub paused: bool,
    /// Why, by whom, and until when; `null` while nobody has.
    pub pause: Option<Paused>,
    pub local_error: Option<String>,
    pub atlas_error: Option<String>,
    /// The full sync that runs: the first copy, or one that was asked for.
    pub sync: Option<ProgressReport>,
    /// What Atlas does not take of options and indexes, and what the last full sync could not do.
    pub schema_problems: Vec<String>,
    /// Indexes that are being built in Atlas.
    pub index_builds: Vec<IndexBuild>,
    /// What is chosen and cannot be replicated, with the reason.
    pub not_replicated: Vec<String>,
    /// Values of another type than their column has, which are NULL in it, since the start of the agent.
    pub misfits: Vec<MisfitReport>,
    pub dead_letters: u64,
    pub oldest_pending_ms: Option<u64>,
    /// Rows of an outbox that nobody has read yet, and for how long the oldest has waited, by the clock of its database. `null` for another
    /// source, and while it does not answer.
    pub waiting_rows: Option<u64>,
    pub oldest_row_ms: Option<u64>,
    /// Who reads the outbox, while this agent stands by.
    pub read_by: Option<String>,
    pub oplog_window_s: Option<u64>,
    /// How long the local server has been looking through its oplog for what comes behind the checkpoint.
    pub local_scan_ms: Option<u64>,
    /// The cause of it all, what it means, and what to do.
    pub verdict: Verdict,
    pub outlook: OutlookReport,
}

/// How long things last, and when they are over, at the rate of the last minutes.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct OutlookReport {
    /// Until Atlas is tried again, while it does not answer.
    pub next_try_ms: Option<u64>,
    pub queue_full_in_s: Option<u64>,
    pub disk_low_in_s: Option<u64>,
    pub caught_up_in_s: Option<u64>,
    /// Everything that was made before is in Atlas, but for what the dead letters hold. RFC 3339, in whole seconds.
    pub in_atlas_until: Option<String>,
}

/// Reads the queue.
fn outlook_of(handles: &Handles, read_ms: u64, oldest_ms: Option<u64>) -> OutlookReport {
    let Handles { status, monitor, writing, config, .. } = handles;
    let limits = &config.queue;
    let room = Room {
        max_documents: limits.max_documents,
        max_bytes: limits.max_bytes,
        min_free_disk: limits.min_free_disk,
        free_disk: free_disk(&limits.path),
    };
    let of_sample = |sample: &Sample| Point {
        at_ms: sample.at_ms,
        documents: sample.pending,
        bytes: sample.pending_bytes,
    };
    let points: Vec<_> = monitor.history().samples().map(of_sample).collect();
    let Outlook { queue_full_in, disk_low_in, caught_up_in } = outlook(&points, &room);
    // Each lets go of the status before the next asks for it.
    let equal_ms = status.state().consistent_as_of.map(ClusterTime::millis);
    let is_gapless = is_gapless(handles);
    let reached = Reached { read_ms, oldest_ms, equal_ms, is_gapless };
    let seconds = |time: Option<Duration>| time.map(|time| time.as_secs());
    OutlookReport {
        next_try_ms: writing.next_try(Instant::now()).map(|wait| wait.as_millis() as u64),
        queue_full_in_s: seconds(queue_full_in),
        disk_low_in_s: seconds(disk_low_in),
        caught_up_in_s: seconds(caught_up_in),
        in_atlas_until: recovery_point(reached).and_then(rfc3339),
    }
}

/// What one declared column could not take.
#[derive(Debug, Serialize)]
pub struct MisfitReport {
    pub ns: Namespace,
    pub column: String,
    pub values: u64,
}

/// Indexes of one collection that are being built.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct IndexBuild {
    pub ns: Namespace,
    pub indexes: Vec<String>,
    pub running_ms: u64,
    /// Where Atlas tells it.
    pub percent: Option<u8>,
}

impl IndexBuild {
    fn new(ns: &Namespace, build: &Build, now_ms: u64) -> Self {
        let Build { indexes, since_ms, percent } = build.clone();
        Self { ns: ns.clone(), indexes, running_ms: now_ms.saturating_sub(since_ms), percent }
    }
}

/// Puts the report together. Reads the queue, so call it off the async threads.
pub fn report(handles: &Handles) -> HealthReport {
    let Handles { status, queue, local, monitor, reading, writing, .. } = handles;
    let (vitals, health, conditions, verdict) = judgement(handles);
    let raised = monitor.alerts().raised().to_vec();
    let state = status.state().clone();
    let (against, now) = (writing.against(), now_ms());
    let backlog = state.waiting.known();
    let listed = handles.watch.all_listed().into_iter().flat_map(|(ns, problems)| {
        problems.into_iter().map(move |problem| format!("`{ns}`: {problem}"))
    });
    let schema_problems = state.sync_problems.iter().cloned().chain(listed).collect();
    // Asked for before the queue is: what is read in between is not in it, and would pass for written.
    // By the clock of a server that is ahead, more would be in Atlas than was ever made.
    let read_ms = reading.position().whole().millis().min(now);
    let oldest_ms = queue.oldest_ms().ok().flatten();
    HealthReport {
        status: health,
        sync_lag: format!("{:.1}s", vitals.lag.as_secs_f64()),
        sync_lag_ms: vitals.lag.as_millis() as u64,
        queue_size: vitals.queue_size,
        error_rate: format!("{:.1}%", vitals.recent_writes.error_rate() * 100.0),
        last_sync: rfc3339(status.metrics.last_applied_ms.get()),
        phase: state.phase,
        breaker: against.breaker.name(),
        flow: status.flow(Against { is_fenced: vitals.is_fenced, ..against }),
        lag_known: status.knows_lag(against, reading.position()),
        consistent_as_of: state.consistent_as_of.map(ClusterTime::millis).and_then(rfc3339),
        alerts: conditions.into_iter().map(|condition| condition.message).collect(),
        raised,
        paused: against.is_paused,
        pause: writing.paused().as_ref().map(Paused::from),
        local_error: status.faults.local.get().map(|fault| fault.error),
        atlas_error: status.faults.atlas.get().map(|fault| fault.error),
        sync: state
            .sync
            .filter(|sync| sync.finished_ms.is_none())
            .map(|sync| sync.report(now).brief()),
        schema_problems,
        index_builds: handles
            .watch
            .builds()
            .iter()
            .map(|(ns, build)| IndexBuild::new(ns, build, now))
            .collect(),
        not_replicated: {
            let not_ours = writing.not_ours().into_iter();
            let not_ours = not_ours.map(|(ns, why)| format!("`{ns}`: {why}"));
            not_ours.chain(state.left_out.iter().cloned()).collect()
        },
        misfits: status
            .misfits
            .all()
            .into_iter()
            .map(|((ns, column), values)| MisfitReport { ns, column, values })
            .collect(),
        dead_letters: vitals.dead_letters,
        oldest_pending_ms: oldest_ms.map(|oldest| now.saturating_sub(oldest)),
        waiting_rows: backlog.map(|backlog| backlog.rows),
        oldest_row_ms: backlog
            .and_then(|backlog| backlog.oldest)
            .map(|oldest| oldest.as_millis() as u64),
        read_by: state.read_by,
        oplog_window_s: state.oplog_window_s,
        local_scan_ms: local.peer.at_work_since().map(|since| now.saturating_sub(since)),
        verdict,
        outlook: outlook_of(handles, read_ms, oldest_ms),
    }
}

pub(super) async fn health(State(api): State<Api>) -> Json<HealthReport> {
    Json(blocking(move || report(&api.handles)).await)
}

/// Replicating, or standing by to do so: both ends answer, the local one has a majority, and the first copy is done. Paused by a person counts as ready.
pub(super) async fn ready(State(api): State<Api>) -> (StatusCode, &'static str) {
    let state = api.handles.status.state().clone();
    let has_majority = state.majority.uncommitted() <= majority::PATIENCE;
    let replicating = matches!(state.phase, Phase::Streaming | Phase::Paused | Phase::Standby)
        && api.handles.writing.against().breaker == Stage::Closed
        && !api.handles.status.faults.local.is_any()
        && has_majority;
    if replicating {
        (StatusCode::OK, "ready\n")
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, "not ready\n")
    }
}

/// `GET /api/sync/metrics`.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct MetricsReport {
    total_operations: u64,
    successful_syncs: u64,
    failed_syncs: u64,
    queue_size: u64,
    /// Milliseconds from the lease of a batch to its ack, on average.
    avg_sync_time: f64,
    last_sync_timestamp: Option<String>,
    coalesced_operations: u64,
    retries: u64,
    conflicts_resolved: u64,
    dead_lettered: u64,
    local_reads: u64,
    documents_copied: u64,
    batches: u64,
    breaker_openings: u64,
    queue: QueueStats,
}

pub(super) async fn metrics(State(api): State<Api>) -> Result<Json<MetricsReport>, super::Problem> {
    let queue = super::with_queue(&api, crate::queue::Queue::stats).await?;
    let metrics = &api.handles.status.metrics;
    let batches = metrics.batches.get();
    Ok(Json(MetricsReport {
        total_operations: metrics.events_read.get(),
        successful_syncs: metrics.writes_applied.get(),
        failed_syncs: metrics.writes_failed.get(),
        queue_size: queue.pending,
        avg_sync_time: metrics.batch_micros.get() as f64 / 1000.0 / batches.max(1) as f64,
        last_sync_timestamp: rfc3339(metrics.last_applied_ms.get()),
        coalesced_operations: metrics.ops_coalesced.get(),
        retries: metrics.retries.get(),
        conflicts_resolved: metrics.conflicts_resolved.get(),
        dead_lettered: metrics.dead_letters.get(),
        local_reads: metrics.local_reads.get(),
        documents_copied: metrics.documents_copied.get(),
        batches,
        breaker_openings: metrics.breaker_openings.get(),
        queue,
    }))
}

/// `GET /api/sync/databases`: one for each end.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct DatabaseReport {
    state: &'static str,
    version: Option<String>,
    round_trip_ms: Option<f64>,
    error: Option<String>,
}

#[derive(Debug, Serialize)]
pub struct DatabasesReport {
    local: DatabaseReport,
    atlas: DatabaseReport,
}

pub(super) async fn databases(State(api): State<Api>) -> Json<DatabasesReport> {
    let (local, atlas) = tokio::join!(ask(&*api.handles.local.peer), ask(&*api.handles.atlas.peer));
    Json(DatabasesReport { local, atlas })
}

/// Longest wait for an end.
const PATIENCE: Duration = Duration::from_secs(10);

async fn ask(peer: &dyn Peer) -> DatabaseReport {
    let started = Instant::now();
    // An end that hangs must not make the answer hang.
    let version = tokio::time::timeout(PATIENCE, peer.version()).await;
    match version.unwrap_or_else(|_| Err(MongoError::Silent(PATIENCE).to_string())) {
        Ok(version) => DatabaseReport {
            state: "connected",
            version: Some(version),
            round_trip_ms: Some(started.elapsed().as_secs_f64() * 1000.0),
            error: None,
        },
        Err(error) => DatabaseReport {
            state: "disconnected",
            version: None,
            round_trip_ms: None,
            error: Some(error),
        },
    }
}
