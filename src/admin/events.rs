//! `GET /api/events`: what the dashboard shows, as server-sent events.
//!
//! First `history`, the samples of the last hour; then `status` every second.

use std::{collections::BTreeMap, convert::Infallible, time::Duration};

use axum::{
    extract::State,
    http::StatusCode,
    response::sse::{Event, Sse},
};
use futures_util::{Stream, StreamExt, stream};
use serde::Serialize;
use tokio::sync::Semaphore;

use super::{
    Api, Problem,
    health::{HealthReport, report},
};
use crate::{
    agent::Handles,
    model::namespace::Namespace,
    observe::{
        progress::ProgressReport,
        status::Figures,
        trend::{SAMPLE_SECONDS, Sample},
    },
    runtime::{clock::now_ms, shutdown::blocking},
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
    /// Another number when the list of dead letters may be another one.
    dead_revision: u64,
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

/// Most streams at the same time, far fewer than connections; and how long one lasts: a page that is looked at
/// asks again at once, one that is forgotten behind a tunnel makes room.
const STREAMS_MAX: usize = 16;
const LASTS: Duration = Duration::from_secs(600);

static STREAMS: Semaphore = Semaphore::const_new(STREAMS_MAX);

pub(super) async fn events(
    State(api): State<Api>,
) -> Result<Sse<impl Stream<Item = Result<Event, Infallible>>>, Problem> {
    let Ok(slot) = STREAMS.try_acquire() else {
        let cause = format!("{STREAMS_MAX} dashboards are open already");
        return Err(Problem::new(StatusCode::SERVICE_UNAVAILABLE, "too many streams of events")
            .cause(cause)
            .hint("close those that nobody looks at"));
    };
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
    let all = stream::once(async { first }).chain(rest).take_until(tokio::time::sleep(LASTS));
    Ok(Sse::new(all.map(move |event| {
        let _held = &slot;
        Ok(event)
    })))
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
    // Each letter that comes counts; one that goes leaves the number smaller.
    let dead_revision = metrics.dead_letters.get() * 1_000_003 + health.dead_letters;
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
        atlas_silence_ms: now.saturating_sub(atlas.heard_ms()),
        breaker_openings: metrics.breaker_openings.get(),
        dead_revision,
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
