//! `GET /metrics`: everything that is counted, in the text format of Prometheus.
//!
//! The figures live where they are made; here they get their names and help texts. A registry is made for
//! each scrape, so there is nothing that could be forgotten to be brought up to date. Names are
//! `outrigger_<noun>_<unit>[_total]`, units are seconds and bytes.

use axum::{
    extract::State,
    http::header,
    response::{IntoResponse, Response},
};
use prometheus::{
    Counter, Encoder, Gauge, GaugeVec, IntCounter, IntCounterVec, Opts, Registry, TextEncoder,
    core::Collector,
};

use super::{Api, Problem};
use crate::{
    agent::{Handles, judged},
    model::checkpoint::ClusterTime,
    observe::{
        health::{Health, Vitals},
        process::Process,
        status::{Phase, StatusState as Condition},
    },
    policy::breaker::Stage,
    queue::{QueueError, QueueStats, free_disk},
    runtime::{clock::now_ms, shutdown::blocking},
};

const PHASES: [Phase; 7] = [
    Phase::Starting,
    Phase::Standby,
    Phase::Copying,
    Phase::Streaming,
    Phase::Paused,
    Phase::Stopping,
    Phase::Failed,
];

pub(super) async fn scrape(State(api): State<Api>) -> Result<Response, Problem> {
    let body = blocking(move || text(&api.handles)).await?;
    Ok(([(header::CONTENT_TYPE, prometheus::TEXT_FORMAT)], body).into_response())
}

/// Everything, as text.
fn text(handles: &Handles) -> Result<Vec<u8>, QueueError> {
    let page = Exposition(Registry::new());
    let stats = handles.queue.stats()?;
    let state = handles.status.state().clone();
    let (vitals, health, conditions) = judged(handles);
    page.counters(handles);
    page.queue(&stats, handles);
    page.condition(&vitals, health, &state, handles, stats.oldest_ms);
    page.sync(&state);
    page.limits(handles);
    page.gauge_of(
        "outrigger_alerts",
        "Alerts that hold now, by name; no series while none of a name does.",
        "name",
        {
            let mut by_name = std::collections::BTreeMap::new();
            for condition in conditions {
                *by_name.entry(condition.name).or_insert(0.0) += 1.0;
            }
            by_name.into_iter()
        },
    );
    page.process();
    page.add(handles.status.metrics.batch_seconds.clone());
    let mut text = Vec::new();
    // Writing to memory cannot fail, and every family was checked when it was registered.
    let _ = TextEncoder::new().encode(&page.0.gather(), &mut text);
    Ok(text)
}

struct Exposition(Registry);

impl Exposition {
    fn add(&self, collector: impl Collector + 'static) {
        // A name twice is a mistake of this file, which its test would find.
        let registered = self.0.register(Box::new(collector));
        debug_assert!(registered.is_ok(), "{registered:?}");
    }

    fn counter(&self, name: &str, help: &str, value: u64) {
        if let Ok(counter) = IntCounter::new(name, help) {
            counter.inc_by(value);
            self.add(counter);
        }
    }

    fn counter_of(
        &self,
        name: &str,
        help: &str,
        label: &str,
        values: impl Iterator<Item = (&'static str, u64)>,
    ) {
        if let Ok(counters) = IntCounterVec::new(Opts::new(name, help), &[label]) {
            for (value, n) in values {
                counters.with_label_values(&[value]).inc_by(n);
            }
            self.add(counters);
        }
    }

    fn gauge(&self, name: &str, help: &str, value: f64) {
        if let Ok(gauge) = Gauge::new(name, help) {
            gauge.set(value);
            self.add(gauge);
        }
    }

    fn gauge_of(
        &self,
        name: &str,
        help: &str,
        label: &str,
        values: impl Iterator<Item = (&'static str, f64)>,
    ) {
        if let Ok(gauges) = GaugeVec::new(Opts::new(name, help), &[label]) {
            for (value, n) in values {
                gauges.with_label_values(&[value]).set(n);
            }
            self.add(gauges);
        }
    }

    fn counters(&self, handles: &Handles) {
        let metrics = &handles.status.metrics;
        for (name, help, value) in [
            (
                "outrigger_events_read_total",
                "Change events read from the local database.",
                metrics.events_read.get(),
            ),
            (
                "outrigger_ops_coalesced_total",
                "Changes merged into one that waited, each a write that was not made.",
                metrics.ops_coalesced.get(),
            ),
            (
                "outrigger_writes_rejected_total",
                "Attempts to write one document that Atlas rejected.",
                metrics.writes_failed.get(),
            ),
            (
                "outrigger_log_lines_dropped_total",
                "Lines of the log that whoever reads stderr had no room for.",
                crate::observe::logging::dropped(),
            ),
            (
                "outrigger_retries_total",
                "Attempts to write one document that Atlas rejected and that are tried again.",
                metrics.retries.get(),
            ),
            (
                "outrigger_conflicts_resolved_total",
                "Writes that found their unique value with another document, and got it.",
                metrics.conflicts_resolved.get(),
            ),
            (
                "outrigger_local_reads_total",
                "Documents read from the local database to be written whole.",
                metrics.local_reads.get(),
            ),
            (
                "outrigger_documents_copied_total",
                "Documents written by a first copy, past the queue.",
                metrics.documents_copied.get(),
            ),
            (
                "outrigger_atlas_sent_bytes_total",
                "Bytes of the commands sent to Atlas, before compression.",
                handles.atlas.peer.sent(),
            ),
            (
                "outrigger_atlas_received_bytes_total",
                "Bytes of the replies of cursors in Atlas, before compression.",
                handles.atlas.peer.received(),
            ),
            (
                "outrigger_breaker_openings_total",
                "How often writing to Atlas was stopped because Atlas did not answer.",
                metrics.breaker_openings.get(),
            ),
        ] {
            self.counter(name, help, value);
        }
        self.counter_of(
            "outrigger_writes_applied_total",
            "Changes that reached Atlas through the queue, by the kind of write.",
            "op",
            metrics.writes_by_kind.all(),
        );
        self.counter_of(
            "outrigger_dead_letters_total",
            "Changes that Atlas would not take, since the start of the agent, by reason.",
            "reason",
            metrics.dead_letters_by_reason.all(),
        );
        self.misfits(handles);
    }

    fn misfits(&self, handles: &Handles) {
        let help = "Values of another type than a declared column of PostgreSQL has, which are NULL in it, each time that one is written.";
        let name = Opts::new("outrigger_misfits_total", help);
        if let Ok(counters) = IntCounterVec::new(name, &["ns", "column"]) {
            for ((ns, column), n) in handles.status.misfits.all() {
                counters.with_label_values(&[ns.as_str(), &column]).inc_by(n);
            }
            self.add(counters);
        }
    }

    fn queue(&self, stats: &QueueStats, handles: &Handles) {
        let oldest = stats.oldest_ms.map_or(0, |oldest| now_ms().saturating_sub(oldest));
        for (name, help, value) in [
            ("outrigger_queue_documents", "Changes that wait for Atlas.", stats.pending as f64),
            (
                "outrigger_queue_bytes",
                "Encoded size of the changes that wait for Atlas.",
                stats.pending_bytes as f64,
            ),
            (
                "outrigger_queue_leased_documents",
                "Changes that wait for Atlas and are being written at this moment.",
                stats.leased as f64,
            ),
            (
                "outrigger_queue_delayed_documents",
                "Changes that Atlas rejected and that wait for their next attempt.",
                stats.delayed as f64,
            ),
            (
                "outrigger_queue_oldest_seconds",
                "Age of the oldest change that waits for Atlas; 0 when none does.",
                seconds(oldest),
            ),
            (
                "outrigger_queue_disk_bytes",
                "Size of the files of the queue of changes, waiting or not.",
                stats.disk_bytes as f64,
            ),
            (
                "outrigger_dead_letters",
                "Changes that Atlas would not take and that are kept for a person, at this moment.",
                stats.dead_letters as f64,
            ),
        ] {
            self.gauge(name, help, value);
        }
        if let Some(free) = free_disk(&handles.config.queue.path) {
            let help = "Free space of the disk that the queue is on, for the agent's user.";
            self.gauge("outrigger_queue_free_disk_bytes", help, free as f64);
        }
    }

    fn condition(
        &self,
        vitals: &Vitals,
        health: Health,
        state: &Condition,
        handles: &Handles,
        oldest: Option<u64>,
    ) {
        let metrics = &handles.status.metrics;
        let now = now_ms();
        let age = |ms: u64| seconds(if ms == 0 { 0 } else { now.saturating_sub(ms) });
        let breaker = match handles.writing.against().breaker {
            Stage::Closed => 0.0,
            Stage::HalfOpen => 1.0,
            Stage::Open => 2.0,
        };
        for (name, help, value) in [
            (
                "outrigger_lag_seconds",
                "How far Atlas is behind the local database.",
                vitals.lag.as_secs_f64(),
            ),
            (
                "outrigger_read_lag_seconds",
                "Age of the newest change that was read; the time since the stream answered, when there was none.",
                age(metrics.read_wall_ms.get()),
            ),
            (
                "outrigger_applied_lag_seconds",
                "Age of the oldest change that was read and is not in Atlas; 0 when there is none.",
                oldest.map_or(0.0, age),
            ),
            (
                "outrigger_local_majority_lag_seconds",
                "Age of the oldest local write that no majority of the replica set has; 0 when all have one.",
                vitals.uncommitted.as_secs_f64(),
            ),
            (
                "outrigger_error_ratio",
                "Share of the writes of the last five minutes that Atlas rejected.",
                vitals.recent_writes.error_rate(),
            ),
            (
                "outrigger_local_silence_seconds",
                "Time since the local change stream answered.",
                vitals.local_silence.as_secs_f64(),
            ),
            (
                "outrigger_atlas_silence_seconds",
                "Time since Atlas answered anything.",
                vitals.atlas_silence.as_secs_f64(),
            ),
            (
                "outrigger_breaker_state",
                "Whether writes go to Atlas: 0 closed (they do), 1 half-open, 2 open.",
                breaker,
            ),
            (
                "outrigger_paused",
                "1 while a person has paused the writing to Atlas.",
                f64::from(u8::from(vitals.is_paused)),
            ),
            (
                "outrigger_pause_ends_timestamp_seconds",
                "When a pause ends by itself; 0 while there is none, and where a person must end it.",
                handles.writing.paused().and_then(|pause| pause.until_ms).map_or(0.0, seconds),
            ),
            (
                "outrigger_health_state",
                "Health: 0 healthy, 1 degraded, 2 unhealthy.",
                match health {
                    Health::Healthy => 0.0,
                    Health::Degraded => 1.0,
                    Health::Unhealthy => 2.0,
                },
            ),
            (
                "outrigger_checkpoint_age_seconds",
                "Time since the position in the stream was last committed.",
                age(metrics.checkpoint_ms.get()),
            ),
            (
                "outrigger_last_applied_timestamp_seconds",
                "When Atlas last took a change; 0: never.",
                seconds(metrics.last_applied_ms.get()),
            ),
            (
                "outrigger_consistent_as_of_timestamp_seconds",
                "The latest source time at which the copy equalled the local database; 0: not yet.",
                seconds(state.consistent_as_of.map_or(0, ClusterTime::millis)),
            ),
            (
                "outrigger_reading_stopped",
                "1 while nothing is read because the queue is at a limit.",
                f64::from(u8::from(handles.reading.is_stopped())),
            ),
        ] {
            self.gauge(name, help, value);
        }
        if let Some(window) = vitals.oplog_window {
            let help = "How far the local oplog reaches back before the checkpoint.";
            self.gauge("outrigger_oplog_window_seconds", help, window.as_secs_f64());
        }
        // Not there while it is not known: no row and no answer are not the same.
        if let Some(backlog) = state.waiting.known() {
            let help = "Rows of the outbox that nobody has read yet.";
            self.gauge("outrigger_outbox_rows", help, backlog.rows as f64);
            let help = "For how long the oldest of them has waited, by the clock of its database; 0 when none waits.";
            let oldest = backlog.oldest.unwrap_or_default().as_secs_f64();
            self.gauge("outrigger_outbox_oldest_row_seconds", help, oldest);
        }
        let of = |phase: Phase| (phase.name(), f64::from(u8::from(phase == state.phase)));
        self.gauge_of(
            "outrigger_phase",
            "1 for the phase that the agent is in, 0 for the others.",
            "phase",
            PHASES.into_iter().map(of),
        );
        self.gauge_of(
            "outrigger_build_info",
            "Always 1, with the version of the agent as a label.",
            "version",
            std::iter::once((env!("CARGO_PKG_VERSION"), 1.0)),
        );
    }

    /// Where the system tells nothing of it, nothing is shown.
    fn process(&self) {
        let Ok(found) = Process::now() else { return };
        let help = "User and system CPU time of this process.";
        if let Ok(counter) = Counter::new("process_cpu_seconds_total", help) {
            counter.inc_by(found.cpu_seconds);
            self.add(counter);
        }
        for (name, help, value) in [
            (
                "process_virtual_memory_bytes",
                "Virtual memory of this process.",
                Some(found.virtual_bytes as f64),
            ),
            (
                "process_resident_memory_bytes",
                "Memory that this process takes.",
                Some(found.resident_bytes as f64),
            ),
            ("process_threads", "Threads of this process.", Some(found.threads as f64)),
            (
                "process_start_time_seconds",
                "When this process started, since 1970.",
                Some(found.start_seconds),
            ),
            ("process_open_fds", "Files and sockets that are open.", Some(found.open_files as f64)),
            (
                "process_max_fds",
                "How many files and sockets may be open.",
                found.open_files_max.map(|max| max as f64),
            ),
        ] {
            if let Some(value) = value {
                self.gauge(name, help, value);
            }
        }
    }

    /// What is configured, so that a rule needs no figure of its own.
    fn limits(&self, handles: &Handles) {
        let (alerts, queue) = (&handles.config.alerts, &handles.config.queue);
        for (name, help, value) in [
            (
                "outrigger_lag_limit_seconds",
                "How far Atlas may be behind without an alert (alerts.lag).",
                alerts.lag.as_secs_f64(),
            ),
            (
                "outrigger_queue_limit_documents",
                "How many changes may wait without an alert (alerts.queue_size).",
                alerts.queue_size as f64,
            ),
            (
                "outrigger_error_limit_ratio",
                "Share of writes that Atlas may reject without an alert (alerts.error_rate).",
                alerts.error_rate,
            ),
            (
                "outrigger_oplog_window_limit_seconds",
                "How far back the local oplog must reach before the checkpoint, without an alert (alerts.oplog_window).",
                alerts.oplog_window.as_secs_f64(),
            ),
            (
                "outrigger_queue_free_disk_limit_bytes",
                "Free space of the queue's disk at which reading stops (queue.min_free_disk).",
                queue.min_free_disk as f64,
            ),
        ] {
            self.gauge(name, help, value);
        }
    }

    fn sync(&self, state: &Condition) {
        let running = state.sync.as_ref().filter(|sync| sync.finished_ms.is_none());
        let report = running.map(|sync| sync.report(now_ms())).unwrap_or_default();
        let is_running = f64::from(u8::from(running.is_some()));
        for (name, help, value) in [
            ("outrigger_sync_running", "1 while a copy or a full sync runs.", is_running),
            (
                "outrigger_sync_documents",
                "Documents that the copy or full sync that runs has to do, as the server estimates; 0 while none runs.",
                report.documents as f64,
            ),
            (
                "outrigger_sync_documents_done",
                "Documents that the copy or full sync that runs has done; 0 while none runs.",
                report.documents_done as f64,
            ),
            (
                "outrigger_sync_mismatches",
                "Documents that the full sync that runs found missing, extra or different in Atlas; 0 while none runs.",
                (report.missing + report.extra + report.content) as f64,
            ),
        ] {
            self.gauge(name, help, value);
        }
    }
}

fn seconds(ms: u64) -> f64 {
    ms as f64 / 1000.0
}
