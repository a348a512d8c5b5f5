//! `GET /api/events`: what the dashboard shows, as server-sent events.
//!
//! First `history`, the samples of the last hour; then `status` every second.
//!
//! With `?changes=true`, as the dashboard asks: the first `status` is whole, and what follows are events `change`, each a merge
//! patch (RFC 7396) of the state before. Of the collections come those that are looked at (`filter`, `sort`, `limit`), in an
//! object by name; `history` holds rows, of the last day too, and only what is later than `since`.

use std::{collections::BTreeMap, convert::Infallible, time::Duration};

use axum::{
    extract::{Query, State, rejection::QueryRejection},
    http::StatusCode,
    response::sse::{Event, Sse},
};
use futures_util::{Stream, StreamExt, stream};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use tokio::sync::Semaphore;

use super::{
    Api, Problem, SEE,
    about::About,
    collections::{Shown, Sort, View, chosen},
    difference::{difference, without_nulls},
    health::{HealthReport, report},
};
use crate::{
    agent::Handles,
    model::namespace::Namespace,
    observe::{
        marks::Mark,
        progress::ProgressReport,
        status::Figures,
        trend::{DAY_SAMPLE_SECONDS, Row, SAMPLE_SECONDS, Sample},
        words,
    },
    runtime::{clock::now_ms, shutdown::blocking},
};

/// How often the state is sent.
const EVERY: Duration = Duration::from_secs(1);

/// Most collections in one event: those with the most to write, then by name; of a view that names no number.
const NAMESPACES_MAX: usize = 500;
const VIEW_MAX: usize = 20;

/// What is asked for.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Asked {
    changes: bool,
    since: u64,
    filter: String,
    sort: Sort,
    limit: Option<usize>,
}

/// The `status` event.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct StatusEvent {
    now_ms: u64,
    version: &'static str,
    health: HealthReport,
    sample: Option<Sample>,
    totals: Totals,
    #[serde(flatten)]
    namespaces: Namespaces,
    /// The full sync that runs, or how the last one ended.
    full: Option<ProgressReport>,
    local_silence_ms: u64,
    atlas_silence_ms: u64,
    breaker_openings: u64,
    /// Another number when the list of dead letters may be another one.
    dead_revision: u64,
}

/// The collections, in one of two shapes.
#[derive(Debug, Serialize)]
#[serde(untagged, rename_all_fields = "camelCase")]
enum Namespaces {
    List { namespaces: Vec<NamespaceRow>, namespaces_total: usize },
    View { about: About, collections: Shown, marks: BTreeMap<String, Mark> },
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

/// See [`Sample::row`].
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct RowsEvent {
    sample_seconds: u64,
    samples: Vec<Row>,
    day_seconds: u64,
    day: Vec<Row>,
}

/// Most streams at the same time, far fewer than connections; and how long one lasts: a page that is looked at
/// asks again at once, one that is forgotten behind a tunnel makes room.
const STREAMS_MAX: usize = 16;
const LASTS: Duration = Duration::from_secs(600);

static STREAMS: Semaphore = Semaphore::const_new(STREAMS_MAX);

pub(super) async fn events(
    State(api): State<Api>,
    asked: Result<Query<Asked>, QueryRejection>,
) -> Result<Sse<impl Stream<Item = Result<Event, Infallible>>>, Problem> {
    let Query(asked) = asked.map_err(|refused| {
        Problem::new(StatusCode::BAD_REQUEST, "the query is not understood")
            .cause(refused.body_text())
            .hint(SEE)
    })?;
    let Ok(slot) = STREAMS.try_acquire() else {
        let cause = format!("{STREAMS_MAX} dashboards are open already");
        return Err(Problem::new(StatusCode::SERVICE_UNAVAILABLE, "too many streams of events")
            .cause(cause)
            .hint("close those that nobody looks at"));
    };
    let first = history(&api.handles, &asked);
    let Asked { changes, filter, sort, limit, .. } = asked;
    let view = changes.then_some(View { filter, sort, limit });
    let mut ticks = tokio::time::interval(EVERY);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let rest = stream::unfold((ticks, api, view, None), |(mut ticks, api, view, before)| async {
        ticks.tick().await;
        let handles = api.handles.clone();
        let (event, view, before) = blocking(move || next(&handles, view, before)).await;
        Some((event, (ticks, api, view, before)))
    });
    let all = stream::once(async { first }).chain(rest).take_until(tokio::time::sleep(LASTS));
    Ok(Sse::new(all.map(move |event| {
        let _held = &slot;
        Ok(event)
    })))
}

fn history(handles: &Handles, asked: &Asked) -> Event {
    let history = handles.monitor.history();
    if !asked.changes {
        let samples = history.samples().copied().collect();
        return event("history", &HistoryEvent { sample_seconds: SAMPLE_SECONDS, samples });
    }
    // A clock that was set back: the page's own rows are of a time to come.
    let since = if asked.since > now_ms() { 0 } else { asked.since };
    let rows = |samples: &mut dyn Iterator<Item = &Sample>| -> Vec<Row> {
        samples.filter(|sample| sample.at_ms > since).map(Sample::row).collect()
    };
    let (samples, day) = (rows(&mut history.samples()), rows(&mut history.day()));
    let (sample_seconds, day_seconds) = (SAMPLE_SECONDS, DAY_SAMPLE_SECONDS);
    event("history", &RowsEvent { sample_seconds, samples, day_seconds, day })
}

/// The state, or what has changed of it since the event `before`.
fn next(
    handles: &Handles,
    view: Option<View>,
    before: Option<Value>,
) -> (Event, Option<View>, Option<Value>) {
    let status = status(handles, view.as_ref());
    // These types have no map keys but strings, so they are JSON.
    let mut told = serde_json::to_value(&status).unwrap_or_default();
    words::told_in(&mut told);
    if view.is_none() {
        return (event("status", &told), view, None);
    }
    let now = without_nulls(told);
    let event = match &before {
        None => event("status", &now),
        Some(before) => {
            event("change", &difference(before, &now).unwrap_or_else(|| Value::Object(Map::new())))
        }
    };
    (event, view, Some(now))
}

fn event(name: &str, data: &impl Serialize) -> Event {
    let event = Event::default().event(name);
    event.json_data(data).unwrap_or_else(|_| Event::default().event("broken"))
}

fn status(handles: &Handles, view: Option<&View>) -> StatusEvent {
    let Handles { status, atlas, monitor, .. } = handles;
    let now = now_ms();
    let health = report(handles);
    let metrics = &status.metrics;
    let namespaces = match view {
        None => listed(handles),
        Some(view) => viewed(handles, view, &health),
    };
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
            sent_bytes: atlas.peer.sent(),
        },
        namespaces,
        full,
        local_silence_ms: now.saturating_sub(metrics.local_heard_ms.get()),
        atlas_silence_ms: now.saturating_sub(atlas.peer.heard_ms()),
        breaker_openings: metrics.breaker_openings.get(),
        dead_revision,
    }
}

/// Every collection that was counted or written to, with what waits for it.
fn rows(handles: &Handles) -> impl Iterator<Item = (Namespace, u64, Figures)> {
    let mut pending = handles.queue.pending_by_namespace();
    let known: BTreeMap<Namespace, Figures> = handles.status.state().namespaces.clone();
    let known: Vec<_> = known
        .into_iter()
        .map(|(ns, figures)| {
            let pending = pending.remove(&ns).unwrap_or(0);
            (ns, pending, figures)
        })
        .collect();
    let unknown = pending.into_iter().map(|(ns, pending)| (ns, pending, Figures::default()));
    known.into_iter().chain(unknown)
}

fn listed(handles: &Handles) -> Namespaces {
    let mut rows: Vec<_> =
        rows(handles).map(|(ns, pending, figures)| NamespaceRow { ns, pending, figures }).collect();
    let total = rows.len();
    rows.sort_by(|a, b| b.pending.cmp(&a.pending).then_with(|| a.ns.cmp(&b.ns)));
    rows.truncate(NAMESPACES_MAX);
    Namespaces::List { namespaces: rows, namespaces_total: total }
}

fn viewed(handles: &Handles, view: &View, health: &HealthReport) -> Namespaces {
    let row = |(ns, pending, figures): (Namespace, u64, Figures)| {
        let about = health.raised.iter().filter(|alert| alert.ns.as_deref() == Some(ns.as_str()));
        let alerts = about.map(|alert| alert.name).collect();
        (ns, super::collections::Row { pending, figures, alerts })
    };
    let collections = chosen(rows(handles).map(row).collect(), view, VIEW_MAX);
    let marks = handles.monitor.history().marks().cloned().collect::<Vec<_>>();
    let named = |mark: Mark| (format!("{}-{:?}", mark.from_ms, mark.kind), mark);
    Namespaces::View {
        about: About::of(handles),
        collections,
        marks: marks.into_iter().map(named).collect(),
    }
}
