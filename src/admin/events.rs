//! `GET /api/events`: what the dashboard shows, as server-sent events.
//!
//! First `history`, the samples of the last hour; then `status` every second.

use std::{collections::BTreeMap, convert::Infallible, time::Duration};

use axum::{
    extract::State,
    response::sse::{Event, Sse},
};
use futures_util::{Stream, StreamExt, stream};
use serde::Serialize;

use super::{
    Api,
    health::{HealthReport, report},
};
use crate::{
    agent::Handles,
    history::{SAMPLE_SECONDS, Sample},
    namespace::Namespace,
    progress::ProgressReport,
    shutdown::blocking,
    status::{Figures, now_ms},
};

/// How often the state is sent.
const EVERY: Duration = Duration::from_secs(1);

/// Most collections in one event: those with the most to write, then by name.
const NAMESPACES_MAX: usize = 500;

/// The `status` event.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct StatusEvent {
    now_ms: u64,
    version: &'static str,
    health: HealthReport,
    sample: Option<Sample>,
    totals: Totals,
    namespaces: Vec<NamespaceRow>,
    namespaces_total: usize,
    /// The full sync that runs, or how the last one ended.
    full: Option<ProgressReport>,
    local_silence_ms: u64,
    atlas_silence_ms: u64,
    breaker_openings: u64,
}

/// Since the agent started.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Totals {
    events: u64,
    coalesced: u64,
    writes: u64,
    documents_copied: u64,
    retries: u64,
    sent_bytes: u64,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct NamespaceRow {
    ns: Namespace,
    pending: u64,
    #[serde(flatten)]
    figures: Figures,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct HistoryEvent {
    sample_seconds: u64,
    samples: Vec<Sample>,
}

pub(super) async fn events(
    State(api): State<Api>,
) -> Sse<impl Stream<Item = Result<Event, Infallible>>> {
    let samples = api.handles.monitor.history().samples().copied().collect();
    let first = event("history", &HistoryEvent { sample_seconds: SAMPLE_SECONDS, samples });
    let mut ticks = tokio::time::interval(EVERY);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let rest = stream::unfold((ticks, api), |(mut ticks, api)| async {
        ticks.tick().await;
        let handles = api.handles.clone();
        let status = blocking(move || status(&handles)).await;
        Some((event("status", &status), (ticks, api)))
    });
    Sse::new(stream::once(async { first }).chain(rest).map(Ok))
}

fn event(name: &str, data: &impl Serialize) -> Event {
    let event = Event::default().event(name);
    // These types have no map keys but strings, so they are JSON.
    event.json_data(data).unwrap_or_else(|_| Event::default().event("broken"))
}

fn status(handles: &Handles) -> StatusEvent {
    let Handles { status, atlas, monitor, .. } = handles;
    let now = now_ms();
    let health = report(handles);
    let metrics = &status.metrics;
    let (namespaces, namespaces_total) = rows(handles);
    let full = status.state().sync.as_ref().map(|sync| sync.report(now).brief());
    let sample = monitor.history().last().copied();
    StatusEvent {
        now_ms: now,
        version: env!("CARGO_PKG_VERSION"),
        health,
        sample,
        totals: Totals {
            events: metrics.events_read.get(),
            coalesced: metrics.ops_coalesced.get(),
            writes: metrics.writes_applied.get(),
            documents_copied: metrics.documents_copied.get(),
            retries: metrics.retries.get(),
            sent_bytes: atlas.sent(),
        },
        namespaces,
        namespaces_total,
        full,
        local_silence_ms: now.saturating_sub(metrics.local_heard_ms.get()),
        atlas_silence_ms: now.saturating_sub(metrics.atlas_heard_ms.get()),
        breaker_openings: metrics.breaker_openings.get(),
    }
}

fn rows(handles: &Handles) -> (Vec<NamespaceRow>, usize) {
    let mut pending = handles.queue.pending_by_namespace();
    let known: BTreeMap<Namespace, Figures> = handles.status.state().namespaces.clone();
    let mut rows: Vec<_> = known
        .into_iter()
        .map(|(ns, figures)| NamespaceRow {
            pending: pending.remove(&ns).unwrap_or(0),
            ns,
            figures,
        })
        .collect();
    let unknown = pending.into_iter();
    rows.extend(unknown.map(|(ns, pending)| NamespaceRow {
        ns,
        pending,
        figures: Figures::default(),
    }));
    let total = rows.len();
    rows.sort_by(|a, b| b.pending.cmp(&a.pending).then_with(|| a.ns.cmp(&b.ns)));
    rows.truncate(NAMESPACES_MAX);
    (rows, total)
}
