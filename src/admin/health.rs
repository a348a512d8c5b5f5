//! Health, figures and both connections.

use std::time::{Duration, Instant};

use axum::{Json, extract::State, http::StatusCode};
use serde::Serialize;

use super::Api;
use crate::{
    agent::{Handles, lag},
    checkpoint::ClusterTime,
    config::units,
    mongo::Mongo,
    namespace::Namespace,
    progress::ProgressReport,
    queue::QueueStats,
    shutdown::blocking,
    status::{Build, Health, Limits, Phase, Vitals, judge, now_ms},
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
    /// The latest source time at which the copy equalled the local database, RFC 3339.
    pub consistent_as_of: Option<String>,
    pub alerts: Vec<String>,
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
    pub dead_letters: u64,
    pub oldest_pending_ms: Option<u64>,
    pub oplog_window_s: Option<u64>,
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

/// Puts the report together.
pub fn report(handles: &Handles) -> HealthReport {
    let Handles { status, queue, config, .. } = handles;
    let state = status.state().clone();
    let now = now_ms();
    let lag = lag(status, queue);
    let (queue_size, _) = queue.pending();
    let error_rate = status.error_rate();
    let heard = status.metrics.local_heard_ms.get();
    let vitals = Vitals {
        phase: state.phase,
        lag,
        queue_size,
        error_rate,
        local_silence: Duration::from_millis(if heard == 0 {
            0
        } else {
            now.saturating_sub(heard)
        }),
        breaker_open: state.breaker != "closed",
        reading_stopped: state.reading_stopped.is_some(),
    };
    let limits = Limits {
        lag_alert: config.alerts.lag,
        queue_alert: config.alerts.queue_size,
        error_rate_alert: config.alerts.error_rate,
    };
    let (mut health, mut alerts) = judge(&vitals, &limits);
    if let Some(window) = state.oplog_window_s
        && window < config.alerts.oplog_window.as_secs()
    {
        health = Health::Unhealthy;
        alerts.push(format!(
            "the local oplog reaches back only {} before the checkpoint",
            units::show_duration(Duration::from_secs(window))
        ));
    }
    for fault in [&state.local_fault, &state.atlas_fault].into_iter().flatten() {
        if fault.is_denied {
            health = Health::Unhealthy;
            alerts.push(fault.error.clone());
        }
    }
    if state.is_fenced {
        health = Health::Unhealthy;
        alerts.push(
            "the mark of ownership in Atlas could not be renewed; nothing is written until it is"
                .to_owned(),
        );
    }
    for ns in &state.refused_deletes {
        health = Health::Unhealthy;
        alerts.push(format!(
            "`{ns}` holds more documents in Atlas than a comparison may delete (`sync.max_delete_ratio`)"
        ));
    }
    alerts.extend(state.reading_stopped.clone());
    let schema_problems = state.schema_sentences();
    HealthReport {
        status: health,
        sync_lag: format!("{:.1}s", lag.as_secs_f64()),
        sync_lag_ms: lag.as_millis() as u64,
        queue_size,
        error_rate: format!("{:.1}%", error_rate * 100.0),
        last_sync: time(status.metrics.last_applied_ms.get()),
        phase: state.phase,
        breaker: state.breaker,
        consistent_as_of: state.consistent_as_of.map(ClusterTime::millis).and_then(time),
        alerts,
        local_error: state.local_fault.map(|fault| fault.error),
        atlas_error: state.atlas_fault.map(|fault| fault.error),
        sync: state
            .sync
            .filter(|sync| sync.finished_ms.is_none())
            .map(|sync| sync.report(now).brief()),
        schema_problems,
        index_builds: state
            .builds
            .iter()
            .map(|(ns, build)| IndexBuild::new(ns, build, now))
            .collect(),
        not_replicated: state.left_out,
        dead_letters: queue.dead_letters_len(),
        oldest_pending_ms: queue
            .oldest_ms()
            .ok()
            .flatten()
            .map(|oldest| now.saturating_sub(oldest)),
        oplog_window_s: state.oplog_window_s,
    }
}

/// RFC 3339, or nothing for 0, which stands for "never".
pub fn time(ms: u64) -> Option<String> {
    let ms = i64::try_from(ms).ok().filter(|ms| *ms > 0)?;
    bson::DateTime::from_millis(ms).try_to_rfc3339_string().ok()
}

pub(super) async fn health(State(api): State<Api>) -> Json<HealthReport> {
    Json(blocking(move || report(&api.handles)).await)
}

/// Replicating: both ends answer and the first copy is done. Paused by a person counts as ready.
pub(super) async fn ready(State(api): State<Api>) -> (StatusCode, &'static str) {
    let state = api.handles.status.state().clone();
    let replicating = matches!(state.phase, Phase::Streaming | Phase::Paused)
        && state.breaker == "closed"
        && state.local_fault.is_none();
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
    /// Milliseconds from the lease of a batch to its settlement, on average.
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
        last_sync_timestamp: time(metrics.last_applied_ms.get()),
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
    let (local, atlas) = tokio::join!(ask(&api.handles.local), ask(&api.handles.atlas));
    Json(DatabasesReport { local, atlas })
}

async fn ask(mongo: &Mongo) -> DatabaseReport {
    let started = Instant::now();
    match mongo.version().await {
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
            error: Some(error.to_string()),
        },
    }
}
